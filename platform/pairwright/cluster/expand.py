"""An annotations version -> a pairs version: groups are expanded and written where they are read.

Only groups whose annotations are spread over the table cross the network (cluster/grouping.py). What is written is a
function of the annotations version and the configuration alone, so the result is the same on any cluster.
"""

from collections.abc import Sequence

import msgspec
import pyarrow as pa

from pairwright import __version__
from pairwright.cluster.grouping import on_groups
from pairwright.config import ExpandConfig, config_digest
from pairwright.data.pairs import expand_groups
from pairwright.data.store import DataFile, Input, Manifest, Table
from pairwright.errors import StoreError
from pairwright.records import ANNOTATIONS_SCHEMA

GROUPS_PER_FILE = 2048
"""A pairs file is what one task tokenises."""


class _Expanded(msgspec.Struct, frozen=True):
    """What some groups became."""

    files: list[DataFile]
    totals: dict[str, int | float]


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

    def work(rows: pa.Table) -> list[_Expanded]:
        return [_write_groups(rows, target, config)]

    expanded = on_groups(source, read, work, _Expanded, columns=None, what="expanded")
    return _commit(target, expanded, made_from, config)


def _is_made_from(pairs: Manifest, made_from: Input, config: ExpandConfig) -> bool:
    return (
        [given.digest for given in pairs.inputs] == [made_from.digest]
        and pairs.config_digest == config_digest(config)
        and pairs.code_version == __version__
    )


def _commit(target: Table, expanded: Sequence[_Expanded], made_from: Input, config: ExpandConfig) -> Manifest:
    files = [file for part in expanded for file in part.files]
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


def _write_groups(rows: pa.Table, target: Table, config: ExpandConfig) -> _Expanded:
    table, totals = expand_groups(rows, config)
    starts = range(0, table.num_rows, GROUPS_PER_FILE)
    return _Expanded([target.write_data(table.slice(start, GROUPS_PER_FILE)) for start in starts], totals)
