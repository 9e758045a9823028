"""Rules of the house that neither ruff nor import-linter can state. Each names its reason."""

import ast
import functools
from collections.abc import Callable, Container, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "glimt").rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# Imports inside functions are how cycles and slow starts hide. Those allowed have a reason.
LAZY_IMPORTS = {
    "glimt/__init__.py": "glimt.LLM is looked up on use, so that torch-free parts stay torch-free",
    "glimt/__main__.py": "Ctrl-C while the command loads ends it like any other",
    "glimt/cli.py": "`glimt --help` must not import the commands",
    "glimt/hub.py": "a folder needs no library of the hub, which takes a fifth of a second",
    "glimt/bench/cli.py": "the benchmark client starts in under half a second",
    "glimt/bench/serve.py": "what evaluates a run is not needed before it",
    "glimt/bench/data/source.py": "only the libraries of the chosen dataset are loaded",
}
# Code execution from data: never.
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "multiprocessing"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
VAGUE_CLASSES = ("Mixin", "Manager", "Helper", "Impl", "Utils")
# Deadlines are monotonic; the wall clock may jump. These files show a date to people.
WALL_CLOCK_FILES = {
    "glimt/api/stream.py",
    "glimt/api/routes.py",
    "glimt/api/app.py",
    "glimt/log.py",
    "glimt/frontend/template.py",
    "glimt/processes/server_state.py",
}


@functools.cache
def nodes(file: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(file.read_text("utf-8"))))


def dotted(node: ast.AST) -> str:
    """`a.b` of an attribute of a name."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return ""


def functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in nodes(file):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return []


def offences(of: Callable[[Path], Iterator[str]], allowed: Container[str] = ()) -> list[str]:
    """What a rule finds in all files but those that are allowed to: `file: what`."""
    names = {file: str(file.relative_to(ROOT)) for file in FILES}
    return [
        f"{name}: {what}"
        for file, name in names.items()
        if name not in allowed
        for what in of(file)
    ]


def test_the_files_that_are_excused_exist() -> None:
    assert {*LAZY_IMPORTS, *WALL_CLOCK_FILES} <= {str(file.relative_to(ROOT)) for file in FILES}


def test_a_file_fits_in_one_head() -> None:
    def long(file: Path) -> Iterator[str]:
        num_lines = len(file.read_text("utf-8").splitlines())
        if num_lines > MAX_FILE_LINES:
            yield f"{num_lines} lines"

    assert not offences(long)


def test_a_function_fits_on_one_screen() -> None:
    def long(file: Path) -> Iterator[str]:
        for function in functions(file):
            num_lines = (function.end_lineno or 0) - function.lineno + 1
            if num_lines > MAX_FUNCTION_LINES:
                yield f"{function.name}: {num_lines} lines"

    assert not offences(long)


def test_nothing_is_imported_inside_a_function() -> None:
    def lazy(file: Path) -> Iterator[str]:
        for function in functions(file):
            for node in ast.walk(function):
                yield from imported(node)

    assert not offences(lazy, LAZY_IMPORTS)


def test_no_path_leads_from_data_to_code() -> None:
    def paths(file: Path) -> Iterator[str]:
        for node in nodes(file):
            yield from (n for n in imported(node) if n.split(".")[0] in FORBIDDEN_MODULES)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                yield from {node.func.id} & FORBIDDEN_CALLS
            yield from {dotted(node)} & {"torch.load"}

    assert not offences(paths)


def test_there_are_no_globals_and_no_mixins() -> None:
    def bad(file: Path) -> Iterator[str]:
        for node in nodes(file):
            if isinstance(node, ast.Global):
                yield f"global {', '.join(node.names)}"
            if isinstance(node, ast.ClassDef) and node.name.endswith(VAGUE_CLASSES):
                yield node.name

    assert not offences(bad)


def test_assert_never_judges_input() -> None:
    """`python -O` removes assertions; types narrow without them."""

    def asserts(file: Path) -> Iterator[str]:
        yield from (f"line {node.lineno}" for node in nodes(file) if isinstance(node, ast.Assert))

    assert not offences(asserts)


def test_deadlines_use_the_monotonic_clock() -> None:
    def wall_clocks(file: Path) -> Iterator[str]:
        for node in nodes(file):
            yield from {dotted(node)} & {"time.time"}

    assert not offences(wall_clocks, WALL_CLOCK_FILES)


def test_triton_is_tried_in_one_place() -> None:
    """A machine without it, and a torch without CUDA, are met by `twins.py` for all choosers."""

    def kernels(file: Path) -> Iterator[str]:
        for node in () if file.name.startswith("triton_") else nodes(file):
            given = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            named = [part for name in (*imported(node), *given) for part in name.split(".")]
            from_twins = imported(node) == ["glimt.kernels.twins"]
            yield from (n for n in named if n.startswith("triton") and not from_twins)

    assert not offences(kernels, {"glimt/kernels/twins.py"})
