"""Commits the files written for a version, or deletes them; and creates staging folders that last one command.

A file that no version names is deleted only where it is certain that none will: a lost response may be that of a
successful commit. Then the files stay for `vacuum`.
"""

import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from pairwright.data.storage.ownership import STAGING, TABLE, delete_empty_folders, delete_folder
from pairwright.data.table.manifest import IndexFile
from pairwright.data.table.table import DataFile, Manifest, Table
from pairwright.errors import StoreError

"""A vacuum takes what a killed command left here."""


def commit_written(
    table: Table,
    build: Callable[[Manifest | None], Manifest | None],
    written: Callable[[], Iterable[DataFile | IndexFile]],
) -> Manifest | None:
    """Commit what ``build`` returns, and delete what was written that the version does not name.

    Args:
        table: where.
        build: as for ``Table.commit``: called again on a newer version when another writer was first.
        written: every file that was written for it, asked at the end.

    Raises:
        StoreError: as ``Table.commit``; what ``build`` raises goes through.
    """
    is_asked = False

    def watched(newest: Manifest | None) -> Manifest | None:
        nonlocal is_asked
        is_asked = False  # a lost race is a sure answer
        proposed = build(newest)
        is_asked = proposed is not None
        return proposed

    try:
        committed = table.commit(watched)
    except BaseException:
        if not is_asked:
            table.delete(written())
        raise
    named = committed.paths if committed else set()
    table.delete([file for file in written() if file.path not in named])
    return committed


@contextmanager
def staging_folder(table: Table) -> Iterator[str]:
    """Yield the URL of a new staging folder, deleted at the end of the block."""
    folder = f"{STAGING}/{uuid.uuid4().hex}"
    try:
        yield f"{table.url}/{folder}"
    finally:
        _delete(table, folder)


def _delete(table: Table, folder: str) -> None:
    """Delete a folder; what cannot be deleted now, `vacuum` deletes."""
    with suppress(StoreError, OSError):
        delete_folder(table.url, folder, TABLE)
        delete_empty_folders(table.url, [STAGING])
