"""Bounds what this machine keeps of remote token tables and models: those that were used last stay.

A process holds what it uses (a list of files, and a lock that ends with the process) before it downloads anything, so
nothing that is in use is evicted. The bound, on all together, is ``PAIRWRIGHT_CACHE_GB``; without it, all of the disk
but a twentieth.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from pairwright.data.storage.local_cache import cache_folder, hold, is_held, remove_model
from pairwright.errors import ConfigError, StoreError

LIMIT_VARIABLE = "PAIRWRIGHT_CACHE_GB"
_FREE_FRACTION = 0.05
_GB = 1_000_000_000


def reserve_tokens(files: Mapping[str, int], *, what: str) -> None:
    """Hold the files of a table until this process ends, and evict others until those that are missing fit.

    Args:
        files: the names that the table's files have in the cache, with their sizes in bytes.
        what: the table, for messages.

    Raises:
        StoreError: if the files and those that other processes hold are more than the cache may have.
        ConfigError: if ``PAIRWRIGHT_CACHE_GB`` is no number above 0.
    """
    folder = cache_folder("tokens")
    with FileLock(folder / "room.lock"):
        table = folder / hashlib.sha256("\n".join(sorted(files)).encode()).hexdigest()
        hold(table)
        # Its time of change says when the table was used last.
        table.with_suffix(".files").write_text("".join(f"{name} {size}\n" for name, size in files.items()))
        held = _make_room(sum(files.values()), f"the tokens of {what}")
        for path in folder.glob("*.unfinished"):
            if path.with_suffix(".arrow") not in held:  # a download that died
                path.unlink(missing_ok=True)


def reserve_model(key: str, num_bytes: int, *, what: str) -> Path:
    """Hold a model until this process ends, evict others until it fits, and return where its copy lies, or is to lie.

    Raises:
        StoreError, ConfigError: as ``reserve_tokens``.
    """
    directory = cache_folder("models") / key
    with FileLock(cache_folder("tokens") / "room.lock"):
        hold(directory)
        directory.with_suffix(".bytes").write_text(str(num_bytes))
        _make_room(num_bytes, what)
        for other in (listing.with_suffix("") for listing in directory.parent.glob("*.bytes")):
            if not other.exists() and not is_held(other):  # a download that died
                remove_model(other.parent, other.name)
    return directory


@dataclass(frozen=True, slots=True)
class _Copy:
    """A file of tokens or a model's folder, in the cache or on its way there."""

    path: Path
    num_bytes: int
    last_used: float
    is_held: bool

    def remove(self) -> None:
        if self.path.suffix == ".arrow":
            self.path.unlink(missing_ok=True)
        else:
            remove_model(self.path.parent, self.path.name)


def _make_room(needed: int, what: str) -> set[Path]:
    """Evict what was used longest ago until all that is held fits, and return what is held."""
    copies = [*_tokens(), *_models()]
    cached = sum(copy.num_bytes for copy in copies if copy.path.exists())
    limit = _limit(cached)
    held = sum(copy.num_bytes for copy in copies if copy.is_held)
    if held > limit:
        raise StoreError(_too_large(limit, what, needed, held))
    num_free = limit - sum(copy.num_bytes for copy in copies)
    for copy in sorted((copy for copy in copies if not copy.is_held), key=lambda copy: copy.last_used):
        if num_free >= 0:
            break
        copy.remove()
        num_free += copy.num_bytes
    return {copy.path for copy in copies if copy.is_held}


def _tokens() -> Iterator[_Copy]:
    """Yield every file of tokens that is there, or that a process holds."""
    folder = cache_folder("tokens")
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.arrow")}
    last_used: dict[str, float] = {}
    held: set[str] = set()
    for table in folder.glob("*.files"):
        files = dict(line.split() for line in table.read_text().splitlines())
        if is_held(table.with_suffix("")):
            held |= files.keys()
            sizes |= {name: int(size) for name, size in files.items()}
        for name in files:
            last_used[name] = max(last_used.get(name, 0.0), table.stat().st_mtime)
    for name, size in sizes.items():
        yield _Copy(folder / name, size, last_used.get(name, 0.0), name in held)


def _models() -> Iterator[_Copy]:
    """Yield every model that is there, or that a process holds."""
    folder = cache_folder("models")
    for listing in folder.glob("*.bytes"):
        path = listing.with_suffix("")
        if (is_in_use := is_held(path)) or path.exists():
            yield _Copy(path, int(listing.read_text()), listing.stat().st_mtime, is_in_use)


def _limit(num_cached: int) -> float:
    given = os.environ.get(LIMIT_VARIABLE)
    if given is None:
        disk = shutil.disk_usage(cache_folder("tokens"))
        return num_cached + disk.free - _FREE_FRACTION * disk.total
    try:
        gigabytes = float(given)
    except ValueError:
        gigabytes = 0.0
    if not gigabytes > 0:
        raise ConfigError(f"{LIMIT_VARIABLE} is {given!r}, expected a number of gigabytes above 0, such as 200")
    return gigabytes * _GB


def _too_large(limit: float, what: str, needed: int, held: int) -> str:
    others = f", and commands at work hold {_gigabytes(held - needed)} more" if held > needed else ""
    return (
        f"{cache_folder('tokens').parent}: the cache of this machine may have {_gigabytes(limit)}, too little for "
        f"{what} ({_gigabytes(needed)}{others}); set {LIMIT_VARIABLE} to more, or XDG_CACHE_HOME to a folder "
        "on a larger disk"
    )


def _gigabytes(num_bytes: float) -> str:
    return f"{max(num_bytes, 0) / _GB:.3g} GB"
