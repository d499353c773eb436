"""Scans sources: hashes them, plans their input splits, and parses and writes the splits.

A source that fails (gone, changed, truncated, not what its name says) is named with its reason and stops no other.
"""

from collections.abc import Callable, Iterator, Sequence

import msgspec

from pairwright.config import IngestConfig
from pairwright.data.executor import Executor, Failures
from pairwright.data.ingest.shards import Part, write_parts
from pairwright.data.ingest.sources.source import SourceRef, surveyed
from pairwright.data.ingest.sources.source_bytes import READ_BYTES, content_tag, hash_block, hash_bounds
from pairwright.data.ingest.sources.splits import (
    LineRange,
    count_lines,
    cut,
    holds_array,
    known_newlines,
    needs_look,
    number_ranges,
)
from pairwright.data.table.table import Table
from pairwright.errors import SourceError


class _Outcome(msgspec.Struct, frozen=True):
    item: int
    found: tuple[str, int] = ("", 0)
    error: str | None = None


def hash_sources(sources: Sequence[SourceRef], executor: Executor) -> tuple[list[SourceRef], Failures]:
    """Return the sources with tags of their content (a remote one has its etag), without those that failed."""
    todo = [(source, *bounds) for source in sources if source.is_local for bounds in hash_bounds(source)]
    owners, sizes = [source for source, *_ in todo], [end - start for _, start, end in todo]
    hashed, failures = _each(
        lambda index: hash_block(*todo[index]), owners, sizes, "blocks of sources hashed", executor
    )
    digests: dict[str, list[str]] = {}
    newlines: dict[str, list[int]] = {}
    for source, (digest, count) in zip(owners, hashed, strict=True):
        digests.setdefault(source.uri, []).append(digest)
        newlines.setdefault(source.uri, []).append(count)
    tagged = [
        surveyed(source, content_tag(digests[source.uri]), newlines[source.uri]) if source.is_local else source
        for source in sources
        if source.uri not in failures
    ]
    return tagged, failures


def plan_units(sources: Sequence[SourceRef], range_bytes: int, executor: Executor) -> tuple[list[LineRange], Failures]:
    """Return the ranges to read, in order of sources and lines; counts the lines before each."""
    doubtful = [source for source in sources if needs_look(source, range_bytes)]
    looks, unreadable = _each(
        lambda index: ("", int(holds_array(doubtful[index]))),
        doubtful,
        [READ_BYTES] * len(doubtful),
        "sources looked into",
        executor,
    )
    arrays = {source.uri for source, (_, look) in zip(doubtful, looks, strict=True) if look}
    sources = [source for source in sources if source.uri not in unreadable]
    ranges = {source.uri: cut(source, range_bytes, is_array=source.uri in arrays) for source in sources}
    todo = [
        (source, *bounds)
        for source in sources
        if known_newlines(source, range_bytes) is None and source.shards is None
        for bounds in ranges[source.uri][:-1]
    ]
    counted, failures = _each(
        lambda index: ("", count_lines(*todo[index])),
        [source for source, *_ in todo],
        [end - start for _, start, end in todo],
        "ranges counted",
        executor,
    )
    counts: dict[str, list[int]] = {}
    for (source, *_), (_, count) in zip(todo, counted, strict=True):
        counts.setdefault(source.uri, []).append(count)
    units = []
    for source in sources:
        if source.uri not in failures:
            known = known_newlines(source, range_bytes)
            before = counts.get(source.uri, []) if known is None else known[: len(ranges[source.uri]) - 1]
            units += number_ranges(source, ranges[source.uri], before)
    return units, unreadable | failures


def write_units(
    units: Sequence[LineRange], table: Table, config: IngestConfig, executor: Executor
) -> tuple[list[Part], Failures]:
    """Return the parts that the ranges became, in order; those of a failed source are among them, worth nothing."""

    def work(index: int) -> Iterator[Part]:
        return write_parts(index, units[index], table, config)

    sizes = [unit.end - unit.start for unit in units]
    parts = list(executor.map_items(work, range(len(units)), sizes, Part, what="ranges of sources read"))
    parts.sort(key=lambda part: (part.unit, part.index))
    failures: Failures = {}
    for part in parts:
        if part.error is not None:
            failures.setdefault(units[part.unit].source.uri, part.error)
    return parts, failures


def _each(
    find: Callable[[int], tuple[str, int]],
    owners: Sequence[SourceRef],
    sizes: Sequence[int],
    what: str,
    executor: Executor,
) -> tuple[list[tuple[str, int]], Failures]:
    """Return what ``find`` finds for each index, and why it failed, by the source that owns the item."""

    def work(index: int) -> Iterator[_Outcome]:
        try:
            yield _Outcome(index, found=find(index))
        except SourceError as error:
            yield _Outcome(index, error=str(error))

    found = [("", 0)] * len(owners)
    failures: Failures = {}
    for outcome in executor.map_items(work, range(len(owners)), sizes, _Outcome, what=what):
        found[outcome.item] = outcome.found
        if outcome.error is not None:
            failures.setdefault(owners[outcome.item].uri, outcome.error)
    return found, failures
