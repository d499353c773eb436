"""Annotators and prompts, as a person names them -> what to remove, the version without them, and the proof of it.

The manifest of that version says which prompts (by id) and which annotators (by SHA-256 of the name) were forgotten, so
that who knows a name can look up when it went, and nobody can read it there.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pairwright.data.manifest import Manifest, Source
from pairwright.data.mentions import Mentions, prompt_texts
from pairwright.data.removal import Removal, Thinner
from pairwright.data.rules import prompt_id
from pairwright.data.store import DataFile, Table
from pairwright.errors import ConfigError, StoreError
from pairwright.records import Message

_PROMPT_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Proof:
    """What was read again of a version after something was forgotten, and found not to hold it."""

    num_files: int
    num_rows: int
    num_refused_files: int
    num_refused: int


class Looked(msgspec.Struct, frozen=True):
    """How many rows, or refused records, one file holds, and how many of them should not be there."""

    path: str
    rows: int
    found: int


def removal_of(annotators: Sequence[str], prompts: Sequence[str]) -> Removal:
    """Return what to remove.

    Args:
        annotators: names.
        prompts: each a prompt_id (32 hex digits), or a file: the text of one user turn, or a .json list of messages.

    Raises:
        ConfigError: if nothing is named, or a prompt is neither.
    """
    if not annotators and not prompts:
        raise ConfigError("nothing to forget was named; give --annotator NAME or --prompt ID-OR-FILE")
    if "" in annotators:
        raise ConfigError("--annotator: expected a name, got an empty one; annotations without an annotator have none")
    named = [_prompt(prompt) for prompt in prompts]
    return Removal(
        annotators=frozenset(annotators),
        prompt_ids=frozenset(name for name, _ in named),
        prompts=tuple(sorted({turns for _, turns in named if turns})),
    )


def _prompt(named: str) -> tuple[str, tuple[str, ...]]:
    if _PROMPT_ID.fullmatch(named):
        return named, ()
    try:
        text = Path(named).read_text(encoding="utf-8")
        is_list = Path(named).suffix == ".json"
        turns = msgspec.json.decode(text, type=list[Message]) if is_list else [Message(role="user", content=text)]
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"--prompt {named}: neither a prompt_id (32 hex digits, shown by `pairwright inspect URL --json`) nor a "
            f"file with the prompt's text, or its messages as .json ({error})"
        ) from None
    return prompt_id(turns), prompt_texts([{"content": turn.content} for turn in turns])


def after_forgetting(newest: Manifest, left: Thinner, removal: Removal) -> Manifest | None:
    """Return the version after ``newest`` without what was removed; None where nothing was."""
    if not left.num_rows and not left.num_without_text:
        return None
    totals = Counter(newest.totals)
    totals.update({"annotations": -left.num_rows, "forgotten": left.num_rows, "completions": -left.completions})
    config = {
        "annotators_sha256": sorted(hashlib.sha256(name.encode()).hexdigest() for name in removal.annotators),
        "prompt_ids": sorted(removal.prompt_ids),
    }
    return Manifest(
        kind=newest.kind,
        operation="forget",
        files=left.files,
        refused_files=left.refused_files,
        totals=dict(totals),
        sources=[_without(source, left.rows.get(source.uri, 0)) for source in newest.sources],
        inputs=[],
        config=config,
        config_digest=hashlib.sha256(msgspec.json.encode(config)).hexdigest(),
    )


def _without(source: Source, num_rows: int) -> Source:
    return msgspec.structs.replace(source, accepted=source.accepted - num_rows, forgotten=source.forgotten + num_rows)


def look(table: Table, file: DataFile, removal: Removal) -> Looked:
    """Return how many records of a file of any version a removal still matches.

    Raises:
        StoreError: if the file cannot be read.
    """
    if file.path.startswith("data/"):
        keys = table.read_file(file, ["annotator", "prompt_id"])
        names = zip(keys.column("annotator").to_pylist(), keys.column("prompt_id").to_pylist(), strict=True)
        found = sum(name in removal.annotators or prompt in removal.prompt_ids for name, prompt in names)
        return Looked(file.path, keys.num_rows, found)
    mentions = Mentions(removal.annotators, removal.prompt_ids, removal.prompts)
    records = table.read_refused(file)
    return Looked(file.path, len(records), sum(map(mentions.in_refused, records)))


def proof_of(manifest: Manifest, looked: Sequence[Looked], where: str) -> Proof:
    """Return the proof that no file of a version holds what was forgotten.

    Raises:
        StoreError: if one does, or was not looked at, or holds another number of rows than the version says.
    """
    by_path = {each.path: each for each in looked}
    for file in manifest.all_files:
        each = by_path.get(file.path)
        if each is None or each.found or each.rows != file.rows:
            found = "was not read" if each is None else f"has {each.rows} rows, {each.found} of them to be forgotten"
            raise StoreError(f"{where}/{file.path}: {found}; expected {file.rows} and none; please report it")
    return Proof(
        num_files=len(manifest.files),
        num_rows=sum(by_path[file.path].rows for file in manifest.files),
        num_refused_files=len(manifest.refused_files),
        num_refused=sum(by_path[file.path].rows for file in manifest.refused_files),
    )
