"""Sources -> chunks of records as lines of JSON text with absolute numbers, in flat memory: the one way in.

A source is cut into byte ranges where its layout allows it: a range owns the records that *start* in it, so any cuts
give the same records. Where a source has several ranges, the records of all but the last are counted first, which is
what makes line numbers absolute; in a table the line is the row, in a JSON array the item, from 1. A compressed
source, an array and a CSV file are one stream.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from pairwright.data.ingest.decoders import columnar as tables
from pairwright.data.ingest.decoders import json_records as json_text
from pairwright.data.ingest.decoders.chunks import Chunk
from pairwright.data.ingest.decoders.delimited import delimited_chunks
from pairwright.data.ingest.decoders.json_records import holds_array
from pairwright.data.ingest.sources.source import Shard, SourceRef
from pairwright.data.ingest.sources.source_bytes import HASHED_BYTES, check_ratio

__all__ = [
    "Chunk",
    "LineRange",
    "count_lines",
    "cut",
    "holds_array",
    "known_newlines",
    "needs_look",
    "number_ranges",
    "pick_lines",
    "plan_ranges",
    "read_chunks",
]

_SPLIT_LAYOUTS = ("lines", "json", "parquet", "arrow")


@dataclass(frozen=True, slots=True)
class LineRange:
    """The records of a source that start in [start, end) of its stored bytes; all of them where it is one stream."""

    source: SourceRef
    start: int
    end: int
    lines_before: int
    """How many records (or newlines) stand before ``start``."""
    shard: SourceRef | None = None
    """Where the bytes are, if the source is no file and was landed."""

    @property
    def head(self) -> "LineRange":
        """The range that holds the first records of the same source."""
        shards = self.source.shards
        shard = _stored(shards[0], self.source) if shards else None
        return replace(self, start=0, lines_before=0, shard=shard)


def plan_ranges(source: SourceRef, range_bytes: int) -> list[tuple[int, int]]:
    """Return the [start, end) of the ranges that a source is read in: at least one.

    Raises:
        SourceError: if it had to be looked at (``needs_look``) and could not be read.
    """
    return cut(source, range_bytes, is_array=needs_look(source, range_bytes) and holds_array(source))


def needs_look(source: SourceRef, range_bytes: int) -> bool:
    """Return whether only a look into a source can say if it may be cut: a large .json may be one array."""
    return source.layout == "json" and source.compression is None and source.size > range_bytes


def cut(source: SourceRef, range_bytes: int, *, is_array: bool) -> list[tuple[int, int]]:
    """Return the ranges of a source of which is known whether it is one JSON array."""
    if source.shards is not None:
        return [(0, shard.size) for shard in source.shards]
    is_stream = is_array or source.compression is not None or source.layout not in _SPLIT_LAYOUTS
    if is_stream or source.size <= range_bytes:
        return [(0, source.size)]
    return [(start, min(start + range_bytes, source.size)) for start in range(0, source.size, range_bytes)]


def known_newlines(source: SourceRef, range_bytes: int, block_bytes: int = HASHED_BYTES) -> Sequence[int] | None:
    """Return the newlines of each range, where hashing has counted them in the same ranges; None where it has not."""
    counts_newlines = source.layout in ("lines", "json") and source.compression is None
    return source.newlines if counts_newlines and range_bytes == block_bytes else None


def number_ranges(source: SourceRef, ranges: Sequence[tuple[int, int]], counts: Sequence[int]) -> list[LineRange]:
    """Return the ranges to read, given how many lines ``count_lines`` found in each but the last."""
    if source.shards is not None:
        return _ranges_of_shards(source, source.shards)
    before = [0]
    for count in counts:
        before.append(before[-1] + count)
    return [LineRange(source, start, end, before[index]) for index, (start, end) in enumerate(ranges)]


def count_lines(source: SourceRef, start: int, end: int) -> int:
    """Return how many newlines, rows of row groups or rows of record batches are in [start, end).

    Raises:
        SourceError: if the source cannot be read.
    """
    if source.shards is not None:
        return 0  # each shard says itself how many it holds
    if source.layout in ("parquet", "arrow"):
        return tables.count_rows(source, start, end)
    return json_text.count_newlines(source, start, end)


def read_chunks(unit: LineRange) -> Iterator[Chunk]:
    """Yield the records that a range owns as lines of JSON text, in chunks of about 2 MB and in order.

    Raises:
        SourceError: if the source cannot be read to its end (gone, changed, truncated or not what its name says).
    """
    source = unit.source if unit.shard is None else unit.shard
    match source.layout:
        case "parquet" | "arrow":
            yield from _in_proportion(source, tables.table_chunks(source, unit.start, unit.end, unit.lines_before))
        case "csv" | "tsv":
            yield from _in_proportion(source, delimited_chunks(source))
        case "lines" | "json":
            chunks = json_text.json_chunks(source, unit.start, unit.end, unit.lines_before)
            yield from chunks if unit.shard is None else _numbered_from(unit.lines_before, chunks)


def pick_lines(unit: LineRange, numbers: Iterable[int]) -> dict[int, bytes]:
    """Return some lines of a range by their numbers, to show them to their writer.

    Raises:
        SourceError: if the source cannot be read.
    """
    wanted = sorted(set(numbers))
    picked: dict[int, bytes] = {}
    for chunk in read_chunks(unit):
        last = chunk.first_line + chunk.num_lines
        inside = [number for number in wanted if chunk.first_line <= number < last]
        if inside:
            lines = [chunk.text] if chunk.problem else chunk.text.split(b"\n")
            picked |= {number: lines[number - chunk.first_line] for number in inside}
    return picked


def _ranges_of_shards(source: SourceRef, shards: Sequence[Shard]) -> list[LineRange]:
    before = [0, *accumulate(shard.rows for shard in shards)]
    return [
        LineRange(source, 0, shard.size, before[index], _stored(shard, source)) for index, shard in enumerate(shards)
    ]


def _stored(shard: Shard, source: SourceRef) -> SourceRef:
    return SourceRef(uri=shard.uri, size=shard.size, etag=shard.etag, limits=source.limits)


def _in_proportion(source: SourceRef, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Yield the chunks of a layout that repeats in each record what the source says once: names, values."""
    num_bytes = 0
    for chunk in chunks:
        num_bytes += len(chunk.text)
        check_ratio(source, num_bytes, source.size)
        yield chunk


def _numbered_from(before: int, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    return (replace(chunk, first_line=chunk.first_line + before) for chunk in chunks)
