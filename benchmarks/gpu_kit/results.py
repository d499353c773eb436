"""The results of the GPU kit: each figure a line of JSON, written as it comes, and one Markdown page of all of them.

A part appends to ``results.jsonl`` and may be killed at any time; what it wrote before stays. Standard library only:
the conductor reads results where nothing is installed yet.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recorder:
    """Appends figures of one part to a file."""

    part: str
    file: Path

    def __call__(self, name: str, **figures: Any) -> None:
        """Append one line, in one write."""
        line = json.dumps({"part": self.part, "name": name} | {key: _rounded(figures[key]) for key in figures}) + "\n"
        print(line, end="", flush=True)
        with self.file.open("ab", buffering=0) as out:
            out.write(line.encode())
            os.fsync(out.fileno())


def read_records(file: Path) -> Iterator[Record]:
    """Yield the records of a file; a line that was cut off is left out."""
    if not file.exists():
        return
    for line in file.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


@dataclass(frozen=True, slots=True)
class PartEnd:
    """How a part ended: "done", "killed after 60 s", "exit status 1", "running", "not started"."""

    status: str
    seconds: float


def summary(titles: Mapping[str, str], ends: Mapping[str, PartEnd], records: Sequence[Record], heading: str) -> str:
    """Return the page: one table of the parts, then one of each part's figures.

    Args:
        titles: of the parts, in their order.
        ends: how each part ended, those that were started.
        records: of all parts.
        heading: of the page: the machine and the versions.
    """
    lines = ["# GPU kit", "", heading, "", "| part | what | ended | seconds |", "|---|---|---|---|"]
    for part, title in titles.items():
        end = ends.get(part, PartEnd("not started", 0.0))
        lines.append(f"| {part} | {title} | {end.status} | {end.seconds:.0f} |")
    for part, title in titles.items():
        of_part = [record for record in records if record["part"] == part]
        if of_part:
            lines += ["", f"## {part}: {title}", "", *_table(of_part)]
    return "\n".join([*lines, ""])


def _table(records: Sequence[Record]) -> list[str]:
    columns = list(dict.fromkeys(key for record in records for key in record if key != "part"))
    rows = [[_cell(record.get(column, "")) for column in columns] for record in records]
    return ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "/").replace("\n", " ")[:300]


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


class Deadline:
    """The end of a part's time: a part starts no case after it.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def is_near(self, *, needs_seconds: float = 0.0) -> bool:
        """Return whether less time is left than a case needs."""
        return time.monotonic() + needs_seconds > self._end
