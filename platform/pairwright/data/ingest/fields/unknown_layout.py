"""Stops early at a source that no layout can read, and suggests a table [fields] for it.

A source whose layout is not recognised is read as native; where none of its first records is accepted so, reading on
would only refuse the rest, each with the same reason.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from pairwright.data.ingest.fields.suggested_fields import SuggestedFields, suggest_fields
from pairwright.errors import SourceError
from pairwright.records import UNREADABLE_JSON, Rejection

MAX_TRIED = 1000
"""Records that are tried at least before a source is given up; at most a chunk more."""
_MAX_SAMPLES = 100
_NO_UTF8 = "expected UTF-8"
_MAX_SAMPLE_BYTES = 4 * 1024 * 1024


class UnknownLayout:
    """The records of a source whose layout was not recognised, up to the first that is accepted."""

    def __init__(self, source: str) -> None:
        self.suggestion: SuggestedFields | None = None
        self._source = source
        self._samples: list[dict[str, Any]] = []
        self._sample_bytes = 0
        self._num_tried = 0
        self._is_read = False
        self._first: Rejection | None = None

    def add(self, text: bytes, num_accepted: int, rejections: Sequence[Rejection]) -> None:
        """Add what became of some lines.

        Raises:
            SourceError: if enough were tried, and none was accepted.
        """
        self._is_read = self._is_read or num_accepted > 0
        if self._is_read:
            return
        self._num_tried += len(rejections)
        odd = next((one for one in rejections if one.reason.startswith(_NO_UTF8)), None)
        is_known = self._first is not None and (odd is None or self._first.reason.startswith(_NO_UTF8))
        self._first = self._first if is_known else odd or next(iter(rejections), None)
        for line in text.split(b"\n"):
            if len(self._samples) >= _MAX_SAMPLES or self._sample_bytes + len(line) > _MAX_SAMPLE_BYTES:
                break
            self._sample(line)
        if self._num_tried >= MAX_TRIED:
            self.end()

    def _sample(self, line: bytes) -> None:
        try:
            record = msgspec.json.decode(line)
        except UNREADABLE_JSON:
            return
        if isinstance(record, dict) and record:
            self._samples.append(record)
            self._sample_bytes += len(line)

    def end(self) -> None:
        """Say so where nothing was accepted; a source without any JSON object keeps its refusals, a line each.

        Raises:
            SourceError: if none of the records was accepted.
        """
        if self._is_read or not self._samples:
            return
        self.suggestion = suggest_fields(self._samples, self._num_tried)
        number = "its" if self._num_tried < MAX_TRIED else "its first"
        none = "its one record cannot" if self._num_tried == 1 else f"none of {number} {self._num_tried:,} records can"
        reason = "" if self._first is None else f" (as native: {self._first.reason.partition(';')[0]})"
        if self._first is not None and self._first.reason.startswith(_NO_UTF8):
            reason = f" (line {self._first.line:,}: {self._first.reason})"
        raise SourceError(
            f"{self._source}: {none} be read as a known layout{reason}; name the layout with "
            "--format, or say with [fields] in --config where its parts stand"
        )
