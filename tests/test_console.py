"""What a person sees of a run: as much as was asked for, a population as a whole, nothing of libraries."""

import pytest
from absl import logging
from test_main import DIGITS, command, write_config

from ali_jax.program.command import UsageError, parse
from ali_jax.records.writers import Terminal, print_table

SCALARS = {"k": 0.25, "k/std": 0.0625, "k/low": 0.2, "k/high": 0.3, "k/0": 0.75, "k/1": 0.5, "n_test": 397.0}


def test_a_table_shows_a_population_without_its_members_and_counts_below(capsys):
    print_table("Evaluation", {**SCALARS, "raw/k": 0.125})
    text = capsys.readouterr().out
    row = next(line.split() for line in text.splitlines() if line.split()[:1] == ["k"])
    assert row == ["k", "0.25", "0.0625", "0.2", "to", "0.3", "0.125"]
    assert "0.75" not in text
    assert text.rstrip().endswith("n_test 397")


def test_a_single_run_has_values_only(capsys):
    print_table("Evaluation", {"k": 0.25, "n_test": 397.0})
    words = capsys.readouterr().out.split()
    assert "value" in words
    assert not {"std", "raw", "interval"} & set(words)


def test_lines_of_training_show_means_and_the_time_left(capsys):
    reporter = Terminal(100)
    reporter.log(50, {"loss/generator": 1.5, "loss/generator/std": 9.5, "loss/generator/0": 9.25}, 10.0, 600)
    reporter.close()
    assert capsys.readouterr().err == "step 50/100  10 images/s  loss/generator 1.5  0:01:00 left\n"


@pytest.mark.parametrize(
    ("verbosity", "said"),
    [(logging.DEBUG, "ab"), (logging.INFO, "ab"), (logging.WARNING, "b"), (logging.ERROR, "")],
)
def test_less_is_said_at_lower_levels(capsys, verbosity, said):
    reporter = Terminal(10, verbosity=verbosity)
    reporter.say("a")
    reporter.say("b", logging.WARNING)
    reporter.close()
    assert "".join(capsys.readouterr().err.split()) == said


def test_levels_have_names_and_the_numbers_of_absl():
    arguments = ["--config", DIGITS, "--workdir", "x"]
    assert parse(arguments).verbosity == logging.INFO
    for text, level in (("warning", -1), ("-1", -1), ("DEBUG", 1), ("1", 1), ("error", -2)):
        assert parse([*arguments, f"--verbosity={text}"]).verbosity == level
    with pytest.raises(UsageError, match="it must be one of debug, info"):
        parse([*arguments, "--verbosity=loud"])


def test_a_run_that_is_told_to_be_silent_is(tmp_path):
    file = write_config(tmp_path, num_steps=10)
    process = command("--config", file, "--workdir", str(tmp_path / "run"), "--verbosity=warning")
    assert process.communicate(timeout=300) == ("", "")
    assert process.returncode == 0
