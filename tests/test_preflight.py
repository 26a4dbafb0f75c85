"""Preflight parses topologies, counts collectives and bounds a step; with libtpu it compiles for slices."""

import importlib.util
import json

import pytest
from test_main import DIGITS, message, write_config

from ali_jax.main import main
from ali_jax.tools import preflight

HLO = """
  %all-reduce.1 = (f32[16]{0:T(128)S(1)}, bf16[2,3]{1,0}, /*index=2*/f32[]{:T(128)}) all-reduce(%a, %b, %c), x
  %get-tuple-element.1 = f32[16]{0} get-tuple-element(%all-reduce.1), index=0
  %all-reduce-start.2 = f32[4,4]{1,0:T(8,128)} all-reduce-start(%d), channel_id=1
  %all-reduce-done.2 = f32[4,4]{1,0} all-reduce-done(%all-reduce-start.2)
  %all-gather-start = (f32[2]{0}, f32[8]{0}) all-gather-start(%e), dimensions={0}
"""

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra: preflight)"
)


def test_collectives_are_counted_with_their_bytes():
    found = preflight.collectives(HLO)
    assert found == {
        "all-reduce": {"count": 2, "bytes": 64 + 12 + 4 + 64},
        "all-gather": {"count": 1, "bytes": 32},
    }


def test_the_bound_is_the_slowest_of_three_and_efficiency_follows():
    chip = preflight.Chip(1e9, 100.0, 10.0, 5.0, 2, 256, {})
    found = {"all-reduce": {"count": 1, "bytes": 20.0}}
    report = preflight.bounds(chip, 4, 300.0, 20.0, found)
    assert report["seconds"] == {"compute": 3.0, "memory": 2.0, "interconnect": 2 * 20 * 0.75 / 5}
    assert (report["bound"], report["step_seconds"]) == ("interconnect", 6.0)
    assert report["efficiency"] == [3 / 9, 3 / 6]
    alone = preflight.bounds(chip, 1, 300.0, 20.0, {})
    assert (alone["bound"], alone["efficiency"]) == ("compute", [1.0, 1.0])


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        ("v5e", "must be KIND:SIDES"),
        ("v9:2x2", "one of the kinds v4, v5e, v5p, v6e"),
        ("v5e:0x4", "must be KIND:SIDES"),
        ("v5e:4x4x4", "slices of v5e have 2 sides, such as v5e:4x4"),
        ("v5p:4x4", "slices of v5p have 3 sides, such as v5p:4x4x4"),
        ("v5e:16x32", "512 chips; a pod of v5e has 256"),
        ("v5e:3x3", "not a multiple of the 9 chips of v5e:3x3: set it to 63 or 72"),
    ],
)
def test_what_no_slice_can_run_is_refused(capsys, topology, expected):
    arguments = ["--mode", "preflight", "--config", DIGITS, "--topology", topology]
    assert expected in message(capsys, arguments, 2)


def test_wrong_use_and_a_missing_compiler_are_one_message(capsys, monkeypatch):
    assert "go together" in message(capsys, ["--mode", "preflight", "--config", DIGITS], 2)
    assert "go together" in message(
        capsys, ["--mode", "describe", "--config", DIGITS, "--topology=v5e:2x2"], 2
    )
    assert "Give --config" in message(capsys, ["--mode", "preflight", "--topology", "v5e:2x2"], 2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    arguments = ["--mode", "preflight", "--config", DIGITS, "--topology", "v5e:2x2"]
    assert "pip install 'ali_jax[preflight]'" in message(capsys, arguments, 2)


@needs_libtpu
def test_a_step_is_compiled_for_a_slice(tmp_path, capsys):
    file = write_config(tmp_path, batch_size=32, dataset__name="absent")
    arguments = ["--mode", "preflight", "--config", file, "--topology", "v5e:4x4", "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["chips"], report["batch_per_chip"]) == (16, 2)
    assert set(report["collectives"]) == {"all-reduce"}
    assert 4 * 1_879 <= report["collectives"]["all-reduce"]["bytes"] < 4 * 1_879 + 200  # gradients and losses
    assert report["memory"]["arguments"] > 4 * 4 * 1_879
    assert report["memory"]["left"] > 15 * 2**30
    assert main([*arguments[:-1], "--config.batch_size=16"]) == 0
    assert "<- the bound" in capsys.readouterr().out


@needs_libtpu
def test_what_does_not_fit_is_refused(tmp_path, capsys):
    file = write_config(tmp_path, batch_size=2**28)
    arguments = ["--mode", "preflight", "--config", file, "--topology", "v5e:2x2"]
    assert "The step does not fit v5e:2x2" in message(capsys, arguments, 2)
    arguments[-1] = "v5e:3x5"
    assert "which libtpu does not know" in message(capsys, [*arguments, "--config.batch_size=30"], 2)
