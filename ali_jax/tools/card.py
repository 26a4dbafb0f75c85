"""The model card of an exported model: a README.md in the format of the Hugging Face hub.

It begins with metadata in YAML. Then come the use, the data, the config, and the numbers with their
intervals. The licence is left to the user.
"""

import importlib.metadata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import yaml

import ali_jax
from ali_jax import evaluate as evaluators
from ali_jax.config import Config, average_decay
from ali_jax.data import Dataset
from ali_jax.data.hub import PREFIX
from ali_jax.records.read import Run, changed, interval
from ali_jax.records.writers import Spread, spreads
from ali_jax.types import Variables

PRIVATE = (  # paths
    "dataset.path",
    "dataset.directory",
    "evaluation.inception_weights",
    "evaluation.dinov2_weights",
    "init_from",
)
CLASSES_NAMED = 50  # at most
LICENCE = "# license: choose one of https://huggingface.co/docs/hub/repositories-licenses"


class Program(NamedTuple):
    """What the card says of the exported programs."""

    golden: Mapping[str, np.ndarray]  # their inputs and outputs: x, z, x_hat and perhaps y
    platforms: tuple[str, ...]
    tolerance: float  # of the outputs on other platforms


class Row(NamedTuple):
    """A number of the card."""

    name: str
    value: float
    limits: tuple[float, float] | None  # of its 95 % interval
    meaning: str


def model_card(
    config: Config,
    dataset: Dataset,
    variables: Variables,
    step: int,
    program: Program,
    run: Run | None = None,
    members: int = 0,
) -> str:
    """Return the text of a model card.

    Args:
      config: that of the exported run; of a population, that of its first member.
      dataset: its data.
      variables: the exported weights.
      step: number of training steps.
      program: facts about the exported programs.
      run: the files of the run, whose numbers are shown if they are of this step.
      members: of the population whose first member is exported; 0 for a single run.
    """
    rows = [] if run is None or run.evaluated_step != step else numbers(run, is_member=members > 0)
    parts = [
        _metadata(config, dataset, rows),
        f"# {dataset.name}: encoder and decoder of ALI after {step:,} steps",
        "Adversarially learned inference (ALI) trains a decoder, which makes data from codes, together with "
        "an encoder, which infers the codes of data.",
        *_use(dataset, program),
        *_training(config, dataset, variables, step, members),
        *_numbers(rows, dataset),
        "## Licence",
        "Not chosen yet: replace the line `# license` at the top of this file, and consider the licence of "
        "the data.",
    ]
    return "\n\n".join(parts) + "\n"


def numbers(run: Run, *, is_member: bool) -> list[Row]:
    """Return the numbers of a run's last evaluation with their 95 % intervals, those of averaged weights.

    Of a population they are the first member's, whose intervals are those of a single run.
    """
    found = spreads({k: v for k, v in run.metrics.items() if not k.startswith("raw/")})
    values = {
        name: spread.members[0] if is_member and spread.members else spread.mean
        for name, spread in found.items()
    }
    meanings = {
        number.name: number.meaning for declared in evaluators.declared().values() for number in declared
    }
    rows = []
    for name, value in values.items():
        owner, _, end = name.rpartition("_")
        if value is None or (end in ("low", "high") and owner in values):
            continue
        low, high = values.get(f"{name}_low"), values.get(f"{name}_high")
        limits = None if low is None or high is None else (low, high)
        if limits is None and (of_share := interval(name, Spread(value), values)):
            limits = of_share[:2]
        rows.append(Row(name, value, limits, meanings.get(name, "")))
    return rows


def _metadata(config: Config, dataset: Dataset, rows: list[Row]) -> str:
    """Return the YAML block, with the comment in which the user names a licence."""
    is_image = len(dataset.test.shape) == 3
    task = {"pipeline_tag": "unconditional-image-generation"} if is_image else {}
    facts: dict[str, Any] = {
        "library_name": "ali_jax",
        **task,
        **_named_on_the_hub(config.dataset.path),
        "tags": ["adversarially-learned-inference", "bigan", "gan", "representation-learning", "jax", "flax"],
    }
    if rows:
        result = {
            "task": {"type": task.get("pipeline_tag", "other")},
            "dataset": {"name": dataset.name, "type": dataset.name, "split": dataset.splits[1]},
            "metrics": [
                {"type": row.name, "name": row.meaning or row.name, "value": float(f"{row.value:.6g}")}
                for row in rows
                if not row.name.startswith("n_")
            ],
        }
        facts["model-index"] = [{"name": f"ALI on {dataset.name}", "results": [result]}]
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{LICENCE}\n{text}---"


def _named_on_the_hub(path: str) -> dict[str, Any]:
    """Return the entry of a data set of the hub; none for data of another source."""
    name = path.removeprefix(PREFIX)
    if name == path or Path(name).exists():
        return {}
    return {"datasets": [name.partition(":")[0]]}


def _use(dataset: Dataset, program: Program) -> Iterator[str]:
    golden = program.golden
    y_in = ", golden['y']" if "y" in golden else ""
    shapes = {name: f"{a.dtype} [B, {', '.join(map(str, a.shape[1:]))}]" for name, a in golden.items()}
    stored = golden["x"].dtype == np.uint8
    unit = f"images as stored, 0 to {dataset.divisor:g}" if stored else "data as stored"
    yield "## Use"
    yield f"With ali_jax {ali_jax.__version__}, where `path` is the folder with these files:"
    yield f"""```python
import ali_jax

model = ali_jax.load(path)
z = model.encode(x{", y" if y_in else ""})  # [N, {golden["z"].shape[1]}], of images, vectors or paths
x_hat = model.decode(z{", y" if y_in else ""})
x_tilde = model.sample(16{", y" if y_in else ""})
```"""
    yield (
        f"Without it, with `jax` (exported with {importlib.metadata.version('jax')}), `flatbuffers` and "
        "`numpy`:"
    )
    yield f"""```python
import jax, numpy as np
load = lambda name: jax.export.deserialize(bytearray(open(name, "rb").read()))
golden = np.load("golden.npz")
z = load("encoder.jax").call(golden["x"]{y_in})
x_hat = load("decoder.jax").call(z{y_in})
```"""
    facts = [
        f"`encoder.jax`: x, {shapes['x']}, {unit}, to the mean code z, {shapes['z']}",
        f"`decoder.jax`: z to x_hat, {shapes['x_hat']}{', in [0, 1]' * stored}; samples are decodings of "
        "z ~ N(0, I)",
        *([f"`y`, the condition, {shapes['y']}, is the second argument of both"] if y_in else []),
        f"B is any batch size; platforms: {', '.join(program.platforms)}",
        "`weights.safetensors`: parameters and batch statistics of all three networks, float32",
        "`config.json`, `data.json`: what `ali_jax.load` builds the networks from",
    ]
    yield "\n".join(f"- {fact}" for fact in facts)
    yield (
        f"`golden.npz` holds {len(golden['x'])} test rows and the outputs of the programs. On other "
        "platforms they agree up to rounding:"
    )
    yield f"""```python
np.testing.assert_allclose(z, golden["z"], rtol={program.tolerance}, atol={program.tolerance})
np.testing.assert_allclose(x_hat, golden["x_hat"], rtol={program.tolerance}, atol={program.tolerance})
```"""


def _training(
    config: Config, dataset: Dataset, variables: Variables, step: int, members: int
) -> Iterator[str]:
    shape = "x".join(map(str, dataset.test.shape))
    names = dataset.class_names[:CLASSES_NAMED]
    more = f" and {len(dataset.class_names) - len(names)} more" * (len(dataset.class_names) > len(names))
    classes = {"classes": str(dataset.num_classes) + (f": {', '.join(names)}{more}" if names else "")}
    sizes = {
        role: sum(leaf.size for leaf in jax.tree.leaves(params))
        for role, params in variables.params._asdict().items()
    }
    images, decay = step * config.batch_size, average_decay(config)
    yield "## Training"
    facts = {
        "data": f"{dataset.name}, {shape} {'pixels' if len(dataset.test.shape) == 3 else 'numbers'}",
        "training rows": f"{len(dataset.train):,} ({dataset.splits[0]})",
        "test rows": f"{len(dataset.test):,} ({dataset.splits[1]})",
        **(classes if dataset.num_classes else {}),
        **({"conditions": ", ".join(dataset.attributes)} if config.dataset.conditional else {}),
        "steps": f"{step:,} of {config.batch_size:,} rows: {images:,} rows, "
        f"{images / len(dataset.train):,.1f} passes over the training rows",
        "parameters": ", ".join(f"{role} {size:,}" for role, size in sizes.items()),
        "weights": f"averaged, decay {decay:g}" if decay else "those of the last step",
        **({"population": f"the first of {members} members"} if members else {}),
    }
    yield _table(("", ""), facts.items())
    different = {key: new for key, (_, new) in changed(config).items() if key not in PRIVATE}
    yield "Keys of the config that are not at their default:"
    yield _table(("key", "value"), ((f"`{key}`", f"`{value!r}`") for key, value in different.items()))


def _numbers(rows: list[Row], dataset: Dataset) -> Iterator[str]:
    yield "## Numbers"
    if not rows:
        yield "None were recorded at this step."
        return
    yield (
        f"Train is {dataset.splits[0]} of {dataset.name}, test is {dataset.splits[1]}. Intervals are at "
        "95 %; those of shares of test rows are Wilson's. They do not show how much runs with other seeds "
        "differ."
    )
    yield _table(
        ("number", "value", "95 % interval", "what it is"),
        (
            (
                f"`{row.name}`",
                f"{row.value:.4g}",
                f"{row.limits[0]:.3g} to {row.limits[1]:.3g}" if row.limits else "",
                row.meaning,
            )
            for row in rows
        ),
    )


def _table(heads: tuple[str, ...], rows: Any) -> str:
    """Return a table of Markdown; cells may hold any text of one line."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(
        f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )
