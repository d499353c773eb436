"""Scans sources: hashes them, plans their input splits, and parses and writes the splits.

A source that fails (gone, changed, truncated, not what its name says) is named with its reason and stops no other.
"""

from collections.abc import Callable, Iterator, Sequence

import msgspec

from pairwright.config import IngestConfig
from pairwright.data.executor import Executor, Failures
from pairwright.data.ingest.shards import IngestShard, write_shards
from pairwright.data.ingest.sources.source import SourceRef, with_checksum
from pairwright.data.ingest.sources.source_bytes import READ_BYTES, checksum_blocks, content_hash, hash_block
from pairwright.data.ingest.sources.splits import (
    InputSplit,
    byte_ranges,
    count_lines,
    holds_array,
    known_newlines,
    needs_sniff,
    number_splits,
)
from pairwright.data.table.table import Table
from pairwright.errors import SourceError


class _Outcome(msgspec.Struct, frozen=True):
    item: int
    found: tuple[str, int] = ("", 0)
    error: str | None = None


def hash_sources(sources: Sequence[SourceRef], executor: Executor) -> tuple[list[SourceRef], Failures]:
    """Return the sources with hashes of their content (a remote one has its etag), without those that failed."""
    todo = [(source, *bounds) for source in sources if source.is_local for bounds in checksum_blocks(source)]
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
        with_checksum(source, content_hash(digests[source.uri]), newlines[source.uri]) if source.is_local else source
        for source in sources
        if source.uri not in failures
    ]
    return tagged, failures


def plan_splits(
    sources: Sequence[SourceRef], split_bytes: int, executor: Executor
) -> tuple[list[InputSplit], Failures]:
    """Return the input splits, in order of sources and lines; counts the lines before each."""
    doubtful = [source for source in sources if needs_sniff(source, split_bytes)]
    sniffed, unreadable = _each(
        lambda index: ("", int(holds_array(doubtful[index]))),
        doubtful,
        [READ_BYTES] * len(doubtful),
        "sources sniffed",
        executor,
    )
    arrays = {source.uri for source, (_, is_array) in zip(doubtful, sniffed, strict=True) if is_array}
    sources = [source for source in sources if source.uri not in unreadable]
    ranges = {source.uri: byte_ranges(source, split_bytes, is_array=source.uri in arrays) for source in sources}
    todo = [
        (source, *bounds)
        for source in sources
        if known_newlines(source, split_bytes) is None and source.staged_files is None
        for bounds in ranges[source.uri][:-1]
    ]
    counted, failures = _each(
        lambda index: ("", count_lines(*todo[index])),
        [source for source, *_ in todo],
        [end - start for _, start, end in todo],
        "splits counted",
        executor,
    )
    counts: dict[str, list[int]] = {}
    for (source, *_), (_, count) in zip(todo, counted, strict=True):
        counts.setdefault(source.uri, []).append(count)
    splits = []
    for source in sources:
        if source.uri not in failures:
            known = known_newlines(source, split_bytes)
            before = counts.get(source.uri, []) if known is None else known[: len(ranges[source.uri]) - 1]
            splits += number_splits(source, ranges[source.uri], before)
    return splits, unreadable | failures


def write_splits(
    splits: Sequence[InputSplit], table: Table, config: IngestConfig, executor: Executor
) -> tuple[list[IngestShard], Failures]:
    """Return the shards of the splits, in order; those of a failed source are among them, to be dropped."""

    def work(index: int) -> Iterator[IngestShard]:
        return write_shards(index, splits[index], table, config)

    sizes = [split.end - split.start for split in splits]
    shards = list(executor.map_items(work, range(len(splits)), sizes, IngestShard, what="splits of sources read"))
    shards.sort(key=lambda shard: (shard.split_index, shard.index))
    failures: Failures = {}
    for shard in shards:
        if shard.error is not None:
            failures.setdefault(splits[shard.split_index].source.uri, shard.error)
    return shards, failures


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
