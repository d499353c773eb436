"""A table -> the figures of its report, on Ray: files read once, texts dropped where they are read, sums on the driver.

Rows without texts are shuffled so that all annotations of a prompt meet, which is what agreement and intervals need.
What models did against each other stays where it was counted (in Ray's object store, which spills to disk): two more
passes over it fit their strengths and the intervals. The driver holds sums alone: linear in annotators, models, sources
and score values, never in annotations.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import ray
from ray.data.context import ShuffleStrategy

from pairwright import errors
from pairwright.cluster.executor import EXECUTOR
from pairwright.cluster.session import ray_resources, ray_session
from pairwright.data.profile.aggregates import Sums, decode, decode_table, encode, encode_table, merge
from pairwright.data.profile.bradley_terry import (
    Fit,
    Spread,
    between_models,
    fit,
    most_compared,
    spread_over_prompts,
    standard_errors,
)
from pairwright.data.profile.compact_rows import COLUMNS, REPORT_ROWS, report_rows
from pairwright.data.profile.counts import count
from pairwright.data.profile.growth import History, history_of
from pairwright.data.profile.profile_metrics import Figures, Strengths, TableFacts, build_figures
from pairwright.data.profile.profile_page import is_page, render
from pairwright.data.profile.quarantine_counts import RefusedSums, count_refused
from pairwright.data.storage.outputs import check_output, put_output
from pairwright.data.table.inspect import MAX_DEPTH
from pairwright.data.table.table import DataFile, Manifest, Table
from pairwright.errors import PairwrightError, StoreError
from pairwright.progress_bar import progress_bar

ROWS_PER_PARTITION = 16_384
MAX_SHUFFLE_PARTITIONS = 128
WHAT = "a page of `pairwright report`"
MAX_SORTED_PARTITIONS = 64
"""Up to here Ray sorts by partition, as in expand."""

_PLACED = pa.schema([*REPORT_ROWS, pa.field("partition", pa.int32()), pa.field("failure", pa.binary())])


class _Failure(msgspec.Struct, frozen=True):
    """What kept a task from its work: it crosses as data, since Ray Data keeps only the text of an exception."""

    kind: str
    message: str


@dataclass(frozen=True)
class Subject:
    """What is reported on.

    Attributes:
        table: annotations.
        manifest: the version.
        followed: the tables that led to it, as ``pairs URL version 3``; none where an annotations table was named.
    """

    table: Table
    manifest: Manifest
    followed: tuple[str, ...]


def report(url: str, *, version: int | None, output: str | None) -> Figures:
    """Return the figures of an annotations table, and write them as a page.

    Args:
        url: an annotations table, or one made from one: its lineage is followed.
        version: of the table at ``url``; the newest if None.
        output: file or URL of the page, HTML; none is written if None.

    Raises:
        StoreError: if there is no such table or version, its annotations are no longer there, or a file is damaged.
        DataError: if annotations of one group list different texts.
    """
    if output is not None:
        check_output(output, is_page, what=WHAT)
    subject = find_annotations(url, version)
    manifest = subject.manifest
    history = history_of(subject.table, manifest)
    with ray_session():
        refused = _refused(subject)
        sums, strengths = _count(subject, history)
    facts = TableFacts(
        url=subject.table.url,
        version=manifest.version,
        digest=manifest.digest,
        created_at=manifest.created_at,
        files=len(manifest.files),
        bytes=sum(file.bytes for file in manifest.files),
        followed=list(subject.followed),
    )
    figures = build_figures(facts, manifest, history, refused, sums, strengths)
    if output is not None:
        put_output(output, render(figures).encode(), is_page, what=WHAT)
    return figures


def find_annotations(url: str, version: int | None) -> Subject:
    """Return the annotations that a table holds, or was made from.

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


def _refused(subject: Subject) -> RefusedSums:
    files = subject.manifest.refused_files

    def work(index: int) -> Iterator[RefusedSums]:
        yield count_refused(subject.table.read_quarantined(files[index]))

    parts = EXECUTOR.map_items(
        work, range(len(files)), [file.bytes for file in files], RefusedSums, what="refused files read"
    )
    return RefusedSums.merged(parts)


def _count(subject: Subject, history: History) -> tuple[Sums, Strengths | None]:
    num_rows = sum(file.rows for file in subject.manifest.files)
    if not num_rows:
        return merge([encode_nothing()]), None
    num_partitions = -(-num_rows // ROWS_PER_PARTITION)
    files = ray.data.from_items([{"file": msgspec.msgpack.encode(file)} for file in subject.manifest.files])
    rows = files.repartition(len(subject.manifest.files)).map_batches(
        partial(_read, table=subject.table, versions=history.first_versions, num_partitions=num_partitions),
        batch_format="pyarrow",
        batch_size=1,
    )
    if num_partitions <= MAX_SORTED_PARTITIONS:
        rows.context.shuffle_strategy = ShuffleStrategy.SORT_SHUFFLE_PULL_BASED
    grouped = rows.groupby("partition", num_partitions=min(num_partitions, MAX_SHUFFLE_PARTITIONS))
    # One block a partition, so that the games of one are no larger than its annotations made them.
    counted = grouped.map_groups(_count_partition, batch_format="pyarrow").materialize()
    parts = []
    with progress_bar("parts of the annotations counted", total=num_partitions, resources=ray_resources) as advance:
        for row in counted.select_columns(["sums", "failure"]).iter_rows():
            if row["failure"]:
                failure = msgspec.msgpack.decode(row["failure"], type=_Failure)
                raise getattr(errors, failure.kind)(failure.message)
            parts.append(decode(row["sums"]))
            advance(1)
    sums = merge(parts)
    return sums, _strengths(counted)


def encode_nothing() -> Sums:
    """Return the sums of no annotation, so that every sum is there."""
    return count(REPORT_ROWS.empty_table()).sums


def _read(batch: pa.Table, *, table: Table, versions: Mapping[str, int], num_partitions: int) -> pa.Table:
    """Return a file's rows without texts, with the partition of each; or one row with a failure."""
    file = msgspec.msgpack.decode(batch["file"][0].as_py(), type=DataFile)
    try:
        rows = report_rows(table.read_file(file, COLUMNS), versions)
    except PairwrightError as error:
        failure = _failure(error)
        return pa.Table.from_pylist([{"partition": -1, "failure": failure}], schema=_PLACED)
    places = [int(prompt_id[:8], 16) * num_partitions >> 32 for prompt_id in rows["prompt_id"].to_pylist()]
    return pa.Table.from_arrays(
        [*rows.columns, pa.array(places, pa.int32()), pa.nulls(rows.num_rows, pa.binary())], schema=_PLACED
    )


def _count_partition(rows: pa.Table) -> pa.Table:
    failure = rows["failure"][0].as_py() if rows["partition"][0].as_py() < 0 else b""
    sums = games = b""
    if not failure:
        try:
            counted = count(rows.select(REPORT_ROWS.names))
            sums, games = encode(counted.sums), encode_table(counted.games)
        except PairwrightError as error:
            failure = _failure(error)
    return pa.table({"sums": [sums], "games": [games], "failure": [failure]})


def _failure(error: PairwrightError) -> bytes:
    return msgspec.msgpack.encode(_Failure(kind=type(error).__name__, message=str(error)))


def _strengths(counted: ray.data.Dataset) -> Strengths | None:
    """Return the Bradley-Terry strengths of the models; None where no two were compared."""
    games = counted.select_columns(["games"])
    totals = merge(decode(row["sums"]) for row in games.map_batches(_games_between, **_ONE_BY_ONE).iter_rows())
    names = most_compared(totals["games"])
    if not names:
        return None
    found = fit(totals["games"], names)
    spread = Spread(np.zeros(len(names)), np.zeros(len(names), np.int64))
    spreading = games.map_batches(partial(_spread, found=ray.put(found)), **_ONE_BY_ONE)
    for row in spreading.iter_rows():
        spread += Spread(np.frombuffer(row["squared"]), np.frombuffer(row["prompts"], np.int64))
    return Strengths(fit=found, standard_error_M=standard_errors(found, spread), prompts_M=spread.prompts_M)


_ONE_BY_ONE: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}


def _games_between(batch: pa.Table) -> pa.Table:
    games = between_models(decode_table(batch["games"][0].as_py()))
    return pa.table({"sums": [encode({"games": games})]})


def _spread(batch: pa.Table, *, found: "ray.ObjectRef[Fit]") -> pa.Table:
    spread = spread_over_prompts(decode_table(batch["games"][0].as_py()), ray.get(found))
    return pa.table({"squared": [spread.squared_M.tobytes()], "prompts": [spread.prompts_M.tobytes()]})
