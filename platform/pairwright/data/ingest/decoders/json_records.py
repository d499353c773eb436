"""Decoder for JSON text: JSON Lines in byte ranges, a JSON array as one stream.

A plain source of JSON Lines is split into byte ranges that tasks read on their own: a split owns the lines that
*start* in it, so any split points give the same lines. The beginning of a source is sniffed before its name is
believed, because a wrong name would otherwise be refused once for every line.
"""

from collections.abc import Iterator

import msgspec

from pairwright.data.ingest.decoders import chunks
from pairwright.data.ingest.decoders.chunks import Chunk, cut_at_lines
from pairwright.data.ingest.decoders.json_array import lines_of_array
from pairwright.data.ingest.sources.source import SourceRef
from pairwright.data.ingest.sources.source_bytes import read_blocks, text_blocks
from pairwright.errors import SourceError

BOM = b"\xef\xbb\xbf"
_FOREIGN_STARTS = {
    b"\x1f\x8b": "starts like a gzip file; name it .gz",
    b"\x28\xb5\x2f\xfd": "starts like a zstd file; name it .zst",
    b"\xff\xfe": "is UTF-16; write it in UTF-8",
    b"\xfe\xff": "is UTF-16; write it in UTF-8",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"PAR1": "is a Parquet file; name it .parquet",
    b"ARROW1": "is an Arrow file; name it .arrow",
    b"SQLite format 3\x00": "is a SQLite database; name it as sqlite:////PATH?table=NAME",
}


def holds_array(source: SourceRef) -> bool:
    """Return whether a source named .json is one JSON array rather than JSON Lines.

    Raises:
        SourceError: if it cannot be read, or is neither.
    """
    head, _ = checked_start(source, text_blocks(source))
    return _starts_array(head)


def json_chunks(source: SourceRef, start: int, end: int, lines_before: int) -> Iterator[Chunk]:
    """Yield the records that start in [start, end) of the stored bytes, in chunks of about 2 MB and in order.

    Raises:
        SourceError: if the source cannot be read to its end, or is not what its name says.
    """
    if start == 0:
        whole = source.compression is not None or end >= source.size
        blocks = text_blocks(source) if whole else _until_line_end(read_blocks(source, 0, source.size), 0, end)
        head, blocks = checked_start(source, blocks)
        if source.file_format == "json" and _starts_array(head):
            blocks = lines_of_array(source.uri, blocks)
        else:
            _refuse_spread(source, head)
        yield from cut_at_lines(blocks, 1, source.limits.max_record_bytes)
        return
    own_start, partial, blocks = _first_own_line(source, start, end)
    if own_start < end:
        own_blocks = _until_line_end(blocks, own_start, end)
        yield from cut_at_lines(own_blocks, lines_before + partial + 1, source.limits.max_record_bytes)


def count_newlines(source: SourceRef, start: int, end: int) -> int:
    """Return how many newlines are in [start, end) of a plain source: what makes line numbers absolute (1.4 GB/s).

    Raises:
        SourceError: if the source cannot be read.
    """
    return sum(block.count(b"\n") for block in read_blocks(source, start, end))


def checked_start(source: SourceRef, blocks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Return the beginning of the text, and all of it from there without a byte-order mark.

    Raises:
        SourceError: if it does not look like text.
    """
    head = b""
    while len(head) < chunks.KEPT_BYTES and (block := next(blocks, b"")):
        head += block
    for start, what in _FOREIGN_STARTS.items():
        if head.startswith(start):
            raise SourceError(f"{source.uri}: {what}")
    head = head.removeprefix(BOM)
    return head, _resumed(head, blocks)


def _starts_array(head: bytes) -> bool:
    return head.lstrip()[:1] == b"["


def _refuse_spread(source: SourceRef, head: bytes) -> None:
    """Refuse what would be one refused record a line: an array named .jsonl, or records spread over several lines."""
    if _starts_array(head):
        raise SourceError(f"{source.uri}: is one JSON array, expected one record a line; name it .json")
    first, newline, rest = head.lstrip().partition(b"\n")
    following = rest.lstrip()[:1]
    if newline and following and following != b"{" and _is_unfinished(first):
        raise SourceError(
            f"{source.uri}: holds a record that is spread over several lines, expected one record a line or one array; "
            "convert it with `jq -c . IN > OUT.jsonl`, or with `jq -c '.KEY[]'` where the records stand under a key"
        )


def _is_unfinished(line: bytes) -> bool:
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except msgspec.DecodeError as error:
        at_token = line.rstrip().endswith((b"{", b"[", b",", b":"))
        return line.startswith(b"{") and at_token and str(error) == "Input data was truncated"
    return False


# ------------------------------------------------------------------------------------------------ splits


def _first_own_line(source: SourceRef, start: int, end: int) -> tuple[int, int, Iterator[bytes]]:
    """Return where the split's first own line starts, whether a partial one is before it, and what follows.

    Reading begins one byte early: if that byte is a newline, a line starts exactly at ``start``.
    """
    position = start - 1
    blocks = read_blocks(source, position, source.size)
    for block in blocks:
        found = block.find(b"\n")
        if found >= 0:
            own_start = position + found + 1
            return own_start, int(own_start > start), _resumed(block[found + 1 :], blocks)
        position += len(block)
        if position >= end:
            break
    return end, 1, iter(())


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
