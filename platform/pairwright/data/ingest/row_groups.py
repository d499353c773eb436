"""Groups successive records of one completion each into one record, by equal values at some paths.

A group is one line, a JSON array of its records, with the number of the first; the lines of the others are blank.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from pairwright.data.ingest.adapters import compile_path
from pairwright.data.ingest.decoders.chunks import Chunk, too_long
from pairwright.data.ingest.fields.adapter import RecordError
from pairwright.data.ingest.fields.paths import JsonPath, find_optional
from pairwright.data.ingest.sources.splits import InputSplit
from pairwright.errors import SourceError
from pairwright.records import UNREADABLE_JSON

_CHUNK_BYTES = 2 * 1024 * 1024


def check_whole(split: InputSplit) -> None:
    """Refuse to group the records of a source that has several splits: a group may span two of them.

    Raises:
        SourceError: if it is.
    """
    source = split.source
    if source.staged_files is not None and len(source.staged_files) > 1:
        raise SourceError(f"{source.uri}: has one completion a row and is read in pieces; save it as one file")
    if split.start > 0 or split.lines_before > 0 or (source.staged_files is None and split.end < source.size):
        raise SourceError(
            f"{source.uri}: has one completion a record and is read in pieces, which may divide its groups; set "
            f"split_bytes={source.size} to read it as a whole"
        )


def grouped(chunks: Iterator[Chunk], keys: Sequence[str], max_record_bytes: int) -> Iterator[Chunk]:
    """Yield the chunks with successive records of equal keys as one.

    Args:
        chunks: of one source, in order.
        keys: paths of the values that records of a group share.
        max_record_bytes: longest group.
    """
    paths = [compile_path("group_by", key) for key in keys]
    waiting = _Waiting(max_record_bytes)
    for chunk in chunks:
        if chunk.problem:
            yield from waiting.take()
            yield chunk
            continue
        for number, line in enumerate(chunk.text.removesuffix(b"\n").split(b"\n"), start=chunk.first_line):
            waiting.add(number, line, _key(line, paths))
            if waiting.num_bytes > _CHUNK_BYTES:
                yield from waiting.take_finished()
    yield from waiting.take()


def _key(line: bytes, paths: Sequence[JsonPath]) -> Any:
    """Return what a record shares with its group; None where it can share nothing."""
    try:
        record = msgspec.json.decode(line)
        if not isinstance(record, dict):
            return None
        found = [find_optional(record, path)[0] for path in paths]
    except (*UNREADABLE_JSON, RecordError):
        return None
    return None if any(value is None for value in found) else found


class _Waiting:
    """Groups that have not been yielded yet; the last one may grow."""

    def __init__(self, max_record_bytes: int) -> None:
        self.num_bytes = 0
        self._most = max_record_bytes
        self._first = 1
        self._groups: list[list[bytes]] = []
        self._key: Any = None

    def add(self, number: int, line: bytes, key: Any) -> None:
        """Add a record to the last group, or begin one."""
        if not self._groups:
            self._first = number
        if key is not None and key == self._key and self._groups:
            self._groups[-1].append(line)
        else:
            self._groups.append([line])
        self._key = key
        self.num_bytes += len(line) + 1

    def take(self) -> Iterator[Chunk]:
        """Yield all groups."""
        yield from self._chunks(self._groups)
        self._groups, self._key, self.num_bytes = [], None, 0

    def take_finished(self) -> Iterator[Chunk]:
        """Yield all groups but the last, unless that is too long already."""
        last = self._groups[-1]
        size = sum(map(len, last))
        if size > self._most:
            yield from self.take()
            return
        finished = self._groups[:-1]
        yield from self._chunks(finished)
        self._first += sum(map(len, finished))
        self._groups, self.num_bytes = [last], size

    def _chunks(self, groups: list[list[bytes]]) -> Iterator[Chunk]:
        number, start, lines = self._first, self._first, []
        for group in groups:
            size = sum(map(len, group))
            if size > self._most:
                if lines:
                    yield Chunk(start, b"\n".join(lines) + b"\n")
                for offset, line in enumerate(group):
                    yield Chunk(number + offset, line, problem=too_long(size, self._most))
                start, lines = number + len(group), []
            elif len(group) == 1 and not _is_record(group[0]):
                lines.append(group[0])
            else:
                lines += [b"[" + b",".join(group) + b"]", *[b""] * (len(group) - 1)]
            number += len(group)
        if lines:
            yield Chunk(start, b"\n".join(lines) + b"\n")


def _is_record(line: bytes) -> bool:
    return line.lstrip()[:1] == b"{"
