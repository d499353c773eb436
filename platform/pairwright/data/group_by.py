"""Group-by over an annotations version: calls a function on whole groups, and shuffles only those that span partitions.

Files are read in partitions of ``partition_bytes``. A first pass reads group ids alone; a group whose annotations lie
within one partition, as nearly all do, is processed where it is read, and the others go through a shuffle on disk
(Ray's own kept them all in memory: expanding 8 GB peaked at 5.6 GB, and read every partition twice). The driver holds
8 bytes per group and partition. Which groups are processed together depends on the version and ``partition_bytes``
alone, never on the cluster.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec
import numpy as np
import pyarrow as pa

from pairwright.data.executor import Executor
from pairwright.data.identity import are_among
from pairwright.data.shuffle import Shuffle
from pairwright.data.table.commit import staging_folder
from pairwright.data.table.table import DataFile, Manifest, Table
from pairwright.progress_bar import note_progress

ResultT = TypeVar("ResultT", bound=msgspec.Struct)


class _Index(msgspec.Struct, frozen=True):
    """The groups of a partition."""

    partition: int
    groups: bytes
    """64-bit ids, uint64, sorted, distinct."""
    num_annotations: bytes
    """How many annotations each has, int64."""


class _Done(msgspec.Struct, frozen=True):
    number: int
    results: list[msgspec.Raw]
    shuffled: list[int]
    """Where each bucket starts in the file that a partition wrote for the shuffle, if any."""


def map_groups(
    table: Table,
    manifest: Manifest,
    work: Callable[[pa.Table], list[ResultT]],
    result: type[ResultT],
    *,
    executor: Executor,
    key: str,
    staging: Table,
    partition_bytes: int,
    what: str,
    rows_per_bucket: int,
) -> list[ResultT]:
    """Return what ``work`` returns for all groups of a version, in an order that depends on the version alone.

    Args:
        table: annotations.
        manifest: the version.
        work: gets rows in ANNOTATIONS_SCHEMA that hold every annotation of each of their groups; called in tasks, must
            pickle.
        result: type of the results, for msgpack; they should be small.
        executor: what maps over partitions.
        key: what makes rows a group: ``group_id``, or ``prompt_id`` for whole prompts.
        staging: table that may hold the rows of spread groups while this runs.
        partition_bytes: of files that one task takes.
        what: what groups become, for the person who waits.
        rows_per_bucket: of spread groups, how many rows to hand over together.

    Raises:
        PairwrightError: the first one that ``work``, or a read, raised anywhere.
    """
    partitions = partition_files(manifest.files, partition_bytes)
    if not partitions:
        return []
    # One partition is one task's work, and no group spans two: worth no cluster.
    with executor.session(sum(file.bytes for file in manifest.files) if len(partitions) == 1 else sys.maxsize):
        spanning, num_spanning = _spanning_groups(executor, table, partitions, key)
        if not len(spanning):
            done = _on_partitions(executor, table, partitions, key, work, None, spanning, what=what)
        else:
            with staging_folder(staging) as folder:
                shuffle = Shuffle(folder, -(-num_spanning // rows_per_bucket))
                done = _on_partitions(executor, table, partitions, key, work, shuffle, spanning, what=what)
                done += _on_buckets(executor, [part.shuffled for part in done], work, shuffle, what=what)
    return [msgspec.msgpack.decode(found, type=result) for part in done for found in part.results]


def partition_files(files: Sequence[DataFile], partition_bytes: int) -> list[list[DataFile]]:
    """Return files in partitions of neighbours, in order, each of at most ``partition_bytes`` or one file."""
    partitions: list[list[DataFile]] = []
    filled = partition_bytes
    for file in files:
        if filled + file.bytes > partition_bytes or not partitions:
            partitions.append([])
            filled = 0
        partitions[-1].append(file)
        filled += file.bytes
    return partitions


def group_keys(group_ids: pa.ChunkedArray) -> np.ndarray:
    """Return the first 64 bits of each group id, uint64, shape (rows,)."""
    text = "".join(group_ids.to_pylist())
    return np.frombuffer(bytes.fromhex(text), dtype=">u8")[::2].astype(np.uint64)


def _spanning_groups(
    executor: Executor, table: Table, partitions: Sequence[Sequence[DataFile]], key: str
) -> tuple[np.ndarray, int]:
    """Return the groups that lie in several partitions, sorted, and how many annotations they have."""
    if len(partitions) == 1:
        return np.empty(0, np.uint64), 0

    def work(index: int) -> Iterator[_Index]:
        # Unverified: whoever reads the file next, to work on it, finds any damage.
        ids = pa.concat_tables([table.read_unverified(file, [key]) for file in partitions[index]])[key]
        groups, counts = np.unique(group_keys(ids), return_counts=True)
        yield _Index(index, groups.tobytes(), counts.astype(np.int64).tobytes())

    what = "partitions of files searched for spread groups"
    found = list(executor.map_items(work, range(len(partitions)), _sizes(partitions), _Index, what=what))
    counts = np.concatenate([np.frombuffer(index.num_annotations, np.int64) for index in found])
    every = np.concatenate([np.frombuffer(index.groups, np.uint64) for index in found])
    values, occurrences = np.unique(every, return_counts=True)
    spanning = values[occurrences > 1]
    return spanning, int(counts[are_among(every, spanning)].sum())


def _on_partitions(
    executor: Executor,
    table: Table,
    partitions: Sequence[Sequence[DataFile]],
    key: str,
    work: Callable[[pa.Table], list[ResultT]],
    shuffle: Shuffle | None,
    spanning: np.ndarray,
    *,
    what: str,
) -> list[_Done]:
    """Call ``work`` on the groups of each partition; write the rows of spanning groups into the shuffle."""
    shared = executor.broadcast(spanning)

    def run(index: int) -> Iterator[_Done]:
        read = []
        for file in partitions[index]:
            read.append(table.read_file(file))
            note_progress(read[-1].num_rows, file.bytes)
        rows = pa.concat_tables(read)
        shuffled: list[int] = []
        if shuffle is not None:  # a filter copies all that it keeps
            keys = group_keys(rows[key])
            is_spanning = are_among(keys, shared.get())
            if is_spanning.any():
                buckets = _buckets(keys[is_spanning], shuffle.num_buckets)
                shuffled = shuffle.write(index, rows.filter(pa.array(is_spanning)), buckets)
                rows = rows.filter(pa.array(~is_spanning))
        yield _Done(index, _encoded(work(rows)) if rows.num_rows else [], shuffled)

    done = executor.map_items(
        run, range(len(partitions)), _sizes(partitions), _Done, what=f"partitions of files {what}"
    )
    return sorted(done, key=lambda part: part.number)


def _on_buckets(
    executor: Executor,
    starts: Sequence[Sequence[int]],
    work: Callable[[pa.Table], list[ResultT]],
    shuffle: Shuffle,
    *,
    what: str,
) -> list[_Done]:
    """Call ``work`` on the spanning groups, one bucket after the other."""
    sizes = np.sum([np.diff(at) for at in starts if at], axis=0)
    filled = np.flatnonzero(sizes).tolist()
    shared = executor.broadcast(starts)

    def run(bucket: int) -> Iterator[_Done]:
        yield _Done(bucket, _encoded(work(shuffle.read(bucket, shared.get()))), [])

    what = f"buckets of spanning groups {what}"
    done = executor.map_items(run, filled, sizes[filled].tolist(), _Done, what=what)
    return sorted(done, key=lambda part: part.number)


def _buckets(keys: np.ndarray, num_buckets: int) -> np.ndarray:
    """Return the bucket of each group, by the first half of its key, which is random."""
    return ((keys >> np.uint64(32)) * np.uint64(num_buckets) >> np.uint64(32)).astype(np.int32)


def _sizes(partitions: Sequence[Sequence[DataFile]]) -> list[int]:
    return [sum(file.bytes for file in files) for files in partitions]


def _encoded(results: Sequence[msgspec.Struct]) -> list[msgspec.Raw]:
    return [msgspec.Raw(msgspec.msgpack.encode(found)) for found in results]
