"""The layers of the design hold: a module imports only from layers above its own."""

import ast
import inspect
import re
import subprocess
import sys

import flax.linen as nn
import pytest
import small

LAYERS = [
    ["types", "config", "names", "bits"],
    ["losses", "networks", "data"],
    ["model", "metrics"],
    ["penalties", "evaluate"],
    ["train", "records"],
    ["game"],
    ["report", "tools"],
    ["program"],
    ["main"],
    ["reproduce"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
PACKAGE = small.ROOT / "ali_jax"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path):
    """Return the folder of a module or, of one at the top, its own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Return the rooms of the package that a file imports from."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "ali_jax":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ali_jax."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("ali_jax.")}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_layers_above(path):
    own = room(path)
    for name in imported(path) - {own}:
        assert LEVEL[name] < LEVEL[own], f"{own} imports {name}"


def test_every_room_has_its_layer():
    assert set(map(room, MODULES)) == set(LEVEL)


def test_experiments_import_only_the_config():
    for path in (small.ROOT / "experiments").glob("*.py"):
        assert imported(path) == {"config"}, path.name


def test_training_does_not_import_tensorflow_or_the_evaluation():
    code = "import sys, ali_jax; print(sorted({'tensorflow', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_public_names_exist_and_are_documented():
    import ali_jax

    for name in ali_jax.__all__:
        value = getattr(ali_jax, name)
        if inspect.isclass(value) or inspect.isfunction(value) or inspect.ismodule(value):
            assert value.__doc__, name


def test_help_tells_every_argument_and_result_of_the_public_functions():
    import ali_jax

    for name in ali_jax.__all__:
        value = getattr(ali_jax, name)
        if inspect.isfunction(value):
            text = inspect.getdoc(value) or ""
            assert "Returns:" in text, name
            described = text.partition("Args:")[2]
            for parameter in inspect.signature(value).parameters:
                assert re.search(rf"^  (\w+, )*{parameter}(, \w+)*: ", described, flags=re.M), (
                    name,
                    parameter,
                )
        elif inspect.isclass(value) and issubclass(value, nn.Module):
            fields = set(value.__annotations__) - {"parent", "name"}  # which every Flax module has
            assert fields <= set(re.findall(r"\w+", value.__doc__ or "")), name
