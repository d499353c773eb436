"""A folder of a table for files that live as long as one command: what was landed, what tasks exchange."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pairwright.data.storage.ownership import TABLE, delete_empty_folders, delete_folder
from pairwright.data.table.table import Table
from pairwright.errors import StoreError

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
    with suppress(StoreError, OSError):
        delete_folder(table.url, folder, TABLE)
        delete_empty_folders(table.url, [FOLDER])
