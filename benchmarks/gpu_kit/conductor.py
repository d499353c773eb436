"""Runs the parts of the GPU kit one after the other, each in a process of its own with a time limit of its own.

The page of all figures is written anew after every figure, so it is there whatever is killed: a part that hangs, the
conductor, the machine. Time that a part leaves over goes to those after it. Standard library only.
"""

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from results import PartEnd, read_records, summary

POLL_SECONDS = 0.2
VERSIONS = ("torch", "triton", "transformers", "peft", "numpy", "pyarrow", "deepspeed", "trl")


@dataclass(frozen=True, slots=True)
class Part:
    """A script, and how long it may take."""

    letter: str
    title: str
    script: Path
    seconds: float


class Conductor:
    """Runs parts and keeps the page up to date.

    Args:
        parts: in order of worth.
        folder: of ``results.jsonl``, ``summary.md`` and ``log.txt``; made if it does not exist.
        arguments: passed to every part, behind ``--results FILE --seconds LIMIT``.
        environment: of the parts.
        slowness: how many times their time the parts get, as on a slow machine.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        folder: Path,
        *,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        slowness: float = 1.0,
    ) -> None:
        self._parts, self._folder = parts, folder
        self._arguments, self._environment = arguments, environment
        self._slowness = slowness
        self._ends: dict[str, PartEnd] = {}
        self._running: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._results = folder / "results.jsonl"
        self._results.unlink(missing_ok=True)

    def run(self) -> bool:
        """Run all parts; return whether each ran to its end."""
        signal.signal(signal.SIGTERM, self._stop)
        begin, allowed = time.monotonic(), 0.0
        with (self._folder / "log.txt").open("wb") as log:
            for part in self._parts:
                allowed += part.seconds * self._slowness
                log.write(f"\n=== {part.letter}: {part.title}\n".encode())
                log.flush()
                self._run(part, allowed - (time.monotonic() - begin), log.fileno())
        return all(end.status == "done" for end in self._ends.values())

    def _run(self, part: Part, limit: float, log: int) -> None:
        start = time.monotonic()
        command = [sys.executable, str(part.script), "--results", str(self._results), "--seconds", f"{limit:.0f}"]
        # A process group of its own, so that what a part starts ends with it; no session, which would outlive a kill.
        self._running = subprocess.Popen(
            [*command, *self._arguments], stdout=log, stderr=log, env=dict(self._environment), process_group=0
        )
        seen = -1
        while (status := self._running.poll()) is None and time.monotonic() - start < limit:
            self._ends[part.letter] = PartEnd("running", time.monotonic() - start)
            size = self._results.stat().st_size if self._results.exists() else 0
            if size != seen:
                seen = size
                self._write()
            time.sleep(POLL_SECONDS)
        self._kill()
        seconds = time.monotonic() - start
        words = f"killed after {limit:.0f} s" if status is None else "done" if status == 0 else f"exit status {status}"
        self._ends[part.letter] = PartEnd(words, seconds)
        print(f"{part.letter}: {part.title}: {words}, {seconds:.0f} s", flush=True)
        self._write()

    def _kill(self) -> None:
        if self._running is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._running.pid, signal.SIGKILL)
        self._running.wait()

    def _stop(self, number: int, frame: object) -> None:
        self._kill()
        self._ends = {
            letter: PartEnd(f"stopped by signal {number}", end.seconds) if end.status == "running" else end
            for letter, end in self._ends.items()
        }
        self._write()
        sys.exit(128 + number)

    def _write(self) -> None:
        titles = {part.letter: part.title for part in self._parts}
        page = summary(titles, self._ends, list(read_records(self._results)), self._heading())
        partial = self._folder / "summary.md.part"
        partial.write_text(page)
        partial.replace(self._folder / "summary.md")

    def _heading(self) -> str:
        versions = []
        # The parts' own path: what is installed for them is not on the conductor's.
        paths = [*self._environment.get("PYTHONPATH", "").split(os.pathsep), *sys.path]
        for name in VERSIONS:
            found = next(iter(metadata.distributions(name=name, path=paths)), None)
            versions.append(f"{name} {found.version if found else 'missing'}")
        return f"Python {platform.python_version()}, {', '.join(versions)}; {os.cpu_count()} CPUs."
