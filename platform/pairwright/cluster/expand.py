"""An annotations version -> a pairs version: group on Ray Data, expand and write where the group is.

The partition of a group is a range of its id and their number comes from the row count alone, so the result is the
same on any cluster. Texts cross the network once, in the shuffle; the driver sees one small row a partition.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
import pyarrow as pa
import ray
from ray.data.context import ShuffleStrategy

from pairwright import __version__, errors
from pairwright.cluster.counting import counting
from pairwright.cluster.session import ray_session
from pairwright.config import ExpandConfig, config_digest
from pairwright.data.pairs import expand_groups
from pairwright.data.store import DataFile, Input, Manifest, Table
from pairwright.errors import PairwrightError, StoreError
from pairwright.records import ANNOTATIONS_SCHEMA

ANNOTATIONS_PER_PARTITION = 1024
MAX_SHUFFLE_PARTITIONS = 128
MAX_SORTED_PARTITIONS = 64
"""Up to here Ray sorts by partition (20,000 groups on 2 cores: 2 s); its hash shuffle starts actors first (5 s)."""

_SHUFFLED = pa.schema([*ANNOTATIONS_SCHEMA, pa.field("partition", pa.int32()), pa.field("failure", pa.binary())])


class _Expanded(msgspec.Struct, frozen=True, tag="expanded"):
    """What one partition became."""

    partition: int
    file: DataFile
    totals: dict[str, int | float]


class _Failure(msgspec.Struct, frozen=True, tag="failure"):
    """What kept a task from its work: it crosses as data, since Ray Data keeps only the text of an exception."""

    kind: str
    message: str


def expand(annotations: str, into: str, config: ExpandConfig, *, version: int | None) -> Manifest:
    """Return the pairs version made from an annotations version, the newest by default.

    The newest version of ``into`` is returned as it is where the same annotations, configuration and code made it.

    Raises:
        StoreError: if ``annotations`` is no annotations table, or ``into`` a table of another kind or anything else.
    """
    source = Table.open(annotations, "annotations")
    read = source.manifest(version)
    made_from = Input(url=source.url, version=read.version, digest=read.digest)
    target = Table.claim(into, "pairs")
    newest = target.latest()
    if newest is not None and _is_made_from(newest, made_from, config):
        return newest
    expanded = _expand_on_ray(source, read, target, config)
    return _commit(target, expanded, made_from, config)


def partition_of(group_id: str, num_partitions: int) -> int:
    """Return the partition of a group: equal ranges of ids, in order, so that files follow one another by group_id."""
    return int(group_id[:8], 16) * num_partitions >> 32


def _is_made_from(pairs: Manifest, made_from: Input, config: ExpandConfig) -> bool:
    return (
        [given.digest for given in pairs.inputs] == [made_from.digest]
        and pairs.config_digest == config_digest(config)
        and pairs.code_version == __version__
    )


def _commit(target: Table, expanded: Sequence[_Expanded], made_from: Input, config: ExpandConfig) -> Manifest:
    files = [part.file for part in expanded]
    proposed = Manifest(
        kind="pairs",
        operation="expand",
        files=files,
        refused_files=[],
        totals=_sum_totals(expanded),
        sources=[],
        inputs=[made_from],
        config=config.model_dump(mode="json"),
        config_digest=config_digest(config),
    )

    def build(newest: Manifest | None) -> Manifest | None:
        return None if newest is not None and _is_made_from(newest, made_from, config) else proposed

    try:
        committed = target.commit(build)
    except StoreError:
        target.delete(files)
        raise
    if committed is None:  # another expansion of the same annotations finished first
        target.delete(files)
        return target.manifest()
    return committed


def _sum_totals(expanded: Sequence[_Expanded]) -> dict[str, int | float]:
    _, totals = expand_groups(ANNOTATIONS_SCHEMA.empty_table(), ExpandConfig())
    for part in expanded:
        for name, value in part.totals.items():
            totals[name] += value
    return totals


def _expand_on_ray(source: Table, read: Manifest, target: Table, config: ExpandConfig) -> list[_Expanded]:
    num_partitions = -(-sum(file.rows for file in read.files) // ANNOTATIONS_PER_PARTITION)
    if not num_partitions:
        return []
    with ray_session():
        files = ray.data.from_items([{"file": msgspec.msgpack.encode(file)} for file in read.files])
        rows = files.repartition(len(read.files)).map_batches(
            partial(_read_partitioned, source=source, num_partitions=num_partitions),
            batch_format="pyarrow",
            batch_size=1,
        )
        if num_partitions <= MAX_SORTED_PARTITIONS:
            rows.context.shuffle_strategy = ShuffleStrategy.SORT_SHUFFLE_PULL_BASED
        expanded = rows.groupby("partition", num_partitions=min(num_partitions, MAX_SHUFFLE_PARTITIONS)).map_groups(
            partial(_expand_partition, target=target, config=config), batch_format="pyarrow"
        )
        results: list[_Expanded | _Failure] = []
        with counting("parts of the groups expanded", total=num_partitions) as advance:
            for row in expanded.iter_rows():
                results.append(msgspec.msgpack.decode(row["result"], type=_Expanded | _Failure))
                advance(1)
    return _sorted_parts(results)


def _sorted_parts(results: Sequence[_Expanded | _Failure]) -> list[_Expanded]:
    parts = []
    for result in results:
        if isinstance(result, _Failure):
            raise getattr(errors, result.kind)(result.message)
        parts.append(result)
    return sorted(parts, key=lambda part: part.partition)


def _read_partitioned(batch: pa.Table, *, source: Table, num_partitions: int) -> pa.Table:
    """Return a file's rows with the partition of each; or one row with a failure, in a partition of its own."""
    file = msgspec.msgpack.decode(batch["file"][0].as_py(), type=DataFile)
    try:
        rows = source.read_file(file)
    except PairwrightError as error:
        failure = msgspec.msgpack.encode(_Failure(kind=type(error).__name__, message=str(error)))
        return pa.Table.from_pylist([{"partition": -1, "failure": failure}], schema=_SHUFFLED)
    partitions = [partition_of(group_id, num_partitions) for group_id in rows["group_id"].to_pylist()]
    columns = [*rows.columns, pa.array(partitions, pa.int32()), pa.nulls(rows.num_rows, pa.binary())]
    return pa.Table.from_arrays(columns, schema=_SHUFFLED)


def _expand_partition(rows: pa.Table, *, target: Table, config: ExpandConfig) -> dict[str, Any]:
    partition = rows["partition"][0].as_py()
    if partition < 0:
        return {"result": [rows["failure"][0].as_py()]}
    try:
        table, totals = expand_groups(rows, config)
        result = _Expanded(partition=partition, file=target.write_data(table), totals=totals)
    except PairwrightError as error:
        result = _Failure(kind=type(error).__name__, message=str(error))
    return {"result": [msgspec.msgpack.encode(result)]}
