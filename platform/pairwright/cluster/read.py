"""The passes of an ingestion that read sources: hash, plan, write. Sources in -> parts out, failures by source.

A source that fails (gone, changed, truncated, not what its name says) is named with its reason and stops no other.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import msgspec

from pairwright.cluster.passes import run_pass
from pairwright.config import IngestConfig
from pairwright.data.blocks import READ_BYTES, content_tag
from pairwright.data.lines import LineRange, count_lines, cut, holds_array, needs_look, number_ranges
from pairwright.data.parts import Part, write_parts
from pairwright.data.sources import SourceRef, with_etag
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
    """Return the ranges to read, in order of sources and lines; counts the lines before each."""
    doubtful = [source for source in sources if needs_look(source, range_bytes)]
    looks, unreadable = _each(
        lambda index: int(holds_array(doubtful[index])), doubtful, [READ_BYTES] * len(doubtful), "sources looked into"
    )
    arrays = {source.uri for source, look in zip(doubtful, looks, strict=True) if look}
    sources = [source for source in sources if source.uri not in unreadable]
    ranges = {source.uri: cut(source, range_bytes, is_array=source.uri in arrays) for source in sources}
    todo = [(source, *bounds) for source in sources if source.shards is None for bounds in ranges[source.uri][:-1]]
    counts, failures = _each(
        lambda index: count_lines(*todo[index]),
        [source for source, *_ in todo],
        [end - start for _, start, end in todo],
        "ranges counted",
    )
    units, position = [], 0
    for source in sources:
        num_counted = len(ranges[source.uri]) - 1 if source.shards is None else 0
        if source.uri not in failures:
            before = [int(count) for count in counts[position : position + num_counted]]
            units += number_ranges(source, ranges[source.uri], before)
        position += num_counted
    return units, unreadable | failures


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
