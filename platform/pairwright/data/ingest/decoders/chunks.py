"""Chunks of whole records as lines of JSON text, numbered from 1: the output of every decoder, in flat memory.

Lines end at the newline byte alone: U+2028, U+0085 and a bare CR do not end a record.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

KEPT_BYTES = 64 * 1024
"""What is kept of a record that is too long: it must not cost a node's memory."""


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

    def pieces(self, max_lines: int) -> "Iterator[Chunk]":
        """Yield the chunk in pieces of at most so many lines: what is made of a line may be far larger than it."""
        if self.problem or self.num_lines <= max_lines:
            yield self
            return
        ends = np.flatnonzero(np.frombuffer(self.text, np.uint8) == ord("\n"))[max_lines - 1 :: max_lines] + 1
        for index, (start, end) in enumerate(pairwise([0, *ends.tolist(), len(self.text)])):
            if end > start:
                yield Chunk(self.first_line + index * max_lines, self.text[start:end])


def too_long(num_bytes: int, max_record_bytes: int) -> str:
    """Return the reason to refuse a record by its length."""
    limit = f"expected a record of at most {max_record_bytes:,} bytes"
    return f"{limit}, got {num_bytes:,}; set limits.max_record_bytes to take longer ones"


def cut_at_lines(blocks: Iterator[bytes], line: int, max_record_bytes: int) -> Iterator[Chunk]:
    """Cut a stream of blocks at line ends; a line that is too long comes as its beginning, alone.

    Args:
        blocks: text, cut anywhere.
        line: number of its first line.
        max_record_bytes: longest line.
    """
    tail = _Tail(max_record_bytes)
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

    def __init__(self, max_record_bytes: int) -> None:
        self.num_bytes = 0
        self._max_record_bytes = max_record_bytes
        self._parts: list[bytes] = []

    @property
    def is_overlong(self) -> bool:
        return self.num_bytes > self._max_record_bytes

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
        reason = too_long(self.num_bytes, self._max_record_bytes)
        return Chunk(line, self.take(), problem=reason)
