"""Merges id indexes, and chooses those of a new version.

Each data file begins with an index of its own. Where eight or more are of similar size they become one, so that few
are searched however many commits made the table; `compact` merges all. A merge keeps no hash of a file that the
version does not have, which is how an erasure takes the hashes of erased ids out. Its memory does not grow with the
table: each new index file is merged by itself, from its own part of the range of hashes.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np

from pairwright.data.executor import Executor
from pairwright.data.id_index.id_index import NUM_THREADS, entries_between, index_name
from pairwright.data.id_index.index_files import (
    MAX_FILES,
    Entries,
    file_numbers,
    hash_ranges,
    truncated,
    write_index_file,
)
from pairwright.data.table.manifest import IdIndex, IndexFile
from pairwright.data.table.table import DataFile, Table
from pairwright.errors import StoreError

IDS_PER_FILE = 8_000_000
"""Ids in one index file, about: 64 MB."""
MIN_MERGED = 8
"""Indexes of similar size that are worth a merge."""
MIN_IDS_MERGED = 1_000_000
"""Ids that any commit may merge (0.2 s); one that adds more may merge ``ADDED_RATIO`` times what it adds."""
ADDED_RATIO = 4


class _Part(msgspec.Struct, frozen=True):
    number: int
    file: IndexFile


def merge_indexes(table: Table, indexes: Sequence[IdIndex], live: Iterable[str], executor: Executor) -> IdIndex:
    """Write an index that holds what some indexes of a table hold of data files that are ``live``.

    Raises:
        StoreError: if an index file is damaged or missing, or one cannot be written.
    """
    wanted = set(live)
    data_files = list(dict.fromkeys(name for index in indexes for name in index.data_files if name in wanted))
    assert len(data_files) <= MAX_FILES
    number_of = {name: number for number, name in enumerate(data_files)}
    renumbered = []
    for index in reversed(indexes):  # of two indexes of one file the later counts
        renumbered.append([number_of[name] if name in wanted else -1 for name in index.data_files])
        wanted -= set(index.data_files)
    ranges = hash_ranges(max(1, -(-sum(index.rows for index in indexes) // IDS_PER_FILE)))
    shared = executor.broadcast((list(indexes), renumbered[::-1]))

    def work(number: int) -> Iterator[_Part]:
        def entries_of(index: IdIndex, numbers: list[int]) -> Entries:
            entries = entries_between(table.url, index, *ranges[number])
            new = np.array(numbers, np.int64)[file_numbers(entries)]
            return truncated(entries[new >= 0]) | new[new >= 0].astype("<u8")

        with ThreadPoolExecutor(NUM_THREADS) as pool:
            entries = np.concatenate([np.empty(0, "<u8"), *pool.map(entries_of, *shared.get())])
        entries.sort()
        yield _Part(number, write_index_file(table.url, entries))

    sizes = [sum(file.bytes for index in indexes for file in index.files) // len(ranges)] * len(ranges)
    parts = executor.map_items(work, range(len(ranges)), sizes, _Part, what="index files merged")
    return IdIndex(data_files, [part.file for part in sorted(parts, key=lambda part: part.number)])


def in_use(files: Iterable[DataFile], indexes: Sequence[IdIndex]) -> list[IdIndex]:
    """Return the indexes, in order, that name a data file which no later one names."""
    wanted = {index_name(file) for file in files}
    kept: list[IdIndex] = []
    for index in reversed(indexes):
        if not wanted.isdisjoint(index.data_files):
            kept.append(index)
            wanted.difference_update(index.data_files)
    return kept[::-1]


def plan_merge(indexes: Sequence[IdIndex], num_added: int) -> list[IdIndex]:
    """Return the small indexes that a commit merges, or none.

    Args:
        indexes: of the version.
        num_added: ids that the commit adds.
    """
    by_size = sorted(indexes, key=lambda index: index.rows)
    num_of_tier = Counter(map(_tier, indexes))
    full = [tier for tier in sorted(num_of_tier) if num_of_tier[tier] >= MIN_MERGED]
    most = max(MIN_IDS_MERGED, ADDED_RATIO * num_added)
    for tier in full[:1]:
        smaller = [index for index in by_size if _tier(index) <= tier]
        num_ids = np.cumsum([index.rows for index in smaller])
        num_files = np.cumsum([len(index.data_files) for index in smaller])
        chosen = smaller[: int(((num_ids <= most) & (num_files <= MAX_FILES)).sum())]
        return without(indexes, without(indexes, chosen)) if len(chosen) >= MIN_MERGED else []
    return []


def _tier(index: IdIndex) -> int:
    """Return the class of an index by size: each holds up to eight times as many ids as the one before."""
    return (max(index.rows, 1).bit_length() - 1) // 3


def without(indexes: Sequence[IdIndex], others: Sequence[IdIndex]) -> list[IdIndex]:
    """Return the indexes, in order, that are none of the others."""
    named = {id(index) for index in others}
    return [index for index in indexes if id(index) not in named]


def groups_of_files(indexes: Sequence[IdIndex]) -> list[list[IdIndex]]:
    """Return indexes in groups that can be merged, each of as many data files as one index can name."""
    groups: list[list[IdIndex]] = []
    num_files = MAX_FILES
    for index in indexes:
        if num_files + len(index.data_files) > MAX_FILES:
            groups.append([])
            num_files = 0
        groups[-1].append(index)
        num_files += len(index.data_files)
    return groups


class IndexMerger:
    """Chooses the indexes of the next version of a table, and keeps merged ones where another writer is first."""

    def __init__(self, table: Table, executor: Executor) -> None:
        self._table = table
        self._executor = executor
        self._merged: dict[tuple[str, ...], IdIndex] = {}

    def next_indexes(self, files: Sequence[DataFile], indexes: Sequence[IdIndex], num_added: int) -> list[IdIndex]:
        """Return the indexes of a version with some data files, small ones merged where that is due.

        Args:
            files: data files of the version.
            indexes: those of the version before, and new ones after them.
            num_added: ids that the version adds.
        """
        kept = in_use(files, indexes)
        chosen = plan_merge(kept, num_added)
        merged = self._merge(chosen, files) if chosen else None
        return kept if merged is None else [*without(kept, chosen), merged]

    def without_removed(self, files: Sequence[DataFile], indexes: Sequence[IdIndex]) -> list[IdIndex]:
        """Return the indexes of a version with some data files, without the hash of any id of another file.

        An index that cannot be read is dropped.
        """
        names = {index_name(file) for file in files}
        kept = in_use(files, indexes)
        cleaned = [index if names.issuperset(index.data_files) else self._merge([index], files) for index in kept]
        return [index for index in cleaned if index is not None]

    def compacted(self, files: Sequence[DataFile], indexes: Sequence[IdIndex]) -> list[IdIndex]:
        """Return as few indexes as can be of a version with some data files.

        An index that cannot be read is dropped, so the files that it names are without one.
        """
        kept = self.without_removed(files, indexes)
        found = []
        for group in groups_of_files(kept):
            merged = self._merge(group, files) if len(group) > 1 else group[0]
            readable = [index for index in group if merged is None and self._merge([index], files) is not None]
            found += readable if merged is None else [merged]
        return found

    def written(self) -> list[IndexFile]:
        """Return every index file that was written here."""
        return [file for index in self._merged.values() for file in index.files]

    def _merge(self, indexes: Sequence[IdIndex], files: Sequence[DataFile]) -> IdIndex | None:
        """Return an index in place of some, None where one of them cannot be read."""
        live = {index_name(file) for file in files}
        named = [name for index in indexes for name in index.data_files if name in live]
        key = (*(file.path for index in indexes for file in index.files), "", *named)
        if key not in self._merged:
            try:
                self._merged[key] = merge_indexes(self._table, indexes, live, self._executor)
            except StoreError:
                return None
        return self._merged[key]
