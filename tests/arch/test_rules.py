"""Rules of the house that neither ruff nor import-linter can state. Each names its reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "glimt").rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# Imports inside functions are how cycles and slow starts hide. Those allowed have a reason.
LAZY_IMPORTS = {
    "glimt/__init__.py": "glimt.LLM is looked up on use, so that torch-free parts stay torch-free",
    "glimt/cli.py": "`glimt --help` must not import the commands",
    "glimt/bench/cli.py": "the benchmark client starts in under half a second",
    "glimt/bench/serve.py": "what evaluates a run is not needed before it",
    "glimt/bench/data/source.py": "only the libraries of the chosen dataset are loaded",
}
# Code execution from data: never.
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "multiprocessing"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
# Deadlines are monotonic; the wall clock may jump. These files show a date to people.
WALL_CLOCK_FILES = {
    "glimt/api/stream.py",
    "glimt/api/routes.py",
    "glimt/api/app.py",
    "glimt/log.py",
    "glimt/frontend/template.py",
    "glimt/processes/server.py",
}


def ids(file: Path) -> str:
    return str(file.relative_to(ROOT))


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return []


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_a_file_fits_in_one_head(file: Path) -> None:
    assert len(file.read_text("utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_a_function_fits_on_one_screen(file: Path) -> None:
    long = [
        f"{function.name}: {(function.end_lineno or 0) - function.lineno + 1} lines"
        for function in functions(parse(file))
        if (function.end_lineno or 0) - function.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not long


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_nothing_is_imported_inside_a_function(file: Path) -> None:
    if ids(file) in LAZY_IMPORTS:
        return
    lazy = [
        name
        for function in functions(parse(file))
        for node in ast.walk(function)
        for name in imported(node)
    ]
    assert not lazy


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_no_path_leads_from_data_to_code(file: Path) -> None:
    tree = parse(file)
    for node in ast.walk(tree):
        for name in imported(node):
            assert name.split(".")[0] not in FORBIDDEN_MODULES
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("torch", "load")


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_there_are_no_globals_and_no_mixins(file: Path) -> None:
    for node in ast.walk(parse(file)):
        assert not isinstance(node, ast.Global)
        if isinstance(node, ast.ClassDef):
            assert not node.name.endswith(("Mixin", "Manager", "Helper", "Impl", "Utils"))


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_assert_never_judges_input(file: Path) -> None:
    """`python -O` removes assertions; types narrow without them."""
    assert not [node for node in ast.walk(parse(file)) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_deadlines_use_the_monotonic_clock(file: Path) -> None:
    if ids(file) in WALL_CLOCK_FILES:
        return
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("time", "time")
