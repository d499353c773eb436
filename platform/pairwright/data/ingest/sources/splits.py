"""Input splits: divides a source into byte ranges and reads each as numbered chunks of JSON records, in flat memory.

A source is split into byte ranges where its file format allows it: a split owns the records that *start* in it, so any
split points give the same records. Where a source has several splits, the records of all but the last are counted
first, which makes line numbers absolute; in a table the line is the row, in a JSON array the item, from 1. A compressed
source, an array and a CSV file are one stream.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from pairwright.data.ingest.decoders import columnar as tables
from pairwright.data.ingest.decoders import json_records as json_text
from pairwright.data.ingest.decoders.cells.delimited import delimited_chunks, delimiter_note
from pairwright.data.ingest.decoders.cells.spreadsheets import sheet_chunks, sheet_note
from pairwright.data.ingest.decoders.chunks import Chunk
from pairwright.data.ingest.decoders.json_records import holds_array
from pairwright.data.ingest.sources.source import SourceRef, StagedFile
from pairwright.data.ingest.sources.source_bytes import HASHED_BYTES, check_ratio

__all__ = [
    "Chunk",
    "InputSplit",
    "byte_ranges",
    "count_lines",
    "fetch_lines",
    "holds_array",
    "known_newlines",
    "needs_sniff",
    "number_splits",
    "plan_byte_ranges",
    "read_chunks",
    "source_note",
]

_SPLITTABLE_FORMATS = ("lines", "json", "parquet", "arrow")


@dataclass(frozen=True, slots=True)
class InputSplit:
    """The records of a source that start in [start, end) of its stored bytes; all of them where it is one stream."""

    source: SourceRef
    start: int
    end: int
    lines_before: int
    """How many records (or newlines) are before ``start``."""
    staged: SourceRef | None = None
    """The staged file that holds the bytes, if the source is external."""

    @property
    def head(self) -> "InputSplit":
        """The split that holds the first records of the same source."""
        files = self.source.staged_files
        staged = _stored(files[0], self.source) if files else None
        return replace(self, start=0, lines_before=0, staged=staged)


def plan_byte_ranges(source: SourceRef, split_bytes: int) -> list[tuple[int, int]]:
    """Return the [start, end) of the input splits of a source: at least one.

    Raises:
        SourceError: if it had to be sniffed (``needs_sniff``) and could not be read.
    """
    return byte_ranges(source, split_bytes, is_array=needs_sniff(source, split_bytes) and holds_array(source))


def needs_sniff(source: SourceRef, split_bytes: int) -> bool:
    """Return whether a source must be sniffed to know if it can be split: a large .json may be one array."""
    return source.file_format == "json" and source.compression is None and source.size > split_bytes


def byte_ranges(source: SourceRef, split_bytes: int, *, is_array: bool) -> list[tuple[int, int]]:
    """Return the byte ranges of a source of which is known whether it is one JSON array."""
    if source.staged_files is not None:
        return [(0, file.size) for file in source.staged_files]
    is_stream = is_array or source.compression is not None or source.file_format not in _SPLITTABLE_FORMATS
    if is_stream or source.size <= split_bytes:
        return [(0, source.size)]
    return [(start, min(start + split_bytes, source.size)) for start in range(0, source.size, split_bytes)]


def known_newlines(source: SourceRef, split_bytes: int, block_bytes: int = HASHED_BYTES) -> Sequence[int] | None:
    """Return the newlines of each byte range, where hashing has counted them in the same ranges; else None."""
    counts_newlines = source.file_format in ("lines", "json") and source.compression is None
    return source.newlines if counts_newlines and split_bytes == block_bytes else None


def number_splits(source: SourceRef, ranges: Sequence[tuple[int, int]], counts: Sequence[int]) -> list[InputSplit]:
    """Return the input splits, given how many lines ``count_lines`` found in each but the last."""
    if source.staged_files is not None:
        return _staged_splits(source, source.staged_files)
    before = [0]
    for count in counts:
        before.append(before[-1] + count)
    return [InputSplit(source, start, end, before[index]) for index, (start, end) in enumerate(ranges)]


def count_lines(source: SourceRef, start: int, end: int) -> int:
    """Return how many newlines, rows of row groups or rows of record batches are in [start, end).

    Raises:
        SourceError: if the source cannot be read.
    """
    if source.staged_files is not None:
        return 0  # each staged file says itself how many it holds
    if source.file_format in ("parquet", "arrow"):
        return tables.count_rows(source, start, end)
    return json_text.count_newlines(source, start, end)


def read_chunks(split: InputSplit) -> Iterator[Chunk]:
    """Yield the records that a split owns as lines of JSON text, in chunks of about 2 MB and in order.

    Raises:
        SourceError: if the source cannot be read to its end (gone, changed, truncated or not what its name says).
    """
    source = split.source if split.staged is None else split.staged
    match source.file_format:
        case "parquet" | "arrow":
            yield from _in_proportion(source, tables.table_chunks(source, split.start, split.end, split.lines_before))
        case "csv" | "tsv":
            yield from _in_proportion(source, delimited_chunks(source))
        case "xlsx":
            yield from _in_proportion(source, sheet_chunks(source))
        case "lines" | "json":
            chunks = json_text.json_chunks(source, split.start, split.end, split.lines_before)
            yield from chunks if split.staged is None else _numbered_from(split.lines_before, chunks)


def source_note(source: SourceRef) -> str | None:
    """Return what a reader should know of how a source is read, such as sheets that are left out; mostly None.

    Raises:
        SourceError: if the source cannot be read.
    """
    match source.file_format:
        case "csv" | "tsv":
            return delimiter_note(source)
        case "xlsx":
            return sheet_note(source)
        case _:
            return None


def fetch_lines(split: InputSplit, numbers: Iterable[int]) -> dict[int, bytes]:
    """Return some lines of a split by their numbers, for quarantine.

    Raises:
        SourceError: if the source cannot be read.
    """
    wanted = sorted(set(numbers))
    picked: dict[int, bytes] = {}
    for chunk in read_chunks(split):
        last = chunk.first_line + chunk.num_lines
        inside = [number for number in wanted if chunk.first_line <= number < last]
        if inside:
            lines = [chunk.text] if chunk.problem else chunk.text.split(b"\n")
            picked |= {number: lines[number - chunk.first_line] for number in inside}
    return picked


def _staged_splits(source: SourceRef, files: Sequence[StagedFile]) -> list[InputSplit]:
    before = [0, *accumulate(file.rows for file in files)]
    return [InputSplit(source, 0, file.size, before[index], _stored(file, source)) for index, file in enumerate(files)]


def _stored(file: StagedFile, source: SourceRef) -> SourceRef:
    return SourceRef(uri=file.uri, size=file.size, etag=file.etag, limits=source.limits)


def _in_proportion(source: SourceRef, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Yield the chunks of a file format that repeats in each record what the source holds once: names, values."""
    num_bytes = 0
    for chunk in chunks:
        num_bytes += len(chunk.text)
        check_ratio(source, num_bytes, source.size)
        yield chunk


def _numbered_from(before: int, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    return (replace(chunk, first_line=chunk.first_line + before) for chunk in chunks)
