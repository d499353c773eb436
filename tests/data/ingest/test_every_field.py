"""Whatever a record says is used, kept or named; no field under another name changes its meaning in silence."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pairwright.config import IngestConfig
from pairwright.data.ingest.adapters import formats, groups_rows, parser_for, recognise
from pairwright.data.ingest.fields.adapter import Reading
from pairwright.data.ingest.parse import ValidAnnotation, parse_lines
from pairwright.errors import SourceError
from spoilt_sources import texts_in

FIXTURES = Path(__file__).parents[2] / "fixtures/formats"
CONFIG = IngestConfig(buckets=("good", "_", "bad"))
NEW_NAME = "renamed"
NAMES_OF_TURNS = {"role", "content", "from", "value", "type"}
TURNS = ("messages", "prompt", "conversations", "chosen", "rejected", "context", "completion")


def seeds() -> Iterator[Any]:
    """Yield a layout and a record of it: the examples of the package, and the fixtures."""
    for name, one in formats().items():
        for example in one.examples:
            yield pytest.param(name, json.loads(example), id=f"{name}-example")
    for path in sorted(FIXTURES.iterdir()):
        if ".expected." in path.name:
            continue
        name = max((name for name in formats() if path.name.startswith(name)), key=len)
        text = path.read_text(encoding="utf-8")
        records = json.loads(text) if text.lstrip().startswith("[") else list(map(json.loads, text.splitlines()))
        yield from (pytest.param(name, record, id=f"{path.stem}-{index}") for index, record in enumerate(records))


SEEDS = list(seeds())


def read(name: str, record: Any) -> tuple[list[ValidAnnotation], int, Reading]:
    """Return the annotations in a record, how many judgements of it were refused, and how it was read."""
    line = json.dumps(record).encode()
    if groups_rows(name, CONFIG):
        line = b"[" + line + b"," + line + b"]"
    parse = parser_for(name, CONFIG)
    accepted, refused = parse_lines(line, 1, "file", parse, CONFIG)
    return accepted, len(refused), parse.reading


def said_by(annotations: list[ValidAnnotation]) -> str:
    """Return all text of annotations, in one."""
    texts: list[str] = []
    for one in annotations:
        texts += [
            one.id,
            one.annotator or "",
            one.subset or "",
            one.grade or "",
            "" if one.created_at is None else one.created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        ]
        texts += [text for turn in one.prompt for text in (turn.role, turn.content, turn.extra or "")]
        texts += [text or "" for made in one.completions for text in (made.id, made.text, made.model, made.extra)]
        texts += [text for item in (one.metadata or {}).items() for text in item]
    return "\0".join(texts)


def meaning(annotations: list[ValidAnnotation], *, is_of_tool: bool) -> list[Any]:
    """Return what annotations say of prompts and completions; of a tool's export, not who said it."""
    return sorted(
        (
            [(turn.role, turn.content, turn.extra) for turn in one.prompt],
            sorted((made.text, rank) for made, rank in zip(one.completions, one.ranks, strict=True)),
            None if one.scores is None else sorted(one.scores),
            one.grade or "",
            "" if is_of_tool else one.annotator or "",
            one.subset or "",
        )
        for one in annotations
    )


@pytest.mark.parametrize(("name", "record"), SEEDS)
def test_each_text_of_a_record_is_in_the_annotation_or_named_by_the_summary(name: str, record: Any) -> None:
    annotations, num_refused, reading = read(name, record)
    if num_refused:
        return  # the record is kept whole, under quarantine/
    told = said_by(annotations)
    if name == "trl":  # an implicit prompt is the beginning of each side
        told += "\0".join(one.prompt[-1].content + made.text for one in annotations for made in one.completions)
    places = reading.as_dict()
    unused = {path.split("[")[0].split(".")[0] for path in places.get("not used", [])}
    spelled = told + json.dumps(told)[1:-1] + json.dumps(told, ensure_ascii=False)[1:-1]
    for field, value in record.items():
        if field in unused or name in ("label-studio", "argilla", "oasst"):
            continue
        for text in texts_in(value):
            words = [part.strip() for part in text.replace("Human:", "\0").replace("Assistant:", "\0").split("\0")]
            assert all(word in spelled or is_name(word, record, reading) for word in words), (field, text)


def is_name(text: str, record: Any, reading: Reading) -> bool:
    """Return whether a text is the name of a field below another, of a role, or the word for the better side."""
    return text in NAMES_OF_TURNS or text in ROLE_WORDS or any(text in field for field in names_in(record)) or not text


ROLE_WORDS = {"human", "gpt", "prompter", "model", "model_a", "assistant", "function_call", "observation", "user"}


def names_in(value: Any) -> Iterator[str]:
    """Yield every name of a field in a decoded value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from names_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from names_in(item)


def renamed(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield a value with one of its fields under another name, for every field in it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key), {NEW_NAME if other == key else other: said for other, said in value.items()}
            for where, inner in renamed(item, (*path, key)):
                yield where, value | {key: inner}
    elif isinstance(value, list):
        for index, item in enumerate(value):
            for where, inner in renamed(item, (*path, index)):
                yield where, [*value[:index], inner, *value[index + 1 :]]


@pytest.mark.parametrize(("name", "record"), SEEDS)
def test_a_field_under_another_name_refuses_the_record_or_leaves_its_meaning(name: str, record: Any) -> None:
    annotations, _, _ = read(name, record)
    is_of_tool = name in ("label-studio", "argilla")
    original = meaning(annotations, is_of_tool=is_of_tool)
    for path, changed in renamed(record):
        try:
            found = recognise([json.dumps(changed).encode()])
        except SourceError:
            continue
        for layout in {found or "native", name}:
            again, num_refused, _ = read(layout, changed)
            told = meaning(again, is_of_tool=is_of_tool)
            if num_refused or not told:
                continue  # and what was refused is shown
            assert told == original, (path, layout)
