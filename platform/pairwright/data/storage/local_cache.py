"""This user's cache on this machine: private folders for copies of remote files, and markers of verified files.

Nothing here is the only copy of anything: what is removed is downloaded, or hashed, again. A file that is used from
here, or from a local tokens table, has its SHA-256 compared. That costs about a second a gigabyte, so a marker keeps
the result for all processes of the machine: an empty file whose name is a digest of the file's content, device, inode,
size and times. Any write changes the time of status change, also one that puts the time of modification back, and so
the marker. A marker cannot detect a disk that returns other bytes than were written; it expires after 30 days.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import msgspec
import obstore
from filelock import FileLock

from pairwright.data.storage.object_store import ObjectStore, own_folder
from pairwright.errors import StoreError

MARKER_SECONDS = 30 * 24 * 3600
_CHUNK_BYTES = 1 << 24
_TOKEN_ENDINGS = (".arrow", ".unfinished", ".columns")

logger = logging.getLogger(__name__)
_held: dict[Path, int] = {}
"""Copies that this process uses -> the descriptor of their lock, open until the process ends."""


class ClearedCache(msgspec.Struct, frozen=True):
    """What was removed from the cache of one machine."""

    host: str
    folder: str
    num_files: int
    bytes: int
    num_in_use: int
    """Copies of models that stay, since a command at work reads them."""


def cache_folder(name: str) -> Path:
    """Return a folder of the cache, made if need be, that nobody but this user can read.

    It lies in ``$XDG_CACHE_HOME/pairwright``, by default ``~/.cache/pairwright``.

    Raises:
        StoreError: if it cannot be made, is a link, belongs to another user, or others may write to it.
    """
    root = _root()
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        for folder in (root, root / name):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{root / name}: this folder of the cache cannot be made: {error.strerror}; set XDG_CACHE_HOME to a "
            "folder that can be written"
        ) from None
    for folder in (root, root / name):
        own_folder(folder, setting="XDG_CACHE_HOME")
        if folder.stat().st_mode & 0o077:  # others may read it
            folder.chmod(0o700)
    return root / name


def _root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        home = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        raise StoreError("there is no home directory for the cache; set XDG_CACHE_HOME to a folder") from None
    return home / "pairwright"


# ------------------------------------------------------------------------------------------------ content


def is_intact(path: Path, num_bytes: int, sha256: str) -> bool:
    """Return whether a file has the content that is expected; hashes it, unless a marker says that this was done.

    Processes of a machine that ask at the same time hash it once.

    Raises:
        OSError: if the file is gone or cannot be read.
    """
    state = path.stat()
    if state.st_size != num_bytes:
        return False
    folder = _markers()
    if folder is None:
        return _sha256(path) == sha256
    marker = folder / _marker_name(state, sha256)
    if _is_fresh(marker):
        return True
    with FileLock(folder / f"{marker.name[0]}.lock"):
        if _is_fresh(marker):
            return True
        if _sha256(path) != sha256:
            return False
        _remove_old_markers(folder)
        _keep(marker)
    return True


def mark_intact(path: Path, sha256: str) -> None:
    """Keep that a file, as it lies there now, has this content."""
    folder = _markers()
    if folder is not None:
        _keep(folder / _marker_name(path.stat(), sha256))


def _markers() -> Path | None:
    """Return the folder of the markers; None where it cannot be written, and so every process hashes for itself."""
    try:
        folder = cache_folder("verified")
    except StoreError as error:
        logger.warning("%s (until then every process hashes what it reads)", error)
        return None
    return folder if os.access(folder, os.W_OK) else None


def _keep(marker: Path) -> None:
    with suppress(OSError):  # a full disk: the file is hashed again
        marker.touch()


def download(store: ObjectStore, key: str, into: Path, *, e_tag: str | None = None) -> str:
    """Write a remote file to a path, and return the SHA-256 of what came.

    Args:
        store: where it lies.
        key: its name there.
        into: what to write.
        e_tag: content that is wanted; another one is an error of the store.
    """
    digest = hashlib.sha256()
    options: obstore.GetOptions | None = None if e_tag is None else {"if_match": e_tag}
    with into.open("wb") as content:
        for chunk in obstore.get(store, key, options=options).stream(min_chunk_size=_CHUNK_BYTES):
            content.write(chunk)
            digest.update(chunk)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _marker_name(state: os.stat_result, sha256: str) -> str:
    facts = (sha256, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _is_fresh(marker: Path) -> bool:
    try:
        return time.time() - marker.stat().st_mtime < MARKER_SECONDS
    except FileNotFoundError:
        return False


@cache  # once a process
def _remove_old_markers(folder: Path) -> None:
    for marker in folder.iterdir():
        if marker.suffix != ".lock" and not _is_fresh(marker):
            marker.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------- life


def hold(copy: Path) -> None:
    """Say until this process ends that it uses a copy: a model, or the files of a table."""
    if copy not in _held:
        _held[copy] = os.open(f"{copy}.using", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(_held[copy], fcntl.LOCK_SH)


def is_held(copy: Path) -> bool:
    """Return whether a process, this one included, holds a copy."""
    with _if_unused(copy) as is_unused:
        return not is_unused


def empty_cache() -> ClearedCache:
    """Remove every copy of tokens and of models from this machine's cache, but models that are in use.

    A tokens file that somebody has mapped stays readable there until it is let go.

    Raises:
        StoreError: if the cache is not this user's, or a file cannot be removed.
    """
    tokens, models = cache_folder("tokens"), cache_folder("models")
    sizes: list[int] = []
    num_in_use = 0
    try:
        for path in [path for path in tokens.iterdir() if path.suffix in _TOKEN_ENDINGS]:
            with FileLock(path.with_suffix(".arrow.lock")):
                sizes += _sizes(path)
                path.unlink(missing_ok=True)
        for name in sorted({path.name.partition(".")[0] for path in models.iterdir()}):
            with _if_unused(models / name) as is_unused:
                if is_unused:
                    sizes += [size for path in models.glob(f"{name}*") for size in _sizes(path)]
                    remove_model(models, name)
            num_in_use += not is_unused
    except OSError as error:
        raise StoreError(f"{error.filename}: cannot be removed from the cache: {error.strerror}") from None
    return ClearedCache(socket.gethostname(), str(tokens.parent), len(sizes), sum(sizes), num_in_use)


@contextmanager
def _if_unused(copy: Path) -> Iterator[bool]:
    """Yield whether no process holds a model's copy; none can begin to inside the block."""
    lock = os.open(f"{copy}.using", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(lock)


def remove_model(models: Path, name: str) -> None:
    """Remove a model's copy, which no process holds, and what is listed of it."""
    for ending in ("json", "bytes"):
        (models / f"{name}.{ending}").unlink(missing_ok=True)
    for folder in [path for path in models.glob(f"{name}*") if path.is_dir()]:  # parts of a download that died, too
        shutil.rmtree(folder)


def _sizes(path: Path) -> list[int]:
    """Return the bytes of each file at or below a path; locks and listings do not count."""
    files = path.rglob("*") if path.is_dir() else [path] if path.suffix in _TOKEN_ENDINGS else []
    return [file.stat().st_size for file in files if file.is_file()]
