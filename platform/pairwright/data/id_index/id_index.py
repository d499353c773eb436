"""Searches the id indexes of a table for the data files that can hold some ids.

A version names the indexes of its data files (``Manifest.indexes``). A data file without an index, in a table made
before there were any or where an index file is damaged or missing, is read and indexed by the search itself, so that an
index costs time where it is lost, and never a duplicate.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pairwright.data.executor import Executor
from pairwright.data.id_index.index_files import (
    Entries,
    IndexFileReader,
    distinct,
    file_numbers,
    hash_ranges,
    truncated,
    write_index_file,
)
from pairwright.data.identity import hash_ids
from pairwright.data.table.manifest import IdIndex
from pairwright.data.table.table import DataFile, Table
from pairwright.errors import StoreError

NUM_THREADS = 8
"""Index files that are searched at once."""


def write_indexed(table: Table, rows: pa.Table) -> tuple[DataFile, IdIndex | None]:
    """Write a new data file, and for annotations the index of its ids; no version names them yet.

    Raises:
        StoreError: if they cannot be written.
    """
    file = table.write_data(rows)
    if table.kind != "annotations":
        return file, None
    return file, _index_of(table, file, rows.column("id").to_pylist())


def index_of_file(table: Table, file: DataFile, into: Table) -> IdIndex:
    """Read a data file and write its index into a table, the same one or another.

    Raises:
        StoreError: if it cannot be read, or the index cannot be written.
    """
    return _index_of(into, file, table.read_file(file, ["id"]).column("id").to_pylist())


def _index_of(table: Table, file: DataFile, ids: Sequence[str]) -> IdIndex:
    entries = np.sort(truncated(hash_ids(ids)))
    return IdIndex([index_name(file)], [write_index_file(table.url, entries)])


def index_name(file: DataFile) -> str:
    """Return the name by which an index calls a data file."""
    return file.path.rpartition("/")[2].removesuffix(".arrow")


def unindexed(files: Iterable[DataFile], indexes: Iterable[IdIndex]) -> list[DataFile]:
    """Return the data files that no index names."""
    known = {name for index in indexes for name in index.data_files}
    return [file for file in files if index_name(file) not in known]


def index_all(table: Table, files: Sequence[DataFile], into: Table, executor: Executor) -> list[IdIndex]:
    """Read data files of a table, and write an index of each into ``into``.

    Raises:
        StoreError: if one cannot be read, or an index cannot be written.
    """

    def work(file: DataFile) -> Iterator[IdIndex]:
        yield index_of_file(table, file, into)

    sizes = [file.bytes for file in files]
    return list(executor.map_items(work, files, sizes, IdIndex, what="files indexed"))


class Matches(msgspec.Struct, frozen=True):
    """Hashes that were searched for and found, and the data files that hold them, by the names of the index."""

    hashes: NDArray[np.uint64]
    data_files: set[str]


def search(url: str, index: IdIndex, hashes: NDArray[np.uint64], data_files: Collection[str]) -> Matches:
    """Return which hashes an index of the table at a URL holds for some data files.

    Args:
        url: of the table in whose folder the index lies.
        index: the index.
        hashes: truncated, sorted, each once.
        data_files: names of the files that count.

    Raises:
        StoreError: if an index file is damaged or missing.
    """
    is_wanted = np.array([name in data_files for name in index.data_files], bool)
    found = [np.empty(0, "<u8")]
    for file, (low, high) in zip(index.files, hash_ranges(len(index.files)), strict=True):
        here = hashes[np.searchsorted(hashes, np.uint64(low)) : np.searchsorted(hashes, np.uint64(high), "right")]
        found += [IndexFileReader(url, file).among(here)] if len(here) else []
    entries = np.concatenate(found)
    numbers = file_numbers(entries)
    if len(numbers) and numbers.max() >= len(is_wanted):
        raise StoreError(f"{url}: an index names a data file that it does not list")
    entries, numbers = entries[is_wanted[numbers]], numbers[is_wanted[numbers]]
    return Matches(distinct(truncated(entries)), {index.data_files[number] for number in np.unique(numbers)})


def entries_between(url: str, index: IdIndex, low: int, high: int) -> Entries:
    """Return the entries of an index from ``low`` to ``high``, both included, sorted.

    Raises:
        StoreError: if an index file is damaged or missing.
    """
    found = [
        IndexFileReader(url, file).between(max(low, first), min(high, last))
        for file, (first, last) in zip(index.files, hash_ranges(len(index.files)), strict=True)
        if first <= high and last >= low
    ]
    return np.concatenate([np.empty(0, "<u8"), *found])


@dataclass
class IdSearch:
    """The ids of some data files of a table, searched by their indexes; what has none is indexed first."""

    known: Table
    files: Sequence[DataFile]
    indexes: Sequence[IdIndex]
    into: Table
    """Where new indexes are written."""
    executor: Executor
    written: list[IdIndex]
    """New indexes: of files that had none, or whose index could not be read."""

    def __post_init__(self) -> None:
        self._names = {index_name(file) for file in self.files}
        self._stored = [
            (self.known.url, index) for index in self.indexes if not self._names.isdisjoint(index.data_files)
        ]
        self._add(unindexed(self.files, self.indexes))

    def search(self, hashes: NDArray[np.uint64]) -> Matches:
        """Return which of some hashes (truncated, sorted, each once) the files hold, and which files.

        Raises:
            StoreError: if a file without an index cannot be read.
        """
        found = self._search(self._stored, hashes)
        unreadable = [stored for stored, matches in found if matches is None]
        if unreadable:
            self._stored = [stored for stored in self._stored if stored not in unreadable]
            names = {name for _, index in unreadable for name in index.data_files} & self._names
            again = self._add([file for file in self.files if index_name(file) in names])
            found += self._search(again, hashes)
        matches = [each for _, each in found if each is not None]
        return Matches(
            distinct(*(each.hashes for each in matches)),
            {name for each in matches for name in each.data_files},
        )

    def _add(self, files: Sequence[DataFile]) -> list[tuple[str, IdIndex]]:
        """Index some files, and return their indexes, which are searched from now on."""
        new = index_all(self.known, files, self.into, self.executor)
        self.written += new
        stored = [(self.into.url, index) for index in new]
        self._stored += stored
        return stored

    def _search(
        self, stored: Sequence[tuple[str, IdIndex]], hashes: NDArray[np.uint64]
    ) -> list[tuple[tuple[str, IdIndex], Matches | None]]:
        def work(one: tuple[str, IdIndex]) -> Matches | None:
            try:
                return search(*one, hashes, self._names)
            except StoreError:
                return None

        with ThreadPoolExecutor(NUM_THREADS) as pool:
            return list(zip(stored, pool.map(work, stored), strict=True))
