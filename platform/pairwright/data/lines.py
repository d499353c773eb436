"""Sources -> chunks of whole lines with absolute line numbers, in flat memory.

A plain source is cut into byte ranges that tasks read on their own: a range owns the lines that *start* in it, so any
cuts give the same lines. Where a source has several ranges, its newlines are counted first (1.4 GB/s a core), which is
what makes line numbers absolute. A compressed source is one stream. Lines end at the newline byte alone: U+2028,
U+0085 and a bare CR do not cut a record.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pairwright.data.sources import READ_BYTES, Compression, SourceRef, read_blocks
from pairwright.errors import SourceError

MAX_LINE_BYTES = 128 * 1024 * 1024
"""A longer line is passed over and reported by its beginning: it must not cost a node's memory."""
KEPT_BYTES = 64 * 1024

_BOM = b"\xef\xbb\xbf"
_FOREIGN_STARTS = {
    b"\x1f\x8b": "starts like a gzip file; name it .gz",
    b"\x28\xb5\x2f\xfd": "starts like a zstd file; name it .zst",
    b"\xff\xfe": "is UTF-16; write it in UTF-8",
    b"\xfe\xff": "is UTF-16; write it in UTF-8",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"PAR1": "is a Parquet file; export it as JSON Lines",
}


@dataclass(frozen=True, slots=True)
class LineRange:
    """The lines of a source that start in [start, end) of its stored bytes; all of them where it is compressed."""

    source: SourceRef
    start: int
    end: int
    newlines_before: int
    """How many newlines stand before ``start``."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole lines; the last one of a source may lack its newline."""

    first_line: int
    """Line number of the first one, from 1."""
    text: bytes
    overlong_bytes: int = 0
    """Not 0: the chunk is only the beginning of a single line that is this long."""

    @property
    def num_lines(self) -> int:
        """Lines in the chunk, blank ones too."""
        return self.text.count(b"\n") + (not self.text.endswith(b"\n"))


def plan_ranges(source: SourceRef, range_bytes: int) -> list[tuple[int, int]]:
    """Return the [start, end) of the ranges that a source is read in: at least one, only one where compressed."""
    if source.compression is not None or source.size <= range_bytes:
        return [(0, source.size)]
    return [(start, min(start + range_bytes, source.size)) for start in range(0, source.size, range_bytes)]


def number_ranges(source: SourceRef, ranges: Sequence[tuple[int, int]], newlines: Sequence[int]) -> list[LineRange]:
    """Return the ranges to read, given how many newlines are in each but the last."""
    before = [0]
    for count in newlines:
        before.append(before[-1] + count)
    return [LineRange(source, start, end, before[index]) for index, (start, end) in enumerate(ranges)]


def count_newlines(source: SourceRef, start: int, end: int) -> int:
    """Return how many newlines stand in [start, end) of a plain source.

    Raises:
        SourceError: if the source cannot be read.
    """
    return sum(block.count(b"\n") for block in read_blocks(source, start, end))


def read_chunks(unit: LineRange) -> Iterator[Chunk]:
    """Yield the lines that a range owns, in chunks of about 2 MB and in order.

    Raises:
        SourceError: if the source cannot be read to its end (gone, changed, truncated or not compressed as its name
            says), or is not text at all.
    """
    source = unit.source
    if source.compression is not None:
        if source.size == 0:
            raise SourceError(f"{source.uri}: 0 bytes, which is no {source.compression} file; copy it again")
        yield from _chunks(_checked_start(source, _decompressed(source, source.compression)), 1)
        return
    if unit.start == 0:
        blocks = _checked_start(source, _until_line_end(read_blocks(source, 0, source.size), 0, unit.end))
        yield from _chunks(blocks, 1)
        return
    start, partial, blocks = _first_own_line(unit)
    if start < unit.end:
        yield from _chunks(_until_line_end(blocks, start, unit.end), unit.newlines_before + partial + 1)


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
            lines = chunk.text.split(b"\n")
            picked |= {number: lines[number - chunk.first_line] for number in inside}
    return picked


def _first_own_line(unit: LineRange) -> tuple[int, int, Iterator[bytes]]:
    """Return where the range's first own line starts, whether a partial one stands before it, and what follows.

    Reading begins one byte early: if that byte is a newline, a line starts exactly at ``start``.
    """
    position = unit.start - 1
    blocks = read_blocks(unit.source, position, unit.source.size)
    for block in blocks:
        found = block.find(b"\n")
        if found >= 0:
            start = position + found + 1
            return start, int(start > unit.start), _resumed(block[found + 1 :], blocks)
        position += len(block)
        if position >= unit.end:
            break
    return unit.end, 1, iter(())


def _resumed(rest: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    yield rest
    yield from blocks


def _until_line_end(blocks: Iterator[bytes], position: int, end: int) -> Iterator[bytes]:
    """Yield the blocks up to the end of the line that holds byte ``end - 1``."""
    for block in blocks:
        after = position + len(block)
        if after >= end:
            found = block.find(b"\n", max(end - 1 - position, 0))
            if found >= 0:
                yield block[: found + 1]
                return
        position = after
        yield block


class _Tail:
    """The unfinished line at the end of what was read; past the limit only its beginning is kept."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._parts: list[bytes] = []

    @property
    def is_overlong(self) -> bool:
        return self.num_bytes > MAX_LINE_BYTES

    def add(self, part: bytes) -> None:
        if not self.is_overlong:
            self._parts.append(part)
        self.num_bytes += len(part)
        if self.is_overlong:
            self._parts = [b"".join(self._parts)[:KEPT_BYTES]]

    def take(self) -> bytes:
        text = b"".join(self._parts)
        self.num_bytes, self._parts = 0, []
        return text

    def take_overlong(self, line: int) -> Chunk:
        num_bytes = self.num_bytes
        return Chunk(line, self.take(), overlong_bytes=num_bytes)


def _chunks(blocks: Iterator[bytes], line: int) -> Iterator[Chunk]:
    """Cut a stream of blocks at line ends; a line that is too long comes as its beginning, alone."""
    tail = _Tail()
    for block in blocks:
        start, end = 0, block.rfind(b"\n") + 1
        if end and tail.is_overlong:
            start = block.find(b"\n") + 1
            tail.add(block[: start - 1])
            yield tail.take_overlong(line)
            line += 1
        if end > start:
            chunk = Chunk(line, tail.take() + block[start:end])
            line += chunk.num_lines
            yield chunk
        if end < len(block):
            tail.add(block[end:])
    if tail.is_overlong:
        yield tail.take_overlong(line)
    elif tail.num_bytes:
        yield Chunk(line, tail.take())


def _checked_start(source: SourceRef, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the text from its beginning without a byte-order mark, once it looks like text."""
    head = b""
    while len(head) < KEPT_BYTES and (block := next(blocks, b"")):
        head += block
    for start, what in _FOREIGN_STARTS.items():
        if head.startswith(start):
            raise SourceError(f"{source.uri}: {what}")
    head = head.removeprefix(_BOM)
    if ".json" in source.uri.lower()[-len(".json.zst") :] and head.lstrip()[:1] == b"[":
        raise SourceError(
            f"{source.uri}: is one JSON array, expected one record a line; convert it with `jq -c '.[]' IN > OUT.jsonl`"
        )
    yield head
    yield from blocks


class _BlockFile(io.RawIOBase):
    """The stored bytes of a source as a file, for pyarrow to decompress."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not self._rest:
            self._rest = memoryview(next(self._blocks, b""))
        num_bytes = min(len(buffer), len(self._rest))
        buffer[:num_bytes] = self._rest[:num_bytes]
        self._rest = self._rest[num_bytes:]
        return num_bytes


def _decompressed(source: SourceRef, compression: Compression) -> Iterator[bytes]:
    """Yield the text of a compressed source, all of its frames or members.

    pyarrow's stream is used because it notices a missing end; python-zstandard's reader stops there in silence.
    """
    num_bytes = 0
    file = pa.PythonFile(_BlockFile(read_blocks(source, 0, source.size)), mode="r")
    try:
        with pa.CompressedInputStream(file, compression) as stream:
            while block := stream.read(READ_BYTES):
                num_bytes += len(block)
                yield block
    except OSError as error:
        raise SourceError(
            f"{source.uri}: not a whole {compression} file: {error} after {num_bytes:,} bytes of text; copy it again"
        ) from None
