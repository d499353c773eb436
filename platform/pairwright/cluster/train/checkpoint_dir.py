"""A folder of this process on its node's disk, where a checkpoint lies until it is stored, and what dead ones left.

A killed worker cannot tidy up, and what it leaves is its share of the optimizer's state. So each process holds a lock
on its folder, which the kernel drops however the process ends, and the next to start there removes what nobody holds.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from pairwright.data.storage.object_store import own_folder


class Staging:
    """This process's folder; removes, when it is made, those of processes that are no more.

    Raises:
        StoreError: if the folder of such folders is not this user's alone.
    """

    def __init__(self) -> None:
        parent = own_folder(Path(tempfile.gettempdir()) / f"pairwright-staging-{os.getuid()}")
        # Held while folders come and go: between being made and being locked, one would look abandoned.
        both = os.open(parent, os.O_RDONLY)
        try:
            fcntl.flock(both, fcntl.LOCK_EX)
            for folder in parent.iterdir():
                _remove_if_abandoned(folder)
            self._root = Path(tempfile.mkdtemp(dir=parent))
            self._held = os.open(self._root, os.O_RDONLY)
            fcntl.flock(self._held, fcntl.LOCK_EX)
        finally:
            os.close(both)

    def remove(self) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self._root, ignore_errors=True)
        os.close(self._held)

    def new_folder(self, name: str) -> Path:
        """Return a new empty folder.

        Raises:
            OSError: if the disk has no room even for that.
        """
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._root))


def _remove_if_abandoned(folder: Path) -> None:
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(held)
