"""Local files of a tokens table, downloaded where the table is remote, so that they can be memory-mapped.

The SHA-256 of every file is compared with the manifest, once a machine (data/storage/local_cache.py).
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from filelock import FileLock

from pairwright.data.storage.cache_limit import reserve_tokens
from pairwright.data.storage.local_cache import cache_folder, download, is_intact, mark_intact
from pairwright.data.storage.object_store import open_store, store_errors
from pairwright.data.table.table import DataFile, Manifest, Table
from pairwright.errors import StoreError

_THREADS = 4
"""Files hashed, or downloaded, at once."""

logger = logging.getLogger(__name__)


def local_token_paths(url: str, manifest: Manifest) -> list[Path]:
    """Return paths on this machine of a tokens table's files, in order, to open with ``TokenTable``.

    A local table's own files; those of a remote one are downloaded once a machine to ``~/.cache/pairwright/tokens``,
    from where the tables that were used longest ago go (data/storage/cache_limit.py). A copy there that is damaged is
    downloaded again. Safe to call from several processes at once.

    Raises:
        StoreError: if a file of the table is missing or is not the one that the manifest names, or if there is no room.
    """
    table = Table(url, "tokens")
    if any(table.local_path(file) is None for file in manifest.files):
        files = {_cached_name(file): file.bytes for file in manifest.files}
        reserve_tokens(files, what=table.url)
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(partial(_local_path, table), manifest.files))


def _local_path(table: Table, file: DataFile) -> Path:
    path = table.local_path(file)
    return _downloaded(table, file) if path is None else _checked(path, table, file)


def _checked(path: Path, table: Table, file: DataFile) -> Path:
    try:
        if is_intact(path, file.bytes, file.sha256):
            return path
        size = path.stat().st_size
    except FileNotFoundError:
        raise StoreError(f"{path}: this file of a tokens table is gone; {_remedy(table)}") from None
    except OSError as error:
        raise StoreError(f"{error.filename or path}: cannot be read: {error.strerror}") from None
    if size != file.bytes:
        raise StoreError(
            f"{path}: this file of a tokens table has {size} bytes, expected {file.bytes}; {_remedy(table)}"
        )
    raise StoreError(_damaged(str(path), table))


def _cached_name(file: DataFile) -> str:
    # By content: a second table, or a second run, that holds the same file finds it.
    return f"{file.sha256}.arrow"


def _downloaded(table: Table, file: DataFile) -> Path:
    path = cache_folder("tokens") / _cached_name(file)
    where = f"{table.url}/{file.path}"
    with FileLock(f"{path}.lock"):
        if path.exists():
            if is_intact(path, file.bytes, file.sha256):
                return path
            logger.warning("%s: this copy of %s is damaged; it is downloaded again", path, where)
        unfinished = path.with_suffix(".unfinished")
        try:
            with store_errors(where):
                found = download(open_store(table.url), file.path, unfinished)
        except FileNotFoundError:
            raise StoreError(f"{where}: this file of a tokens table is gone; {_remedy(table)}") from None
        if found != file.sha256:
            raise StoreError(_damaged(where, table))
        unfinished.replace(path)
        mark_intact(path, file.sha256)
    return path


def _damaged(where: str, table: Table) -> str:
    return (
        f"{where}: damaged: the SHA-256 of this file of a tokens table is not the one that was written; "
        f"{_remedy(table)}"
    )


def _remedy(table: Table) -> str:
    return f"delete the whole table, {table.url}, to make it anew with the same command"
