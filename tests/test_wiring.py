"""Every config key reaches what it is about and nothing else, with the numbers of the config.

The tables below hold every key beside a value that is not its default and what must then differ: a part of
the program, the data, the options of an evaluator, the files of a run. The program is not compiled: its jaxpr
is compared, cut into what each network starts from and what a step makes of it.
"""

import functools
import inspect
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ali_jax import config as configs
from ali_jax import data, evaluate, game
from ali_jax.game import compile, from_config
from ali_jax.program import loop
from ali_jax.records import checkpoint
from ali_jax.tools import export
from ali_jax.types import Batch, Logits, Networks, Pairs, Report, TrainState, Variables

ROLES = Networks._fields
ENCODER, DECODER, DISCRIMINATOR = ROLES
GENERATOR = (ENCODER, DECODER)


def start(*roles: str) -> frozenset[str]:
    """Name the initial parameters of these networks."""
    return frozenset(f"start of {role}" for role in roles)


def step(*roles: str) -> frozenset[str]:
    """Name what a training step makes of the parameters of these networks."""
    return frozenset(f"step of {role}" for role in roles)


NOTHING = frozenset()
STEP = step(*ROLES)
TRAIN, TEST, FEED = (frozenset({name}) for name in ("train", "test", "feed"))


class Row(NamedTuple):
    """A key with another value than its default, and what that changes in a base, or why it is refused."""

    key: str
    value: Any
    changes: frozenset[str] = NOTHING  # all parts that differ, where it is not refused
    base: str = "points"
    refused: str = ""


def points() -> data.Dataset:
    """Return 12 points of the plane in three classes."""
    x = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
    split = data.ArraySplit(x, None, np.arange(12, dtype=np.int32) % 3, 3)
    return data.Dataset("points", split, split, 1.0, 3)


def faces() -> data.Dataset:
    """Return the points with two attributes, of which the networks are told."""
    x, attributes = points().train.x, np.random.default_rng(1).normal(size=(12, 2)).astype(np.float32)
    split = data.ArraySplit(x, attributes)
    return data.Dataset("faces", split, split, 1.0, attributes=("smiling", "bald"))


def images() -> data.Dataset:
    """Return 12 grey images of 8x8 pixels."""
    x = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1)).astype(np.uint8)
    return data.Dataset("images", data.ArraySplit(x), data.ArraySplit(x), 255.0)


CONVOLUTIONS = {
    "encoder.layers": ((4, 2, 1, 1), (4, 1, 2)),
    "decoder.layers": ((4, 1, 2), (4, 2, 1, 1)),
    "discriminator.x_layers": ((4, 2, 1, 1),),
    "decoder.output": "sigmoid",
}
RESIDUAL = {
    "decoder.output": "sigmoid",
    **{f"{key}batch_norm": (True,) for key in ("encoder.", "decoder.", "discriminator.x_")},
    **{f"{role}.name": f"Residual{role.title()}" for role in Networks._fields},
    **{f"{role}.maps": (2, 2) for role in Networks._fields},
    **{f"{role}.patch": 2 for role in Networks._fields},
}
WIDTHS = {"encoder.layers": (), "decoder.layers": (), "discriminator.x_layers": ()}
SEMI = {"loss": "semi_supervised", "dataset.labelled": 3, "discriminator.num_classes": 3}
FEW_LABELS = ("manifold", "virtual_adversarial", "entropy", "feature_matching")
# By name: values beside those of `tiny`, and the data; None: those that the config names.
BASES: dict[str, tuple[dict[str, Any], Any]] = {
    "points": ({}, points),
    "cosine": ({"optimizer.constant_fraction": 0.5}, points),
    "r1": ({"penalties.r1.gamma": 0.7}, points),
    "dropout": ({"penalties.r1.gamma": 0.7, "discriminator.x_dropout": (0.3,)}, points),
    "annealed": ({"penalties.r1.gamma": 0.7, "penalties.r1.gamma_final": 0.3}, points),
    "noisy": ({"instance_noise": 0.7}, points),
    "averaged": ({"ema_decay": 0.9}, points),
    "cycle": ({"penalties.cycle_x.weight": 0.7}, points),
    "inverse": ({"penalties.cycle_z.weight": 0.7}, points),
    "vae": ({"loss": "none", "penalties.elbo.weight": 0.7}, points),
    "fourier": ({"encoder.frequencies": (2, 3.0)}, points),
    "maxout": ({"discriminator.activation": "maxout"}, points),
    "unary": ({"discriminator.unary_scores": True}, points),
    "of pairs": ({"discriminator.pair_layers": (3,)}, points),
    "faces": ({"dataset.conditional": True, "condition.embedding": 3}, faces),
    "images": (CONVOLUTIONS, images),
    "pooled": ({**CONVOLUTIONS, "discriminator.x_layers": ((4, 2, 1, 1), (3, 1, 2))}, images),
    "pyramid": (
        {**CONVOLUTIONS, **WIDTHS, **{f"{role}.width": 1 for role in ROLES}},
        images,
    ),
    "residual": (RESIDUAL, images),
    "augmented": ({**CONVOLUTIONS, "augment.cutout": 0.3}, images),
    "fading": ({**CONVOLUTIONS, "augment.cutout": 0.3, "augment.final": 0.5}, images),
    "semi": (SEMI, points),
    **{name: ({**SEMI, f"penalties.{name}.weight": 0.7}, points) for name in FEW_LABELS},
    "ramped": ({**SEMI, "penalties.entropy.weight": 0.7, "penalties.entropy.ramp": (0.2, 0.7)}, points),
    "seeds": ({"population.seeds": 2}, points),
    "loaded": ({}, None),
    "prepared": (
        {"dataset.name": "mnist", "dataset.train_split": "train", "dataset.test_split": "test"},
        None,
    ),
    "loaded images": (
        {
            "dataset.name": "digits",
            "decoder.output": "sigmoid",
            "dataset.train_split": "train",
        },
        None,
    ),
    "resized": (
        {
            "dataset.name": "digits",
            "decoder.output": "sigmoid",
            "dataset.train_split": "train",
            "dataset.resize": (4, 6),
        },
        None,
    ),
}

PROGRAM = (
    Row("seed", 7, start(*ROLES) | TRAIN | start("key")),
    Row("seed", 7, start(*ROLES) | TRAIN | TEST | start("key"), "loaded"),
    Row("batch_size", 6, STEP),
    Row("num_steps", 9, STEP, "cosine"),
    Row("num_steps", 9, step(DISCRIMINATOR), "annealed"),
    Row("num_steps", 9, STEP, "noisy"),
    Row("latent_dim", 3, start(*ROLES) | STEP),
    Row("dtype", "bfloat16", STEP),
    Row("ema_decay", 0.5, step("average"), "averaged"),
    Row("ema_decay", 0.9, step("average")),
    Row("ema_half_life", 300.0, step("average"), "averaged"),
    Row("ema_half_life", 300.0, step("average")),
    Row("parallel", "pmap", STEP),
    Row("lowering", "native", STEP),
    Row("lowering", "native", STEP, "images"),
    Row("lowering", "gpu", STEP, "images"),
    Row("lowering", "gpu+phases", refused="unknown lowering 'gpu.phases'; choose one of .* kernel_phases"),
    Row("gradient", "two_pullbacks", STEP),
    Row("loss", "hinge", STEP),
    Row("labelled_weight", 0.3, STEP, "semi"),
    Row("instance_noise", 0.3, STEP),
    Row("frozen", ("encoder",), step(ENCODER)),
    Row("frozen", ("discriminator",), step(DISCRIMINATOR)),
    Row("frozen", ("decoder",), refused="needs config.init_from"),
    Row("dataset.name", "ring", TRAIN | TEST, "loaded"),
    Row("dataset.path", "nowhere.npz", refused="nowhere.npz", base="loaded"),
    Row("dataset.directory", "nowhere", refused="--directory nowhere", base="prepared"),
    Row("dataset.train_split", "train[12:24]", TRAIN, "loaded"),
    Row("dataset.test_split", "test[9:18]", TEST, "loaded"),
    Row("dataset.conditional", True, TRAIN | TEST | start(*ROLES) | STEP, "loaded"),
    Row("dataset.stack", 3, TRAIN | TEST | start(*ROLES) | STEP, "loaded images"),
    Row("dataset.labelled", 6, TRAIN | STEP, "semi"),
    Row("dataset.shape", (3,), refused="take data of shape 3 .*; the data are 2"),
    Row("dataset.feed", "host", FEED | TRAIN | STEP),
    Row("dataset.device_bytes", 95, FEED | TRAIN | STEP),
    Row("dataset.dequantize", 0.3, STEP),
    Row("dataset.scale", 0.3, TRAIN | TEST, "loaded"),
    Row("dataset.scale", 0.3, refused="scale is 0.3, but digits has images", base="loaded images"),
    Row("dataset.resize", (4,), TRAIN | TEST | start(*ROLES) | STEP, "loaded images"),
    Row("dataset.resize", (4, 4), refused="mixture has vectors", base="loaded"),
    Row("dataset.flip", True, STEP, "images"),
    Row(
        "dataset.flip", True, refused="config.dataset.flip is True, and it changes images; points has vectors"
    ),
    Row("augment.translation", 0.3, STEP, "images"),
    Row("augment.cutout", 0.3, STEP, "images"),
    Row("augment.cutout", 0.3, refused="config.augment.cutout is 0.3, and it changes images"),
    Row("augment.colour", 0.3, STEP, "images"),
    Row("augment.final", 0.3, STEP, "augmented"),
    Row("num_steps", 9, STEP, "fading"),
    Row("dataset.fit", "pad", TRAIN | TEST | start(DECODER), "resized"),
    *(
        row
        for role in ROLES
        for row in (
            Row(f"{role}.name", "Mine", refused="is 'Mine'.* ali_jax.networks has Decoder, "),
            Row(f"{role}.activation", "relu", STEP),
            Row(f"{role}.slope", 0.3, STEP),
            Row(f"{role}.init_std", 0.3, start(role)),
            Row(f"{role}.width", 2, start(role) | STEP, "pyramid"),
            Row(f"{role}.maps", (2, 3), start(role) | STEP, "residual"),
            Row(f"{role}.maps", (2, 3), refused="maps is set, but .* has no such field"),
            Row(f"{role}.blocks", 2, start(role) | STEP, "residual"),
            Row(f"{role}.expansion", 2, start(role) | STEP, "residual"),
            Row(f"{role}.patch", 1, start(role) | STEP, "residual"),
            Row(f"{role}.blur", False, STEP, "residual"),
        )
    ),
    Row("encoder.layers", (2, 3), start(ENCODER) | STEP),
    Row("encoder.batch_norm", (True,), start(ENCODER) | STEP),
    Row("encoder.posterior", "noise", start(ENCODER) | STEP),
    Row("encoder.posterior", "deterministic", start(ENCODER) | STEP),
    Row("encoder.log_sigma_clip", (-3.0, 0.5), STEP),
    Row("encoder.log_sigma_bias", -0.3, start(ENCODER)),
    Row("encoder.log_sigma_init", 0.3, start(ENCODER)),
    Row("encoder.center", True, STEP),
    Row("encoder.frequencies", (2, 3.0), start(ENCODER) | STEP),
    Row("encoder.frequencies", (2, 0.3), step(*ROLES), "fourier"),
    Row("decoder.layers", (2, 3), start(DECODER) | STEP),
    Row("decoder.batch_norm", (True,), start(DECODER) | STEP),
    Row("decoder.output", "sigmoid", start(DECODER) | STEP),
    Row("discriminator.x_layers", (2, 3), start(DISCRIMINATOR) | STEP),
    Row("discriminator.z_layers", (3,), start(DISCRIMINATOR) | STEP),
    Row("discriminator.joint_layers", (2, 3), start(DISCRIMINATOR) | STEP),
    Row("discriminator.activation", "maxout", start(DISCRIMINATOR) | STEP),
    Row("discriminator.pieces", 1, start(DISCRIMINATOR) | STEP, "maxout"),
    Row("discriminator.x_batch_norm", (True,), start(DISCRIMINATOR) | STEP),
    Row("discriminator.x_dropout", (0.3,), STEP),
    Row("discriminator.x_dropout_after", (0.3,), STEP),
    Row("discriminator.z_dropout", (0.3,), STEP),
    Row("discriminator.z_bias", True, start(DISCRIMINATOR) | STEP),
    Row("discriminator.joint_dropout", (0.3,), STEP),
    Row("discriminator.joint_dropout", (0.0, 0.3), STEP),
    Row("discriminator.x_noise", (0.3,), STEP),
    Row("discriminator.joint_noise", (0.3,), STEP),
    Row("discriminator.joint_noise", (0.0, 0.3), STEP),
    Row("discriminator.center", True, STEP),
    Row("discriminator.x_pool", True, start(DISCRIMINATOR) | STEP, "pooled"),
    Row("discriminator.blind", True, start(DISCRIMINATOR) | STEP),
    Row("discriminator.num_classes", 2, refused="num_classes is 2; .* it must be 1"),
    Row("discriminator.num_classes", 2, refused="number of classes of the data, 3", base="semi"),
    Row("discriminator.spectral_norm", True, start(DISCRIMINATOR) | STEP),
    Row("discriminator.packing", 2, start(DISCRIMINATOR) | STEP),
    Row("discriminator.z_everywhere", True, start(DISCRIMINATOR) | STEP),
    Row("discriminator.unary_scores", True, start(DISCRIMINATOR) | step(DISCRIMINATOR)),
    Row("discriminator.pair_layers", (3,), start(DISCRIMINATOR) | step(DISCRIMINATOR)),
    Row("discriminator.head", "concatenation", start(DISCRIMINATOR) | STEP, "residual"),
    Row("condition.size", 3, refused="config.condition.size is 3, but faces has 2", base="faces"),
    Row("condition.embedding", 4, start(*ROLES) | STEP, "faces"),
    Row("condition.learned", True, start(*ROLES) | STEP, "faces"),
    Row("penalties.r1.gamma", 0.3, step(DISCRIMINATOR), "r1"),
    Row("penalties.r1.gamma_z", 0.3, step(DISCRIMINATOR), "r1"),
    Row("penalties.r1.gamma_final", 0.3, step(DISCRIMINATOR), "r1"),
    Row("penalties.r1.schedule", "cosine", step(DISCRIMINATOR), "annealed"),
    Row("penalties.r1.at", "decoder", step(DISCRIMINATOR), "r1"),
    Row("penalties.r1.every", 2, STEP, "r1"),
    Row("penalties.r1.every", 4, refused="it must divide config.steps_per_call = 2", base="r1"),
    Row("penalties.r1.masks", "game", step(DISCRIMINATOR), "dropout"),
    Row("penalties.cycle_x.weight", 0.3, step(*GENERATOR), "cycle"),
    Row("penalties.cycle_z.weight", 0.3, step(*GENERATOR), "inverse"),
    Row("penalties.cycle_z.sampled", True, step(*GENERATOR), "inverse"),
    Row("penalties.adversarial_cycle.weight", 0.3, STEP, "of pairs"),
    Row("penalties.adversarial_cycle.weight", 0.3, refused="needs a discriminator with pair_layers"),
    Row("penalties.unary_scores.weight", 0.3, STEP, "unary"),
    Row("penalties.unary_scores.weight", 0.3, refused="needs a discriminator with unary_scores"),
    Row("penalties.elbo.weight", 0.3, step(*GENERATOR), "vae"),
    Row("penalties.elbo.sigma", 0.3, step(*GENERATOR), "vae"),
    Row("num_steps", 9, step(DISCRIMINATOR), "ramped"),
    *(
        Row(f"penalties.{name}.{key}", value, step(DISCRIMINATOR), name)
        for name in FEW_LABELS[:3]
        for key, value in (("weight", 0.3), ("ramp", (0.2, 0.7)), ("stride", 2))
    ),
    Row("penalties.manifold.size", 0.3, step(DISCRIMINATOR), "manifold"),
    Row("penalties.manifold.at", "encoder", step(DISCRIMINATOR), "manifold"),
    Row("penalties.virtual_adversarial.radius", 0.3, step(DISCRIMINATOR), "virtual_adversarial"),
    Row("penalties.virtual_adversarial.weight", 0.3, refused="needs a discriminator of classes"),
    Row("penalties.entropy.weight", 0.3, refused="needs a discriminator of classes"),
    Row("penalties.feature_matching.weight", 0.3, step(*GENERATOR), "feature_matching"),
    Row("penalties.feature_matching.layer", "x", step(*GENERATOR), "feature_matching"),
    Row("penalties.feature_matching.layer", "y", refused="D calls no submodule 'y'", base="feature_matching"),
    Row("penalties.feature_matching.stride", 2, step(*GENERATOR), "feature_matching"),
    *(
        Row(f"optimizer.{player}.{number}", 0.3, step(*roles))
        for player, roles in (("generator", GENERATOR), ("discriminator", (DISCRIMINATOR,)))
        for number in ("learning_rate", "b1", "b2", "eps")
    ),
    Row("optimizer.constant_fraction", 0.5, STEP),
    Row("optimizer.final_fraction", 0.3, STEP, "cosine"),
    Row("optimizer.b2_final", 0.3, STEP),
    Row("optimizer.packed_size", 4, STEP),
    Row("population.seeds", 3, start(*ROLES) | STEP | TRAIN | start("key"), "seeds"),
    Row("population.vary", (("optimizer.discriminator.b2", (0.3, 0.4)),), step(DISCRIMINATOR), "seeds"),
    Row("population.vary", (("encoder.init_std", (0.3, 0.4)),), start(ENCODER), "seeds"),
)


EVALUATION = {
    "evaluation.num_samples": 7,
    "evaluation.grid": (2, 3),
    "evaluation.num_pairs": 2,
    "evaluation.num_interpolation_steps": 5,
    "evaluation.num_codes": 3,
    "evaluation.controls": False,
    "evaluation.svm_labels": 20,
    "evaluation.svm_draws": 2,
    "evaluation.ladder_rows": 8,
    "evaluation.ladder_steps": 4,
    "evaluation.features": "random",
    "evaluation.inception_weights": "weights.npz",
    "evaluation.dinov2_weights": "weights.safetensors",
}

# What a run of 8 steps records with these values, where it differs from what it records with `tiny`'s.
RUNS = {
    (("log_every", 4), ("keep_checkpoints", 3)): {"logged": [4, 8], "saved": [4, 6, 8]},
    (("steps_per_call", 1), ("checkpoint_every", 4), ("evaluate_every", 4)): {
        "saved": [4, 8],
        "evaluated": [4, 8],
    },
    (("evaluators", ()), ("report", True)): {"evaluated": [], "report": True},
}

# Keys that need files: tests of their own, below, show what they do; of trackers, those of test_trackers.
FILES = ("init_from", "init_member", "init_networks", "dataset.background", "trackers")


def tiny(base: str, **changes: Any) -> configs.Config:
    """Return the config of a base with networks of one to four units, and changes by dotted key."""
    values = {
        "batch_size": 4,
        "num_steps": 6,
        "steps_per_call": 2,
        "log_every": 2,
        "checkpoint_every": 2,
        "latent_dim": 2,
        "evaluators": (),
        "report": False,
        "dataset.name": "mixture",
        "dataset.train_split": "train[:12]",
        "dataset.test_split": "test[:9]",
        "encoder.layers": (3,),
        "decoder.layers": (3,),
        "decoder.output": "linear",
        "discriminator.x_layers": (4,),
        "discriminator.z_layers": (2,),
        "discriminator.joint_layers": (4,),
        **{f"{key}batch_norm": (False,) for key in ("encoder.", "decoder.", "discriminator.x_")},
        **BASES[base][0],
        **changes,
    }
    config = configs.with_values(configs.base(), values)
    configs.check_keys(config)
    return config.lock()


def observe(base: str, **changes: Any) -> dict[str, Any]:
    """Return what there is to see of a game, by part; equal parts are equal objects."""
    make_data = BASES[base][1]
    made = game.prepare(tiny(base, **changes), make_data and make_data())
    feed = game.make_feed(made)
    loaded = feed.load(0, 2)
    rows = made.dataset.test.rows(np.arange(len(made.dataset.test)))
    return {
        "feed": type(feed).__name__,
        "train": contents((loaded, made.first_rows)),
        "test": contents(rows),
        **starts(made.members or (made,)),
        **steps(made, feed, loaded),
    }


def contents(tree: Any) -> list[tuple]:
    """Return the numbers of a tree in a form that can be compared."""
    arrays = map(np.asarray, jax.tree.leaves(tree))
    return [(array.shape, array.dtype.name, array.tobytes()) for array in arrays]


def starts(members: tuple) -> dict[str, Any]:
    """Return how each network's initial parameters come about, and the key of the run."""
    found: dict[str, Any] = {f"start of {label}": [] for label in (*ROLES, "key")}
    for member in members:
        program, state = jax.make_jaxpr(lambda member=member: game.initial_state(member), return_shape=True)()
        for label, expression in zip(labels(state), expressions(program, []), strict=True):
            found.get(f"start of {label}", []).append(expression)
    return found


def steps(made: game.Game, feed: data.Feed, loaded: Any) -> dict[str, Any]:
    """Return what one step makes of the parameters of each network and of their averages."""
    state = game.abstract_state(made)
    program = jax.make_jaxpr(game.make_call(made, feed, 2))(state, loaded)
    leaves, _ = jax.tree_util.tree_flatten_with_path((state, loaded))
    inputs = [f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}" for path, leaf in leaves]
    found: dict[str, Any] = {f"step of {label}": [] for label in (*ROLES, "average")}
    for label, expression in zip(labels(state), expressions(program, inputs), strict=False):
        found.get(f"step of {label}", []).append(expression)
    return found


def labels(state: TrainState) -> list[str]:
    """Return what each leaf of a state belongs to: a network, the average, the key, or the rest."""
    variables = Variables(*(Networks(*map(mark, trees, ROLES)) for trees in state.variables))
    rest = mark(state.ema, "average"), mark(state.opt_state, "optimiser")
    return jax.tree.leaves(TrainState("step", "key", variables, *rest))


def mark(tree: Any, label: str) -> Any:
    return jax.tree.map(lambda _: label, tree)


def expressions(program: Any, inputs: list) -> list:
    """Return hashes of what a program's outputs are as expressions of its inputs; a loop is taken once."""
    jaxpr = getattr(program, "jaxpr", program)
    known = dict(zip(jaxpr.constvars, map(constant, getattr(program, "consts", ())), strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(v: Any) -> Any:
        return constant(v.val) if hasattr(v, "val") else known[v]

    for equation in jaxpr.eqns:
        results = results_of(equation, [read(v) for v in equation.invars])
        known |= dict(zip(equation.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def results_of(equation: Any, inputs: list) -> list:
    """Return hashes of the outputs of an equation; what it calls is looked into."""
    name, params = equation.primitive.name, equation.params
    inner = params.get("jaxpr", params.get("call_jaxpr"))
    if name in ("device_put", "optimization_barrier"):  # these take and give many arrays, one by one
        return [hash((name, value)) for value in inputs]
    if inner is not None and len(inner.in_avals) == len(inputs):
        return expressions(inner, inputs if name == "jit" else [hash((name, value)) for value in inputs])
    text = re.sub(r" at 0x[0-9a-f]+", "", str(params))
    return [hash((name, text, *inputs, i)) for i in range(len(equation.outvars))]


def constant(value: Any) -> tuple:
    """Return a number or an array of a program in a form that can be hashed."""
    array = np.asarray(value)
    return (array.shape, array.dtype.name, array.tobytes())


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Let programs be for one device."""
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: one)


@pytest.fixture
def traced(monkeypatch):
    """Trace a step once, without the options that only a compiled program can have."""
    monkeypatch.setattr(compile.convolutions, "compiler_options", lambda _: {})
    monkeypatch.setattr(from_config, "_check_step", lambda *_: None)


observed = functools.cache(observe)


def title(row: Row) -> str:
    return f"{row.key}-{row.value}-{row.base}"


@pytest.mark.parametrize("row", [row for row in PROGRAM if not row.refused], ids=title)
def test_a_key_changes_what_it_is_about_and_nothing_else(row, traced):
    before, after = observed(row.base), observe(row.base, **{row.key: row.value})
    assert {part for part in before if before[part] != after[part]} == row.changes


@pytest.mark.parametrize("row", [row for row in PROGRAM if row.refused], ids=title)
def test_a_value_that_does_not_fit_is_refused(row):
    make_data = BASES[row.base][1]
    with pytest.raises(ValueError, match=row.refused):
        game.prepare(tiny(row.base, **{row.key: row.value}), make_data and make_data())


@pytest.mark.parametrize("key", EVALUATION)
def test_every_evaluator_that_takes_an_option_is_given_it(key, monkeypatch):
    _, name = key.split(".")
    made = game.prepare(tiny("points", **{key: EVALUATION[key]}), points())
    empty = Variables(Networks({}, {}, {}), Networks({}, {}, {}))
    state = TrainState(jnp.zeros((), jnp.int32), jax.random.PRNGKey(0), empty, None, ())
    given, named = {}, evaluate.named

    def recorder(evaluator: str):
        def record(*_, **options):
            given[evaluator] = options
            return Report({}, {})

        return functools.wraps(named(evaluator))(record)

    monkeypatch.setattr(evaluate, "named", recorder)
    takers = [each for each in evaluate.names() if name in inspect.signature(named(each)).parameters]
    for each in takers:
        game.evaluate(made, state, each)
    assert takers
    assert [given[each][name] for each in takers] == [EVALUATION[key]] * len(takers)


def recorded(folder: Path) -> dict[str, Any]:
    """Return what the files of a run say, by the key that decides it."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [line["step"] for line in lines if "loss/generator" in line]
    evaluated = [line["step"] for line in lines if "n_test" in line]
    saved = sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())
    return {
        "logged": logged,
        "evaluated": evaluated,
        "saved": saved,
        "report": (folder / "report.html").exists(),
    }


@pytest.mark.parametrize("changes", RUNS, ids=str)
def test_a_run_records_what_its_config_asks_for(changes, tmp_path, capfd):
    values = {"num_steps": 8, "evaluators": ("reconstruction_error",), **dict(changes)}
    assert loop.run(tiny("loaded", **values), tmp_path / "run") == 0
    assert (f"The first {values.get('steps_per_call', 2)} steps were done") in "".join(capfd.readouterr())
    usual = {"logged": [2, 4, 6, 8], "evaluated": [8], "saved": [6, 8], "report": False}
    assert recorded(tmp_path / "run") == {**usual, **RUNS[changes]}


def test_every_key_is_shown_to_matter():
    """A key that is added to the table needs a row here: what it changes, or what refuses it."""
    shown = {row.key for row in PROGRAM} | set(EVALUATION) | {key for changes in RUNS for key, _ in changes}
    assert shown | set(FILES) == set(configs.KEYS)


# The numbers on the way, by hand.


def first_batch(config, dataset):
    feed = game.make_feed(game.prepare(config, dataset))
    return jax.jit(lambda loaded: feed.take(loaded, jnp.int32(0), jnp.int32(0)))(feed.load(0, 1))


def test_pixels_are_divided_by_the_divisor_of_the_data_and_dequantised():
    dataset = images()._replace(divisor=300.0)
    x = np.asarray(first_batch(tiny("images"), dataset).x)
    stored = dataset.train.x[[np.argmin(np.abs(dataset.train.x / 300 - row).max((1, 2, 3))) for row in x]]
    assert len(np.unique(stored, axis=0)) == len(x) == 4
    np.testing.assert_allclose(x, stored / 300, rtol=1e-6)
    noisy = np.asarray(first_batch(tiny("images", **{"dataset.dequantize": 0.25}), dataset).x)
    assert 0.24 < np.abs(noisy - x).max() <= 0.2501
    assert abs(np.std(noisy - x) - 0.5 / 12**0.5) < 0.02  # of a uniform number of width 0.5
    rows = game.prepare(tiny("images"), dataset).first_rows
    np.testing.assert_allclose(rows.x, dataset.train.x / 300, rtol=1e-6)


def test_instance_noise_falls_to_zero_over_the_steps_of_the_config(key):
    augment = game.prepare(tiny("points", instance_noise=0.8), points()).augment
    zeros = jnp.zeros((1000, 2))
    for at, deviation in ((0, 0.8), (3, 0.4), (6, 0.0)):
        seen = augment(Pairs(zeros, zeros, zeros, zeros), key, jnp.asarray(at))
        assert [round(float(jnp.std(x)) / 0.8, 1) for x in (seen.x, seen.x_tilde)] == [deviation / 0.8] * 2
        np.testing.assert_array_equal((seen.z, seen.z_hat), (zeros, zeros))


def test_the_labelled_term_has_the_weight_of_the_config():
    q, p, label = np.array([[1.0, 0, 0], [0, 3, 1]]), np.array([[0.0, 1, 0], [2, 0, 0]]), np.array([2, -1])
    softplus, logsumexp = (lambda s: np.log1p(np.exp(s))), lambda s: np.log(np.exp(s).sum(-1))
    game_term = softplus(-logsumexp(q[1])) + softplus(logsumexp(p)).mean()
    for weight in (1.0, 3.0):
        made = game.prepare(tiny("semi", labelled_weight=weight), points())
        logits = Logits(*(jnp.asarray(s, jnp.float32) for s in (q, p)))
        found = made.loss(logits, Batch(jnp.zeros((2, 1)), label=jnp.asarray(label)))[0].discriminator
        np.testing.assert_allclose(found, game_term + weight * (logsumexp(q[0]) - q[0, 2]), rtol=1e-5)


@pytest.mark.parametrize(("parallel", "axis_name"), [("pmap", "data"), ("mesh", None)])
def test_a_penalty_that_needs_the_whole_batch_is_told_how_it_is_split(parallel, axis_name, traced):
    made = game.prepare(tiny("feature_matching", parallel=parallel), points())
    given = [term.keywords["axis_name"] for term in made.penalties if "axis_name" in term.keywords]
    assert given == [axis_name]  # of feature_matching


def adam(gradients, learning_rate, b1, b2, eps):
    """Return Adam's last step (Kingma and Ba, 2015, algorithm 1)."""
    m = v = 0.0
    for gradient in gradients:
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
    t = len(gradients)
    return -learning_rate * (m / (1 - b1**t)) / ((v / (1 - b2**t)) ** 0.5 + eps)


@pytest.mark.parametrize("lowering", ["native", "cpu"])
def test_each_player_has_its_own_adam(lowering):
    numbers = {
        "generator": {"learning_rate": 0.1, "b1": 0.2, "b2": 0.3, "eps": 0.4},
        "discriminator": {"learning_rate": 0.5, "b1": 0.6, "b2": 0.7, "eps": 0.8},
    }
    flat = {f"optimizer.{player}.{key}": v for player, of in numbers.items() for key, v in of.items()}
    tx = game.prepare(tiny("points", lowering=lowering, **flat), points()).tx
    gradients = Networks(np.array([1.0, 2.0]), np.array([-3.0, 0.5]), np.array([4.0, -0.25]))
    state = tx.init(Networks(*(jnp.zeros(()) for _ in ROLES)))
    for i in range(2):
        updates, state = tx.update(Networks(*(jnp.float32(g[i]) for g in gradients)), state)
    for update, gradient, player in zip(
        updates, gradients, ("generator", "generator", "discriminator"), strict=True
    ):
        np.testing.assert_allclose(update, adam(gradient, **numbers[player]), rtol=1e-5)


def two_members():
    """Return a population whose averaged parameters are all 0.5 in its first member, 0.75 in its second."""
    config = tiny("seeds", **{"ema_decay": 0.9, "dataset.name": "mixture"})
    made = game.prepare(config)
    state = jax.device_get(game.initial_state(made))
    average = jax.tree.map(lambda leaf: np.stack([leaf[0] * 0 + 0.5, leaf[1] * 0 + 0.75]), state.ema)
    return made, jax.tree.map(jnp.asarray, state._replace(ema=average))


def numbers(tree: Any) -> set[float]:
    return {float(number) for leaf in jax.tree.leaves(tree) for number in leaf.ravel()}


def test_a_run_starts_from_the_averaged_decoder_of_the_member_it_names(tmp_path):
    made, state = two_members()
    trained = configs.with_values(made.config, {"dataset.shape": (2,)})
    (tmp_path / "config.json").write_text(configs.to_json(trained))
    manager = checkpoint.open_manager(tmp_path / "checkpoints", create=True)
    checkpoint.save(manager, state, {})
    checkpoint.close(manager, failed=False)
    for member, number in ((0, 0.5), (1, 0.75)):
        values = {"init_from": str(tmp_path), "init_member": member, "ema_decay": 0.9, "seed": 5}
        begun = game.initial_state(game.prepare(tiny("points", **values), points()))
        for variables in (begun.variables, begun.ema):
            assert numbers(variables.params.decoder) == {number}
            assert np.abs(variables.params.encoder["mu"]["kernel"]).max() < 1
        config = tiny("points", **values, init_networks=("encoder", "discriminator"))
        begun = game.initial_state(game.prepare(config, points())).variables.params
        assert numbers(begun.encoder) == numbers(begun.discriminator) == {number}
        assert np.abs(begun.decoder["output"]["kernel"]).max() != number


def test_transparent_pixels_have_the_background_of_the_config(tmp_path):
    for name in "abcd":
        Image.fromarray(np.full((8, 8, 4), (9, 9, 9, 0), np.uint8)).save(tmp_path / f"{name}.png")
    for background, grey in (("black", 0), ("77", 77)):
        config = tiny("points", **{"dataset.path": str(tmp_path), "dataset.background": background})
        config = configs.with_values(config, {"dataset.train_split": "train", "dataset.test_split": "train"})
        assert set(np.unique(game.load_data(config).train.rows(np.arange(2)).x)) == {grey}


def test_the_first_member_of_a_population_is_exported(tmp_path):
    pytest.importorskip("flatbuffers")
    safetensors = pytest.importorskip("safetensors.numpy")
    export.export(*two_members(), tmp_path)
    assert numbers(safetensors.load_file(tmp_path / "weights.safetensors")) == {0.5}
