"""An annotations version -> a pairs version: groups are expanded and written where they are read.

Only groups whose annotations are spread over the table are moved (cluster/grouping.py). What is written is a function
of the annotations version and the configuration alone, so the result is the same on any cluster.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import msgspec
import pyarrow as pa
import ray

from pairwright import __version__
from pairwright.cluster.grouping import on_groups
from pairwright.cluster.session import ray_session
from pairwright.cluster.similar import find_left_out, open_evaluation_sets
from pairwright.config import ExpandConfig, config_digest
from pairwright.data.commits import commit_written
from pairwright.data.pairs import expand_groups
from pairwright.data.similar.groups import looks_for_others, no_totals, split_off
from pairwright.data.store import DataFile, Input, Manifest, Table
from pairwright.records import ANNOTATIONS_SCHEMA

GROUPS_PER_FILE = 2048
"""A pairs file is what one task tokenises."""


class _Expanded(msgspec.Struct, frozen=True):
    """What some groups became."""

    files: list[DataFile]
    refused: list[DataFile]
    totals: dict[str, int | float]


def expand(annotations: str, into: str, config: ExpandConfig, *, version: int | None) -> Manifest:
    """Return the pairs version made from an annotations version, the newest by default.

    The newest version of ``into`` is returned as it is where the same annotations, configuration and code made it.

    Raises:
        StoreError: if ``annotations`` is no annotations table, or ``into`` a table of another kind or anything else.
    """
    source = Table.open(annotations, "annotations")
    read = source.manifest(version)
    target = Table.claim(into, "pairs")
    with ray_session() if config.decontaminate else nullcontext():  # evaluation sets are hashed before anything else
        return _expand(source, read, target, config)


def _expand(source: Table, read: Manifest, target: Table, config: ExpandConfig) -> Manifest:
    sets = open_evaluation_sets(config)
    made_from = [Input(url=source.url, version=read.version, digest=read.digest), *sets.inputs]
    newest = target.latest()
    if newest is not None and _is_made_from(newest, made_from, config):
        return newest
    with ray_session() if looks_for_others(config) else nullcontext():
        left_out = find_left_out(source, read, config, sets)

        def work(rows: pa.Table) -> list[_Expanded]:
            return [_write_groups(rows, target, config, left_out)]

        expanded = on_groups(
            source, read, work, _Expanded, scratch=target, stretch_bytes=config.stretch_bytes, what="expanded"
        )
    return _commit(target, expanded, made_from, config)


def _is_made_from(pairs: Manifest, made_from: Sequence[Input], config: ExpandConfig) -> bool:
    return (
        [given.digest for given in pairs.inputs] == [given.digest for given in made_from]
        and pairs.config_digest == config_digest(config)
        and pairs.code_version == __version__
    )


def _commit(target: Table, expanded: Sequence[_Expanded], made_from: Sequence[Input], config: ExpandConfig) -> Manifest:
    files = [file for part in expanded for file in part.files]
    refused = [file for part in expanded for file in part.refused]
    proposed = Manifest(
        kind="pairs",
        operation="expand",
        files=files,
        refused_files=refused,
        totals=_sum_totals(expanded, config),
        sources=[],
        inputs=list(made_from),
        config=config.model_dump(mode="json"),
        config_digest=config_digest(config),
    )

    def build(newest: Manifest | None) -> Manifest | None:
        return None if newest is not None and _is_made_from(newest, made_from, config) else proposed

    committed = commit_written(target, build, lambda: [*files, *refused])
    return committed or target.manifest()  # the same, where another expansion of the same annotations finished first


def _sum_totals(expanded: Sequence[_Expanded], config: ExpandConfig) -> dict[str, int | float]:
    _, totals = expand_groups(ANNOTATIONS_SCHEMA.empty_table(), ExpandConfig())
    totals |= no_totals() if looks_for_others(config) else {}
    for part in expanded:
        for name, value in part.totals.items():
            totals[name] += value
    return totals


def _write_groups(rows: pa.Table, target: Table, config: ExpandConfig, left_out: Any) -> _Expanded:
    rejections, others = [], {}
    if left_out is not None:
        rows, rejections, others = split_off(rows, ray.get(left_out), config)
    table, totals = expand_groups(rows, config)
    starts = range(0, table.num_rows, GROUPS_PER_FILE)
    return _Expanded(
        files=[target.write_data(table.slice(start, GROUPS_PER_FILE)) for start in starts],
        refused=[target.write_refused(rejections)] if rejections else [],
        totals=totals | others,
    )
