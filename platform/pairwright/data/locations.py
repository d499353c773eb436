"""Where tables and files lie: a URL in -> an object store, or a directory of this machine, out.

Everything goes through obstore, local files too, so that put-if-absent means the same everywhere. Only reading a
local file takes another way, because it can be memory-mapped.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import (
    AzureStore,
    GCSStore,
    HTTPStore,
    LocalStore,
    MemoryStore,
    S3Store,
    from_url,
)

from pairwright.errors import StoreError

ObjectStore: TypeAlias = AzureStore | GCSStore | HTTPStore | LocalStore | MemoryStore | S3Store

REMOTE_SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "azure")
_BACKEND = re.compile(r"^Generic \w+ error: ")


def open_store(url: str) -> ObjectStore:
    """Return the object store at a URL: a local path, file://, s3://, gs:// or az://.

    A local directory is created if need be. Settings of a remote store come from its usual environment variables
    (AWS_*, GOOGLE_*, AZURE_*); AWS_ENDPOINT_URL and AWS_ALLOW_HTTP point at another S3 server.

    Raises:
        StoreError: if the scheme is unknown, or the store cannot be opened.
    """
    root = local_root(url)
    try:
        return LocalStore(root, mkdir=True) if root is not None else from_url(url)
    except (BaseError, OSError, ValueError) as error:
        raise StoreError(f"{url}: cannot be opened: {_first_line(error)}") from None


def absolute_url(url: str) -> str:
    """Return a URL that means the same in every process: remote as it is, local as an absolute path.

    Raises:
        StoreError: if the scheme is unknown.
    """
    root = local_root(url)
    return url.rstrip("/") if root is None else str(root)


def local_root(url: str) -> Path | None:
    """Return the absolute directory of a local URL, or None for a remote one."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        return Path(os.path.abspath(os.path.expanduser(url)))  # noqa: PTH100, PTH111 (keeps symlinks, drops ..)
    if scheme == "file":
        return Path(os.path.abspath(unquote(urlsplit(url).path)))  # noqa: PTH100
    if scheme in REMOTE_SCHEMES:
        return None
    raise StoreError(f"{url}: unknown scheme {scheme}://; expected a local path, file://, s3://, gs:// or az://")


def own_folder(path: Path, *, setting: str = "TMPDIR") -> Path:
    """Return a folder at a name that anybody can guess, made if need be, once it is known to be this user's alone.

    In a folder such as /tmp anyone may have made it before, and could exchange what is read from it later.

    Args:
        path: the folder; the one above it is there.
        setting: environment variable that puts it elsewhere, for messages.

    Raises:
        StoreError: if it is a link or no folder, belongs to another user, or others may write to it.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        kind = "is a link" if path.is_symlink() else f"is no folder that can be used ({error.strerror})"
        raise StoreError(f"{path}: {kind}; remove it, or set {setting} to a folder of your own") from None
    try:
        found = os.fstat(opened)
    finally:
        os.close(opened)
    if found.st_uid != os.getuid():
        raise StoreError(
            f"{path}: belongs to user {found.st_uid}, and this process is user {os.getuid()}: what is read from there "
            f"could be exchanged; have it removed, or set {setting} to a folder of your own"
        )
    if found.st_mode & 0o022:
        raise StoreError(
            f"{path}: others may write to it (mode {found.st_mode & 0o777:o}), so what is in there may not be yours; "
            "remove it, or, if nobody else has written to it, `chmod 700` it"
        )
    return path


def cache_folder(name: str) -> Path:
    """Return this user's cache of one kind on this machine, below ``~/.cache/pairwright``.

    Raises:
        StoreError: if it is not this user's alone.
    """
    parent = Path.home() / ".cache" / "pairwright"
    parent.parent.mkdir(parents=True, exist_ok=True)
    parent.mkdir(mode=0o700, exist_ok=True)
    return own_folder(parent / name)


def _first_line(error: Exception) -> str:
    """Return what happened: the first line, without the backend's name before it."""
    return _BACKEND.sub("", str(error).partition("\n")[0])


@contextmanager
def store_errors(where: str) -> Iterator[None]:
    """Turn what a backend or a disk says into a StoreError with the place; "exists" and "not found" pass through."""
    try:
        yield
    except (AlreadyExistsError, FileExistsError, FileNotFoundError):
        raise
    except (BaseError, OSError) as error:
        advice = "; check the address and the store's settings (AWS_*, GOOGLE_*, AZURE_*)" if "://" in where else ""
        raise StoreError(f"{where}: {_first_line(error)}{advice}") from None
