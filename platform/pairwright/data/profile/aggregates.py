"""Aggregates of a report: what tasks count, and how the counts of several tasks are merged on the driver.

Most are small Arrow tables of key columns and counts. Quarantined records also keep a few examples, and the growth of
the table is read from its manifests. All of them add up in any order, and their size grows with the number of
annotators, models, sources and distinct values, never with the number of annotations.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
import pyarrow as pa

from pairwright.data.ingest.parse import reason_key
from pairwright.data.profile.agreement import MAX_CONTESTED, first_of_each
from pairwright.data.profile.profile_schema import QuarantinedRecord, VersionFacts
from pairwright.data.table.table import Manifest, Table
from pairwright.records import Rejection

Aggregates: TypeAlias = dict[str, pa.Table]
"""Name of an aggregate -> its key columns and its counts."""

KEYS: dict[str, tuple[str, ...]] = {
    "totals": ("name",),
    "sizes": ("subset", "num_completions"),
    "tied_shares": ("tenth",),
    "lengths": ("rank", "step"),
    "ratios": ("step",),
    "depth": ("num_annotations",),
    "annotators": ("annotator",),
    "coincidences": ("num_completions", "num_raters", "one", "other"),
    "models": ("model",),
    "scores": ("model", "value"),
    "growth": ("version",),
    "prompts": ("prompt_id", "prompt"),
    "matchups": ("one", "other"),
    "texts": ("text",),
    "text_models": ("text", "model"),
    "text_beginnings": ("text", "beginning"),
    "annotator_kinds": ("annotator", "source"),
    "model_kinds": ("model",),
    "marks": ("mark", "source"),
    "by_source": ("source",),
    "contested": ("group_id", "detail"),
    "annotator_rows": ("annotator", "id", "detail"),
}
"""The key columns of each aggregate; all others are counts."""

NUM_EXAMPLES = 3
EXAMPLE_CHARACTERS = 240
MAX_REASONS = 500
"""Reasons that are counted apart; rarer ones are counted together, since a reason may quote what was refused."""
OTHER_REASONS = "other reasons"
MAX_VERSIONS = 200
"""Manifests that are read, evenly over all versions: each lists every file of its version."""


def add_up(name: str, table: pa.Table) -> pa.Table:
    """Return a table with one row for each key of the aggregate ``name`` and the sums of the other columns."""
    keys = list(KEYS[name])
    values = [column for column in table.column_names if column not in keys]
    added = table.group_by(keys, use_threads=False).aggregate([(column, "sum") for column in values])
    added = added.select([*keys, *(f"{column}_sum" for column in values)]).rename_columns([*keys, *values])
    return notable(name, added)


def notable(name: str, table: pa.Table) -> pa.Table:
    """Return an aggregate without the examples that are no longer shown; each is a row that holds texts."""
    if name == "contested":
        rows = table.drop_columns(["detail"]).to_pylist()
        shares = [(-row["opposite"] / row["decisive_by_both"], -row["opposite"], row["group_id"]) for row in rows]
        return table.take(pa.array(sorted(range(len(rows)), key=shares.__getitem__)[:MAX_CONTESTED], pa.int64()))
    if name == "annotator_rows":
        table = table.sort_by([("against_consensus", "descending"), ("id", "ascending")])
        names = table["annotator"].to_pylist()
        return table.take(pa.array(first_of_each(names, range(len(names))), pa.int64()))
    return table


def merge(parts: Iterable[Aggregates]) -> Aggregates:
    """Return the aggregates of all parts together."""
    tables: dict[str, list[pa.Table]] = {}
    for part in parts:
        for name, table in part.items():
            held = tables.setdefault(name, [])
            held.append(table)
            if sum(one.num_rows for one in held) > 4 * held[0].num_rows + 10_000:  # keep what waits to be added small
                tables[name] = [add_up(name, pa.concat_tables(held, promote_options="permissive"))]
    return {name: add_up(name, pa.concat_tables(held, promote_options="permissive")) for name, held in tables.items()}


def encode(aggregates: Mapping[str, pa.Table]) -> bytes:
    """Return aggregates as bytes that travel between processes."""
    streams = {}
    for name, table in aggregates.items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        streams[name] = sink.getvalue().to_pybytes()
    return msgspec.msgpack.encode(streams)


def decode(payload: bytes) -> Aggregates:
    """Return what ``encode`` was given."""
    streams = msgspec.msgpack.decode(payload, type=dict[str, bytes])
    return {name: pa.ipc.open_stream(stream).read_all() for name, stream in streams.items()}


# ----------------------------------------------------------------------------------- quarantined records


class QuarantineCounts(msgspec.Struct, frozen=True):
    """Counts of quarantined records, and the first examples (by source and line) of each reason."""

    counts: list[tuple[str, str, int]]
    """(source, reason, records)."""
    examples: dict[str, list[QuarantinedRecord]]

    @classmethod
    def merged(cls, parts: Iterable["QuarantineCounts"]) -> "QuarantineCounts":
        """Return the counts of all parts together."""
        counts: Counter[tuple[str, str]] = Counter()
        examples: dict[str, list[QuarantinedRecord]] = {}
        for part in parts:
            for source, reason, number in part.counts:
                counts[source, reason] += number
            for reason, found in part.examples.items():
                examples[reason] = sorted([*examples.get(reason, []), *found])[:NUM_EXAMPLES]
            if len(examples) > 2 * MAX_REASONS:
                counts, examples = _bounded(counts, examples)
        counts, examples = _bounded(counts, examples)
        return cls(sorted((source, reason, number) for (source, reason), number in counts.items()), examples)


def count_quarantined(rejections: Iterable[Rejection]) -> QuarantineCounts:
    """Return the counts of some quarantined records."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[str, list[QuarantinedRecord]] = {}
    for rejected in rejections:
        reason = reason_key(rejected)
        counts[rejected.source, reason] += 1
        held = examples.setdefault(reason, [])
        if len(held) < NUM_EXAMPLES:
            held.append(_example(rejected))
    counts, examples = _bounded(counts, examples)
    return QuarantineCounts([(source, reason, number) for (source, reason), number in counts.items()], examples)


def _example(rejected: Rejection) -> QuarantinedRecord:
    return QuarantinedRecord(
        source=rejected.source,
        line=rejected.line,
        path=rejected.path,
        reason=rejected.reason[:EXAMPLE_CHARACTERS],
        record=rejected.record[:EXAMPLE_CHARACTERS],
    )


def _bounded(
    counts: Counter[tuple[str, str]], examples: dict[str, list[QuarantinedRecord]]
) -> tuple[Counter[tuple[str, str]], dict[str, list[QuarantinedRecord]]]:
    """Return the counts and examples with the rarest reasons beyond MAX_REASONS counted as OTHER_REASONS."""
    if len(examples) <= MAX_REASONS:
        return counts, examples
    by_reason: Counter[str] = Counter()
    for (_, reason), number in counts.items():
        by_reason[reason] += number
    kept = {reason for reason, _ in by_reason.most_common(MAX_REASONS)}
    bounded: Counter[tuple[str, str]] = Counter()
    for (source, reason), number in counts.items():
        bounded[source, reason if reason in kept else OTHER_REASONS] += number
    return bounded, {reason: found for reason, found in examples.items() if reason in kept}


# -------------------------------------------------------------------------------- growth over the versions


@dataclass(frozen=True, slots=True)
class History:
    """The versions of a table up to the one that is reported on.

    Attributes:
        versions: oldest first; the last one is the reported version.
        num_versions: how many there are; more than are listed if the table has more than MAX_VERSIONS.
        first_versions: URI of each source of the reported version -> the first listed version with this content of it.
    """

    versions: list[VersionFacts]
    num_versions: int
    first_versions: Mapping[str, int]


def history_of(table: Table, manifest: Manifest) -> History:
    """Return the history of a version.

    Raises:
        StoreError: if a manifest cannot be read.
    """
    numbers = [number for number in table.versions() if number <= manifest.version]
    facts, first = [], {}
    now = {source.uri: source.identity for source in manifest.sources}
    for number in _evenly_spaced(numbers):
        held = manifest if number == manifest.version else table.manifest(number)
        facts.append(_facts(held))
        for source in held.sources:
            if source.accepted and now.get(source.uri) == source.identity:
                first.setdefault(source.uri, number)
    return History(versions=facts, num_versions=len(numbers), first_versions=first)


def _evenly_spaced(numbers: list[int]) -> list[int]:
    """Return at most MAX_VERSIONS of the numbers at even distances, the first and the last among them."""
    if len(numbers) <= MAX_VERSIONS:
        return numbers
    last = len(numbers) - 1
    return [numbers[index * last // (MAX_VERSIONS - 1)] for index in range(MAX_VERSIONS)]


def _facts(manifest: Manifest) -> VersionFacts:
    return VersionFacts(
        version=manifest.version,
        created_at=manifest.created_at,
        operation=manifest.operation,
        annotations=sum(file.rows for file in manifest.files),
        refused=sum(file.rows for file in manifest.quarantined_files),
        sources=len(manifest.sources),
    )
