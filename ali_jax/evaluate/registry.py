"""Evaluators by name: which there are, whether one applies, and what its numbers mean.

The modules are the registry: a public function of theirs that returns a Report is an evaluator.
"""

import fnmatch
import inspect
import re
from collections.abc import Callable

from ali_jax.data import Dataset
from ali_jax.evaluate import classes, coverage, distances, joint, needs, pictures, reconstruction
from ali_jax.names import did_you_mean, public_functions
from ali_jax.types import ALI, Report

Evaluator = Callable[..., Report]

MODULES = (pictures, reconstruction, classes, distances, coverage, joint)
CONTROLS = (  # numbers that are the same whatever the weights
    "n_*",
    "*_pixels",
    "*_pca",
    "*_untrained",
    "classifier_accuracy",
    "classifier_error",
    "class_score_data",
    "*_floor",
    "reconstruction_mse_random_pair",
    "ladder_random_pair",
    "code_*_floor",
    "effective_support_real",
    "stacked_*_real",
)
_ENTRY = r"^(\w+(?:, \w+)*)(?:  +|\n +)(\S.*(?:\n +\S.*)*)"  # NAME, NAME  meaning, over indented lines


def names() -> list[str]:
    """Return the names of the evaluators."""
    return sorted(_evaluators())


def named(name: str) -> Evaluator:
    """Return the evaluator of that name; of an unknown one, raise a ValueError that lists them."""
    known = _evaluators()
    if name not in known:
        hint = did_you_mean(name, sorted(known))
        raise ValueError(f"There is no evaluator {name!r}.{hint} There are: {', '.join(sorted(known))}.")
    return known[name]


def _evaluators() -> dict[str, Evaluator]:
    return {
        name: function
        for module in MODULES
        for name, function in public_functions(module).items()
        if inspect.signature(function).return_annotation is Report
    }


def check_applicable(name: str, dataset: Dataset, ali: ALI) -> None:
    """Raise a ValueError if there is no evaluator of that name, or if it does not apply to data or model."""
    needs.check(named(name), dataset, ali)


def is_control(name: str) -> bool:
    """Tell whether the number of that name is a control: it does not depend on the trained weights."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in CONTROLS)


def glossary() -> dict[str, dict[str, str]]:
    """Return what each number is, by evaluator and name, as the evaluators' docstrings say it.

    There a line "NAME, NAME  meaning" begins an entry, which more deeply indented lines go on with; of a
    single number the first line may be "Measure NAME, the meaning" or "Measure NAME: the meaning".
    """
    found = {}
    for evaluator in names():
        text = inspect.getdoc(named(evaluator)) or ""
        entries: dict[str, str] = {}
        if single := re.match(r"Measure (\w+)[,:] (.+?)\.(?:\s|$)", text, flags=re.DOTALL):
            entries[single[1]] = _prose(single[2])
        for match in re.finditer(_ENTRY, text, flags=re.MULTILINE):
            entries |= dict.fromkeys(match[1].split(", "), _prose(match[2]))
        found[evaluator] = entries
    return found


def _prose(text: str) -> str:
    return " ".join(text.replace("`", "").split())
