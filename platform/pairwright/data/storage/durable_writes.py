"""Durable commits on a local disk: the files that a version names are flushed before the version exists."""

import os
import uuid
from collections.abc import Iterable
from pathlib import Path


def sync_files(root: Path, paths: Iterable[str]) -> None:
    """Wait until files below a directory, and the folders that hold them, are on the disk.

    Raises:
        OSError: if one is not there, or the disk does not take it.
    """
    folders = set()
    for path in paths:
        _sync(root / path)
        folders |= {(root / path).parent, root, root.parent}
    for folder in folders:
        _sync(folder)


def create_file(path: Path, content: bytes) -> None:
    """Create a file that was not there, whole and on the disk or not at all; its folder is made if need be.

    Raises:
        FileExistsError: if it is there, also where another process made it meanwhile.
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under a name by which a vacuum knows what a killed writer left.
    partial = path.with_name(f"{path.name}#{uuid.uuid4().hex[:8]}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _sync(path.parent)
    _sync(path.parent.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
