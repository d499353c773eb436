"""Index files: the sorted hashes of ids in blocks with checksums, of which a search reads a few.

An entry is 8 bytes: the first 48 bits of an id's hash, then the number of its data file in the index. Entries are
sorted, 1,024 to a block, and before them stands a directory of the first entry and the checksum of each block. So a
search for 1,000 ids among 10 million reads the directory (160 kB) and about 1,000 blocks (8 MB), each verified, from
a disk or by ranges from a store; and of two ids one in 2.8e14 has the other's hash by chance.
"""

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import BinaryIO

import numpy as np
import obstore
from numpy.typing import NDArray

from pairwright.data.storage.object_store import local_root, open_store, store_errors
from pairwright.data.storage.ownership import INDEX
from pairwright.data.table.manifest import IndexFile
from pairwright.errors import StoreError

Entries = NDArray[np.uint64]

ENTRIES_PER_BLOCK = 1024
_BLOCK_BYTES = 8 * ENTRIES_PER_BLOCK
BLOCKS_AT_ONCE = 4096
"""Blocks that are in memory together: 32 MB."""
FILE_BITS = 16
MAX_FILES = 1 << FILE_BITS
"""Data files of one index."""
_FILE_MASK = np.uint64(MAX_FILES - 1)
HASH_MASK = np.uint64((1 << 64) - MAX_FILES)
_DIRECTORY = np.dtype([("first", "<u8"), ("checksum", "<u8")])


def truncated(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64-bit hashes as an index holds them: their first 48 bits."""
    return hashes & HASH_MASK


def distinct(*arrays: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the hashes in some arrays, sorted, each once.

    ``np.unique`` of numpy 2.4 takes 20 times as long over truncated hashes: its hash table does not mix their bits.
    """
    hashes = np.sort(np.concatenate([np.empty(0, "<u8"), *arrays]))
    is_first = np.ones(len(hashes), bool)
    np.not_equal(hashes[1:], hashes[:-1], out=is_first[1:])
    return hashes[is_first]


def file_numbers(entries: Entries) -> NDArray[np.int64]:
    """Return the number of the data file of each entry, int64."""
    return (entries & _FILE_MASK).astype(np.int64)


def hash_ranges(num_ranges: int) -> list[tuple[int, int]]:
    """Return the first and the last entry of each of some equal parts of all hashes."""
    bounds = [((i << 48) // num_ranges) << FILE_BITS for i in range(num_ranges + 1)]
    return [(low, high - 1) for low, high in pairwise(bounds)]


def write_index_file(url: str, entries: Entries) -> IndexFile:
    """Write a new index file of a table; no version names it yet.

    Args:
        url: of the table.
        entries: sorted.

    Raises:
        StoreError: if it cannot be written.
    """
    content = memoryview(entries.astype("<u8", copy=False).tobytes())
    checksums = [_checksum(content[start : start + _BLOCK_BYTES]) for start in range(0, len(content), _BLOCK_BYTES)]
    head = np.empty(len(checksums), _DIRECTORY)
    head["first"], head["checksum"] = entries[::ENTRIES_PER_BLOCK], checksums
    directory = head.tobytes()
    payload = b"".join([directory, content])
    path = f"{INDEX}/{uuid.uuid4().hex}.ids"
    with store_errors(f"{url}/{path}"):
        obstore.put(open_store(url), path, payload)
    digest = hashlib.sha256(directory).hexdigest()
    return IndexFile(path=path, rows=len(entries), bytes=len(payload), directory_sha256=digest)


class IndexFileReader:
    """Reads verified blocks of an index file.

    Raises:
        StoreError: from every method, if the file is missing, or is not the one that was written.
    """

    def __init__(self, url: str, file: IndexFile) -> None:
        self._url = url
        self._file = file
        self._where = f"{url}/{file.path}"
        self._num_blocks = -(-max(file.rows, 0) // ENTRIES_PER_BLOCK)

    @cached_property
    def _directory(self) -> NDArray[np.void]:
        size = self._num_blocks * _DIRECTORY.itemsize
        if self._file.bytes != size + 8 * self._file.rows:
            raise StoreError(f"{self._where}: {self._file.bytes} bytes, which {self._file.rows} entries do not take")
        payload = self._ranges([(0, size)])[0] if size else b""
        if hashlib.sha256(payload).hexdigest() != self._file.directory_sha256:
            raise StoreError(f"{self._where}: damaged: the SHA-256 of its directory differs")
        return np.frombuffer(payload, _DIRECTORY)

    def among(self, hashes: NDArray[np.uint64]) -> Entries:
        """Return the entries whose hash is one of ``hashes`` (truncated, sorted, each once)."""
        first = self._directory["first"]
        starts = np.maximum(np.searchsorted(first, hashes, "left") - 1, 0)
        ends = np.searchsorted(first, hashes | _FILE_MASK, "right")  # behind the last block that can hold it
        longer = [np.arange(starts[i], ends[i]) for i in np.flatnonzero(ends - starts > 1)]
        numbers = np.unique(np.concatenate([starts[ends > starts], *longer]))
        found = [_entries_among(entries, hashes) for entries in self._blocks(numbers)]
        return np.concatenate([np.empty(0, "<u8"), *found])

    def between(self, low: int, high: int) -> Entries:
        """Return the entries from ``low`` to ``high``, both included."""
        first = self._directory["first"]
        start = max(int(np.searchsorted(first, np.uint64(low), "left")) - 1, 0)
        end = int(np.searchsorted(first, np.uint64(high), "right"))
        entries = np.concatenate([np.empty(0, "<u8"), *self._blocks(np.arange(start, end))])
        begin = int(np.searchsorted(entries, np.uint64(low), "left"))
        return entries[begin : int(np.searchsorted(entries, np.uint64(high), "right"))]

    def all_blocks(self) -> Iterator[Entries]:
        """Yield all entries, some blocks at a time."""
        yield from self._blocks(np.arange(len(self._directory)))

    def _blocks(self, numbers: NDArray[np.int64]) -> Iterator[Entries]:
        for start in range(0, len(numbers), BLOCKS_AT_ONCE):
            some = numbers[start : start + BLOCKS_AT_ONCE]
            runs = np.split(some, np.flatnonzero(np.diff(some) != 1) + 1)
            payloads = self._ranges([self._range_of(int(run[0]), int(run[-1])) for run in runs])
            for run, payload in zip(runs, payloads, strict=True):
                self._verify(int(run[0]), payload)
            yield np.concatenate([np.frombuffer(payload, "<u8") for payload in payloads])

    def _range_of(self, first: int, last: int) -> tuple[int, int]:
        head = self._num_blocks * _DIRECTORY.itemsize
        return head + first * _BLOCK_BYTES, min(head + (last + 1) * _BLOCK_BYTES, self._file.bytes)

    def _verify(self, first: int, payload: bytes) -> None:
        view = memoryview(payload)
        for number, start in enumerate(range(0, len(view), _BLOCK_BYTES), first):
            if _checksum(view[start : start + _BLOCK_BYTES]) != self._directory["checksum"][number]:
                raise StoreError(f"{self._where}: damaged: the checksum of block {number} differs")

    def _ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        root = local_root(self._url)
        try:
            with store_errors(self._where):
                if root is None:
                    starts, ends = zip(*ranges, strict=True)
                    found = obstore.get_ranges(open_store(self._url), self._file.path, starts=starts, ends=ends)
                    payloads = [payload.to_bytes() for payload in found]
                else:
                    with (root / self._file.path).open("rb") as file:
                        payloads = [_read_at(file, start, end - start) for start, end in ranges]
        except FileNotFoundError:
            raise StoreError(f"{self._where}: the index file is missing") from None
        if any(len(payload) != end - start for payload, (start, end) in zip(payloads, ranges, strict=True)):
            raise StoreError(f"{self._where}: damaged: it ends too early")
        return payloads


def _entries_among(entries: Entries, hashes: NDArray[np.uint64]) -> Entries:
    """Return those of sorted entries whose hash is one of ``hashes`` (truncated, sorted, each once)."""
    last = np.searchsorted(hashes, entries[-1], "right")
    here = hashes[np.searchsorted(hashes, truncated(entries[:1])[0]) : last]
    starts, ends = np.searchsorted(entries, here), np.searchsorted(entries, here | _FILE_MASK, "right")
    found = [entries[starts[i] : ends[i]] for i in np.flatnonzero(ends > starts)]
    return np.concatenate([np.empty(0, "<u8"), *found])


def _read_at(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _checksum(block: bytes | memoryview) -> int:
    return int.from_bytes(hashlib.blake2b(block, digest_size=8).digest(), "little")
