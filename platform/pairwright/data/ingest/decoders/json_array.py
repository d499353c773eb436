"""Decoder for a JSON array: rewrites it block by block as JSON Lines, without parsing or holding an item as a whole.

Brackets and commas are found with numpy (quotes and backslashes first, so that those within strings do not count), at
several hundred MB/s a core whatever the records look like. Line ends between tokens become tabs, which are white space
to JSON as well; within a string both are equally invalid, so a broken item stays broken and is refused alone.
"""

from collections.abc import Iterator

import numpy as np

from pairwright.errors import SourceError

_QUOTE, _BACKSLASH, _COMMA, _NEWLINE = ord('"'), ord("\\"), ord(","), ord("\n")
_STEP = np.zeros(256, dtype=np.int8)
_STEP[[ord("["), ord("{")]] = 1
_STEP[[ord("]"), ord("}")]] = -1
_IS_STRUCTURE = _STEP != 0
_IS_STRUCTURE[_COMMA] = True
_ONE_LINE = bytes.maketrans(b"\n", b"\t")


def lines_of_array(uri: str, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the items of a top-level array as lines, in blocks cut anywhere.

    Args:
        uri: name of the source, for messages.
        blocks: its text, whose first byte but for white space is ``[``.

    Raises:
        SourceError: if the array does not end, or something follows its end.
    """
    scan = _Scan()
    num_bytes, num_items = 0, 0
    for block in blocks:
        if scan.is_finished:
            _expect_nothing(uri, block, num_bytes)
        else:
            commas, end = scan.advance(np.frombuffer(block, np.uint8))
            num_items += len(commas)
            yield _as_lines(block, scan.start, commas, end)
            if end is not None:
                _expect_nothing(uri, block[end + 1 :], num_bytes + end + 1)
        num_bytes += len(block)
    if not scan.is_finished:
        raise SourceError(
            f"{uri}: the JSON array does not end: item {num_items + 1:,} is not closed (a bracket or a quote is "
            "missing in it), or the file is cut off"
        )


def _as_lines(block: bytes, start: int, commas: np.ndarray, end: int | None) -> bytes:
    """Return the part of a block within the array, its items ended by newlines in place of commas."""
    text = bytearray(block.translate(_ONE_LINE))
    np.frombuffer(text, np.uint8)[commas] = _NEWLINE
    if end is None:
        return bytes(text[start:])
    last = int(commas[-1]) + 1 if len(commas) else start
    # Nothing between the last comma and the bracket: an empty array, or a comma too many, and no item.
    return bytes(text[start:end] if text[last:end].strip() else text[start:last])


def _expect_nothing(uri: str, rest: bytes, position: int) -> None:
    if stripped := rest.lstrip():
        where = position + len(rest) - len(stripped)
        raise SourceError(
            f"{uri}: the JSON array ends at byte {where:,}, but more follows; expected one array, or one record a line "
            "in a source named .jsonl"
        )


class _Scan:
    """How deep in brackets, and whether within a string, the text is that was read so far."""

    def __init__(self) -> None:
        self.is_finished = False
        self.start = 0
        """Where the array's content begins in the block that was read last."""
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False

    def advance(self, block: np.ndarray) -> tuple[np.ndarray, int | None]:
        """Return where the commas between items are in the next block, and the bracket that ends the array, if any."""
        quotes = self._unescaped_quotes(block)
        positions = np.flatnonzero(_IS_STRUCTURE[block])
        within = (np.searchsorted(quotes, positions) + self._is_in_string) % 2 == 1
        positions = positions[~within]
        self._is_in_string = bool((len(quotes) + self._is_in_string) % 2)
        steps = _STEP[block[positions]]
        depths = self._depth + np.cumsum(steps, dtype=np.int64)
        self.start = 0
        if self._depth == 0:
            self.start = int(positions[0]) + 1 if len(positions) else len(block)
        ends = np.flatnonzero((depths <= 0) & (steps < 0))
        if len(ends):
            self.is_finished = True
            positions, steps, depths = positions[: ends[0] + 1], steps[: ends[0] + 1], depths[: ends[0] + 1]
        self._depth = int(depths[-1]) if len(depths) else self._depth
        return positions[(steps == 0) & (depths == 1)], int(positions[-1]) if self.is_finished else None

    def _unescaped_quotes(self, block: np.ndarray) -> np.ndarray:
        quotes = np.flatnonzero(block == _QUOTE)
        slashes = np.flatnonzero(block == _BACKSLASH)
        was_escaped, self._is_escaped = self._is_escaped, False
        if not len(slashes) and not was_escaped:
            return quotes
        escaped = np.zeros(len(block) + 1, dtype=bool)
        if len(slashes):
            # In a run of backslashes every other one escapes what follows it.
            is_first = np.concatenate([[True], np.diff(slashes) > 1])
            run_starts = slashes[is_first][np.cumsum(is_first) - 1]
            offsets = slashes - run_starts
            if was_escaped:
                offsets = offsets + (run_starts == 0)
            escaped[slashes[offsets % 2 == 0] + 1] = True
        escaped[0] |= was_escaped
        self._is_escaped = bool(escaped[len(block)])
        return quotes[~escaped[quotes]]
