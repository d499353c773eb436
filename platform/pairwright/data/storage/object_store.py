"""Opens the object store, or the local directory, at a URL.

Everything goes through obstore, local files too, so that put-if-absent means the same everywhere. Only reading a
local file takes another way, because it can be memory-mapped.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
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

if TYPE_CHECKING:
    from obstore.store import ClientConfig

from pairwright.addresses import (
    STORAGE_SCHEMES,
    authority,
    credentials_advice,
    secret_in,
    shown_address,
    without_credentials,
)
from pairwright.errors import StoreError

ObjectStore: TypeAlias = AzureStore | GCSStore | HTTPStore | LocalStore | MemoryStore | S3Store

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_ONE_SLASH = re.compile(rf"({'|'.join(STORAGE_SCHEMES)}|file|https?|postgres(?:ql)?|kafka):")
_NO_PATH = "Could not parse path"  # how obstore begins what it says of a path, in a bare ValueError
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_BUILDER = "builder error"
_BACKEND = re.compile(r"^Generic \w+ error: ")


def open_store(url: str) -> ObjectStore:
    """Return the object store at a URL: a local path, file://, s3://, gs:// or az://.

    A local directory is created if need be. Settings of a remote store come from its usual environment variables
    (AWS_*, GOOGLE_*, AZURE_*). AWS_ENDPOINT_URL points at another S3 server; where it begins with http://, plain HTTP
    is allowed, which the client would refuse by itself ("builder error"), unless AWS_ALLOW_HTTP is false.

    Raises:
        StoreError: if the scheme is unknown, the address holds credentials, or the store cannot be opened.
    """
    root = local_root(url)
    if root is None:
        _check_remote_name(url)
    try:
        if root is not None:
            return LocalStore(root, mkdir=True)
        options: ClientConfig | None = {"allow_http": True} if uses_plain_http(url) else None
        return from_url(url, client_options=options)
    except (BaseError, OSError, ValueError) as error:
        raise StoreError(f"{url}: cannot be opened: {first_line(error)}") from None


def uses_plain_http(url: str) -> bool:
    """Return whether the environment names an S3 endpoint without TLS, and does not forbid it."""
    if not url.startswith(("s3://", "s3a://")) or "AWS_ALLOW_HTTP" in os.environ:
        return False
    return any(os.environ.get(name, "").lower().startswith("http://") for name in _ENDPOINTS)


def absolute_url(url: str) -> str:
    """Return a URL that means the same in every process: remote as it is, local as an absolute path.

    Raises:
        StoreError: if the scheme is unknown, or the address holds credentials.
    """
    root = local_root(url)
    return url.rstrip("/") if root is None else str(root)


def local_root(url: str) -> Path | None:
    """Return the absolute directory of a local URL, or None for a remote one.

    Every address of a table, a folder or an object comes through here before anything is made of it.

    Raises:
        StoreError: if the scheme is unknown, or the address holds credentials.
    """
    scheme, separator, _ = url.partition("://")
    if found := secret_in(url):
        raise StoreError(credentials_advice(url, found))
    if not separator:
        if match := _ONE_SLASH.match(url):
            raise StoreError(f"{shown_address(url)}: no address; expected {match[1]}://")
        return Path(os.path.abspath(os.path.expanduser(url)))  # noqa: PTH100, PTH111 (keeps symlinks, drops ..)
    if scheme == "file":
        if authority(url) not in ("", "localhost"):
            raise StoreError(f"{shown_address(url)}: names a machine; expected file:///PATH")
        return Path(os.path.abspath(unquote(urlsplit(url).path)))  # noqa: PTH100
    if scheme in STORAGE_SCHEMES:
        return None
    shown = shown_address(url)
    named = f" {scheme}://" if _SCHEME.fullmatch(scheme) else ""  # anything else may be part of a password
    raise StoreError(f"{shown}: unknown scheme{named}; expected a local path, file://, s3://, gs:// or az://")


def _check_remote_name(url: str) -> None:
    """Refuse what a URL would lose: another place would be read and written than the one that is named."""
    if "#" in url:
        raise StoreError(f"{url}: an address ends at #; write %23 for it, or choose a name without")
    if any(ord(character) < ord(" ") for character in url):
        raise StoreError(f"{url}: holds a line break or another control character; choose a name without")


def own_folder(path: Path, *, setting: str = "TMPDIR") -> Path:
    """Return a folder at a predictable path, created if need be, after checking that only this user can write to it.

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


def first_line(error: Exception) -> str:
    """Return what happened: the first line, without the backend's name before it, nor credentials of an endpoint."""
    if _BUILDER in str(error):  # all that obstore says of an endpoint that it does not take
        return (
            "the client takes no such endpoint (AWS_ENDPOINT_URL in the environment); expected https://HOST, or "
            "http://HOST and AWS_ALLOW_HTTP not set or true"
        )
    return without_credentials(_BACKEND.sub("", str(error).partition("\n")[0]))


@contextmanager
def store_errors(where: str) -> Iterator[None]:
    """Turn errors of a backend or a disk into a StoreError that says where; "exists" and "not found" pass through."""
    try:
        yield
    except (AlreadyExistsError, FileExistsError, FileNotFoundError):
        raise
    except ValueError as error:
        if not (isinstance(error, UnicodeEncodeError) or str(error).startswith(_NO_PATH)):
            raise
        expected = "expected UTF-8 without control characters, and no folder named . or .."
        raise StoreError(f"{where}: no name that a store takes; {expected}") from None
    except (BaseError, OSError) as error:
        raise StoreError(f"{where}: {store_failure(error) if '://' in where else first_line(error)}") from None


def store_failure(error: Exception) -> str:
    """Return what a remote store said, and what to do."""
    return f"{first_line(error)}; check the address and the store's settings (AWS_*, GOOGLE_*, AZURE_*)"
