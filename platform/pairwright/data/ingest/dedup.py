"""Deduplication of an ingestion: refuses the records whose id stands in the table, or earlier in the sources.

64-bit hashes of ids find who might, 128-bit ones decide, and the later record is refused; its reason says whether it
was the same annotation once more or another one under a taken id. The ids of the table's files are read once (an
ingestion that adds little to a large table pays for that), contents only where hashes met, and only files that hold a
duplicate are written again. The driver holds 8 bytes a record, and 56 for a duplicate.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa

from pairwright.data.executor import Executor
from pairwright.data.identity import CONTENT, content_hashes
from pairwright.data.ingest.adapters import RecordError
from pairwright.data.ingest.parse import reason_key, rejection
from pairwright.data.ingest.shards import NUM_SHOWN, Part, hash_ids, num_completions
from pairwright.data.ingest.sources.splits import LineRange, pick_lines
from pairwright.data.table.table import DataFile, Table
from pairwright.errors import SourceError

DUPLICATE_ID = "duplicate id"
"""Beginning of the reason for which another record under a taken id is refused."""
DUPLICATE_IDS_SHARE = 0.5
"""Of the records: an export that counts its ids anew, or names prompts by them, not a record that stands twice."""
MIN_DUPLICATE_IDS = 20

_PLACE = np.dtype(
    [("row", "<u4"), ("hash", "<u8"), ("name", "<u8", 2), ("content", "<u8", 2), ("source", "<u4"), ("line", "<i8")]
)


class Places(msgspec.Struct, frozen=True):
    """Where some records of one file stand, and what they say, by hashes."""

    sources: list[str]
    packed: bytes

    @property
    def rows(self) -> np.ndarray:
        """One entry a record, in row order: row, hash, name and content (128 bits each), index of source, line."""
        return np.frombuffer(self.packed, dtype=_PLACE)


@dataclass(frozen=True, slots=True)
class Repeats:
    """The rows of one file whose ids stood somewhere already, in row order.

    Attributes:
        rows: their numbers, int64.
        is_same: whether it is the very annotation that has the id, bool.
        sources: names of the sources of the earlier ones.
        source_codes: index into ``sources`` of the earlier one's, int64.
        lines: line of the earlier one, int64.
    """

    rows: np.ndarray
    is_same: np.ndarray
    sources: list[str]
    source_codes: np.ndarray
    lines: np.ndarray


class _Found(msgspec.Struct, frozen=True):
    item: int
    places: Places


def refuse_repeats(
    parts: Sequence[Part],
    units: Sequence[LineRange],
    files: Sequence[DataFile],
    known: Table,
    table: Table,
    executor: Executor,
) -> list[Part]:
    """Return the parts without the records whose id stands in ``files`` of the table, or earlier in the parts.

    Args:
        parts: in the order in which the earlier record wins.
        units: the ranges that the parts came from, by ``part.unit``.
        files: files of a table that the parts were not checked against before.
        known: the table that they are in.
        table: where the parts are, the same one but for `validate`.
        executor: what maps over files.

    Raises:
        SourceError: if a source that holds a repeat is gone or has changed.
        StoreError: if a file cannot be read or written.
    """
    hashes = [part.hashes for part in parts]
    own = np.unique(np.concatenate([np.empty(0, "<u8"), *hashes]))
    before = _places(files, own, known, executor)
    taken = np.unique(np.concatenate([np.empty(0, "<u8"), *(places.rows["hash"] for places in before)]))
    wanted = np.union1d(repeated_hashes(hashes), taken)
    affected = [part for part in parts if part.data is not None and holds_any(part, wanted)]
    places = _places([part.data for part in affected if part.data is not None], wanted, table, executor)
    found = zip(affected, find_repeats(before, places), strict=True)
    smaller = _rewritten([(part, repeats) for part, repeats in found if len(repeats.rows)], units, table, executor)
    return [smaller.get((part.unit, part.index), part) for part in parts]


def _places(files: Sequence[DataFile], hashes: np.ndarray, table: Table, executor: Executor) -> list[Places]:
    """Return, for each file, where ids with these hashes (sorted, uint64) stand in it."""
    places = [Places([], b"") for _ in files]
    if not files or not len(hashes):
        return places
    shared = executor.broadcast(hashes)

    def work(index: int) -> Iterator[_Found]:
        yield _Found(index, places_of(table, files[index], shared.get()))

    sizes = [file.bytes for file in files]
    for found in executor.map_items(work, range(len(files)), sizes, _Found, what="files searched for repeated ids"):
        places[found.item] = found.places
    return places


def _rewritten(
    todo: Sequence[tuple[Part, Repeats]], units: Sequence[LineRange], table: Table, executor: Executor
) -> dict[tuple[int, int], Part]:
    """Return the parts without their repeats; each task fetches its own, since all of them can be many."""
    shared = [executor.broadcast(item) for item in todo]

    def work(index: int) -> Iterator[Part]:
        part, repeats = shared[index].get()
        yield without_repeats(part, units[part.unit], repeats, table)

    sizes = [units[part.unit].end - units[part.unit].start for part, _ in todo]
    parts = executor.map_items(work, range(len(todo)), sizes, Part, what="files written without repeated ids")
    return {(part.unit, part.index): part for part in parts}


def repeated_hashes(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return the hashes that occur more than once in all arrays together, sorted."""
    values, counts = np.unique(np.concatenate([np.empty(0, "<u8"), *arrays]), return_counts=True)
    return values[counts > 1]


def holds_any(part: Part, hashes: np.ndarray) -> bool:
    """Return whether any of the part's ids has one of ``hashes`` (sorted, uint64)."""
    return bool(_is_in(hashes, part.hashes).any())


def places_of(table: Table, file: DataFile, hashes: np.ndarray) -> Places:
    """Return the places of a file's records whose ids' hashes are among ``hashes`` (sorted, uint64), in row order."""
    ids = table.read_file(file, ["id"]).column("id").to_pylist()
    hash_of = hash_ids(ids)
    found = np.flatnonzero(_is_in(hashes, hash_of))
    if not len(found):
        return Places([], b"")
    rows = table.read_file(file, [*CONTENT, "source", "line"]).take(pa.array(found)).combine_chunks()
    sources = rows.column("source").combine_chunks().dictionary_encode()
    places = np.zeros(len(found), dtype=_PLACE)
    places["row"] = found
    places["hash"] = hash_of[found]
    places["name"] = _hashed([name.encode() for name in rows.column("id").to_pylist()])
    places["content"] = content_hashes(rows)
    places["source"] = sources.indices.to_numpy()
    places["line"] = rows.column("line").to_numpy()
    return Places(sources.dictionary.to_pylist(), places.tobytes())


def find_repeats(before: Sequence[Places], own: Sequence[Places]) -> list[Repeats]:
    """Return the repeats in each of ``own``: records whose id stands in ``before``, or earlier in ``own``.

    Args:
        before: places in files of the table.
        own: places in files of this ingestion, in the order in which the earlier record wins.
    """
    every = [*before, *own]
    names = sorted({source for places in every for source in places.sources})
    code_of = {name: code for code, name in enumerate(names)}
    codes = [np.array([code_of[name] for name in p.sources], np.int64)[p.rows["source"]] for p in every]
    rows = np.concatenate([np.empty(0, _PLACE), *(places.rows for places in every)])
    first = _first_of_each(rows["name"])
    source_of = np.concatenate([np.empty(0, np.int64), *codes])
    repeats, start = [], sum(len(places.rows) for places in before)
    for places in own:
        here = np.arange(start, start + len(places.rows))
        again = here[first[here] != here]
        repeats.append(
            Repeats(
                rows=rows["row"][again].astype(np.int64),
                is_same=(rows["content"][again] == rows["content"][first[again]]).all(axis=1),
                sources=names,
                source_codes=source_of[first[again]],
                lines=rows["line"][first[again]],
            )
        )
        start += len(here)
    return repeats


def without_repeats(part: Part, lines: LineRange, repeats: Repeats, table: Table) -> Part:
    """Return the part without the rows that repeat an id; they are kept as refused, with the text of their lines.

    Args:
        part: what was written; its data file is written anew and the old one deleted.
        lines: the range it came from, read again for the text of the refused lines.
        repeats: the rows, and the records that had their ids first.
        table: where the part's files are.

    Raises:
        SourceError: if the source is gone or has changed meanwhile.
    """
    assert part.data is not None
    before = table.read_file(part.data)
    dropped = before.select(["id", "line"]).take(pa.array(repeats.rows))
    numbers = dropped.column("line").to_pylist()
    texts = pick_lines(lines, numbers)
    if not texts.keys() >= set(numbers):
        raise SourceError(f"{lines.source.uri}: has changed while it was read; run the command again")
    refused = [
        rejection(_repeat_error(name, repeats, place), texts[number], lines.source.uri, number)
        for place, (name, number) in enumerate(zip(dropped.column("id").to_pylist(), numbers, strict=True))
    ]
    kept = np.setdiff1d(np.arange(part.accepted), repeats.rows)
    left = before.take(pa.array(kept))
    smaller = msgspec.structs.replace(
        part,
        accepted=len(kept),
        refused=part.refused + len(refused),
        duplicates=part.duplicates + int(repeats.is_same.sum()),
        completions=num_completions(left),
        data=table.write_data(left) if len(kept) else None,
        refused_files=[*part.refused_files, table.write_refused(refused)],
        reasons=dict(Counter(part.reasons) + Counter(map(reason_key, refused))),
        shown=[*part.shown, *refused][:NUM_SHOWN],
        id_hashes=part.hashes[kept].tobytes(),
    )
    table.delete([part.data])
    return smaller


def _repeat_error(name: str, repeats: Repeats, place: int) -> RecordError:
    where = f"{repeats.sources[repeats.source_codes[place]]}:{repeats.lines[place]}"
    if repeats.is_same[place]:
        return RecordError(f"duplicate annotation, got `{name}`, which stands at {where} word for word; once is enough")
    reason = f"{DUPLICATE_ID}, got `{name}`, which stands at {where} with other content; ids are unique in a table"
    return RecordError(reason, path="$.id")


def name_something_else(num_duplicates: int, num_records: int) -> bool:
    """Return whether so many of the records were refused as duplicate ids that the ids do not name records."""
    return num_duplicates >= MIN_DUPLICATE_IDS and num_duplicates >= DUPLICATE_IDS_SHARE * num_records


def _hashed(texts: Sequence[bytes]) -> np.ndarray:
    digests = b"".join(hashlib.blake2b(text, digest_size=16).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8").reshape(-1, 2)


def _first_of_each(names: np.ndarray) -> np.ndarray:
    """Return, for each row of (N, 2), the index of the first row that is equal to it, int64."""
    order = np.lexsort((names[:, 1], names[:, 0]))  # stable: equal names stay in their order
    ranked = names[order]
    is_first = np.ones(len(names), dtype=bool)
    is_first[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    first = np.empty(len(names), dtype=np.int64)
    first[order] = order[is_first][np.cumsum(is_first) - 1]
    return first


def _is_in(sorted_values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if not len(sorted_values):
        return np.zeros(len(wanted), dtype=bool)
    index = np.minimum(np.searchsorted(sorted_values, wanted), len(sorted_values) - 1)
    return sorted_values[index] == wanted
