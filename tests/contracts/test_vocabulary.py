"""No retired word names anything in the package, and a module's first sentence says what the file is."""

import ast
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "platform" / "pairwright"

# Only words without a proper technical meaning elsewhere; a word of two parts stands as it is written in snake_case.
RETIRED: Mapping[str, str] = {
    "accident": "failure",
    "accidents": "failures",
    "alike": "similar",
    "ballot": "ranking",
    "ballots": "rankings",
    "beat": "heartbeat",
    "board": "coordinator",
    "bulge": "outlier",
    "bulges": "outliers",
    "contradicted": "conflicting",
    "dealt": "assigned",
    "emptied": "cleared",
    "figure": "metric",
    "figures": "metrics",
    "heart": "heartbeat sender",
    "landed": "staged",
    "landing": "staging",
    "likeness": "similarity",
    "mend": "repair",
    "mended": "repaired",
    "mending": "repair",
    "misfit": "schema mismatch",
    "mistake": "error",
    "mistakes": "errors",
    "notice": "warning, or preemption",
    "notices": "warnings, or preemptions",
    "overtaken": "concurrent change",
    "parties": "entities",
    "patience": "retry budget",
    "place": "URL, path, position or index",
    "places": "URLs, paths, positions or indices",
    "pulse": "rank status",
    "rejudged": "repeat annotations",
    "stretch": "partition or chunk",
    "stretches": "partitions or chunks",
    "surveyed": "hashed",
    "swept": "removed",
    "told": "messages, or what is meant",
    "untied": "decisive",
    "wholes": "unsplit groups",
    "left_out": "excluded",
    "set_aside": "quarantined",
}

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """Return a module's room: ``data/table``, ``config``; a file at the top is in the room ``.``."""
    return path.relative_to(PACKAGE).parent.as_posix()


def retired_in(name: str) -> list[str]:
    """Return the retired words of an identifier, in snake_case or CamelCase."""
    words = [word.lower() for word in _WORDS.findall(name)]
    pairs = [f"{first}_{second}" for first, second in pairwise(words)]
    return [word for word in [*words, *pairs] if word in RETIRED]


def names_in(path: Path) -> Iterator[str]:
    """Yield the names that a module gives: its own, of classes, functions, parameters, constants and attributes."""
    yield path.stem
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.arg(arg=name):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name
            case ast.Name(id=name, ctx=ast.Store()) if name.isupper():
                yield name


def first_sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"[.:](?=\s|$)", docstring, maxsplit=1)[0]


@pytest.mark.parametrize("room", sorted({room_of(path) for path in MODULES}))
def test_no_name_holds_a_retired_word(room: str) -> None:
    found = {
        f"{path.name}: {name}: say {RETIRED[word]}"
        for path in MODULES
        if room_of(path) == room
        for name in names_in(path)
        for word in retired_in(name)
    }
    assert not found


@pytest.mark.parametrize("room", sorted({room_of(path) for path in MODULES}))
def test_the_first_sentence_of_a_module_says_what_it_is(room: str) -> None:
    """With the field's noun: no arrow, no retired word."""
    found = {}
    for path in MODULES:
        sentence = first_sentence(path)
        words = retired_in(re.sub(r"\W+", "_", sentence))
        is_wrong = not sentence or "->" in sentence or words
        if room_of(path) == room and is_wrong:
            found[path.name] = sentence
    assert not found
