"""An annotations version -> calls of one function with whole groups: texts move only where a group is spread.

Files are taken in stretches of ``stretch_bytes``. A first pass reads group ids alone; a group whose annotations lie
within one stretch, as nearly all do, is handed over where it is read, and the others are exchanged through files (Ray's
own shuffle kept them all in memory: expanding 8 GB peaked at 5.6 GB, and needed a second read of every stretch). The
driver holds 8 bytes a group and stretch. What is handed over together is a function of the version and of
``stretch_bytes`` alone, never of the cluster.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec
import numpy as np
import pyarrow as pa

from pairwright.cluster.passes import run_pass, share
from pairwright.cluster.scratch import scratch_folder
from pairwright.cluster.sized import sized_session
from pairwright.data.shuffle import Exchange
from pairwright.data.table.table import DataFile, Manifest, Table

ResultT = TypeVar("ResultT", bound=msgspec.Struct)

ROWS_PER_PARTITION = 4096


class _Index(msgspec.Struct, frozen=True):
    """The groups of a stretch."""

    stretch: int
    groups: bytes
    """64-bit ids, uint64, sorted, without repeats."""
    num_annotations: bytes
    """How many annotations each has, int64."""


class _Done(msgspec.Struct, frozen=True):
    place: int
    results: list[msgspec.Raw]
    exchanged: list[int]
    """Where each partition starts in the file that a stretch wrote for the exchange, if any."""


def on_groups(
    table: Table,
    manifest: Manifest,
    work: Callable[[pa.Table], list[ResultT]],
    result: type[ResultT],
    *,
    key: str,
    scratch: Table,
    stretch_bytes: int,
    what: str,
    rows_per_partition: int | None = None,
) -> list[ResultT]:
    """Return what ``work`` returns for all groups of a version, in an order that depends on the version alone.

    Args:
        table: annotations.
        manifest: the version.
        work: gets rows in ANNOTATIONS_SCHEMA that hold every annotation of each of their groups; called in tasks, must
            pickle.
        result: type of the results, for msgpack; they should be small.
        key: what makes rows a group: ``group_id``, or ``prompt_id`` for whole prompts.
        scratch: table that may hold the rows of spread groups while this runs.
        stretch_bytes: of files that one task takes.
        what: what groups become, for the person who waits.
        rows_per_partition: of spread groups, how many rows to hand over together; ROWS_PER_PARTITION if None.

    Raises:
        PairwrightError: the first one that ``work``, or a read, raised anywhere.
    """
    stretches = stretches_of(manifest.files, stretch_bytes)
    if not stretches:
        return []
    # One stretch is one task's work, and nothing in it is spread: worth no cluster.
    with sized_session(sum(file.bytes for file in manifest.files) if len(stretches) == 1 else sys.maxsize):
        spread, num_spread = _spread_groups(table, stretches, key)
        if not len(spread):
            done = _on_stretches(table, stretches, key, work, None, spread, what=what)
        else:
            with scratch_folder(scratch) as folder:
                exchange = Exchange(folder, -(-num_spread // (rows_per_partition or ROWS_PER_PARTITION)))
                done = _on_stretches(table, stretches, key, work, exchange, spread, what=what)
                done += _on_partitions([part.exchanged for part in done], work, exchange, what=what)
    return [msgspec.msgpack.decode(found, type=result) for part in done for found in part.results]


def stretches_of(files: Sequence[DataFile], stretch_bytes: int) -> list[list[DataFile]]:
    """Return the files of a version in runs of neighbours that are worth a task each."""
    stretches: list[list[DataFile]] = []
    filled = stretch_bytes
    for file in files:
        if filled + file.bytes > stretch_bytes:
            stretches.append([])
            filled = 0
        stretches[-1].append(file)
        filled += file.bytes
    return stretches


def group_keys(group_ids: pa.ChunkedArray) -> np.ndarray:
    """Return the first 64 bits of each group id, uint64, shape (rows,)."""
    text = "".join(group_ids.to_pylist())
    return np.frombuffer(bytes.fromhex(text), dtype=">u8")[::2].astype(np.uint64)


def _spread_groups(table: Table, stretches: Sequence[Sequence[DataFile]], key: str) -> tuple[np.ndarray, int]:
    """Return the groups that lie in several stretches, sorted, and how many annotations they have."""
    if len(stretches) == 1:
        return np.empty(0, np.uint64), 0

    def work(index: int) -> Iterator[_Index]:
        # Unverified: whoever reads the file next, to work on it, finds any damage.
        ids = pa.concat_tables([table.read_unverified(file, [key]) for file in stretches[index]])[key]
        groups, counts = np.unique(group_keys(ids), return_counts=True)
        yield _Index(index, groups.tobytes(), counts.astype(np.int64).tobytes())

    what = "stretches of files searched for spread groups"
    found = list(run_pass(work, range(len(stretches)), _sizes(stretches), _Index, what=what))
    counts = np.concatenate([np.frombuffer(index.num_annotations, np.int64) for index in found])
    every = np.concatenate([np.frombuffer(index.groups, np.uint64) for index in found])
    values, occurrences = np.unique(every, return_counts=True)
    spread = values[occurrences > 1]
    return spread, int(counts[_is_in(spread, every)].sum())


def _on_stretches(
    table: Table,
    stretches: Sequence[Sequence[DataFile]],
    key: str,
    work: Callable[[pa.Table], list[ResultT]],
    exchange: Exchange | None,
    spread: np.ndarray,
    *,
    what: str,
) -> list[_Done]:
    """Hand over the groups of each stretch; put the rows of those that are spread into the exchange."""
    shared = share(spread)

    def run(index: int) -> Iterator[_Done]:
        rows = pa.concat_tables([table.read_file(file) for file in stretches[index]])
        exchanged: list[int] = []
        if exchange is not None:  # a filter copies all that it keeps
            keys = group_keys(rows[key])
            is_spread = _is_in(shared.get(), keys)
            if is_spread.any():
                partitions = _partitions(keys[is_spread], exchange.num_partitions)
                exchanged = exchange.write(index, rows.filter(pa.array(is_spread)), partitions)
                rows = rows.filter(pa.array(~is_spread))
        yield _Done(index, _encoded(work(rows)) if rows.num_rows else [], exchanged)

    done = run_pass(run, range(len(stretches)), _sizes(stretches), _Done, what=f"stretches of files {what}")
    return sorted(done, key=lambda part: part.place)


def _on_partitions(
    starts: Sequence[Sequence[int]], work: Callable[[pa.Table], list[ResultT]], exchange: Exchange, *, what: str
) -> list[_Done]:
    """Hand over the spread groups, one partition after the other."""
    sizes = np.sum([np.diff(at) for at in starts if at], axis=0)
    filled = np.flatnonzero(sizes).tolist()
    shared = share(starts)

    def run(partition: int) -> Iterator[_Done]:
        yield _Done(partition, _encoded(work(exchange.read(partition, shared.get()))), [])

    what = f"parts of the spread groups {what}"
    return sorted(run_pass(run, filled, sizes[filled].tolist(), _Done, what=what), key=lambda part: part.place)


def _partitions(keys: np.ndarray, num_partitions: int) -> np.ndarray:
    """Return the partition of each group, by the first half of its key, which is random."""
    return ((keys >> np.uint64(32)) * np.uint64(num_partitions) >> np.uint64(32)).astype(np.int32)


def _sizes(stretches: Sequence[Sequence[DataFile]]) -> list[int]:
    return [sum(file.bytes for file in files) for files in stretches]


def _encoded(results: Sequence[msgspec.Struct]) -> list[msgspec.Raw]:
    return [msgspec.Raw(msgspec.msgpack.encode(found)) for found in results]


def _is_in(sorted_values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if not len(sorted_values):
        return np.zeros(len(wanted), dtype=bool)
    index = np.minimum(np.searchsorted(sorted_values, wanted), len(sorted_values) - 1)
    return sorted_values[index] == wanted
