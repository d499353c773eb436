"""A checkpoint's folder on this rank's disk -> the run's storage, in Ray's upload thread; or the reason why not.

Left to itself Ray takes an upload that fails for a lost worker: it replaces the whole group, which redoes the steps
since the last checkpoint only to meet the same storage, and gives up after ``max_failures`` of these (as Ray 2.60's
source has it). Here the upload is tried again while training goes on; the loop waits for it before the next checkpoint.
"""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import ray.train
from pyarrow.fs import FileSystem, FileType
from ray.train.v2._internal.execution.storage import StorageContext

from pairwright.addresses import without_credentials
from pairwright.data.storage.backoff import backoff_delays


class GivenUp(BaseException):
    """Ends the upload without a report. No Exception: Ray would take that for a lost worker."""


class Uploads:
    """Stores one checkpoint after another.

    Args:
        storage: where the run's checkpoints go.
        patience_seconds: how long a storage that refuses is asked again.
        refused: told, in the upload thread, why a try failed and how many seconds later the next one follows.
    """

    def __init__(
        self, storage: StorageContext, *, patience_seconds: float, refused: Callable[[str, float], None]
    ) -> None:
        self._storage = storage
        self._patience_seconds = patience_seconds
        self._refused = refused
        self._idle = threading.Event()
        self._idle.set()
        self._abandoned = threading.Event()
        self.failure: str | None = None
        """Why a checkpoint could not be stored, once the patience is over."""

    def expect(self) -> None:
        """Note that a checkpoint is about to be handed over."""
        self._idle.clear()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until no checkpoint is on its way, stored or given up; returns whether that is so."""
        return self._idle.wait(timeout_seconds)

    def abandon(self) -> None:
        """Try no more."""
        self._abandoned.set()

    def store(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """Move a checkpoint's folder to the storage, trying until all of it is there; for Ray's upload thread."""
        try:
            waits = backoff_delays(self._patience_seconds)
            while True:
                try:
                    stored = self._stored(checkpoint, name)
                    shutil.rmtree(checkpoint.path, ignore_errors=True)
                    return stored
                except OSError as error:
                    if not Path(checkpoint.path).is_dir():
                        raise
                    reason = f"{name} cannot be stored: {_first_line(error)}"
                    pause = next(waits, None)
                    if pause is None or self._abandoned.is_set():
                        self.failure = reason
                        raise GivenUp from None
                    self._refused(reason, pause)
                    self._abandoned.wait(pause)
        finally:
            self._idle.set()

    def _stored(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        stored = self._storage.persist_current_checkpoint(checkpoint, name)
        assert stored.filesystem is not None
        check_sizes(Path(checkpoint.path), stored.filesystem, stored.path)
        return stored


def check_sizes(source: Path, filesystem: FileSystem, target: str) -> None:
    """Compare what arrived with what was sent: a full or remote disk may tell of a failed write only later, or never.

    Raises:
        OSError: naming the first file that is not there, or of another size.
    """
    files = sorted(path for path in source.rglob("*") if path.is_file())
    for file in files:
        info = filesystem.get_file_info(f"{target}/{file.relative_to(source).as_posix()}")
        if info.type != FileType.File or info.size != file.stat().st_size:
            raise OSError(f"{info.path}: {info.size or 0:,} bytes arrived of {file.stat().st_size:,}")


def _first_line(error: OSError) -> str:
    return without_credentials(str(error).partition("\n")[0])
