"""The evaluators by name, and what their declarations say about numbers.

The modules are the registry: each of their public functions that is declared with `@evaluator` is one.
Importing a module registers nothing.
"""

from collections.abc import Mapping
from typing import Any

from ali_jax.data import Dataset
from ali_jax.evaluate import classes, coverage, distances, joint, manifolds, pictures, reconstruction
from ali_jax.evaluate.declare import Evaluator, check_needs, declaration_of
from ali_jax.evaluate.numbers import Number
from ali_jax.names import did_you_mean, public_functions
from ali_jax.types import ALI

# In the order in which headlines stand at the top of a report.
MODULES = (classes, coverage, reconstruction, distances, manifolds, joint, pictures)


def names() -> list[str]:
    """Return the names of all evaluators, sorted."""
    return sorted(_evaluators())


def named(name: str) -> Evaluator:
    """Return the evaluator of that name; for an unknown name raise a ValueError that lists them all."""
    known = _evaluators()
    if name not in known:
        hint = did_you_mean(name, sorted(known))
        raise ValueError(f"There is no evaluator {name!r}.{hint} There are: {', '.join(sorted(known))}.")
    return known[name]


def check_applicable(name: str, dataset: Dataset, ali: ALI, options: Mapping[str, Any] | None = None) -> None:
    """Raise a ValueError if there is no evaluator of that name, or if it does not apply.

    `options` are those of `config.evaluation`, or a part of them; the others have their defaults.
    """
    check_needs(named(name), dataset, ali, options)


def declared() -> dict[str, tuple[Number, ...]]:
    """Return the numbers of each evaluator, in the order of MODULES."""
    declarations = {name: declaration_of(function) for name, function in _evaluators().items()}
    return {name: declaration.numbers for name, declaration in declarations.items() if declaration}


def number(name: str) -> Number | None:
    """Return the declaration of a number, or None if no evaluator declares it."""
    return next(
        (number for numbers in declared().values() for number in numbers if number.name == name), None
    )


def is_control(name: str) -> bool:
    """Tell whether a number is a control, which does not depend on the trained weights."""
    declaration = number(name)
    return declaration is not None and declaration.control


def headlines() -> list[Number]:
    """Return the numbers that may stand at the top of a report, the most telling first."""
    return [number for numbers in declared().values() for number in numbers if number.headline]


def glossary() -> dict[str, dict[str, str]]:
    """Return the meaning of each number, by evaluator (sorted) and name."""
    return {
        evaluator: {number.name: number.meaning for number in numbers}
        for evaluator, numbers in sorted(declared().items())
    }


def table() -> str:
    """Return a Markdown table of all evaluators and their numbers; numbers of one meaning share a row."""
    rows = ["| evaluator | number | meaning |", "|---|---|---|"]
    for evaluator, meanings in glossary().items():
        summary = (named(evaluator).__doc__ or "").partition("\n")[0]
        rows.append(f"| `{evaluator}` | | {_cell(summary)} |")
        for meaning in dict.fromkeys(meanings.values()):
            same = ", ".join(f"`{name}`" for name in meanings if meanings[name] == meaning)
            rows.append(f"| | {same} | {_cell(meaning)} |")
    return "\n".join(rows)


def _evaluators() -> dict[str, Evaluator]:
    return {
        name: function
        for module in MODULES
        for name, function in public_functions(module).items()
        if declaration_of(function)
    }


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
