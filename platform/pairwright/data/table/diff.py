"""Row-level diff of two table versions, by hashes of ids and contents.

16 bytes a row of the files that only one version names, never a text: files that both name are not read at all.
Two rows are the same annotation if their ids have one 64-bit hash, and unchanged if their contents have.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from pairwright.data.executor import LOCAL, Executor
from pairwright.data.identity import hash_ids
from pairwright.data.table.manifest import DataFile, Manifest
from pairwright.data.table.table import Table
from pairwright.data.table.version_log import changed_sources
from pairwright.errors import StoreError
from pairwright.terminal import one_per_line

KEYS = {"annotations": "id", "pairs": "group_id"}
WHERE_IT_STOOD = ("source", "line")
"""Columns of an annotation that say nothing of what was judged."""
NUM_SHOWN = 5


class RowHashes(msgspec.Struct, frozen=True):
    """Hashes of one file's rows, in order: uint64, little-endian."""

    path: str
    keys: bytes
    contents: bytes


@dataclass(frozen=True)
class Rows:
    """Hashes of the rows of several files."""

    paths: list[str]
    file: np.ndarray
    """Index into paths, of each row."""
    keys: np.ndarray
    contents: np.ndarray


@dataclass(frozen=True)
class Changes:
    """Indices of rows, into those of the second version, or for ``removed`` into those of the first."""

    added: np.ndarray
    removed: np.ndarray
    changed: np.ndarray
    num_unchanged: int


def diff(url: str, first: int, second: int, *, executor: Executor = LOCAL) -> dict[str, Any]:
    """Return what a version of a table has against another one, in values that JSON holds.

    Raises:
        StoreError: if there is no such table or version, or a file cannot be read.
    """
    table = Table.open(url)
    if table.kind not in KEYS:
        raise StoreError(f"{url}: holds {table.kind}, which are made anew from pairs; compare those")
    before, after = table.manifest(first), table.manifest(second)
    old, new = files_of_one(before, after) if before.digest != after.digest else ([], [])

    def work(file: DataFile) -> Iterator[RowHashes]:
        yield hash_rows(table, file)

    files = [*old, *new]
    found = executor.map_items(work, files, [file.bytes for file in files], RowHashes, what="files compared")
    hashes = {each.path: each for each in found}
    rows = rows_of(old, hashes), rows_of(new, hashes)
    changes = changes_between(*rows)
    return {
        "url": table.url,
        "kind": table.kind,
        **difference(before, after),
        "rows": {
            "added": len(changes.added),
            "removed": len(changes.removed),
            "changed": len(changes.changed),
            "unchanged": sum(file.rows for file in after.files) - len(changes.added) - len(changes.changed),
        },
        "examples": {
            "added": examples(table, new, rows[1], changes.added, NUM_SHOWN),
            "removed": examples(table, old, rows[0], changes.removed, NUM_SHOWN),
            "changed": examples(table, new, rows[1], changes.changed, NUM_SHOWN),
        },
    }


def format_diff(found: dict[str, Any]) -> str:
    """Return a difference as text."""
    first, second = found["versions"]
    what = "annotations" if found["kind"] == "annotations" else "groups"
    files = found["files"]
    lines = [
        f"{found['kind']} {found['url']}: version {first} -> {second}",
        f"files: {files['common']:,} in both, {files['only_first']:,} only in {first}, "
        f"{files['only_second']:,} only in {second}",
    ]
    if found["is_same_content"]:
        return one_per_line([*lines, "the same content"])
    for name, count in found["rows"].items():
        shown = found["examples"].get(name, [])
        judged = f" ({', '.join(shown)}{', ...' if count > len(shown) else ''})" if shown else ""
        lines.append(f"{what} {name}: {count:,}{judged}")
    for name, uris in found["sources"].items():
        lines += [f"source {name}: {uri}" for uri in uris[:NUM_SHOWN]]
        lines += [f"  and {len(uris) - NUM_SHOWN:,} more; --json has them all"] if len(uris) > NUM_SHOWN else []
    lines += [f"{name}: {old:,.6g} -> {new:,.6g}" for name, (old, new) in found["totals"].items()]
    return one_per_line(lines)


def hash_rows(table: Table, file: DataFile) -> RowHashes:
    """Return the hashes of a file's rows.

    Raises:
        StoreError: if it cannot be read.
    """
    rows = table.read_file(file)
    keys = hash_ids(rows.column(KEYS[table.kind]).to_pylist())
    judged = rows.drop_columns([name for name in WHERE_IT_STOOD if name in rows.schema.names])
    contents = bytearray()
    for batch in judged.to_batches():
        for row in batch.to_pylist():
            contents += hashlib.blake2b(msgspec.json.encode(list(row.values())), digest_size=8).digest()
    return RowHashes(file.path, keys.tobytes(), bytes(contents))


def files_of_one(first: Manifest, second: Manifest) -> tuple[list[DataFile], list[DataFile]]:
    """Return the data files that only the first, and that only the second of two versions names."""
    named = [{file.path for file in manifest.files} for manifest in (first, second)]
    return (
        [file for file in first.files if file.path not in named[1]],
        [file for file in second.files if file.path not in named[0]],
    )


def rows_of(files: Sequence[DataFile], hashes: dict[str, RowHashes]) -> Rows:
    """Return the rows of some files, in order."""
    found = [hashes[file.path] for file in files]
    return Rows(
        paths=[file.path for file in files],
        file=np.repeat(np.arange(len(files)), [file.rows for file in files]),
        keys=np.frombuffer(b"".join(each.keys for each in found), "<u8"),
        contents=np.frombuffer(b"".join(each.contents for each in found), "<u8"),
    )


def changes_between(before: Rows, after: Rows) -> Changes:
    """Return which rows came, went and changed."""
    order = np.argsort(before.keys, kind="stable")
    sorted_keys = before.keys[order]
    at = np.searchsorted(sorted_keys, after.keys)
    is_known = np.zeros(len(after.keys), dtype=bool)
    inside = at < len(sorted_keys)
    is_known[inside] = sorted_keys[at[inside]] == after.keys[inside]
    earlier = order[at[is_known]]
    is_same = before.contents[earlier] == after.contents[is_known]
    return Changes(
        added=np.flatnonzero(~is_known),
        removed=np.flatnonzero(~np.isin(before.keys, after.keys)),
        changed=np.flatnonzero(is_known)[~is_same],
        num_unchanged=int(is_same.sum()),
    )


def examples(table: Table, files: Sequence[DataFile], rows: Rows, chosen: np.ndarray, num_shown: int) -> list[str]:
    """Return the names of the first of some rows, from as few files as they stand in."""
    starts = np.concatenate([[0], np.cumsum([file.rows for file in files])])
    names = []
    for index in chosen[:num_shown].tolist():
        file = int(rows.file[index])
        column = table.read_file(files[file], [KEYS[table.kind]]).column(0)
        names.append(column[index - int(starts[file])].as_py())
    return names


def difference(first: Manifest, second: Manifest) -> dict[str, Any]:
    """Return what two manifests alone tell apart, in values that JSON holds."""
    totals = {
        name: [first.totals.get(name, 0), second.totals.get(name, 0)]
        for name in [*first.totals, *(name for name in second.totals if name not in first.totals)]
    }
    only = [len(files) for files in files_of_one(first, second)]
    return {
        "versions": [first.version, second.version],
        "is_same_content": first.digest == second.digest,
        "sources": changed_sources(first.sources, second.sources),
        "totals": {name: pair for name, pair in totals.items() if pair[0] != pair[1]},
        "files": {"common": len(first.files) - only[0], "only_first": only[0], "only_second": only[1]},
    }
