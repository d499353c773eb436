"""Commands that get killed with everything that they started, what a table holds, and a reader that never looks away.

A command runs in a session of its own, which is how all of its processes are known afterwards, Ray's among them, and
which are left; nothing else is ever killed.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import obstore
import psutil
import pyarrow as pa

from pairwright.data.table.table import Manifest, Table, open_store
from pairwright.errors import PairwrightError

POLL_SECONDS = 0.3
FIRST_FILE_POLL_SECONDS = 0.05
COMMAND_TIMEOUT_SECONDS = 240.0
KEYS = {"annotations": "id", "pairs": "group_id"}


class Command:
    """A running `pairwright` command, in a session of its own."""

    def __init__(self, arguments: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self.arguments = list(arguments)
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pairwright", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,
            )

    def wait(self, timeout: float = COMMAND_TIMEOUT_SECONDS) -> float:
        """Wait for the end, which must be a good one, and return how many seconds that took."""
        began = time.monotonic()
        try:
            status = self.process.wait(timeout)
        finally:
            self.end()
        assert status == 0, f"{self.arguments} ended with {status}:\n{self.log.read_text()[-5000:]}"
        return time.monotonic() - began

    def has_ended(self, seconds: float) -> bool:
        """Return whether the command has ended by itself within so many seconds."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill_driver(self) -> None:
        """Kill -9 the command's own process; Ray's find out for themselves."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """Kill -9 whatever is left of the session, until nothing is."""
        while members := session_members(self.process.pid):
            for member in members:
                try:
                    member.kill()
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(members, timeout=5)
        self.process.wait()


def session_members(session: int) -> list[psutil.Process]:
    """Return the living processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


@dataclass(frozen=True)
class Content:
    """What a version holds, however it is cut into files: equal contents are equal tables."""

    rows: int
    digest: str
    refused: tuple[tuple[str, int, str, str], ...]
    sources: tuple[tuple[Any, ...], ...]
    totals: tuple[tuple[str, float], ...]


def content_of(table: Table, manifest: Manifest) -> Content:
    """Return what a version holds, reading every file that it names."""
    rows = pa.concat_tables(list(table.read(manifest)) or [pa.table({KEYS[table.kind]: pa.array([], pa.string())})])
    rows = rows.sort_by(KEYS[table.kind]).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=1024)
    refused = [one for file in manifest.quarantined_files for one in table.read_quarantined(file)]
    return Content(
        rows=rows.num_rows,
        digest=hashlib.sha256(sink.getvalue()).hexdigest(),
        refused=tuple(sorted((one.source, one.line, one.path, one.reason) for one in refused)),
        sources=tuple(sorted(tuple(msgspec.to_builtins(source).values()) for source in manifest.sources)),
        totals=tuple(sorted(manifest.totals.items())),
    )


def newest_content(url: str) -> Content:
    """Return what the newest version of a table holds."""
    table = Table.open(url)
    return content_of(table, table.manifest())


def wait_for_first_file(url: str, command: Command) -> None:
    """Wait until a table has its first data file, or the command has ended."""
    while not command.has_ended(FIRST_FILE_POLL_SECONDS) and not stored_files(url):
        pass


def stored_files(url: str) -> set[str]:
    """Return the data and refused files that lie in a table's folder."""
    return _below(url, "data/", "quarantine/")


def scratch_files(url: str) -> set[str]:
    """Return the files of a table's folder that are there only while a command works on it."""
    return _below(url, "staging/")


def _below(url: str, *folders: str) -> set[str]:
    if "://" not in url and not Path(url).is_dir():
        return set()
    stored = {item["path"] for chunk in obstore.list(open_store(url)) for item in chunk}
    return {path for path in stored if path.startswith(folders)}


def unnamed_files(url: str) -> int:
    """Return how many data and refused files no version of a table names: what dead writers left."""
    table = Table(url, "annotations")
    named = {file.path for version in table.versions() for file in _files_of(table.manifest(version))}
    return len(stored_files(url) - named)


def _files_of(manifest: Manifest) -> list[Any]:
    return [*manifest.files, *manifest.quarantined_files]


# ---------------------------------------------------------------------------------------------- a reader


class Reader:
    """A process that reads the newest version of a table over and over, as a user would, and says what it saw."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def look_at(self, url: str) -> None:
        """Read this table from now on."""
        self._connection.send(url)

    def seen(self) -> tuple[int, set[Content]]:
        """Stop looking; return how often the table was looked at, and what it held each time that it was there.

        Raises:
            AssertionError: if a version could not be read whole; says why.
        """
        self._connection.send(None)
        looks, contents, problems = self._connection.recv()
        assert not problems, problems
        return looks, contents


@contextmanager
def reading() -> Iterator[Reader]:
    """Run a reader in a process of its own."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_read_on, args=(theirs,), daemon=True)
    process.start()
    try:
        yield Reader(ours)
    finally:
        process.kill()
        process.join()


def _read_on(connection: Connection) -> None:
    url: str = connection.recv()
    while url:
        looks, contents, problems = 0, set(), []
        while not connection.poll(POLL_SECONDS):
            looks += 1
            try:
                newest = Table(url, "annotations").latest()
                if newest is not None:
                    contents.add(content_of(Table(url, newest.kind), newest))
            except (PairwrightError, OSError, pa.ArrowException) as error:
                problems.append(f"{type(error).__name__}: {error}")
        assert connection.recv() is None, "stop looking at one table before the next"
        connection.send((looks, contents, problems))
        url = connection.recv()
