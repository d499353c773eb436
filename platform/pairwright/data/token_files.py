"""A tokens table anywhere -> its files on this machine's disks, where they can be memory-mapped."""

import hashlib
from pathlib import Path

import obstore
from filelock import FileLock

from pairwright.data.locations import cache_folder, open_store, store_errors
from pairwright.data.store import DataFile, Manifest, Table
from pairwright.errors import StoreError

_CHUNK_BYTES = 1 << 24
_REMEDY = "delete the whole table to make it anew"


def local_token_paths(url: str, manifest: Manifest) -> list[Path]:
    """Return paths on this machine of a tokens table's files, in order, to open with ``TokenTable``.

    A local table's own files; those of a remote one are downloaded once a machine to ``~/.cache/pairwright/tokens`` and
    checked against the manifest, so that a file that is there is whole. Safe to call from several processes at once.

    Raises:
        StoreError: if a file is missing or is not the one that the manifest names.
    """
    table = Table(url, "tokens")
    local = [(file, table.local_path(file)) for file in manifest.files]
    return [_download(table, file) if path is None else _checked(path, file) for file, path in local]


def _checked(path: Path, file: DataFile) -> Path:
    if not _is_whole(path, file):
        found = f"has {path.stat().st_size} bytes, expected {file.bytes}" if path.exists() else "is gone"
        raise StoreError(f"{path}: this file of a tokens table {found}; {_REMEDY}")
    return path


def _is_whole(path: Path, file: DataFile) -> bool:
    return path.exists() and path.stat().st_size == file.bytes


def _download(table: Table, file: DataFile) -> Path:
    # Named by content: a second table, or a second run, that holds the same file finds it here.
    path = cache_folder("tokens") / f"{file.sha256}.arrow"
    with FileLock(f"{path}.lock"):
        if not _is_whole(path, file):
            unfinished = path.with_suffix(".unfinished")
            _fetch(table, file, unfinished)
            unfinished.replace(path)
    return path


def _fetch(table: Table, file: DataFile, into: Path) -> None:
    where = f"{table.url}/{file.path}"
    digest = hashlib.sha256()
    try:
        with store_errors(where), into.open("wb") as content:
            for chunk in obstore.get(open_store(table.url), file.path).stream(min_chunk_size=_CHUNK_BYTES):
                content.write(chunk)
                digest.update(chunk)
    except FileNotFoundError:
        raise StoreError(f"{where}: this file of a tokens table is gone; {_REMEDY}") from None
    if digest.hexdigest() != file.sha256:
        raise StoreError(f"{where}: damaged; {_REMEDY}")
