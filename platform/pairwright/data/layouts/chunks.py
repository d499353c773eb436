"""What every layout becomes: chunks of whole records as lines of JSON text, numbered from 1, in flat memory.

Lines end at the newline byte alone: U+2028, U+0085 and a bare CR do not cut a record.
"""

from collections.abc import Iterator
from dataclasses import dataclass

MAX_LINE_BYTES = 128 * 1024 * 1024
"""A longer line is passed over and reported by its beginning: it must not cost a node's memory."""
KEPT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole lines; the last one of a source may lack its newline."""

    first_line: int
    """Line number of the first one, from 1."""
    text: bytes
    problem: str = ""
    """Not empty: the chunk is one record that is none, for this reason, and ``text`` is what there is of it."""

    @property
    def num_lines(self) -> int:
        """Lines in the chunk, blank ones too."""
        return 1 if self.problem else self.text.count(b"\n") + (not self.text.endswith(b"\n"))


def cut_at_lines(blocks: Iterator[bytes], line: int) -> Iterator[Chunk]:
    """Cut a stream of blocks at line ends; a line that is too long comes as its beginning, alone.

    Args:
        blocks: text, cut anywhere.
        line: number of its first line.
    """
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
        reason = f"expected a line of at most {MAX_LINE_BYTES:,} bytes, got {self.num_bytes:,}"
        return Chunk(line, self.take(), problem=reason)
