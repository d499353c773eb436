"""A folder of a table for files that live as long as one command: what was landed, what tasks exchange."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import obstore
from obstore.exceptions import BaseError

from pairwright.data.locations import local_root, open_store
from pairwright.data.store import Table

FOLDER = "landing"
"""A vacuum takes what a killed command left here."""


@contextmanager
def scratch_folder(table: Table) -> Iterator[str]:
    """Yield the URL of a new folder; what is in it at the end of the block is deleted."""
    folder = f"{FOLDER}/{uuid.uuid4().hex}"
    try:
        yield f"{table.url}/{folder}"
    finally:
        _delete(table, folder)


def _delete(table: Table, folder: str) -> None:
    """Delete a folder; what cannot be deleted now, a vacuum deletes."""
    root = local_root(table.url)
    if root is not None:
        shutil.rmtree(root / folder, ignore_errors=True)
        with suppress(OSError):
            (root / FOLDER).rmdir()
        return
    with suppress(BaseError):
        store = open_store(table.url)
        paths = [item["path"] for chunk in obstore.list(store, prefix=folder) for item in chunk]
        if paths:
            obstore.delete(store, paths)
