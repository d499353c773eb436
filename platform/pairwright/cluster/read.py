"""The passes of an ingestion that read sources: hash, plan, write. Sources in -> parts out, failures by source.

A source that fails (gone, changed, truncated, not what its name says) is named with its reason and stops no other.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import msgspec

from pairwright.cluster.passes import run_pass
from pairwright.config import IngestConfig
from pairwright.data.lines import LineRange, count_newlines, number_ranges, plan_ranges
from pairwright.data.parts import Part, write_parts
from pairwright.data.sources import SourceRef, content_tag, with_etag
from pairwright.data.store import Table
from pairwright.errors import SourceError

Failures: TypeAlias = dict[str, str]
"""URI of a source -> why it could not be read to its end."""


class _Outcome(msgspec.Struct, frozen=True):
    item: int
    found: str | int = ""
    error: str | None = None


def hash_sources(sources: Sequence[SourceRef]) -> tuple[list[SourceRef], Failures]:
    """Return the sources with tags of their content (a remote one has its etag), without those that failed."""
    local = [source for source in sources if source.is_local]
    sizes = [source.size for source in local]
    tags, failures = _each(lambda index: content_tag(local[index]), local, sizes, "sources hashed")
    found = {source.uri: with_etag(source, str(tag)) for source, tag in zip(local, tags, strict=True)}
    return [found.get(source.uri, source) for source in sources if source.uri not in failures], failures


def plan_units(sources: Sequence[SourceRef], range_bytes: int) -> tuple[list[LineRange], Failures]:
    """Return the ranges to read, in order of sources and lines; counts the newlines before each."""
    ranges = {source.uri: plan_ranges(source, range_bytes) for source in sources}
    todo = [(source, *bounds) for source in sources for bounds in ranges[source.uri][:-1]]
    counts, failures = _each(
        lambda index: count_newlines(*todo[index]),
        [source for source, *_ in todo],
        [end - start for _, start, end in todo],
        "ranges counted",
    )
    units, position = [], 0
    for source in sources:
        num_counted = len(ranges[source.uri]) - 1
        if source.uri not in failures:
            newlines = [int(count) for count in counts[position : position + num_counted]]
            units += number_ranges(source, ranges[source.uri], newlines)
        position += num_counted
    return units, failures


def write_units(units: Sequence[LineRange], table: Table, config: IngestConfig) -> tuple[list[Part], Failures]:
    """Return the parts that the ranges became, in order; those of a failed source are among them, worth nothing."""

    def work(index: int) -> Iterator[Part]:
        return write_parts(index, units[index], table, config)

    sizes = [unit.end - unit.start for unit in units]
    parts = list(run_pass(work, range(len(units)), sizes, Part, what="ranges of sources read"))
    parts.sort(key=lambda part: (part.unit, part.index))
    failures: Failures = {}
    for part in parts:
        if part.error is not None:
            failures.setdefault(units[part.unit].source.uri, part.error)
    return parts, failures


def _each(
    find: Callable[[int], str | int], owners: Sequence[SourceRef], sizes: Sequence[int], what: str
) -> tuple[list[str | int], Failures]:
    """Return what ``find`` finds for each index, and why it failed, by the source that owns the item."""

    def work(index: int) -> Iterator[_Outcome]:
        try:
            yield _Outcome(index, found=find(index))
        except SourceError as error:
            yield _Outcome(index, error=str(error))

    found: list[str | int] = [""] * len(owners)
    failures: Failures = {}
    for outcome in run_pass(work, range(len(owners)), sizes, _Outcome, what=what):
        found[outcome.item] = outcome.found
        if outcome.error is not None:
            failures.setdefault(owners[outcome.item].uri, outcome.error)
    return found, failures
