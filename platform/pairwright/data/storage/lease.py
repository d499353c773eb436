"""A lease on a folder or URL: one command at a time works there, and the lease of a dead command expires.

A lease is a numbered object, put-if-absent, so that one of several wins on every backend; the highest number holds. Its
holder writes a new count into it every few seconds. On the same machine the process table says at once whether the
holder lives; elsewhere its count is watched for as long as a lease lasts. No clock is compared with another.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import msgspec
import obstore
from obstore.exceptions import AlreadyExistsError

from pairwright.data.storage.object_store import local_root, open_store, store_errors
from pairwright.data.storage.ownership import Kind, delete_files
from pairwright.errors import LeaseError, StoreError
from pairwright.records import UNREADABLE_JSON

RENEW_SECONDS = 5.0
LEASE_SECONDS = 30.0
_FOLDER = "lease"


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a lease; ``lease/<number, 8 digits>.json``."""

    process: int
    host: str
    process_key: str
    """Tells this process from every other on its machine, and its machine from others; empty where nothing does."""
    started_at: str
    """On the holder's clock, UTC; for people."""
    count: int = 0
    released: bool = False


class Lease:
    """The right to work in a directory, as long as the block lasts; a context manager.

    Args:
        url: of the directory, which is ours.
        kind: of the directory; its ``deletable`` covers leases.
        what: what only one command may do, for messages, such as ``train``.
        lost: called once, from another thread, where another command has taken the lease over.
        renew_seconds: time between two counts of the holder.
        lease_seconds: after so long without a new count the holder counts as dead.

    Raises:
        LeaseError: on entry, if another command holds it and lives.
        StoreError: if the directory cannot be read or written.
    """

    def __init__(
        self,
        url: str,
        kind: Kind,
        *,
        what: str,
        lost: Callable[[], None],
        renew_seconds: float = RENEW_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._url, self._kind, self._what, self._lost = url, kind, what, lost
        self._renew_seconds, self._lease_seconds = renew_seconds, lease_seconds
        self._holder = Holder(
            process=os.getpid(),
            host=socket.gethostname(),
            process_key=_process_key(os.getpid()),
            started_at=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        )
        self._number = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="pairwright-lease", daemon=True)
        self.is_lost = False

    def __enter__(self) -> Self:
        newest = self._newest()
        while True:
            if newest is not None:
                self._wait_for_end(*newest)
            number = 1 if newest is None else newest[0] + 1
            if self._put(number, self._holder, mode="create"):
                break
            newest = self._newest()
        self._number = number
        delete_files(self._url, [_path(old) for old in self._numbers() if old < number], self._kind)
        self._thread.start()
        return self

    def check_free(self) -> None:
        """Refuse a directory where another command holds the lease and lives, without taking it.

        Raises:
            LeaseError: if so.
            StoreError: if the directory cannot be read.
        """
        newest = self._newest()
        if newest is not None:
            self._wait_for_end(*newest)

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()
        if not self.is_lost:
            # Where it cannot be said, the next command on this machine sees that this one is gone; elsewhere it waits.
            with suppress(StoreError):
                self._put(self._number, msgspec.structs.replace(self._holder, released=True), mode="overwrite")

    def check(self) -> None:
        """Refuse to go on where the lease is lost; to be asked before anything is deleted.

        Raises:
            LeaseError: if another command has taken it over.
        """
        if self.is_lost or self._is_taken_over():
            self.is_lost = True
            raise LeaseError(
                f"{self._url}: another command has taken over here, since this one did not move for a while"
            )

    def _renew(self) -> None:
        while not self._ended.wait(self._renew_seconds):
            try:
                if self._is_taken_over():
                    self.is_lost = True
                    self._lost()
                    return
                self._holder = msgspec.structs.replace(self._holder, count=self._holder.count + 1)
                self._put(self._number, self._holder, mode="overwrite")
            except StoreError:
                continue  # nobody else can write there either, or will be seen to have

    def _is_taken_over(self) -> bool:
        return any(number > self._number for number in self._numbers())

    def _wait_for_end(self, number: int, holder: Holder | None) -> None:
        """Return once a holder is known to be gone.

        Raises:
            LeaseError: if it lives.
        """
        if holder is not None and holder.released:
            return
        if holder is not None and (lives := _lives(holder)) is not None:
            if lives:
                raise LeaseError(self._refusal(holder))
            return
        until = time.monotonic() + self._lease_seconds
        while time.monotonic() < until:
            time.sleep(self._renew_seconds / 2)
            now = self._read(number)
            if now is None or now.released:
                return
            if holder is not None and now.count != holder.count:
                raise LeaseError(self._refusal(now))

    def _refusal(self, holder: Holder) -> str:
        return (
            f"{self._url}: another command does {self._what} here, since {holder.started_at} UTC (process "
            f"{holder.process} on {holder.host}); wait for it or stop it, or choose another output"
        )

    def _newest(self) -> tuple[int, Holder | None] | None:
        numbers = self._numbers()
        return (max(numbers), self._read(max(numbers))) if numbers else None

    def _numbers(self) -> list[int]:
        root = local_root(self._url)
        if root is not None and not (root / _FOLDER).is_dir():
            return []
        with store_errors(self._url):
            found = [entry["path"] for chunk in obstore.list(open_store(self._url), prefix=_FOLDER) for entry in chunk]
        names = [Path(path).stem for path in found if path.endswith(".json")]
        return [int(name) for name in names if name.isdecimal()]

    def _read(self, number: int) -> Holder | None:
        """Return what a lease says; None where it is gone, or cannot be read."""
        try:
            with store_errors(self._url):
                content = bytes(obstore.get(open_store(self._url), _path(number)).bytes())
            return msgspec.json.decode(content, type=Holder)
        except (FileNotFoundError, *UNREADABLE_JSON):
            return None

    def _put(self, number: int, holder: Holder, *, mode: str) -> bool:
        content = msgspec.json.encode(holder)
        try:
            with store_errors(self._url):
                obstore.put(
                    open_store(self._url), _path(number), content, mode="create" if mode == "create" else "overwrite"
                )
        except AlreadyExistsError:
            return False
        return True


def _path(number: int) -> str:
    return f"{_FOLDER}/{number:08d}.json"


def _lives(holder: Holder) -> bool | None:
    """Return whether a holder on this machine lives; None where this machine cannot tell."""
    own = _process_key(os.getpid())
    if not holder.process_key or holder.process_key.rpartition("-")[0] != own.rpartition("-")[0]:
        return None
    return _process_key(holder.process) == holder.process_key


def _process_key(process: int) -> str:
    """Return this machine's boot and process namespace, and when a process began; empty where that is not to be known.

    Two containers on one machine have different namespaces, so neither takes the other's process for one of its own.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = Path("/proc/self/ns/pid").stat().st_ino
        state, *rest = (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        began = rest[18]
    except (OSError, ValueError, IndexError):
        return ""
    return "" if state in "ZX" else f"{boot}-{namespace}-{began}"  # one that ended, and nobody has asked how
