"""Uploads a rank's part of a checkpoint from a local directory to the run's storage, in Ray's upload thread.

Ray treats a failed upload as a lost worker: it replaces the whole group, which recomputes the steps since the last
checkpoint only to meet the same storage, and gives up after ``max_failures`` of these. Here the upload is retried while
training continues; the loop waits for it before the next checkpoint.
"""

import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import ray.train
from pyarrow.fs import FileSystem, FileType

from pairwright.addresses import without_credentials
from pairwright.cluster.train.ray_workarounds import StorageContext, UploadAborted
from pairwright.data.storage.backoff import backoff_delays
from pairwright.data.storage.object_store import own_folder


class LocalCheckpointDir:
    """This process's directory on its node's disk, for checkpoints until they are stored.

    A killed worker cannot remove what it wrote, its share of the optimizer's state. So each process holds a lock on its
    directory, which the kernel releases however the process ends, and the next one to start on the node removes every
    directory that nobody holds.

    Raises:
        StoreError: if the parent directory belongs to another user, or others may write to it.
    """

    def __init__(self) -> None:
        parent = own_folder(Path(tempfile.gettempdir()) / f"pairwright-staging-{os.getuid()}")
        # Locked while directories come and go: a new one would look abandoned before its own lock is taken.
        parent_lock = os.open(parent, os.O_RDONLY)
        try:
            fcntl.flock(parent_lock, fcntl.LOCK_EX)
            for directory in parent.iterdir():
                _remove_if_abandoned(directory)
            self._root = Path(tempfile.mkdtemp(dir=parent))
            self._lock = os.open(self._root, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        finally:
            os.close(parent_lock)

    def remove(self) -> None:
        """Remove the directory and all in it."""
        shutil.rmtree(self._root, ignore_errors=True)
        os.close(self._lock)

    def new_folder(self, name: str) -> Path:
        """Return a new empty folder.

        Raises:
            OSError: if the disk has no room even for that.
        """
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._root))


def _remove_if_abandoned(directory: Path) -> None:
    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)


class CheckpointUploader:
    """Uploads one checkpoint after another.

    Args:
        storage: where the run's checkpoints go.
        retry_seconds: for how long an upload that fails is retried.
        on_retry: called in the upload thread with the reason of a failed try and the seconds until the next one.
    """

    def __init__(
        self, storage: StorageContext, *, retry_seconds: float, on_retry: Callable[[str, float], None]
    ) -> None:
        self._storage = storage
        self._retry_seconds = retry_seconds
        self._on_retry = on_retry
        self._idle = threading.Event()
        self._idle.set()
        self._cancelled = threading.Event()
        self.failure: str | None = None
        """Why a checkpoint could not be stored, once all retries have failed."""

    def begin(self) -> None:
        """Mark an upload as running, before the checkpoint is handed to Ray."""
        self._idle.clear()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until no upload is running; return whether that is so."""
        return self._idle.wait(timeout_seconds)

    def cancel(self) -> None:
        """Retry no more."""
        self._cancelled.set()

    def upload(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """Move a checkpoint's folder to the storage, retrying until all of it is there; Ray's upload thread calls it.

        Raises:
            UploadAborted: if all retries failed, or were cancelled.
        """
        try:
            delays = backoff_delays(self._retry_seconds)
            while True:
                try:
                    stored = self._persist(checkpoint, name)
                    shutil.rmtree(checkpoint.path, ignore_errors=True)
                    return stored
                except OSError as error:
                    if not Path(checkpoint.path).is_dir():
                        raise
                    reason = f"{name} cannot be stored: {_first_line(error)}"
                    delay = next(delays, None)
                    if delay is None or self._cancelled.is_set():
                        self.failure = reason
                        raise UploadAborted from None
                    self._on_retry(reason, delay)
                    self._cancelled.wait(delay)
        finally:
            self._idle.set()

    def _persist(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        stored = self._storage.persist_current_checkpoint(checkpoint, name)
        assert stored.filesystem is not None
        check_sizes(Path(checkpoint.path), stored.filesystem, stored.path)
        return stored


def check_sizes(source: Path, filesystem: FileSystem, target: str) -> None:
    """Compare the sizes of stored files with their sources: a disk may report a failed write late, or never.

    Raises:
        OSError: naming the first file that is missing, or of another size.
    """
    files = sorted(path for path in source.rglob("*") if path.is_file())
    for file in files:
        info = filesystem.get_file_info(f"{target}/{file.relative_to(source).as_posix()}")
        if info.type != FileType.File or info.size != file.stat().st_size:
            raise OSError(f"{info.path}: {info.size or 0:,} bytes arrived of {file.stat().st_size:,}")


def _first_line(error: OSError) -> str:
    return without_credentials(str(error).partition("\n")[0])
