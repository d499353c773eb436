"""Annotators and prompts, as a person names them -> what to remove, the version without them, and the proof of it.

The manifest of that version says which prompts (by id) and which annotators (by SHA-256 of the name) were forgotten, so
that who knows a name can look up when it went. Who guesses the name can do that too.
"""

import hashlib
import re
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow as pa

from pairwright.data.identity import prompt_id
from pairwright.data.ingest.adapters import RecordError
from pairwright.data.ingest.prompts import prompt_of
from pairwright.data.table.delete_rows import Removal, Thinner, folded, names_within, without_text
from pairwright.data.table.manifest import Manifest, Source
from pairwright.data.table.table import DataFile, Table
from pairwright.errors import ConfigError, StoreError

MAX_PROMPT_BYTES = 64 * 1024 * 1024
"""Of a file that holds a prompt: a million characters, as many as a table takes by default, are 12 MB at most."""

_PROMPT_ID = re.compile(r"[0-9a-f]{32}")
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


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
    alike: dict[str, int] = {}
    """Other annotators whose name holds a forgotten one as a word -> rows."""
    num_naming: int = 0
    """Rows whose id, subset or metadata hold a forgotten annotator's name as a word."""


def removal_of(annotators: Sequence[str], prompts: Sequence[str], *, is_exact: bool = False) -> Removal:
    """Return what to remove.

    Args:
        annotators: names.
        prompts: each a prompt_id (32 hex digits), or a file: the text of one user turn, or a .json list of messages,
            or a .json object of ``prompt`` and the ``tools`` and ``chat_template_kwargs`` beside it.
        is_exact: whether a name stands for its own spelling alone.

    Raises:
        ConfigError: if nothing is named, or a prompt is neither.
    """
    if not annotators and not prompts:
        raise ConfigError("nothing to forget was named; give --annotator NAME or --prompt ID-OR-FILE")
    if any(not (name if is_exact else folded(name)) for name in annotators):
        raise ConfigError("--annotator: expected a name, got an empty one; annotations without an annotator have none")
    if odd := [name for name in annotators if _LONE_SURROGATE.search(name)]:
        raise ConfigError(f"--annotator {odd[0]!a}: expected UTF-8, as every name in a table is")
    return Removal(annotators=frozenset(annotators), prompt_ids=frozenset(map(_prompt_id, prompts)), is_exact=is_exact)


def _prompt_id(named: str) -> str:
    if _PROMPT_ID.fullmatch(named):
        return named
    try:
        text = _content(Path(named)).decode()
        is_json = Path(named).suffix == ".json"
        told = msgspec.json.decode(text) if is_json else text
        turns, context = prompt_of(told if isinstance(told, dict) else {"prompt": told})
    except (OSError, ValueError, RecordError, RecursionError) as error:  # no UTF-8, or no JSON, is a ValueError too
        raise ConfigError(
            f"--prompt {named}: neither a prompt_id (32 hex digits, shown by `pairwright inspect URL --json`) nor a "
            f"file with the prompt's text, or its messages as .json ({error})"
        ) from None
    return prompt_id(turns, context)


def _content(path: Path) -> bytes:
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("it is no regular file")
    if state.st_size > MAX_PROMPT_BYTES:
        raise ValueError(f"it has {state.st_size:,} bytes, expected at most {MAX_PROMPT_BYTES:,}")
    with path.open("rb") as content:
        return content.read(MAX_PROMPT_BYTES)


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
    """Return how many records of a file of any version a removal still matches, and what else holds a name.

    Raises:
        StoreError: if the file cannot be read.
    """
    if not file.path.startswith("data/"):
        records = table.read_refused(file)
        return Looked(file.path, len(records), sum(without_text(record) != record for record in records))
    texts = ["id", "subset", "metadata"] if removal.annotators else []
    rows = table.read_file(file, ["annotator", "prompt_id", *texts])
    found = int(removal.rows_of(rows).sum())
    if not removal.annotators:
        return Looked(file.path, rows.num_rows, found)
    names = Counter(rows.column("annotator").drop_null().to_pylist())
    holds = names_within(removal.annotators)
    alike = {name: names[name] for name in sorted(names) if holds(name)}
    return Looked(file.path, rows.num_rows, found, alike, _num_naming(rows, holds))


def _num_naming(rows: pa.Table, holds: Callable[[str], bool]) -> int:
    columns = (rows.column(name).to_pylist() for name in ("id", "subset", "metadata"))
    texts = [
        "\n".join([name, subset or "", *(part for pair in metadata or () for part in pair)])
        for name, subset, metadata in zip(*columns, strict=True)
    ]
    # One search of all of them first: a name hardly ever stands there.
    return sum(map(holds, texts)) if holds("\n".join(texts)) else 0


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
