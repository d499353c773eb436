"""Computes the report on an annotations table, and writes it as a page.

Whole prompts are counted where their annotations are read; only prompts whose annotations are spread over the table are
moved (data/group_by.py). The driver merges aggregates, whose size does not grow with the number of annotations.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
import pyarrow as pa

from pairwright.data.executor import LOCAL, Executor
from pairwright.data.group_by import map_groups
from pairwright.data.profile.aggregates import (
    Aggregates,
    History,
    QuarantineCounts,
    count_quarantined,
    decode,
    encode,
    history_of,
    merge,
)
from pairwright.data.profile.counts import count
from pairwright.data.profile.profile_metrics import build_metrics
from pairwright.data.profile.profile_page import is_page, render
from pairwright.data.profile.profile_schema import TableFacts, TableMetrics
from pairwright.data.storage.outputs import check_output, put_output
from pairwright.data.table.inspect import MAX_DEPTH
from pairwright.data.table.table import Manifest, Table
from pairwright.errors import StoreError
from pairwright.records import ANNOTATIONS_SCHEMA

PARTITION_BYTES = 16 * 1024 * 1024
"""Compressed annotations that one task reads; their text is about four times as much."""
ROWS_PER_BUCKET = 16_384
"""Annotations of spread prompts that are counted together: of few, a text that completes many prompts is not seen."""
WHAT = "a page of `pairwright report`"


class _Counted(msgspec.Struct, frozen=True):
    """What some prompts add up to."""

    aggregates: bytes


@dataclass(frozen=True)
class Subject:
    """The annotations that are reported on.

    Attributes:
        table: annotations.
        manifest: the version.
        followed: the tables made from it that led to it, as ``pairs URL version 3``; none if it was named itself.
    """

    table: Table
    manifest: Manifest
    followed: tuple[str, ...]


def report(
    url: str, *, version: int | None, output: str | None, overwrite: bool = False, executor: Executor = LOCAL
) -> TableMetrics:
    """Return the metrics of an annotations table, and write them as a page.

    Args:
        url: an annotations table, or one made from one: its lineage is followed.
        version: of the table at ``url``; the newest if None.
        output: file or URL of the page, HTML; none is written if None.
        overwrite: whether an older page there is replaced.
        executor: what maps over the files.

    Raises:
        StoreError: if there is no such table or version, its annotations are no longer there, or a file is damaged.
        DataError: if annotations of one group list different texts.
    """
    if output is not None:
        check_output(output, is_page, what=WHAT, overwrite=overwrite)
    subject = find_annotations(url, version)
    manifest = subject.manifest
    history = history_of(subject.table, manifest)
    with executor.session(sum(file.bytes for file in [*manifest.files, *manifest.quarantined_files])):
        quarantined = _count_quarantined(subject, executor)
        aggregates = _count(subject, history, executor)
    facts = TableFacts(
        url=subject.table.url,
        version=manifest.version,
        digest=manifest.digest,
        created_at=manifest.created_at,
        files=len(manifest.files),
        bytes=sum(file.bytes for file in manifest.files),
        followed=list(subject.followed),
    )
    metrics = build_metrics(facts, manifest, history, quarantined, aggregates)
    if output is not None:
        put_output(output, render(metrics).encode(), is_page, what=WHAT, overwrite=overwrite)
    return metrics


def find_annotations(url: str, version: int | None) -> Subject:
    """Return the annotations that a table holds or was made from.

    Raises:
        StoreError: if there is no table, or the annotations that it was made from are no longer there.
    """
    table = Table.open(url)
    manifest = table.manifest(version)
    followed: list[str] = []
    while table.kind != "annotations":
        if not manifest.inputs:
            raise StoreError(f"{table.url}: holds {table.kind} that name no annotations; name the annotations table")
        name = f"{table.kind} {table.url} version {manifest.version}"
        if name in followed or len(followed) == MAX_DEPTH:
            odd = "was made from itself" if name in followed else f"is {MAX_DEPTH} tables away from its annotations"
            raise StoreError(f"{url}: by its manifests {name} {odd}; name the annotations table")
        followed.append(name)
        made_from = manifest.inputs[0]
        try:
            table = Table.open(made_from.url)
            manifest = table.manifest(made_from.version)
        except StoreError as error:
            raise StoreError(
                f"{followed[-1]} was made from {made_from.url} version {made_from.version}, which is not to be read "
                f"any more ({error}); name an annotations table"
            ) from None
        if manifest.digest != made_from.digest:
            raise StoreError(
                f"{followed[-1]} was made from {made_from.url} version {made_from.version}, which now holds other "
                "content under that number; name an annotations table"
            )
    return Subject(table, manifest, tuple(followed))


def _count_quarantined(subject: Subject, executor: Executor) -> QuarantineCounts:
    files = subject.manifest.quarantined_files

    def work(index: int) -> Iterator[QuarantineCounts]:
        yield count_quarantined(subject.table.read_quarantined(files[index]))

    sizes = [file.bytes for file in files]
    return QuarantineCounts.merged(
        executor.map_items(work, range(len(files)), sizes, QuarantineCounts, what="quarantine files read")
    )


def _count(subject: Subject, history: History, executor: Executor) -> Aggregates:
    versions = executor.broadcast(history.first_versions)

    def work(rows: pa.Table) -> list[_Counted]:
        return [_Counted(encode(count(rows, versions.get())))]

    with _staging(subject.table, executor) as staging:
        parts = map_groups(
            subject.table,
            subject.manifest,
            work,
            _Counted,
            executor=executor,
            key="prompt_id",
            staging=staging,
            partition_bytes=PARTITION_BYTES,
            what="counted",
            rows_per_bucket=ROWS_PER_BUCKET,
        )
    # A table without annotations has all aggregates too.
    return merge([count(ANNOTATIONS_SCHEMA.empty_table(), {}), *(decode(part.aggregates) for part in parts)])


@contextmanager
def _staging(table: Table, executor: Executor) -> Iterator[Table]:
    """Yield where rows are shuffled: a temporary folder, or the table that is read if several machines work on it."""
    if executor.num_nodes() > 1:
        yield table
        return
    with tempfile.TemporaryDirectory(prefix="pairwright-report-") as folder:
        yield Table(folder, "annotations")
