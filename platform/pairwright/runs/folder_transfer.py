"""Copies, moves and removes folders of a run, on a local disk or on object storage.

A local folder appears as a whole or not at all, and a copy takes no space where the disk can link files. On object
storage each object is put alone, those at the top last, so that a ``checkpoint.json`` shows that the rest is there.
Where a folder is removed or replaced, only files of checkpoints are deleted (data/storage/ownership.py).
"""

import asyncio
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.store import ObjectStore

from pairwright.data.storage.object_store import local_root, open_store, store_errors
from pairwright.data.storage.ownership import RUN, delete_folder
from pairwright.runs.run_dir import RunFolder

if TYPE_CHECKING:
    from obstore import ObjectMeta

_PARTIAL = re.compile(r"\.[0-9a-f]{8}\.partial")
MAX_BYTES_COPIED_BY_STORE = 5 * 1000**3
"""S3 copies objects up to 5 GB by itself; larger ones go through this machine."""


def objects_below(store: ObjectStore, name: str) -> list["ObjectMeta"]:
    """Return what is stored in a folder; not the empty objects by which pyarrow, and so Ray, marks folders on S3."""
    entries = [entry for chunk in obstore.list(store, prefix=f"{name}/") for entry in chunk]
    return [
        entry
        for entry in entries
        if entry["path"].startswith(f"{name}/") and (entry["size"] or "." in entry["path"].rpartition("/")[2])
    ]


def copy_folder(run: RunFolder, source: str, target: str) -> None:
    """Copy a folder of a run, in place of what is at the target.

    Raises:
        StoreError: if it cannot be read or written.
    """
    with store_errors(run.path(target)):
        if local_root(run.url) is not None:
            _copy_local(run, source, target)
            return
        store = open_store(run.url)
        remove_folder(run, target)
        for entry in sorted(objects_below(store, source), key=lambda entry: -entry["path"].count("/")):
            path = entry["path"]
            copied = f"{target}/{path.removeprefix(f'{source}/')}"
            if entry["size"] < MAX_BYTES_COPIED_BY_STORE:
                obstore.copy(store, path, copied)
            else:
                asyncio.run(_copy_through_client(store, path, copied))


def move_folder(run: RunFolder, source: str, target: str) -> None:
    """Move a folder of a run to where nothing is yet.

    Raises:
        StoreError: if it cannot be read or written.
    """
    with store_errors(run.path(target)):
        if (root := local_root(run.url)) is not None:
            (root / target).parent.mkdir(exist_ok=True)
            (root / source).rename(root / target)
            return
        store = open_store(run.url)
        for entry in objects_below(store, source):
            obstore.rename(store, entry["path"], f"{target}/{entry['path'].removeprefix(f'{source}/')}")


def remove_folder(run: RunFolder, name: str) -> None:
    """Remove a checkpoint's folder, if it is there; what else somebody put into it stays.

    Raises:
        StoreError: if it cannot be read or written.
    """
    delete_folder(run.url, name, RUN)


async def _copy_through_client(store: ObjectStore, source: str, target: str) -> None:
    found = await obstore.get_async(store, source)
    await obstore.put_async(store, target, found.stream())


def _copy_local(run: RunFolder, source: str, target: str) -> None:
    root = Path(run.url)
    below, _, name = target.rpartition("/")
    (root / below).mkdir(exist_ok=True)
    for left in (root / below).iterdir():
        if _PARTIAL.fullmatch(left.name):  # of a driver that was killed
            remove_folder(run, f"{below}/{left.name}")
    partial = root / below / f".{uuid.uuid4().hex[:8]}.partial" / name
    shutil.copytree(root / source, partial, copy_function=_link_or_copy)
    remove_folder(run, target)
    partial.rename(root / target)
    partial.parent.rmdir()


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system has links
        shutil.copy2(source, target)
