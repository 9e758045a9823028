"""Check that the documents tell the truth where a machine can tell.

Checked: relative links lead to files; files named in backticks exist; `file.py: name` pairs (as in
docs/life-of-a-request.md) name a function, class or method of that file; README has a line for
each package, docs/tree.md one for each module; the tables of docs/serving.md and
docs/benchmarking.md are those that tools/doc_tables.py makes from the code; make targets named in
backticks exist; each error code of glimt/errors.py is in docs/errors.md. Exit status 1 and one line
per lie.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import api_tables
import doc_tables

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
SEARCHED = (ROOT, ROOT / "glimt", ROOT / "docs")

LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
FILE = re.compile(r"`([\w./-]+\.(?:py|md|toml|txt|yaml|jinja))`")
MEMBER = re.compile(r"`([\w./-]+\.py): ([\w.]+)`")
TARGET = re.compile(r"`make ([a-z0-9-]+)`")


def exists(name: str) -> bool:
    """A named file may be given from the root, from the package, or from docs/."""
    return any((folder / name).exists() for folder in SEARCHED)


def names_in(file: Path) -> set[str]:
    """Functions, classes, and methods (as `Class.method` and `method`) of a module."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                    found |= {member.name, f"{node.name}.{member.name}"}
    return found


def check_document(document: Path) -> Iterator[str]:
    """All wrong references of one document."""
    text = document.read_text()
    for target in LINK.findall(text):
        if "://" not in target and not (document.parent / target).exists():
            yield f"link to {target}, which does not exist"
    for name in FILE.findall(text):
        if not exists(name) and name not in CHECKPOINT_FILES:
            yield f"file {name}, which does not exist"
    for name, member in MEMBER.findall(text):
        file = next((folder / name for folder in SEARCHED if (folder / name).exists()), None)
        if file is None:
            yield f"file {name}, which does not exist"
        elif member not in names_in(file):
            yield f"{member}, which is not in {name}"
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in TARGET.findall(text):
        if target not in targets:
            yield f"make {target}, which the Makefile does not have"


# Files of a checkpoint, named in documents, that are not files of this project.
CHECKPOINT_FILES = {"chat_template.jinja", "METADATA.txt", "my_template.jinja", "glimt.toml"}


def first_sentence(file: Path) -> str:
    """What a module says of itself in its first sentence."""
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    sentence = re.split(r"(?<=[.;])\s", " ".join(text.partition("\n\n")[0].split()), maxsplit=1)[0]
    return sentence.rstrip(".:;")


def all_packages() -> list[Path]:
    """Their folders, the parents before what they hold."""
    return sorted(init.parent for init in (ROOT / "glimt").rglob("__init__.py"))


def packages() -> str:
    """The packages as a list, in their own words."""
    lines = ["```"]
    for package in all_packages():
        name = f"{package.relative_to(ROOT)}/"
        lines.append(f"{name:<23}{first_sentence(package / '__init__.py')}")
    return "\n".join([*lines, "```"])


def tree() -> str:
    """The package as a list: one line per file, in its own words."""
    lines = ["```"]
    for package in all_packages():
        name = f"{package.relative_to(ROOT)}/"
        lines.append(f"{name:<27}{first_sentence(package / '__init__.py')}")
        lines += [
            f"    {file.name:<22} {first_sentence(file)}"
            for file in sorted(package.glob("*.py"))
            if file.name != "__init__.py"
        ]
    return "\n".join([*lines, "```"])


# What is made from the code, by document: each stands between two comments that name it.
MADE = {
    "README.md": {"packages": packages},
    "docs/tree.md": {"tree": tree},
    "docs/serving.md": doc_tables.TABLES,
    "docs/errors.md": doc_tables.ERROR_TABLES,
    "docs/api.md": api_tables.TABLES,
    "docs/benchmarking.md": {"options": doc_tables.bench_options},
    "docs/planning.md": {"options": doc_tables.plan_options},
}


def with_made(document: str) -> str:
    """A document with its made parts as they are now. Raises ValueError if a place is missing."""
    text = (ROOT / document).read_text()
    for name, make in MADE[document].items():
        start, end = f"<!-- {name}: made by tools/check_docs.py -->", f"<!-- end of {name} -->"
        head, _, rest = text.partition(start)
        _, found, tail = rest.partition(end)
        if not found:
            raise ValueError(f"{document}: there is no place for {name}")
        text = f"{head}{start}\n{make()}\n{end}{tail}"
    return text


def check_made() -> Iterator[str]:
    """Trees and tables against the code."""
    for document in MADE:
        if with_made(document) != (ROOT / document).read_text():
            yield f"{document} is not what the code says; run `python tools/check_docs.py --write`"


def check_errors() -> Iterator[str]:
    """docs/errors.md against the codes of the exception tree."""
    documented = (ROOT / "docs" / "errors.md").read_text()
    for code in re.findall(r'^    code = "(\w+)"', (ROOT / "glimt/errors.py").read_text(), re.M):
        if f"`{code}`" not in documented:
            yield f"error code {code} is missing"


def main() -> int:
    """Print every lie; 1 if there is one. `--write` brings trees and tables up to date first."""
    if "--write" in sys.argv:
        for document in MADE:
            (ROOT / document).write_text(with_made(document))
    lies = [
        f"{document.relative_to(ROOT)}: {lie}"
        for document in DOCUMENTS
        for lie in check_document(document)
    ]
    lies += check_made()
    lies += [f"docs/errors.md: {lie}" for lie in check_errors()]
    for lie in lies:
        print(lie, file=sys.stderr)
    print(f"{len(DOCUMENTS)} documents checked, {len(lies)} problems")
    return 1 if lies else 0


if __name__ == "__main__":
    sys.exit(main())
