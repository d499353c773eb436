"""Decodes the text of a source that is not UTF-8, block by block, and says where it does not fit its encoding."""

import codecs
from collections.abc import Iterator

from pairwright.data.ingest.sources.source import SourceRef
from pairwright.errors import SourceError

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def encoding_of(source: SourceRef, head: bytes) -> str | None:
    """Return the encoding that a source needs decoding from; None for UTF-8.

    It is what ``cells.encoding`` says, or UTF-16 where the text begins with its byte-order mark.

    Args:
        source: with its settings.
        head: the beginning of its text.
    """
    named = source.cells.encoding
    if named is None:
        return "utf-16" if head.startswith(_UTF_16) else None
    return None if codecs.lookup(named).name == "utf-8" else named


def as_utf8(source: SourceRef, blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Yield blocks of text in UTF-8.

    Raises:
        SourceError: at the first byte that is none of the encoding, with its place and the key to set.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    num_bytes, num_lines = 0, 0

    def decoded(block: bytes, *, is_last: bool) -> str:
        try:
            return decoder.decode(block, final=is_last)
        except UnicodeDecodeError as error:
            start = num_bytes - len(error.object) + error.start
            line = 1 + num_lines + error.object[: error.start].count(b"\n")
            raise SourceError(
                f"{source.uri}: expected {encoding}, got byte 0x{error.object[error.start]:02x} at byte {start:,}, in "
                f"line {line:,}; set cells.encoding to what it is written in: utf-8, utf-16, cp1252 or latin-1"
            ) from None

    for block in blocks:
        num_bytes += len(block)
        text = decoded(block, is_last=False)
        num_lines += text.count("\n")
        yield text.encode("utf-8", "surrogatepass")
    yield decoded(b"", is_last=True).encode("utf-8", "surrogatepass")
