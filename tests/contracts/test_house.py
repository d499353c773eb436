"""The layout of the package: small rooms that list their files, and a manual that names what is there."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "platform/pairwright"
ROOMS = sorted(path.parent for path in PACKAGE.rglob("__init__.py"))
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py"))
MOST_FILES = 12
MOST_LINES = 60
"""Of a function."""
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PATH = re.compile(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.py|(?:[a-z_0-9]+/){2,})`")
FOLDERS = {"platform", "jobs", "tests", "docs", "schemas", "benchmarks", "deploy", *(room.name for room in ROOMS)}


def named(room: Path) -> str:
    return str(room.relative_to(PACKAGE.parent))


@pytest.mark.parametrize("room", ROOMS, ids=named)
def test_a_room_has_at_most_twelve_files_and_lists_them_all(room: Path) -> None:
    files = {path.stem for path in room.glob("*.py")} - {"__init__", "__main__"}
    assert len(files) <= MOST_FILES
    docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    entries = [line.partition(": ")[0] for line in docstring.splitlines() if line.startswith("- ``")]
    listed = {name for entry in entries for name in re.findall(r"``(\w+)", entry)}
    inside = {path.name for path in room.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert listed == files | inside, f"not listed: {(files | inside) - listed}; not there: {listed - files - inside}"


def test_no_two_files_have_one_name() -> None:
    names = Counter(path.stem for path in MODULES if path.parent.name != "config")
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_function_is_longer_than_a_screen(path: Path) -> None:
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [node.name for node in functions if (node.end_lineno or 0) - node.lineno + 1 > MOST_LINES] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_manual_names_files_that_are_there(page: Path) -> None:
    found = {path for path in PATH.findall(page.read_text()) if path.split("/")[0] in FOLDERS}
    missing = [path for path in found if not (REPOSITORY / path).exists() and not (PACKAGE / path).exists()]
    missing = [path for path in missing if path != "platform/__init__.py"]  # which must not be there
    assert missing == []


def test_the_path_of_an_annotation_and_the_readme_name_every_room() -> None:
    rooms = {f"{room.relative_to(PACKAGE)}/" for room in ROOMS if room != PACKAGE}
    design = (REPOSITORY / "docs/design.md").read_text()
    assert [room for room in sorted(rooms) if f"`{room}" not in design] == []
    readme = (REPOSITORY / "README.md").read_text()
    top = {f"{room.relative_to(PACKAGE)}/" for room in ROOMS if room.parent == PACKAGE}
    assert [room for room in sorted(top) if f"`{room}`" not in readme] == []
