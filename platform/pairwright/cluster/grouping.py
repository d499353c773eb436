"""An annotations version -> calls of one function with whole groups: texts move only where a group is spread.

Files are taken in stretches of about 64 MB. A first pass reads group ids alone; a group whose annotations lie within
one stretch, as nearly all do, is handed over where it is read, and only the others go through Ray's shuffle. On one
machine that is a third of the time of shuffling everything. The driver holds 8 bytes a group and stretch. What is
handed over together is a function of the version alone, never of the cluster.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import ray.data
from ray.data.context import ShuffleStrategy

from pairwright import errors
from pairwright.cluster.counting import counting
from pairwright.cluster.passes import Shared, run_pass, share
from pairwright.cluster.sized import sized_session
from pairwright.data.store import DataFile, Manifest, Table
from pairwright.errors import PairwrightError
from pairwright.records import ANNOTATIONS_SCHEMA

ResultT = TypeVar("ResultT", bound=msgspec.Struct)

_PLACED = [pa.field("partition", pa.int32()), pa.field("failure", pa.binary())]

STRETCH_BYTES = 16 * 1024 * 1024
"""Of compressed files; text unpacks to about four times as much."""
ROWS_PER_PARTITION = 4096
MAX_SHUFFLE_PARTITIONS = 128
MAX_SORTED_PARTITIONS = 64
"""Up to here Ray sorts by partition (20,000 groups on 2 cores: 2 s); its hash shuffle starts actors first (5 s)."""


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


class _Failure(msgspec.Struct, frozen=True):
    """What kept a task from its work: it crosses as data, since Ray Data keeps only the text of an exception."""

    kind: str
    message: str


def on_groups(
    table: Table,
    manifest: Manifest,
    work: Callable[[pa.Table], list[ResultT]],
    result: type[ResultT],
    *,
    columns: Sequence[str] | None,
    what: str,
) -> list[ResultT]:
    """Return what ``work`` returns for all groups of a version, in an order that depends on the version alone.

    Args:
        table: annotations.
        manifest: the version.
        work: gets rows in ANNOTATIONS_SCHEMA (or its ``columns``, ``group_id`` among them) that hold every annotation
            of each of their groups; called in tasks, must pickle.
        result: type of the results, for msgpack; they should be small.
        columns: what to read; all if None.
        what: what groups become, for the person who waits.

    Raises:
        PairwrightError: the first one that ``work``, or a read, raised anywhere.
    """
    stretches = stretches_of(manifest.files)
    if not stretches:
        return []
    # One stretch is one task's work, and nothing in it is spread: worth no cluster.
    with sized_session(sum(file.bytes for file in manifest.files) if len(stretches) == 1 else sys.maxsize):
        spread, num_spread, holders = _spread_groups(table, stretches)
        shared, any_spread = share(spread), bool(len(spread))

        def run(index: int) -> Iterator[_Done]:
            rows = _read(table, stretches[index], columns)
            if any_spread:  # a filter copies all that it keeps
                rows = rows.filter(pa.array(~_is_in(shared.get(), group_keys(rows["group_id"]))))
            yield _Done(index, _encoded(work(rows)) if rows.num_rows else [])

        sizes = [sum(file.bytes for file in files) for files in stretches]
        done = list(run_pass(run, range(len(stretches)), sizes, _Done, what=f"stretches of files {what}"))
        if any_spread:
            chosen = [files for files, holds in zip(stretches, holders, strict=True) if holds]
            num_partitions = -(-num_spread // ROWS_PER_PARTITION)
            shuffled = _shuffled(table, chosen, shared, columns, num_partitions)
            done += _on_partitions(shuffled, work, num_partitions, first_place=len(stretches), what=what)
    done.sort(key=lambda part: part.place)
    return [msgspec.msgpack.decode(found, type=result) for part in done for found in part.results]


def stretches_of(files: Sequence[DataFile]) -> list[list[DataFile]]:
    """Return the files of a version in runs of neighbours that are worth a task each."""
    stretches: list[list[DataFile]] = []
    filled = STRETCH_BYTES
    for file in files:
        if filled + file.bytes > STRETCH_BYTES:
            stretches.append([])
            filled = 0
        stretches[-1].append(file)
        filled += file.bytes
    return stretches


def group_keys(group_ids: pa.ChunkedArray) -> np.ndarray:
    """Return the first 64 bits of each group id, uint64, shape (rows,)."""
    text = "".join(group_ids.to_pylist())
    return np.frombuffer(bytes.fromhex(text), dtype=">u8")[::2].astype(np.uint64)


def _spread_groups(table: Table, stretches: Sequence[Sequence[DataFile]]) -> tuple[np.ndarray, int, list[bool]]:
    """Return the groups that lie in several stretches (sorted), their annotations, and which stretches hold some."""
    if len(stretches) == 1:
        return np.empty(0, np.uint64), 0, [False]

    def work(index: int) -> Iterator[_Index]:
        keys = group_keys(_read(table, stretches[index], ["group_id"])["group_id"])
        groups, counts = np.unique(keys, return_counts=True)
        yield _Index(index, groups.tobytes(), counts.astype(np.int64).tobytes())

    sizes = [sum(file.bytes for file in files) for files in stretches]
    found = sorted(
        run_pass(work, range(len(stretches)), sizes, _Index, what="stretches of files searched for spread groups"),
        key=lambda index: index.stretch,
    )
    groups = [np.frombuffer(index.groups, np.uint64) for index in found]
    counts = np.concatenate([np.frombuffer(index.num_annotations, np.int64) for index in found])
    every = np.concatenate(groups)
    values, occurrences = np.unique(every, return_counts=True)
    spread = values[occurrences > 1]
    num_spread = int(counts[_is_in(spread, every)].sum())
    return spread, num_spread, [bool(_is_in(spread, keys).any()) for keys in groups]


def _read(table: Table, files: Sequence[DataFile], columns: Sequence[str] | None) -> pa.Table:
    return pa.concat_tables([table.read_file(file, columns) for file in files])


def _shuffled(
    table: Table,
    stretches: Sequence[Sequence[DataFile]],
    shared: Shared[np.ndarray],
    columns: Sequence[str] | None,
    num_partitions: int,
) -> ray.data.Dataset:
    """Return the rows of the spread groups, with the partition of each, grouped by it by nobody yet."""
    encoded = [{"files": msgspec.msgpack.encode(list(files))} for files in stretches]
    reading = partial(_read_spread, table=table, shared=shared, columns=columns, num_partitions=num_partitions)
    files = ray.data.from_items(encoded, override_num_blocks=len(encoded))
    return files.map_batches(reading, batch_format="pyarrow", batch_size=1)


def _read_spread(
    batch: pa.Table, *, table: Table, shared: Shared[np.ndarray], columns: Sequence[str] | None, num_partitions: int
) -> pa.Table:
    """Return the rows of spread groups; or one row with a failure, in a partition of its own."""
    files = msgspec.msgpack.decode(batch["files"][0].as_py(), type=list[DataFile])
    try:
        rows = _read(table, files, columns)
    except PairwrightError as error:
        failure = msgspec.msgpack.encode(_Failure(kind=type(error).__name__, message=str(error)))
        names = ANNOTATIONS_SCHEMA.names if columns is None else columns
        schema = pa.schema([*map(ANNOTATIONS_SCHEMA.field, names), *_PLACED])
        return pa.Table.from_pylist([{"partition": -1, "failure": failure}], schema=schema)
    keys = group_keys(rows["group_id"])
    kept = _is_in(shared.get(), keys)
    rows = rows.filter(pa.array(kept))
    places = ((keys[kept] >> np.uint64(32)) * np.uint64(num_partitions) >> np.uint64(32)).astype(np.int32)
    arrays = [*rows.columns, pa.array(places), pa.nulls(rows.num_rows, pa.binary())]
    return pa.Table.from_arrays(arrays, schema=pa.schema([*rows.schema, *_PLACED]))


def _on_partitions(
    rows: ray.data.Dataset,
    work: Callable[[pa.Table], list[ResultT]],
    num_partitions: int,
    *,
    first_place: int,
    what: str,
) -> list[_Done]:
    if num_partitions <= MAX_SORTED_PARTITIONS:
        rows.context.shuffle_strategy = ShuffleStrategy.SORT_SHUFFLE_PULL_BASED
    grouped = rows.groupby("partition", num_partitions=min(num_partitions, MAX_SHUFFLE_PARTITIONS))
    done = []
    with counting(f"parts of the spread groups {what}", total=num_partitions) as advance:
        for row in grouped.map_groups(partial(_run_partition, work=work), batch_format="pyarrow").iter_rows():
            found = msgspec.msgpack.decode(row["result"], type=list[msgspec.Raw])
            if row["partition"] < 0:
                failure = msgspec.msgpack.decode(found[0], type=_Failure)
                raise getattr(errors, failure.kind)(failure.message)
            done.append(_Done(first_place + row["partition"], found))
            advance(1)
    return done


def _run_partition(rows: pa.Table, *, work: Callable[[pa.Table], list[ResultT]]) -> dict[str, Any]:
    partition = rows["partition"][0].as_py()
    if partition < 0:
        results = [msgspec.Raw(rows["failure"][0].as_py())]
    else:
        try:
            results = _encoded(work(rows.drop_columns(["partition", "failure"])))
        except PairwrightError as error:
            partition, results = -1, _encoded([_Failure(kind=type(error).__name__, message=str(error))])
    return {"partition": [partition], "result": [msgspec.msgpack.encode(results)]}


def _encoded(results: Sequence[msgspec.Struct]) -> list[msgspec.Raw]:
    return [msgspec.Raw(msgspec.msgpack.encode(found)) for found in results]


def _is_in(sorted_values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if not len(sorted_values):
        return np.zeros(len(wanted), dtype=bool)
    index = np.minimum(np.searchsorted(sorted_values, wanted), len(sorted_values) - 1)
    return sorted_values[index] == wanted
