"""Expands an annotations version into a pairs version; groups are expanded and written where they are read.

Only groups whose annotations span partitions are moved (data/group_by.py). The output is a function of the annotations
version and the configuration alone, so the result is the same on any cluster.
"""

import sys
from collections.abc import Iterator, Sequence
from hashlib import sha256

import msgspec
import numpy as np
import pyarrow as pa

from pairwright import __version__
from pairwright.config import ExpandConfig, config_digest
from pairwright.data.executor import LOCAL, Broadcast, Executor
from pairwright.data.group_by import map_groups, partition_files
from pairwright.data.pairs.build_pairs import expand_groups
from pairwright.data.pairs.exclusions import (
    TEXT_AND_PROMPT,
    Exclusions,
    drop_excluded,
    has_exclusions,
    names_of,
    read_texts,
    repeated_texts,
    texts_and_prompts,
)
from pairwright.data.pairs.exclusions import no_totals as no_exclusions
from pairwright.data.pairs.near_duplicates.evaluation_sets import SOURCE_VERSION
from pairwright.data.pairs.near_duplicates.exclude_similar import drop_similar, excludes_similar, no_totals
from pairwright.data.pairs.near_duplicates.find import EvaluationSets, find_excluded, open_evaluation_sets
from pairwright.data.table.commit import commit_written
from pairwright.data.table.table import DataFile, Input, Manifest, Table
from pairwright.errors import DataError
from pairwright.records import ANNOTATIONS_SCHEMA
from pairwright.terminal import counted

ROWS_PER_BUCKET = 4096
"""Annotations of spread groups that are expanded together."""
GROUPS_PER_FILE = 2048
"""A pairs file is what one task tokenises."""


class _Expanded(msgspec.Struct, frozen=True):
    """Result of expanding some groups."""

    files: list[DataFile]
    refused: list[DataFile]
    totals: dict[str, int | float]


class _Texts(msgspec.Struct, frozen=True):
    """The completion texts of a partition with their prompts, TEXT_AND_PROMPT."""

    found: bytes


def expand(
    annotations: str, into: str, config: ExpandConfig, *, version: int | None, executor: Executor = LOCAL
) -> Manifest:
    """Return the pairs version made from an annotations version, the newest by default.

    The newest version of ``into`` is returned as it is where the same annotations, configuration and code made it.

    Raises:
        StoreError: if ``annotations`` is no annotations table, or ``into`` a table of another kind or anything else.
        DataError: if no annotation has what the margin is made of.
    """
    source = Table.open(annotations, "annotations")
    read = source.manifest(version)
    target = Table.claim(into, "pairs")
    # Evaluation sets are hashed before anything else, and nobody knows yet how large they are.
    with executor.session(sys.maxsize if config.decontaminate else 0):
        return _expand(source, read, target, config, executor)


def is_expanded(annotations: str, into: str, config: ExpandConfig, *, executor: Executor = LOCAL) -> bool:
    """Return whether ``expand`` of the newest annotations would find its result there, and do nothing.

    Raises:
        StoreError: as ``expand``.
    """
    source = Table.open(annotations, "annotations")
    newest = Table.claim(into, "pairs").latest()
    if newest is None:
        return False
    with executor.session(sys.maxsize if config.decontaminate else 0):
        _, _, made_from = _read_inputs(source, source.manifest(), config, executor)
    return _is_made_from(newest, made_from, config)


def _read_inputs(
    source: Table, read: Manifest, config: ExpandConfig, executor: Executor
) -> tuple[EvaluationSets, list[str], list[Input]]:
    """Return the evaluation sets, the excluded texts, and all that pairs of this version are made from."""
    sets = open_evaluation_sets(config, executor)
    texts = read_texts(config.leave_out_texts) if config.leave_out_texts else []
    annotations = Input(url=source.url, version=read.version, digest=read.digest)
    return sets, texts, [annotations, *sets.inputs, *_with_texts_listed(texts, config)]


def _expand(source: Table, read: Manifest, target: Table, config: ExpandConfig, executor: Executor) -> Manifest:
    sets, texts, made_from = _read_inputs(source, read, config, executor)
    newest = target.latest()
    if newest is not None and _is_made_from(newest, made_from, config):
        return newest
    with executor.session(sys.maxsize if excludes_similar(config) else 0):
        excluded = find_excluded(source, read, config, sets, executor)
        repeated = _repeated_texts(source, read, config, executor)
        exclusions = None
        if has_exclusions(config):
            exclusions = executor.broadcast(Exclusions(names_of(config), texts, repeated))

        def work(rows: pa.Table) -> list[_Expanded]:
            return [_write_groups(rows, target, config, excluded, exclusions)]

        expanded = map_groups(
            source,
            read,
            work,
            _Expanded,
            executor=executor,
            key="group_id",
            staging=target,
            partition_bytes=config.partition_bytes,
            what="expanded",
            rows_per_bucket=ROWS_PER_BUCKET,
        )
    return _commit(target, expanded, made_from, config)


def _with_texts_listed(texts: list[str], config: ExpandConfig) -> list[Input]:
    """Return the excluded texts as one input: other texts make another version."""
    if not config.leave_out_texts:
        return []
    digest = sha256(msgspec.json.encode(texts)).hexdigest()
    return [Input(url=", ".join(config.leave_out_texts), version=SOURCE_VERSION, digest=digest)]


def _repeated_texts(source: Table, read: Manifest, config: ExpandConfig, executor: Executor) -> np.ndarray:
    """Return the hashes of the texts under more prompts than allowed; 16 bytes a completion in the driver."""
    if not config.max_prompts_per_text:
        return repeated_texts([], 0)
    partitions = partition_files(read.files, config.partition_bytes)

    def work(index: int) -> Iterator[_Texts]:
        rows = pa.concat_tables([source.read_file(file, ["prompt_id", "completions"]) for file in partitions[index]])
        yield _Texts(texts_and_prompts(rows).tobytes())

    sizes = [sum(file.bytes for file in files) for files in partitions]
    with executor.session(sum(sizes)):
        found = executor.map_items(
            work, range(len(partitions)), sizes, _Texts, what="partitions searched for repeated texts"
        )
        return repeated_texts(
            (np.frombuffer(part.found, TEXT_AND_PROMPT) for part in found), config.max_prompts_per_text
        )


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
        quarantined_files=refused,
        totals=_sum_totals(expanded, config),
        sources=[],
        inputs=list(made_from),
        config=config.model_dump(mode="json"),
        config_digest=config_digest(config),
    )

    def build(newest: Manifest | None) -> Manifest | None:
        _check_margins(proposed, config)
        return None if newest is not None and _is_made_from(newest, made_from, config) else proposed

    committed = commit_written(target, build, lambda: [*files, *refused])
    return committed or target.manifest()  # the same, where another expansion of the same annotations finished first


def _check_margins(proposed: Manifest, config: ExpandConfig) -> None:
    """Refuse pairs none of which can have the margin that the configuration asks for."""
    totals = proposed.totals
    match config.margin:
        case "none":
            return
        case "score_difference":
            num_found, what, keys = totals["annotations_scored"], "scores", "`score` or `scores`"
        case "strength":
            num_found, what, keys = totals["annotations_graded"], "a grade", "`grade`"
    if totals["annotations"] and not num_found:
        raise DataError(
            f'{proposed.inputs[0].url}: margin = "{config.margin}" finds nothing, since none of '
            f'{counted(int(totals["annotations"]), "annotation")} has {what}; set margin = "none", or ingest the '
            "sources "
            "into a new "
            f"table with {keys} under [fields], docs/data.md"
        )


def _sum_totals(expanded: Sequence[_Expanded], config: ExpandConfig) -> dict[str, int | float]:
    _, totals = expand_groups(ANNOTATIONS_SCHEMA.empty_table(), config)
    totals |= no_totals() if excludes_similar(config) else {}
    totals |= no_exclusions(config) if has_exclusions(config) else {}
    for part in expanded:
        for name, value in part.totals.items():
            totals[name] += value
    return totals


def _write_groups(
    rows: pa.Table,
    target: Table,
    config: ExpandConfig,
    excluded: Broadcast[pa.Table] | None,
    exclusions: Broadcast[Exclusions] | None,
) -> _Expanded:
    rejections, others = [], {}
    if exclusions is not None:
        rows, others = drop_excluded(rows, exclusions.get())
    if excluded is not None:
        rows, rejections, similar = drop_similar(rows, excluded.get(), config)
        others |= similar
    table, totals = expand_groups(rows, config)
    starts = range(0, table.num_rows, GROUPS_PER_FILE)
    return _Expanded(
        files=[target.write_data(table.slice(start, GROUPS_PER_FILE)) for start in starts],
        refused=[target.write_quarantined(rejections)] if rejections else [],
        totals=totals | others,
    )
