"""Progress display: a bar on a terminal, a log line every ten seconds elsewhere.

On standard error, so that what a verb returns can be piped. Imports no torch, since every verb comes through here.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pairwright.terminal import escaped, say

LINE_SECONDS = 10.0
SILENCE_SECONDS = 60.0


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
    if not console.is_terminal:
        with _lines(what, total, resources, line_seconds) as advance:
            yield advance
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(escaped(what), total=total)
        yield lambda number: progress.advance(task, number)


@contextmanager
def _lines(
    what: str, total: int | None, resources: Callable[[], str], line_seconds: float
) -> Iterator[Callable[[int], None]]:
    done = 0
    stop = threading.Event()

    def advance(number: int) -> None:
        nonlocal done
        done += number

    def watch() -> None:
        shown, spoke = 0, time.monotonic()
        while not stop.wait(line_seconds):
            if done == shown and time.monotonic() - spoke < SILENCE_SECONDS:
                continue
            note = "" if done != shown else f"; nothing new for {SILENCE_SECONDS:.0f} s, working with {resources()}"
            shown, spoke = done, time.monotonic()
            of_total = "" if total is None else f" of {total:,}"
            line = f"{datetime.now(UTC):%H:%M:%S} {shown:,}{of_total} {what}{note}"
            say(escaped(line), to=sys.stderr)

    thread = threading.Thread(target=watch, name="pairwright-progress", daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        stop.set()
        thread.join()
