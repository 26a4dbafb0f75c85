"""Names from configs and files: looking them up, suggesting a known name, showing them on a terminal."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any


def public_functions(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Return the public functions that a module defines itself, sorted by name."""
    return {
        name: function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }


def public_classes(module: ModuleType) -> dict[str, type]:
    """Return the public classes that a module defines itself, sorted by name."""
    return {
        name: value
        for name, value in inspect.getmembers(module, inspect.isclass)
        if value.__module__ == module.__name__ and not name.startswith("_")
    }


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean NAME?" with the known name most similar to `name`, or "" if none is similar.

    Dotted names, such as config keys, also match by their last part alone.
    """
    by_last = {key.rpartition(".")[2]: key for key in known}
    close = difflib.get_close_matches(name, list(by_last.values()), n=1, cutoff=0.7)
    close = close or [
        by_last[last] for last in difflib.get_close_matches(name.rpartition(".")[2], by_last, n=1)
    ]
    return f" Did you mean {close[0]}?" if close else ""


def printable(text: str) -> str:
    """Write control characters as escapes, except line breaks, so that a terminal can be shown any text."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
