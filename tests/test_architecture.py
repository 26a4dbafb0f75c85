"""The layers of the design hold: a module imports only from layers above its own."""

import ast
import inspect
import re
import subprocess
import sys
import tokenize

import flax.linen as nn
import pytest
import small

LAYERS = [
    ["types", "names", "rules", "bits", "cache"],
    ["config", "losses", "data"],
    ["networks"],
    ["model", "augmentation", "metrics", "optimizers"],
    ["penalties", "class_penalties", "evaluate"],
    ["gradients", "records"],
    ["train"],
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


# Where a config becomes something; everything else takes arguments.
READERS_OF_CONFIG = {
    "networks/from_config.py",
    "game",
    "records",
    "report",
    "tools",
    "program",
    "main",
    "reproduce",
}
NUMERIC = {
    "types",
    "losses",
    "penalties",
    "class_penalties",
    "model",
    "augmentation",
    "optimizers",
    "gradients",
    "train",
    "networks",
    "metrics",
    "data",
}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_readers_of_config_import_it(path):
    if not {str(path.relative_to(PACKAGE)), room(path)} & READERS_OF_CONFIG:
        assert "config" not in imported(path)


def test_numeric_code_knows_no_game_no_records_and_no_program():
    for path in MODULES:
        if room(path) in NUMERIC:
            assert not imported(path) & {"game", "records", "report", "tools", "program"}, path


def test_only_reproduce_imports_main():
    assert {room(path) for path in MODULES if "main" in imported(path)} == {"reproduce"}


def test_every_room_has_its_layer():
    assert set(map(room, MODULES)) == set(LEVEL)


def test_experiments_import_only_the_config():
    for path in (small.ROOT / "experiments").glob("*.py"):
        assert imported(path) == {"config"}, path.name


TOOLS = {"ALIEstimator", "Model", "load"}  # public names for models that are trained


def test_training_does_not_import_tensorflow_or_the_evaluation():
    code = (
        f"import sys, ali_jax; [getattr(ali_jax, name) for name in set(ali_jax.__all__) - {TOOLS}]; "
        "print(sorted({'tensorflow', 'sklearn', 'matplotlib', 'ali_jax.evaluate'} & set(sys.modules))); "
        "import ali_jax.program.loop  # what is slow to import waits until it is used \n"
        "print(sorted({'tensorflow', 'sklearn', 'matplotlib', 'scipy.stats'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["[]", "[]"]


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


def module_imports(tree):
    """Return a module's imports from the package: local name -> (module, name, or None for a module)."""
    names = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "ali_jax":
            names |= {alias.asname or alias.name: (alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ali_jax."):
            module = node.module.removeprefix("ali_jax.")
            names |= {alias.asname or alias.name: (module, alias.name) for alias in node.names}
    return names


def code_lines(path, node):
    """Return the numbers of a definition's lines that hold code: no docstring, comment or empty line."""
    lines = path.read_text().splitlines(keepends=True)
    tokens = tokenize.generate_tokens(iter(lines[node.lineno - 1 : node.end_lineno]).__next__)
    layout = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    used = set()
    for token in tokens:
        if token.type not in layout:
            used |= set(range(token.start[0], token.end[0] + 1))
    for inner in ast.walk(node):
        if isinstance(inner, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(inner):
            first = inner.body[0]
            used -= {n - node.lineno + 1 for n in range(first.lineno, first.end_lineno + 1)}
    return used


def way_of(module, name):
    """Return the code lines, by file, of a function and of what it needs from the package, networks apart."""
    todo, seen, lines = [(module, name)], set(), {}
    while todo:
        module, name = todo.pop()
        path = PACKAGE / f"{module}.py"
        if (module, name) in seen or not path.exists():
            continue
        seen.add((module, name))
        tree = ast.parse(path.read_text())
        own = {getattr(node, "name", None): node for node in tree.body}
        imports = module_imports(tree)
        if name not in own:
            continue
        lines.setdefault(module, []).append(len(code_lines(path, own[name])))
        for node in ast.walk(own[name]):
            if isinstance(node, ast.Name):
                todo.append(imports.get(node.id, (module, node.id)))
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                todo.append((imports.get(node.value.id, ("", None))[0], node.attr))
    return {module: sum(counts) for module, counts in lines.items()}


def test_one_training_step_is_at_most_five_files_and_three_hundred_lines():
    step, loss = way_of("train", "train_step"), way_of("losses", "ali")
    lines = {name: max(step.get(name, 0), loss.get(name, 0)) for name in {**step, **loss}}
    assert set(lines) == {"train", "gradients", "model", "losses", "types"}
    assert 150 < sum(lines.values()) <= 300
    text = (small.ROOT / "docs/reference/design.md").read_text()
    assert f"{sum(lines.values())} lines of code in {len(lines)} files" in text


def functions(node, depth=0):
    """Yield every function in a tree, with how many functions it is nested in."""
    for child in ast.iter_child_nodes(node):
        is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
        if is_function:
            yield child, depth
        yield from functions(child, depth + is_function)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_are_short_and_hardly_nested(path):
    """At most 60 lines without the docstring, and at most two functions around another."""
    for function, depth in functions(ast.parse(path.read_text())):
        doc = function.body[0]
        has_doc = ast.get_docstring(function) is not None
        length = (
            function.end_lineno - function.lineno + 1 - (doc.end_lineno - doc.lineno + 1 if has_doc else 0)
        )
        assert length <= 60, (function.name, length)
        assert depth <= 2, function.name
