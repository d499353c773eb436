"""Reads evaluation sets that a user names by file, folder, URL or table: their identity and their prompts.

Nothing of a set is skipped silently: a record without a prompt stops the command, since a prompt that is not compared
is a leak that nobody sees.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from pairwright.data.extras import EXTRA_FIELDS
from pairwright.data.identity import prompt_id
from pairwright.data.ingest.adapters import RecordError
from pairwright.data.ingest.prompts import prompt_of
from pairwright.data.ingest.sources.listing import list_sources
from pairwright.data.ingest.sources.source import SourceRef
from pairwright.data.ingest.sources.splits import InputSplit, read_chunks
from pairwright.data.table.manifest import DataFile, Input
from pairwright.data.table.table import Table
from pairwright.errors import DataError
from pairwright.records import UNREADABLE_JSON, Message

SOURCE_VERSION = 0
"""Version of an input that is a source, not a table."""


_DECODER = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True)
class NamedPrompt:
    """A prompt of an evaluation set."""

    id: str
    name: str
    """Where it stands, for people."""
    messages: list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class TableFile:
    """A data file of a table that serves as an evaluation set."""

    table: Table
    file: DataFile


def find_evaluation_sets(names: Sequence[str]) -> tuple[list[Input], list[TableFile], list[SourceRef]]:
    """Return the tables among the named sets with the files of their newest versions, and the sources.

    Raises:
        SourceError: if anything named is missing or holds no source; names all of them.
        StoreError: if a table cannot be read.
    """
    inputs, files, others = [], [], []
    for name in names:
        table = Table(name, "annotations")
        if not table.versions():
            others.append(name)
            continue
        table = Table.open(name)
        newest = table.manifest()
        if table.kind == "tokens":
            raise DataError(f"{name}: holds tokens, expected annotations or pairs, whose prompts can be compared")
        inputs.append(Input(url=table.url, version=newest.version, digest=newest.digest))
        files += [TableFile(table, file) for file in newest.files]
    return inputs, files, list_sources(others) if others else []


def prompts_in_file(item: TableFile) -> Iterator[NamedPrompt]:
    """Yield the distinct prompts of a table's file."""
    rows = item.table.read_file(item.file, ["prompt_id", "prompt"])
    seen: set[str] = set()
    for name, messages in zip(rows["prompt_id"].to_pylist(), rows["prompt"].to_pylist(), strict=True):
        if name not in seen:
            seen.add(name)
            yield NamedPrompt(name, f"{item.table.url} prompt {name}", messages)


def prompts_in_source(split: InputSplit) -> Iterator[NamedPrompt]:
    """Yield the prompts of an input split: each record has a ``prompt``, text or turns; the rest is ignored.

    Raises:
        DataError: if a record has none.
        SourceError: if the source cannot be read.
    """
    for chunk in read_chunks(split):
        for number, line in enumerate(chunk.text.split(b"\n"), start=chunk.first_line):
            if line and not line.isspace():
                where = f"{split.source.uri}:{number}"
                turns, context = _prompt(line, where)
                messages = [{"role": turn.role, "content": turn.content} for turn in turns]
                yield NamedPrompt(prompt_id(turns, context), where, messages)


def _known(turn: Any) -> Any:
    """Return a turn without what no template shows: here it is nobody's business."""
    names = ("role", "content", *EXTRA_FIELDS)
    return {name: turn[name] for name in names if name in turn} if isinstance(turn, dict) and "role" in turn else turn


def _prompt(line: bytes, where: str) -> tuple[list[Message], str | None]:
    try:
        record = _DECODER.decode(line)
        if isinstance(turns := record.get("prompt"), list):
            record["prompt"] = [_known(turn) for turn in turns]
        turns, context = prompt_of(record)
    except (*UNREADABLE_JSON, RecordError) as error:
        raise DataError(
            f'{where}: no prompt to compare: {error}; an evaluation set has {{"prompt": "..."}} in each record (text, '
            "or turns of role and content); ingest other layouts into a table and name that"
        ) from None
    if not any(turn.content.strip() for turn in turns):
        raise DataError(f"{where}: an empty prompt, expected text; leave the record out of the evaluation set")
    return turns, context
