"""The flags for training with several processes; test_faults.py trains with them."""

import pytest
from test_main import DIGITS, message

from ali_jax.program import hosts


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--coordinator_address=here"], "it must be HOST:PORT, or auto"),
        (["--coordinator_address=here:1"], "needs --num_processes and --process_id too"),
        (["--coordinator_address=here:1", "--num_processes=2", "--process_id=2"], "it must be from 0 to 1"),
        (["--coordinator_address=auto", "--process_id=0"], "finds out --num_processes and --process_id"),
        (["--num_processes=2"], "need --coordinator_address"),
        (["--coordinator_address=auto", "--mode=describe"], "goes with --mode train"),
        (["--coordinator_addres=auto"], "Did you mean --coordinator_address?"),
    ],
)
def test_a_usage_error_is_one_message(tmp_path, capsys, arguments, expected):
    run = ["--config", DIGITS, "--workdir", str(tmp_path / "run"), *arguments]
    assert expected in message(capsys, run, 2)


def test_a_single_process_is_never_preempted_by_others():
    assert not hosts.preempted(0, 10)
