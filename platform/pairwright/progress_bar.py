"""Progress display: a bar on a terminal, a log line every ten seconds elsewhere.

On standard error, so that what a verb returns can be piped. Imports no torch, since every verb comes through here. What
works on one large thing reports records and bytes as it goes (``note_progress``), so that a bar moves within it.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pairwright.terminal import counted, escaped, say

LINE_SECONDS = 10.0
SILENCE_SECONDS = 60.0

_listeners: list[Callable[[int, int], None]] = []


def note_progress(num_records: int, num_bytes: int) -> None:
    """Report records and bytes that were worked on, to whatever shows progress in this process."""
    for listen in _listeners:
        listen(num_records, num_bytes)


@contextmanager
def listening(listen: Callable[[int, int], None]) -> Iterator[None]:
    """Call ``listen`` with what ``note_progress`` is given while the block runs."""
    _listeners.append(listen)
    try:
        yield
    finally:
        _listeners.remove(listen)


class Throughput:
    """Records and bytes since the beginning of a piece of work."""

    def __init__(self) -> None:
        self.num_records = 0
        self.num_bytes = 0
        self._start = time.monotonic()

    def add(self, num_records: int, num_bytes: int) -> None:
        """Count more."""
        self.num_records += num_records
        self.num_bytes += num_bytes

    def text(self) -> str:
        """Return both with their rates; empty where nothing was reported."""
        seconds = max(time.monotonic() - self._start, 0.001)
        parts, rates = [], []
        if self.num_records:
            parts.append(counted(self.num_records, "record"))
            rates.append(f"{self.num_records / seconds:,.0f} records/s")
        if self.num_bytes:
            parts.append(f"{self.num_bytes / 1e6:,.1f} MB")
            rates.append(f"{self.num_bytes / 1e6 / seconds:,.1f} MB/s")
        return f"{', '.join(parts)} ({', '.join(rates)})" if parts else ""


@contextmanager
def progress_bar(
    what: str,
    *,
    total: int | None,
    resources: Callable[[], str] = lambda: "1 process",
    line_seconds: float = LINE_SECONDS,
) -> Iterator[Callable[[int], None]]:
    """Show how much is done while the block runs; it calls what it gets with how much more is.

    Work that takes no longer than ten seconds leaves no line in a log, and a bar goes when it is done. Where nothing
    moves for a minute, a line says what there is to work with.

    Args:
        what: things and what becomes of them, such as ``sources hashed``.
        total: how many there are; None where nobody knows yet.
        resources: returns what there is to work with, for the line that is written where nothing moves.
        line_seconds: time between two lines of a log.
    """
    console = Console(stderr=True)
    throughput = Throughput()
    with listening(throughput.add):
        if not console.is_terminal:
            with _lines(what, total, resources, line_seconds, throughput) as advance:
                yield advance
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[throughput]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(escaped(what), total=total, throughput="")
            with listening(lambda *_: progress.update(task, throughput=throughput.text())):
                yield lambda number: progress.advance(task, number)


@contextmanager
def _lines(
    what: str, total: int | None, resources: Callable[[], str], line_seconds: float, throughput: Throughput
) -> Iterator[Callable[[int], None]]:
    done = 0
    stop = threading.Event()

    def advance(number: int) -> None:
        nonlocal done
        done += number

    def watch() -> None:
        shown, spoke = (0, 0, 0), time.monotonic()
        while not stop.wait(line_seconds):
            now = (done, throughput.num_records, throughput.num_bytes)
            if now == shown and time.monotonic() - spoke < SILENCE_SECONDS:
                continue
            note = "" if now != shown else f"; nothing new for {SILENCE_SECONDS:.0f} s, working with {resources()}"
            shown, spoke = now, time.monotonic()
            of_total = "" if total is None else f" of {total:,}"
            passed = f": {text}" if (text := throughput.text()) else ""
            say(escaped(f"{datetime.now(UTC):%H:%M:%S} {now[0]:,}{of_total} {what}{passed}{note}"), to=sys.stderr)

    thread = threading.Thread(target=watch, name="pairwright-progress", daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        stop.set()
        thread.join()
