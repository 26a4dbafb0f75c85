"""The module is the registry: what a config may name is a public function of some module."""

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any


def public_functions(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Return the public functions that a module defines itself, sorted by name."""
    return {
        name: function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }
