"""What a run's folder knows of its data: recorded while it trains, compared when it goes on or is used."""

import json
from pathlib import Path
from typing import Any

from ali_jax.config import Config
from ali_jax.data import Dataset, sizes
from ali_jax.data import facts as data_facts
from ali_jax.records.workdir import checkpoint_steps, start_from, write_text


def write(workdir: Path, facts: dict[str, Any]) -> None:
    """Record facts about the data, from `data.facts.describe`."""
    write_text(workdir / "data.json", json.dumps(facts, indent=2) + "\n")


def read(workdir: Path) -> dict[str, Any]:
    """Return the facts about the data of a run, or {} for a run that did not record them.

    If `data.json` is missing or damaged, they are those of the newest checkpoint.
    """
    folders = [workdir / "checkpoints" / str(step) for step in reversed(checkpoint_steps(workdir))]
    recorded = [_json(workdir / "data.json")]
    recorded += [_json(folder / "progress" / "metadata").get("data") for folder in folders]
    return next((facts for facts in recorded if facts and _is_whole(facts)), {})


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; return {} if the file is missing or holds something else."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_whole(facts: Any) -> bool:
    """Whether facts have the form that `data.facts.describe` gives them."""
    kinds = {"shape": list, "dtype": str, "divisor": float, "num_classes": int, "class_names": list}
    of_split = {"rows": int, "digest": str, "labels": str, "values": str, "part": str}

    def has(value: Any, kinds: dict[str, type]) -> bool:
        return isinstance(value, dict) and all(isinstance(value.get(k), kind) for k, kind in kinds.items())

    return has(facts, {**kinds, "attributes": list}) and all(
        has(facts.get(part), of_split) for part in ("train", "test")
    )


def check_resumed(workdir: Path, config: Config, dataset: Dataset) -> None:
    """Raise a ValueError if a run that has a checkpoint was trained on other data than these."""
    old = read(workdir) if checkpoint_steps(workdir) else {}
    new = data_facts.describe(dataset)
    changes = data_facts.differences(old, new)
    if not changes:
        return
    fits = old["shape"] == new["shape"] and not (
        _uses_classes(config) and data_facts.kind_differences(old, new)
    )
    weights = f" and, to start from this run's weights, {start_from(workdir)}" if fits else ""
    raise ValueError(
        f"{workdir} was trained on other data: {'; '.join(changes)}. To go on, give it the data of before "
        f"(config.dataset.path). For these data, start a new run: another --workdir{weights}."
    )


def _uses_classes(config: Config) -> bool:
    return config.dataset.conditional or config.dataset.labelled > 0


def check_used(workdir: Path, config: Config, dataset: Dataset) -> list[str]:
    """Compare data with those that a trained model knows; return what else differs, for the user to know.

    Raises:
      ValueError: the model cannot be given these data: their shape or, if it uses them, their classes differ.
    """
    old, new = read(workdir), data_facts.describe(dataset)
    shape, given = tuple(config.dataset.shape or new["shape"]), tuple(new["shape"])
    if shape != given:
        raise ValueError(
            f"The model in {workdir} takes data of shape {sizes.by(shape)}; the data are {sizes.by(given)}: "
            f"{sizes.cure(given, shape)}."
        )
    if _uses_classes(config) and (changes := data_facts.kind_differences(old, new)):
        raise ValueError(
            f"The model in {workdir} does not fit these data: {'; '.join(changes)}. Give it data with the "
            "same classes, in the same order."
        )
    parts = [[facts.get(part, {}).get("part") for part in ("train", "test")] for facts in (old, new)]
    return data_facts.differences(old, new) if old and parts[0] == parts[1] else []
