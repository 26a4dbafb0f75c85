"""Benchmarks count the operations of a step correctly and compare peers that do the same work."""

import io
import json
import re

import jax
import numpy as np
import pytest
import small

from ali_jax.networks import convolutions
from ali_jax.program.command import load_config
from ali_jax.records.workdir import RunError
from ali_jax.types import Networks
from benchmarks import anomaly, compare, cpu_forms, edit, jax_variants, penalties, roofline, worker
from benchmarks.compare import Run


@pytest.mark.parametrize(
    ("name", "most", "dots", "coupled"), [("cifar10", 71e9, 23, False), ("svhn", 104e9, 26, True)]
)
def test_a_step_has_no_operation_that_its_gradients_do_not_need(name, most, dots, coupled):
    config = small.experiment(name)
    compiled = roofline.compiled_step(config, 100)
    flops = compiled.cost_analysis()["flops"]
    assert flops <= most
    assert flops <= 1.03 * roofline.least_flops(config, 100)
    # Each layer has a forward pass, a kernel gradient and, unless x or z enters there, an input gradient. The
    # decoder has an output layer in addition. The generator needs D's input gradients down to x_tilde; if
    # batch norm couples the pairs, they differ from those that D needs itself.
    tables = (config.encoder.layers, config.decoder.layers, config.discriminator.x_layers)
    encoder, decoder, x = (sum(isinstance(layer, tuple) for layer in table) for table in tables)
    text = compiled.as_text()
    assert text.count(" convolution(") == 3 * encoder - 1 + 3 * (decoder + 1) - 1 + 3 * x + coupled * (x - 1)
    assert text.count(" dot(") <= dots


@pytest.mark.parametrize(
    ("name", "forward", "per_image"),
    [
        ("svhn", (31.54, 49.30, 33.50), 1.003),
        ("cifar10", (31.34, 48.51, 17.66), 0.683),
        ("celeba", (532.8, 1862.9, 541.2), 23.00),
        ("tiny_imagenet", (117.9, 174.0, 143.1), 4.013),
        ("mixture", (0.16, 0.48, 0.40), 0.0087),
    ],
)
def test_costs_of_the_tables_are_those_counted_by_hand(name, forward, per_image):
    config = small.experiment(name)
    costs = roofline.layer_costs(config)
    found = [sum(cost.macs for cost in network) / 1e6 for network in costs]
    assert found == pytest.approx(forward, rel=2e-3, abs=5e-3)
    assert roofline.least_flops(config, 1) / 1e9 == pytest.approx(per_image, rel=2e-3)


def test_traffic_is_that_of_the_layers_and_of_adam():
    config = small.experiment("mixture")
    batch_norm, plain = 6 * 400, 2 + 2 + 2 * (3 * 1000 + 1)  # outputs of an example; D has two pairs
    floats = 100 * (14 * batch_norm + 7 * plain)
    parameters = 164_002 + 484_802 + 407_201
    assert roofline.traffic(config, 100) == 4 * floats + 28 * parameters


def test_floors_are_work_over_ceilings():
    found = roofline.floors(small.experiment("svhn"), 100, roofline.Ceiling(1e12, 1e9))
    assert found.flops == pytest.approx(0.1003, rel=1e-3)
    assert found.traffic == pytest.approx(1.738, rel=1e-3)


@pytest.mark.parametrize("name", ["svhn", "cifar10", "mixture"])
def test_the_textbook_in_flax_has_our_parameters(name):
    config = small.experiment(name)
    textbook = jax_variants.FlaxTextbook(config, 2)
    params, _, _ = jax.eval_shape(textbook.init, jax.random.PRNGKey(0))
    assert sizes(params[role] for role in Networks._fields) == ours(config)


@pytest.mark.parametrize("name", ["svhn", "cifar10", "mixture"])
def test_the_peers_in_torch_have_our_parameters(name):
    torch = pytest.importorskip("torch")
    from benchmarks import torch_peers

    config = small.experiment(name)
    task = compare.task("torch_best", config, 2)
    with torch.device("meta"):
        networks = [
            make(task["config"])
            for make in (torch_peers.Encoder, torch_peers.Decoder, torch_peers.Discriminator)
        ]
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert counts == ours(config)


@pytest.mark.parametrize("name", ["svhn", "cifar10"])
def test_the_best_peer_computes_no_gradient_that_it_does_not_need(name):
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks import torch_peers

    config = small.experiment(name)
    peer = torch_peers.make(compare.task("torch_best", config, 2))
    peer.start()
    with FlopCounterMode(display=False) as counter:
        peer.step(torch.zeros(2, 3, 32, 32))
    config.discriminator.x_batch_norm = (True,)  # couples the pairs, so that two backward passes are needed
    assert counter.get_total_flops() <= 1.03 * roofline.least_flops(config, 2)


def test_speedups_are_ratios_of_the_same_round():
    rounds = [
        {"ours": Run(10, 1.0, 2.0), "other": Run(5, 2.0, 2.0)},
        {"ours": Run(10, 4.0, 2.0), "other": Run(5, 6.0, 4.0)},
        {"ours": Run(10, 1.0, 1.0), "other": Run(5, 5.0, 5.0)},
    ]
    assert compare.speedups(rounds, "ours", "other", "wall") == pytest.approx((4.0, 3.0, 10.0))
    assert compare.speedups(rounds, "ours", "other", "cpu") == pytest.approx((4.0, 2.0, 10.0))
    _, _, ours, other = compare.table(rounds, 8).splitlines()
    assert ours == "| ours | 100 | 80 | 40 | 1 | 1 |"
    assert other == "| other | 1000 | 8 | 10 | 4.00 [3.00-10.00] | 4.00 [2.00-10.00] |"


def test_the_order_of_the_variants_is_reversed_every_round():
    orders = [tuple(compare.in_turn(("a", "b", "c"), index)) for index in range(3)]
    assert orders == [("a", "b", "c"), ("c", "b", "a"), ("a", "b", "c")]


@pytest.mark.parametrize("variant", ["ours", "flax_textbook"])
def test_a_worker_trains_and_tells_its_time(variant):
    config = load_config(str(small.ROOT / "benchmarks" / "tiny_mlp.py"))
    config.steps_per_call = 2
    task = compare.task(variant, config, 4)
    requests = [{"prepare": [task]}, {"start": 0}, {"run": [0, 4]}, {"run": [7, 1]}]
    replies = io.StringIO()
    worker.serve(map(json.dumps, requests), replies)
    prepared, started, ran, failed = map(json.loads, replies.getvalue().splitlines())
    assert prepared == {"errors": [None]}
    assert started["parameters"] == ours(config)
    assert 4 % started["unit"] == 0
    assert ran["wall"] > 0 < ran["cpu"]
    assert 0 < ran["loss"] < 3  # 2 log 2 at first
    assert "IndexError" in failed["error"]


def test_the_anomaly_table_is_printed_at_tiny_size(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(small.ROOT)
    arguments = ["--config", "experiments/digits.py", "--steps", "4", "--seeds", "1", "--digits", "3"]
    arguments += ["--rows", "120", "--alpha", "0.1", "--json", str(tmp_path / "runs.json")]
    narrow = [f"--config.{role}.layers=(8,)" for role in ("encoder", "decoder")]
    narrow += ["--config.discriminator.x_layers=(8,)", "--config.steps_per_call=2"]
    assert anomaly.main([*arguments, *narrow]) == 0
    printed = capsys.readouterr().out
    assert "Left out: 3. 4 steps on 881 rows; test: 15 rows of it against 105." in printed
    (found,) = json.loads((tmp_path / "runs.json").read_text())["3"]
    assert {"ALI, ladder of 20 steps", "isolation forest", "nearest training row"} <= found.keys()
    assert all(f"| {name} | " in printed for name in found)
    assert found["nearest training row"]["auroc"][0] > 0.9  # does not depend on what the model learnt
    assert anomaly.main(["--config", "experiments/digits.py", "--digits", "10"]) == 2
    assert "--digits [10]: digits has the classes 0 to 9." in capsys.readouterr().err


def test_slant_and_stroke_width_are_those_of_drawn_lines():
    y, x = np.mgrid[:28, :28] - 13.5
    lines = [np.abs(x + slope * y) < width / 2 for slope, width in ((0.0, 4), (0.5, 4), (-0.3, 6))]
    images = np.array([line & (np.abs(y) < 11) for line in lines], float)
    np.testing.assert_allclose(edit.slant(images), [0, 0.5, -0.3], atol=0.03)
    across = [4, 4 / np.hypot(1, 0.5), 6 / np.hypot(1, 0.3)]
    np.testing.assert_allclose(edit.stroke_width(images), across, rtol=0.08)
    assert np.isnan(edit.stroke_width(0 * images)).all()


def test_the_forms_of_the_penalty_are_compared_at_tiny_size(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(small.ROOT)
    arguments = [
        "--config",
        "experiments/digits.py",
        "--batch-size",
        "4",
        "--rounds",
        "1",
        "--seconds",
        "1e-3",
    ]
    narrow = [f"--config.{role}.layers=(4,)" for role in ("encoder", "decoder")]
    narrow += [f"--config.discriminator.{part}_layers=(4,)" for part in ("x", "z", "joint")]
    record = tmp_path / "times.json"
    lazy = "both shared every 16"
    assert penalties.main([*arguments, *narrow, "--forms", lazy, "--json", str(record)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^\| encoder \| .* \| 1.00 \[1.00-1.00\] \| 1.00", printed, flags=re.M)
    assert f"| {lazy} |" in printed
    (times,) = json.loads(record.read_text())[0]["rounds"]
    assert times.keys() == {"encoder", lazy}
    assert all(run["steps"] % 16 == 0 and run["wall"] > 0 for run in times.values())
    assert penalties.main([*arguments, "--forms", "neither"]) == 2
    assert "'neither' is unknown; there are none, encoder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "experiments/none.py"], "There is no config file"),
        (["--config", "experiments/digits.py"], "config.penalties.r1.gamma is 1.0, which the peers do not"),
        (["--config", "experiments/svhn.py", "--variants", "theirs"], "'theirs' is unknown; there are ours"),
        (
            ["--config", "experiments/svhn.py", "--torch-python", "/none"],
            "--torch-python /none: No such file",
        ),
        (["--config", "experiments/svhn.py", "--variants", "ours", "--rounds", "0"], "must be positive"),
        (
            ["--config", "experiments/svhn.py", "--variants", "torch_best", "--torch-python", "/bin/false"],
            "/bin/false has no torch: pip install",
        ),
    ],
)
def test_mistakes_get_one_message(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(small.ROOT)
    assert compare.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1


def ours(config):
    """Count our parameters in each network."""
    _, state, _ = roofline.abstract_step(config, 2)
    return sizes(state.variables.params)


def sizes(trees):
    """Count the numbers in each tree."""
    return [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in trees]


def test_forms_of_cpus_are_timed_whatever_is_chosen(monkeypatch, capsys):
    """Native takes 2 s and the CPU's form 3 s, in a layer that `lowering = "cpu"` computes natively."""
    asked = []

    def compiled(layer, lowering, x, w, penalty):
        kernel = (layer.kernel, layer.kernel, layer.maps, layer.features)
        rule = convolutions.is_faster_natively(
            x.shape[1:], kernel, stride=layer.stride, padding=layer.padding
        )
        asked.append((lowering, rule))
        return lowering

    monkeypatch.setattr(cpu_forms, "_compiled", compiled)
    monkeypatch.setattr(cpu_forms, "_seconds", lambda run, number: {"native": 2.0, "cpu": 3.0}[run])
    assert cpu_forms.main(["--only", "8x8x16 k3 s1 p1 16", "--batch", "1"]) == 0
    assert asked == [("native", False), ("cpu", False)] * 2  # and transposed
    row = "| 8x8x16 k3 s1 p1 16 | 1.50 | 1.50 to 1.50 | native |"
    assert row in capsys.readouterr().out.splitlines()
    layers = [cpu_forms.Layer(True, 3, 1, 1, 16, 32, 3), cpu_forms.Layer(True, 3, 1, 1, 16, 3, 32)]
    assert [layer.is_native for layer in layers] == [False, True]


def test_a_mistake_and_a_failed_run_are_one_sentence(capsys):
    def main(argv):
        raise {"run": RunError, "usage": ValueError}[argv]("What to do.")

    guarded = compare.in_one_sentence(main)
    assert [guarded("run"), guarded("usage"), compare.in_one_sentence(lambda argv: 0)(None)] == [1, 2, 0]
    assert capsys.readouterr().err == "What to do.\n" * 2
