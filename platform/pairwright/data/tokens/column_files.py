"""Columns of a large tokens table in a file of this machine's cache, memory-mapped by every rank.

34 bytes a group: the sizes of groups, and the rows of each split in order of group ids. The first process that opens a
table writes the file, with memory that does not grow with the table; the others wait for it. A page that was read is
given back at once, so that an epoch of random groups leaves no more resident memory than its first step.
"""

import hashlib
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from pairwright.data.storage.local_cache import cache_folder
from pairwright.data.tokens.token_group import GroupColumns

Int64s = NDArray[np.int64]

HEADER_BYTES = 4096
ROWS_AT_ONCE = 512
"""Random rows that are read before their pages are given back; each can make 64 kB resident."""
ROWS_PER_BUCKET = 400_000
"""Rows that are sorted in memory at once: 16 MB, and about three times that while they are sorted."""
ID_BYTES = 32
"""Of a group id, whose order is that of these bytes."""
_SORTED_ROW = np.dtype([("id", f"S{ID_BYTES}"), ("row", "<i8")])
_HEXADECIMAL = np.array([f"{number:02x}".encode() for number in range(256)]).view(">u2")
_TYPES = {name: np.dtype(column.dtype) for name, column in GroupColumns.empty(0)._asdict().items()}


class MappedColumn(np.memmap[Any, Any]):
    """A memory-mapped array of which any part is read as a copy, and whose pages are then given back."""

    def __getitem__(self, key: Any) -> Any:
        mapped: Any = self.__dict__["_mmap"]  # numpy's own name for it; its stubs have none
        if not isinstance(key, np.ndarray):
            found = np.array(super().__getitem__(key))
            mapped.madvise(mmap.MADV_DONTNEED)
            return found
        rows = np.flatnonzero(key) if key.dtype == np.bool_ else key
        found = np.empty(rows.shape, self.dtype)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            found[part] = super().__getitem__(np.asarray(rows[part]))
            mapped.madvise(mmap.MADV_DONTNEED)
        return found


class ColumnChunk(NamedTuple):
    """The columns of some successive groups, with their ids and splits."""

    columns: GroupColumns
    group_ids: NDArray[np.bytes_]
    splits: NDArray[np.object_]


class _Header(msgspec.Struct):
    num_groups: int
    longest_row_tokens: int
    splits: dict[str, int]
    """Split -> rows in it."""


@dataclass(frozen=True, slots=True)
class MappedColumns:
    """The columns of a tokens table, memory-mapped."""

    columns: GroupColumns
    longest_row_tokens: int
    rows_of_split: Mapping[str, Int64s]


def mapped_columns(paths: Sequence[Path], num_groups: int, chunks: Iterable[ColumnChunk]) -> MappedColumns:
    """Return the columns of a tokens table from this machine's cache; written there first if need be.

    Args:
        paths: the files of the table.
        num_groups: groups in it.
        chunks: its columns, read only if they are written.

    Raises:
        StoreError: if the cache cannot be used.
        OSError: if the file cannot be written.
    """
    facts = [(str(path), state.st_size, state.st_mtime_ns, state.st_ino) for path in paths for state in [path.stat()]]
    name = hashlib.sha256(repr((num_groups, facts)).encode()).hexdigest()
    path = cache_folder("tokens") / f"{name}.columns"
    with FileLock(path.with_suffix(".arrow.lock")):  # the one that `empty_cache` takes
        if not path.exists():
            write_columns(path, num_groups, chunks)
    return open_columns(path)


def open_columns(path: Path) -> MappedColumns:
    """Return what ``write_columns`` wrote."""
    with path.open("rb") as file:
        header = msgspec.json.decode(file.read(HEADER_BYTES).rstrip(b" "), type=_Header)
    start = HEADER_BYTES
    columns: dict[str, Any] = {}
    for name, dtype in _TYPES.items():
        columns[name] = _column(path, dtype, start, header.num_groups)
        start += _padded(header.num_groups * dtype.itemsize)
    splits: dict[str, Int64s] = {}
    for name, num_rows in header.splits.items():
        splits[name] = _column(path, np.dtype("<i8"), start, num_rows)
        start += 8 * num_rows
    return MappedColumns(GroupColumns(**columns), header.longest_row_tokens, splits)


def _column(path: Path, dtype: np.dtype[Any], start: int, num: int) -> NDArray[Any]:
    return MappedColumn(path, dtype, "r", start, (num,)) if num else np.empty(0, dtype)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // 8) * 8


def write_columns(path: Path, num_groups: int, chunks: Iterable[ColumnChunk]) -> None:
    """Write the columns of a tokens table as one file, whole or not at all.

    Args:
        path: the file.
        num_groups: groups in the table.
        chunks: its columns, in order of rows.
    """
    with tempfile.TemporaryDirectory(prefix=".columns-", dir=path.parent) as folder:
        unfinished = Path(folder, "unfinished")
        with unfinished.open("wb") as file:
            sorting = _SplitRows(Path(folder), num_groups)
            longest = _write_sizes(file.fileno(), num_groups, chunks, sorting)
            file.seek(HEADER_BYTES + sum(_padded(num_groups * dtype.itemsize) for dtype in _TYPES.values()))
            for rows in sorting.sorted():
                file.write(rows.tobytes())
            file.seek(0)
            header = msgspec.json.encode(_Header(num_groups, longest, sorting.num_rows))
            assert len(header) <= HEADER_BYTES
            file.write(header.ljust(HEADER_BYTES))
        unfinished.replace(path)


def _write_sizes(handle: int, num_groups: int, chunks: Iterable[ColumnChunk], sorting: "_SplitRows") -> int:
    """Write the columns of sizes, and collect what is to be sorted; return the longest row's tokens."""
    longest = first = 0
    for chunk in chunks:
        start = HEADER_BYTES
        for (_, dtype), values in zip(_TYPES.items(), chunk.columns, strict=True):
            os.pwrite(handle, values.astype(dtype).tobytes(), start + first * dtype.itemsize)
            start += _padded(num_groups * dtype.itemsize)
        sorting.add(chunk, first)
        longest = max(longest, int(chunk.columns.longest_row_tokens_G.max(initial=0)))
        first += len(chunk.group_ids)
    assert first == num_groups, (first, num_groups)
    return longest


class _SplitRows:
    """Row numbers of each split, sorted by group id on disk: bucket by bucket of the ids' first two bytes."""

    def __init__(self, folder: Path, num_groups: int) -> None:
        self._folder = folder
        self._num_buckets = min(256, max(1, -(-num_groups // ROWS_PER_BUCKET)))
        self.num_rows: dict[str, int] = {}

    def add(self, chunk: ColumnChunk, first: int) -> None:
        records = np.empty(len(chunk.group_ids), _SORTED_ROW)
        records["id"], records["row"] = chunk.group_ids, np.arange(first, first + len(records))
        for split in sorted(set(chunk.splits.tolist())):
            some = records[chunk.splits == split]
            self.num_rows[split] = self.num_rows.get(split, 0) + len(some)
            bucket = self._buckets_of(some["id"])
            ends = np.cumsum(np.bincount(bucket, minlength=self._num_buckets))
            parts = np.split(some[np.argsort(bucket, kind="stable")], ends[:-1])
            for number, part in enumerate(parts):
                with self._path(split, number).open("ab") as file:
                    file.write(part.tobytes())

    def sorted(self) -> Iterator[Int64s]:
        """Yield the rows of one split after the other, each in order of group ids."""
        for split in self.num_rows:
            for number in range(self._num_buckets):
                records = np.fromfile(self._path(split, number), _SORTED_ROW)
                parts = np.ascontiguousarray(records["id"]).view(">u8").reshape(-1, ID_BYTES // 8)
                order = np.lexsort(parts.T[::-1]) if len(parts) else np.empty(0, np.int64)
                yield records["row"][order]

    def _buckets_of(self, ids: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Return the bucket of each id: monotone in the id, and even where ids are hexadecimal hashes."""
        first_two = np.ascontiguousarray(ids).view(">u2").reshape(-1, ID_BYTES // 2)[:, 0]
        number = np.searchsorted(_HEXADECIMAL, first_two, "right").astype(np.int64) - 1
        return np.maximum(number, 0) * self._num_buckets // len(_HEXADECIMAL)

    def _path(self, split: str, number: int) -> Path:
        return self._folder / f"{list(self.num_rows).index(split)}-{number}"
