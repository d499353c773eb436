"""A spoilt source through planning, reading, parsing and writing, as the tasks of an ingestion do it, without Ray.

What comes out is held to what every source is promised, whatever its format and layout.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pairwright.config import IngestConfig
from pairwright.data.ingest.shards import IngestShard, write_shards
from pairwright.data.ingest.sources.listing import find_sources
from pairwright.data.ingest.sources.splits import count_lines, number_splits, plan_byte_ranges
from pairwright.data.table.table import Table
from pairwright.errors import SourceError
from pairwright.records import Rejection
from record_rules import Broken, check_row, decoded, has_a_key_twice

MAX_REASON_CHARACTERS = 1000


@dataclass
class Outcome:
    """What became of a source."""

    format: str = ""
    lines: int = 0
    blank: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    refused: list[Rejection] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    @property
    def numbers(self) -> set[int]:
        """Numbers of the lines that gave anything."""
        return {row["line"] for row in self.rows} | {one.line for one in self.refused}


def ingested(path: Path, table: Table, config: IngestConfig, limits: dict[str, int]) -> Outcome:
    """Return what became of a source whose parts were written and read back, held to what every source is promised."""
    outcome = Outcome()
    try:
        parts = list(_written(path, table, config))
    except SourceError as error:  # where it is planned; what fails while it is read is told by the part
        assert_one_reason(path, str(error))
        outcome.errors.append(str(error))
        return outcome
    for part in parts:
        outcome.format = part.format
        outcome.lines += part.lines
        outcome.blank += part.blank
        outcome.rows += without_nothing(table.read_file(part.data).to_pylist()) if part.data else []
        outcome.refused += [one for file in part.quarantined_files for one in table.read_quarantined(file)]
        outcome.reasons.update(part.reasons)
        outcome.errors += [part.error] if part.error else []
        table.delete(part.files)
    assert sum(part.accepted for part in parts) == len(outcome.rows)
    assert sum(part.refused for part in parts) == len(outcome.refused) == sum(outcome.reasons.values())
    for row in outcome.rows:
        assert row["source"] == str(path)
        check_row(row, **limits)
    if not outcome.errors:
        assert len(outcome.numbers) + outcome.blank == outcome.lines
        assert outcome.numbers <= set(range(1, outcome.lines + 1))
    for error in outcome.errors:
        assert_one_reason(path, error)
    return outcome


def without_nothing(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of annotations without the fields of version 2 that say nothing."""
    for row in rows:
        for item in (row, *row["prompt"], *row["completions"]):
            for name in ("extra", "context"):
                if name in item and item[name] is None:
                    del item[name]
    return rows


def assert_one_reason(path: Path, error: str) -> None:
    assert error.startswith(f"{path}: "), error
    assert len(error) <= MAX_REASON_CHARACTERS, error[:3000]
    assert error.isprintable(), f"a reason is one line of text: {error!r}"


def _written(path: Path, table: Table, config: IngestConfig) -> Iterator[IngestShard]:
    source = find_sources([str(path)]).sources[0]
    ranges = plan_byte_ranges(source, config.split_bytes)
    counts = [count_lines(source, *bounds) for bounds in ranges[:-1]]
    for index, unit in enumerate(number_splits(source, ranges, counts)):
        yield from write_shards(index, unit, table, config)


def check_refusal(refused: Rejection, line: bytes, *, is_foreign: bool = False) -> None:
    """Hold a refusal to its promise: where, a reason in one line, and the text that was refused.

    What a foreign record became may break a rule of native ones; the path is then one of that native record.
    """
    assert refused.reason.strip()
    assert len(refused.reason) <= MAX_REASON_CHARACTERS, refused.reason[:2000]
    assert refused.reason.isprintable(), f"a reason is one line of text: {refused.reason!r}"
    assert refused.path.isprintable(), f"a path is one line of text: {refused.path!r}"
    assert refused.record == line.decode(errors="replace")[:10_000]
    assert refused.path.startswith("$"), refused
    if is_foreign:
        return
    try:
        record = decoded(line)
    except Broken:
        return
    assert points_into(record, refused.path) or has_a_key_twice(line), f"{refused} points nowhere in {line[:2000]!r}"


def points_into(record: Any, path: str) -> bool:
    """Return whether all of a path but its last step is there in a record."""
    steps = re.findall(r"""\.([^.\[\]]+)|\[(-?\d+|\.\.\.|".*?")\]""", path)
    for position, (key, index) in enumerate(steps):
        is_last = position == len(steps) - 1
        key = key or index[1:-1] * index.startswith('"')
        if key:
            if not isinstance(record, dict) or (key not in record and not is_last):
                return False
            record = record.get(key)
        elif index == "...":
            return isinstance(record, dict)
        else:
            if not isinstance(record, list) or (not 0 <= int(index) < len(record) and not is_last):
                return False
            record = record[int(index)] if int(index) < len(record) else None
    return True


def texts_in(value: Any) -> Iterator[str]:
    """Yield every string in a decoded record."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            waiting += [*one, *one.values()]
        elif isinstance(one, list):
            waiting += one
