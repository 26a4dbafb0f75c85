"""A profile finds of every operation its layer, direction and kind, and misses none."""

import contextlib
import io
import json
import math

import jax
import pytest
from test_main import message

from ali_jax.main import main
from ali_jax.records.workdir import RunError
from ali_jax.tools import profile
from ali_jax.tools.profile import Event

# What XLA:GPU writes: cuDNN and cuBLAS as custom calls, fusions, a loop, and a copy that it added.
# By operation: the text, the op_name within the loop, and the place that it must have.
LOOP = "jit(call)/while/body/closed_call"
TOWER = "penalty/penalty/transpose(jvp(transpose(jvp(Discriminator))))/Discriminator._towers/x"
OPERATIONS = {
    "cudnn-conv.1": (
        "(f32[8,4]{1,0:T(8,128)}, /*index=1*/u8[0]{0}) custom-call(%x), "
        'custom_call_target="__cudnn$convBackwardFilter"',
        f"{TOWER}/layer_0/transpose()/conv_general_dilated",
        ("penalty/Discriminator/x/layer_0", "second order", "convolution"),
    ),
    "gemm.1": (
        'f32[8,4]{1,0} custom-call(%x), custom_call_target="__cublas$lt$matmul"',
        "jvp(Decoder)/output/bijc,cf->bijf/dot_general",
        ("Decoder/output", "forward", "matrix product"),
    ),
    "cudnn-conv.2": (
        'f32[8,4]{1,0} custom-call(%x), custom_call_target="__cudnn$convBackwardInput"',
        "jvp(Decoder)/Stack_0/layer_1/transpose()/conv_general_dilated",
        ("Decoder/Stack_0/layer_1", "forward", "convolution"),
    ),
    "copy.1": ("f32[8,4]{0,1} copy(%gemm.1)", "", ("Decoder/output", "forward", "data movement")),
    "fusion.1": (
        "f32[4]{0} fusion(%copy.1), kind=kInput, calls=%fused_sum",
        "transpose(jvp(Decoder))/Stack_0/norm_1/reduce_sum",
        ("Decoder/Stack_0/norm_1", "backward", "reduction"),
    ),
    "fusion.2": (
        "f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%fused_add",
        "optimizer/add",
        ("optimizer", "forward", "optimizer"),
    ),
    "fusion.3": (
        "f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%fused_add",
        "noise/jit(_threefry_split)/streams/add",
        ("noise", "forward", "random"),
    ),
    "loop_add_fusion.4": (
        "f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%fused_add",
        "jvp()/add",
        ("other", "forward", "elementwise"),
    ),
}
BODY = "\n".join(
    f"  %{name} = {text}" + f', metadata={{op_name="{LOOP}/{scope}"}}' * bool(scope)
    for name, (text, scope, _) in OPERATIONS.items()
)
GPU = f"""\
HloModule jit_call, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {{
  ROOT %sum = f32[] add(%a, %b)
}}

%fused_sum (p: f32[8,4]) -> f32[4] {{
  %p = f32[8,4]{{1,0}} parameter(0)
  %zero = f32[] constant(0)
  ROOT %reduce.1 = f32[4]{{0}} reduce(%p, %zero), dimensions={{0}}, to_apply=%add
}}

%fused_add (p: f32[8,4]) -> f32[8,4] {{
  %p = f32[8,4]{{1,0}} parameter(0)
  ROOT %add.1 = f32[8,4]{{1,0}} add(%p, %p)
}}

%body (t: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {{
  %t = (s32[], f32[8,4]{{1,0}}) parameter(0)
  %x = f32[8,4]{{1,0}} get-tuple-element(%t), index=1
{BODY}
}}

ENTRY %main (t: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {{
  %t = (s32[], f32[8,4]{{1,0}}) parameter(0)
  ROOT %while.1 = (s32[], f32[8,4]{{1,0}}) while(%t), condition=%test, body=%body
}}
"""


@pytest.fixture(scope="module")
def known():
    """Give the operations of the program above."""
    return profile.operations([GPU])


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_has_its_place(name, known):
    _, _, place = OPERATIONS[name]
    assert profile.place(known["jit_call", name]) == place


def test_kernels_are_summed_per_step_and_overlap_counts_once(known):
    events = [
        Event("jit_call", "while.1", "while", 0, 90e6),  # contains the others
        Event("jit_call", "gemm.1", "sm90_gemm", 0, 10e6),
        Event("jit_call", "gemm.1", "sm90_gemm", 20e6, 10e6),
        Event("jit_call", "fusion.2", "add", 25e6, 15e6),  # on another stream
        Event("", "", "loop_add_fusion_4", 50e6, 2e6),  # a kernel without annotation
        Event("", "", "Memcpy", 60e6, 4e6),
    ]
    found = profile.summarise(events, known, steps=2, seconds=0.1)
    assert (found.wall_ms, found.busy_ms, found.kernels) == (50.0, 18.0, 2.5)
    assert found.rows == (
        ("Decoder/output", "forward", "matrix product", 10.0, 1.0),
        ("optimizer", "forward", "optimizer", 7.5, 0.5),
        ("unknown", "", "data movement", 2.0, 0.5),
        ("other", "forward", "elementwise", 1.0, 0.5),
    )


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Give what the command prints of two steps of narrow perceptrons, and the folder of the trace."""
    folder, out = tmp_path_factory.mktemp("profile"), io.StringIO()
    overrides = [f"--config.{role}.layers=(8,)" for role in ("encoder", "decoder")]
    overrides += ["--config.discriminator.joint_layers=(10,)", "--config.batch_size=4"]
    arguments = ["--mode", "profile", "--config", "experiments/mixture.py", "--steps", "2", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: devices)
        with contextlib.redirect_stdout(out):
            assert main([*arguments, "--out", str(folder), *overrides]) == 0
    return json.loads(out.getvalue()), folder


def test_a_run_is_profiled_and_every_kernel_has_a_layer(traced):
    found, _ = traced
    rows = {(row["layer"], row["direction"], row["kind"]): row for row in found["rows"]}
    assert found["steps"] == 2
    for layer in ("Encoder/stack/layer_0", "Decoder/Stack_0/layer_0", "Discriminator/joint/layer_0"):
        assert rows[layer, "forward", "matrix product"]["kernels"] >= 1
        assert rows[layer, "backward", "matrix product"]["kernels"] >= 1
    assert {"optimizer", "random", "elementwise"} <= {kind for _, _, kind in rows}
    assert "unknown" not in {kind for _, _, kind in rows}
    assert math.isclose(sum(row["kernels"] for row in rows.values()), found["kernels"])
    assert 0 < found["busy_ms"] <= sum(row["ms"] for row in rows.values()) * (1 + 1e-9)
    assert found["busy_ms"] <= found["wall_ms"]


def test_the_trace_is_kept_where_out_says(traced):
    _, folder = traced
    assert list(folder.glob("plugins/profile/*/*.xplane.pb"))


def test_a_profile_is_printed_as_two_tables(traced, capsys):
    found, _ = traced
    profile.show(found)
    printed = capsys.readouterr().out
    assert "2 steps on 1 x cpu: " in printed
    kinds, layers = printed.split("By layer")
    assert " optimizer " in kinds
    assert " Encoder/stack/layer_0 " in layers


def test_a_trace_without_kernels_is_an_error():
    with pytest.raises(RunError, match="nothing that ran on the device"):
        profile.measure(lambda: None, 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--mode", "profile"], "Give --workdir"),
        (["--mode", "profile", "--config", "experiments/mixture.py", "--steps", "0"], "--steps is 0"),
        (
            ["--config", "experiments/mixture.py", "--workdir", "x", "--steps", "2"],
            "--steps goes with --mode",
        ),
        (["--mode", "profile", "--workdir", "nowhere"], "nowhere holds no run"),
        (
            [
                *["--mode", "profile", "--config", "experiments/mixture.py", "--steps", "3"],
                "--config.penalties.r1.every=5",
            ],
            "--steps is 3; it must be a multiple of config.penalties.r1.every = 5",
        ),
        (["--mode", "profile", "--config", "experiments/mixture.py", "--out", "README.md"], "is a file"),
    ],
)
def test_mistakes_get_one_message(arguments, says, capsys):
    assert says in message(capsys, arguments, 2)
