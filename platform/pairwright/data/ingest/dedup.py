"""Deduplication of an ingestion: refuses records whose id is already in the table, or earlier in the sources.

48-bit hashes of ids find candidates in the id indexes, 128-bit ones decide, and the later record is refused; its reason
says whether it was the same annotation once more or another one under a taken id. Only data files that may hold a
duplicate are read, and only those of this ingestion that do are written again. The driver holds 56 bytes a duplicate,
and the hashes of ``HASHES_AT_ONCE`` records, however many there are.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa

from pairwright.data.executor import Executor
from pairwright.data.id_index.id_index import NUM_THREADS, IdSearch, entries_between, index_name, write_indexed
from pairwright.data.id_index.index_files import distinct, hash_ranges, truncated
from pairwright.data.identity import CONTENT, are_among, content_hashes, hash_ids
from pairwright.data.ingest.adapters import RecordError
from pairwright.data.ingest.parse import reason_key, rejection
from pairwright.data.ingest.shards import NUM_SHOWN, IngestShard, num_completions
from pairwright.data.ingest.sources.splits import InputSplit, fetch_lines
from pairwright.data.table.manifest import IdIndex
from pairwright.data.table.table import DataFile, Table
from pairwright.errors import SourceError

DUPLICATE_ID = "duplicate id"
"""Beginning of the reason why another record under a taken id is refused."""
DUPLICATE_IDS_SHARE = 0.5
"""Of the records: an export that counts its ids anew, or identifies prompts by them, not a duplicated record."""
MIN_DUPLICATE_IDS = 20
HASHES_AT_ONCE = 4_000_000
"""Hashes of new records that are compared at once: 32 MB, and about four times that while they are sorted."""

_LOCATION = np.dtype(
    [("row", "<u4"), ("hash", "<u8"), ("name", "<u8", 2), ("content", "<u8", 2), ("source", "<u4"), ("line", "<i8")]
)


class RecordLocations(msgspec.Struct, frozen=True):
    """Rows of one file, with hashes of their ids and contents."""

    sources: list[str]
    packed: bytes

    @property
    def rows(self) -> np.ndarray:
        """One entry a record, in row order: row, hash, name and content (128 bits each), index of source, line."""
        return np.frombuffer(self.packed, dtype=_LOCATION)

    def without(self, sources: frozenset[str]) -> "RecordLocations":
        """Return the same without the records of some sources."""
        gone = [code for code, name in enumerate(self.sources) if name in sources]
        return RecordLocations(self.sources, self.rows[~np.isin(self.rows["source"], gone)].tobytes()) if gone else self


@dataclass(frozen=True, slots=True)
class Duplicates:
    """The rows of one file whose ids were taken already, in row order.

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
    locations: RecordLocations


def refuse_duplicates(
    shards: Sequence[IngestShard],
    splits: Sequence[InputSplit],
    known: IdSearch,
    table: Table,
    executor: Executor,
    *,
    replaced: frozenset[str] = frozenset(),
    hashes_at_once: int = HASHES_AT_ONCE,
) -> list[IngestShard]:
    """Return the shards without the records whose id is in files of a table, or in an earlier shard.

    Args:
        shards: in the order in which the earlier record wins.
        splits: the input splits that the shards came from, by ``shard.split_index``.
        known: the files of a table that the shards were not checked against before.
        table: where the shards are, the same one but for `validate`.
        executor: what maps over files.
        replaced: sources of the table whose records are to leave it, so that their ids are free.
        hashes_at_once: hashes of new records that are compared at once, about.

    Raises:
        SourceError: if a source that holds a duplicate is gone or has changed.
        StoreError: if a file cannot be read or written.
    """
    candidates = find_candidates(shards, known, table, hashes_at_once)
    files = [file for file in known.files if index_name(file) in candidates.data_files]
    before = _locations(files, candidates.hashes, known.known, executor, replaced)
    affected = [shard for number, shard in enumerate(shards) if number in candidates.shards]
    locations = _locations([s.data for s in affected if s.data is not None], candidates.hashes, table, executor)
    found = zip(affected, find_duplicates(before, locations), strict=True)
    smaller = _rewritten(
        [(shard, duplicates) for shard, duplicates in found if len(duplicates.rows)], splits, table, executor
    )
    return [smaller.get((shard.split_index, shard.index), shard) for shard in shards]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Hashes of ids that occur twice in shards, or in a table too, and the files that hold them.

    Attributes:
        hashes: truncated, sorted, each once, uint64.
        data_files: of the table, by the names of its indexes.
        shards: positions of shards.
    """

    hashes: np.ndarray
    data_files: set[str]
    shards: set[int]


def find_candidates(
    shards: Sequence[IngestShard], known: IdSearch, table: Table, hashes_at_once: int = HASHES_AT_ONCE
) -> Candidates:
    """Return what may be a duplicate, by hashes of ids, a part of the range of hashes at a time.

    Raises:
        StoreError: if the index of a shard, or a file without an index, cannot be read.
    """
    indexed = [(number, shard.id_index) for number, shard in enumerate(shards) if shard.id_index is not None]
    hashes, data_files, positions = [np.empty(0, "<u8")], set[str](), set[int]()
    num_ranges = max(1, -(-sum(index.rows for _, index in indexed) // hashes_at_once))
    for low, high in hash_ranges(num_ranges) if indexed else ():

        def hashes_of(one: tuple[int, IdIndex], low: int = low, high: int = high) -> np.ndarray:
            return truncated(entries_between(table.url, one[1], low, high))

        with ThreadPoolExecutor(NUM_THREADS) as pool:
            own = list(pool.map(hashes_of, indexed))
        values, counts = np.unique(np.concatenate(own), return_counts=True)
        matches = known.search(values)
        wanted = distinct(values[counts > 1], matches.hashes)
        hashes.append(wanted)
        data_files |= matches.data_files
        positions |= {number for (number, _), each in zip(indexed, own, strict=True) if are_among(each, wanted).any()}
    return Candidates(np.concatenate(hashes), data_files, positions)


def _locations(
    files: Sequence[DataFile],
    hashes: np.ndarray,
    table: Table,
    executor: Executor,
    replaced: frozenset[str] = frozenset(),
) -> list[RecordLocations]:
    """Return, for each file, the locations of the ids with these hashes (truncated, sorted)."""
    locations = [RecordLocations([], b"") for _ in files]
    if not files or not len(hashes):
        return locations
    shared = executor.broadcast(hashes)

    def work(index: int) -> Iterator[_Found]:
        yield _Found(index, locations_of(table, files[index], shared.get()).without(replaced))

    sizes = [file.bytes for file in files]
    for found in executor.map_items(work, range(len(files)), sizes, _Found, what="files searched for duplicate ids"):
        locations[found.item] = found.locations
    return locations


def _rewritten(
    todo: Sequence[tuple[IngestShard, Duplicates]], splits: Sequence[InputSplit], table: Table, executor: Executor
) -> dict[tuple[int, int], IngestShard]:
    """Return the shards without their duplicates; each task fetches its own, since all of them can be many."""
    shared = [executor.broadcast(item) for item in todo]

    def work(index: int) -> Iterator[IngestShard]:
        shard, duplicates = shared[index].get()
        yield drop_duplicates(shard, splits[shard.split_index], duplicates, table)

    sizes = [splits[shard.split_index].end - splits[shard.split_index].start for shard, _ in todo]
    shards = executor.map_items(work, range(len(todo)), sizes, IngestShard, what="files written without duplicate ids")
    return {(shard.split_index, shard.index): shard for shard in shards}


def locations_of(table: Table, file: DataFile, hashes: np.ndarray) -> RecordLocations:
    """Return the locations, in row order, of a file's records whose id hashes are among some (truncated, sorted)."""
    ids = table.read_file(file, ["id"]).column("id").to_pylist()
    hash_of = truncated(hash_ids(ids))
    found = np.flatnonzero(are_among(hash_of, hashes))
    if not len(found):
        return RecordLocations([], b"")
    rows = table.read_file(file, [*CONTENT, "source", "line"]).take(pa.array(found)).combine_chunks()
    sources = rows.column("source").combine_chunks().dictionary_encode()
    locations = np.zeros(len(found), dtype=_LOCATION)
    locations["row"] = found
    locations["hash"] = hash_of[found]
    locations["name"] = _hashed([name.encode() for name in rows.column("id").to_pylist()])
    locations["content"] = content_hashes(rows)
    locations["source"] = sources.indices.to_numpy()
    locations["line"] = rows.column("line").to_numpy()
    return RecordLocations(sources.dictionary.to_pylist(), locations.tobytes())


def find_duplicates(before: Sequence[RecordLocations], own: Sequence[RecordLocations]) -> list[Duplicates]:
    """Return the duplicates in each of ``own``: records whose id is in ``before``, or earlier in ``own``.

    Args:
        before: locations in files of the table.
        own: locations in files of this ingestion, in the order in which the earlier record wins.
    """
    every = [*before, *own]
    names = sorted({source for locations in every for source in locations.sources})
    code_of = {name: code for code, name in enumerate(names)}
    codes = [np.array([code_of[name] for name in p.sources], np.int64)[p.rows["source"]] for p in every]
    rows = np.concatenate([np.empty(0, _LOCATION), *(locations.rows for locations in every)])
    first = _first_of_each(rows["name"])
    source_of = np.concatenate([np.empty(0, np.int64), *codes])
    duplicates, start = [], sum(len(locations.rows) for locations in before)
    for locations in own:
        here = np.arange(start, start + len(locations.rows))
        again = here[first[here] != here]
        duplicates.append(
            Duplicates(
                rows=rows["row"][again].astype(np.int64),
                is_same=(rows["content"][again] == rows["content"][first[again]]).all(axis=1),
                sources=names,
                source_codes=source_of[first[again]],
                lines=rows["line"][first[again]],
            )
        )
        start += len(here)
    return duplicates


def drop_duplicates(shard: IngestShard, split: InputSplit, duplicates: Duplicates, table: Table) -> IngestShard:
    """Return the shard without the rows that duplicate an id; those are quarantined, with the text of their lines.

    Args:
        shard: what was written; its data file is written anew and the old one deleted.
        split: the input split it came from, read again for the text of the refused lines.
        duplicates: the rows, and the records that had their ids first.
        table: where the files of the shard are.

    Raises:
        SourceError: if the source is gone or has changed meanwhile.
    """
    assert shard.data is not None
    before = table.read_file(shard.data)
    dropped = before.select(["id", "line"]).take(pa.array(duplicates.rows))
    numbers = dropped.column("line").to_pylist()
    texts = fetch_lines(split, numbers)
    if not texts.keys() >= set(numbers):
        raise SourceError(f"{split.source.uri}: has changed while it was read; run the command again")
    refused = [
        rejection(_duplicate_error(name, duplicates, index), texts[number], split.source.uri, number)
        for index, (name, number) in enumerate(zip(dropped.column("id").to_pylist(), numbers, strict=True))
    ]
    kept = np.setdiff1d(np.arange(shard.accepted), duplicates.rows)
    left = before.take(pa.array(kept))
    data, index = write_indexed(table, left) if len(kept) else (None, None)
    smaller = msgspec.structs.replace(
        shard,
        accepted=len(kept),
        refused=shard.refused + len(refused),
        duplicates=shard.duplicates + int(duplicates.is_same.sum()),
        completions=num_completions(left),
        data=data,
        id_index=index,
        quarantined_files=[*shard.quarantined_files, table.write_quarantined(refused)],
        reasons=dict(Counter(shard.reasons) + Counter(map(reason_key, refused))),
        shown=[*shard.shown, *refused][:NUM_SHOWN],
    )
    table.delete([shard.data, *(shard.id_index.files if shard.id_index else [])])
    return smaller


def _duplicate_error(name: str, duplicates: Duplicates, index: int) -> RecordError:
    where = f"{duplicates.sources[duplicates.source_codes[index]]}:{duplicates.lines[index]}"
    if duplicates.is_same[index]:
        return RecordError(f"duplicate annotation, got `{name}`, which stands at {where} word for word; once is enough")
    reason = f"{DUPLICATE_ID}, got `{name}`, which stands at {where} with other content; ids are unique in a table"
    return RecordError(reason, path="$.id")


def are_ids_not_unique(num_duplicates: int, num_records: int) -> bool:
    """Return whether so many of the records were refused as duplicate ids that the ids do not identify records."""
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
