"""Bounds what this machine keeps of remote token tables: the tables that were used last stay.

A process holds its table (a list of files, and a lock that ends with the process) before it downloads anything, so
nothing that is in use is evicted. The bound is ``PAIRWRIGHT_CACHE_GB``; without it, all of the disk but a twentieth.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from filelock import FileLock

from pairwright.data.storage.local_cache import hold, is_held
from pairwright.errors import ConfigError, StoreError

LIMIT_VARIABLE = "PAIRWRIGHT_CACHE_GB"
_FREE_FRACTION = 0.05
_GB = 1_000_000_000


def reserve(folder: Path, files: Mapping[str, int], *, what: str) -> None:
    """Hold the files of a table until this process ends, and evict others until those that are missing fit.

    Args:
        folder: of the cache.
        files: the names that the table's files have there, with their sizes in bytes.
        what: the table, for messages.

    Raises:
        StoreError: if the files and those that other processes hold are more than the cache may have.
        ConfigError: if ``PAIRWRIGHT_CACHE_GB`` is no number above 0.
    """
    table = folder / hashlib.sha256("\n".join(sorted(files)).encode()).hexdigest()
    with FileLock(folder / "room.lock"):
        hold(table)
        # Its time of change says when the table was used last.
        table.with_suffix(".files").write_text("".join(f"{name} {size}\n" for name, size in files.items()))
        cached = {path.name: path.stat().st_size for path in folder.glob("*.arrow")}
        limit = _limit(folder, sum(cached.values()))
        held = _held(folder)
        if sum(held.values()) > limit:
            raise StoreError(_too_large(folder, limit, what, sum(files.values()), sum(held.values())))
        for path in folder.glob("*.unfinished"):
            if path.with_suffix(".arrow").name not in held:  # a download that died
                path.unlink(missing_ok=True)
        num_free = limit - sum((cached | held).values())
        for name in _used_longest_ago(folder, cached.keys() - held.keys()):
            if num_free >= 0:
                break
            (folder / name).unlink(missing_ok=True)
            num_free += cached[name]


def _held(folder: Path) -> dict[str, int]:
    """Return the files that processes use, or download, with their sizes."""
    held: dict[str, int] = {}
    for table in folder.glob("*.files"):
        if is_held(table.with_suffix("")):
            held |= _files(table)
    return held


def _used_longest_ago(folder: Path, names: Iterable[str]) -> list[str]:
    last_used: dict[str, float] = {}
    for table in folder.glob("*.files"):
        for name in _files(table):
            last_used[name] = max(last_used.get(name, 0.0), table.stat().st_mtime)
    return sorted(names, key=lambda name: last_used.get(name, 0.0))


def _files(table: Path) -> dict[str, int]:
    lines = [line.split() for line in table.read_text().splitlines()]
    return {name: int(size) for name, size in lines}


def _limit(folder: Path, num_cached: int) -> float:
    given = os.environ.get(LIMIT_VARIABLE)
    if given is None:
        disk = shutil.disk_usage(folder)
        return num_cached + disk.free - _FREE_FRACTION * disk.total
    try:
        gigabytes = float(given)
    except ValueError:
        gigabytes = 0.0
    if not gigabytes > 0:
        raise ConfigError(f"{LIMIT_VARIABLE} is {given!r}, expected a number of gigabytes above 0, such as 200")
    return gigabytes * _GB


def _too_large(folder: Path, limit: float, what: str, needed: int, kept: int) -> str:
    others = f", and commands at work hold {_gigabytes(kept - needed)} more" if kept > needed else ""
    return (
        f"{folder}: the cache of this machine may have {_gigabytes(limit)}, but the tokens of {what} take "
        f"{_gigabytes(needed)}{others}; set {LIMIT_VARIABLE} to more, or XDG_CACHE_HOME to a folder on a larger disk"
    )


def _gigabytes(num_bytes: float) -> str:
    return f"{max(num_bytes, 0) / _GB:.3g} GB"
