"""Writes single files and whole directories to a user's path or URL, and replaces only what is provably ours.

A file or directory appears whole or not at all on a local disk; on object storage each object does, and the one that
marks a directory as complete comes last.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError

from pairwright.data.storage.object_store import absolute_url, local_root, open_store, store_errors
from pairwright.data.storage.ownership import named, stored_files
from pairwright.errors import StoreError

MOST_BYTES_AT_ONCE = 4 * 1000**3
"""S3 takes up to 5 GB in one request, and only one request can be put-if-absent; larger ones are checked first."""


# ------------------------------------------------------------------------------- files that are replaced


def check_output(url: str, is_ours: Callable[[bytes], bool], *, what: str) -> None:
    """Refuse to put a file where another one is that is not of the same kind of ours, or where none can be written.

    Args:
        url: path or URL of the file.
        is_ours: tells from a file's content whether a command of the same kind wrote it.
        what: the kind, such as ``a page of `pairwright report```.

    Raises:
        StoreError: if something else is there, or the folder cannot be written to.
    """
    _check_file_can_be_put(url)
    content = _content_at(url)
    if content is not None and not is_ours(content):
        raise StoreError(f"{url}: is not {what}, and is not replaced; name another file, or move it away")


def check_new(url: str, *, what: str, overwrite: bool) -> None:
    """Refuse a file that is there already, ours or not, unless it is to be replaced.

    Raises:
        StoreError: if one is there, and ``overwrite`` is false.
    """
    if not overwrite and _content_at(url) is not None:
        raise StoreError(f"{url}: holds {what} already; --overwrite replaces it")


def put_output(url: str, content: bytes, is_ours: Callable[[bytes], bool], *, what: str) -> None:
    """Write a file, whole or not at all, replacing an older one of the same kind; see ``check_output``.

    Raises:
        StoreError: if something else is there, or it cannot be written.
    """
    check_output(url, is_ours, what=what)
    folder, name = _split(url)
    with store_errors(url):
        obstore.put(open_store(folder), name, content)


def _content_at(url: str) -> bytes | None:
    root = local_root(url)
    with store_errors(url):
        if root is not None and not root.exists() and not root.is_symlink():
            return None
        folder, name = _split(url)
        try:
            return bytes(obstore.get(open_store(folder), name).bytes())
        except FileNotFoundError:
            return None


def _check_file_can_be_put(url: str) -> None:
    """Raise before the work the error that would follow it: that no file can be put here."""
    root = local_root(url)
    if root is None:
        return
    if root.is_dir():
        raise StoreError(f"{url}: is a folder; name a file")
    ancestor = root.parent
    while not ancestor.exists() and ancestor != ancestor.parent:
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        raise StoreError(f"{url}: {ancestor.name} is a file, not a folder; name another file")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise StoreError(f"{url}: nothing can be written to the folder {ancestor}; name another file")


def _split(url: str) -> tuple[str, str]:
    folder, _, name = absolute_url(url).rpartition("/")
    return folder or "/", name


# ---------------------------------------------------------------------------------- files that are not


@contextmanager
def new_file(url: str) -> Iterator[Path]:
    """Yield a local file to write, which then goes to a path or URL where nothing is, or the same content.

    Raises:
        StoreError: if something else is there, or it cannot be written; what is there stays as it is.
    """
    root = local_root(url)
    _check_file_can_be_put(url)
    with store_errors(url):
        if root is not None:
            root.parent.mkdir(parents=True, exist_ok=True)
        parent = None if root is None else root.parent
        handle, name = tempfile.mkstemp(prefix=".pairwright-", suffix=".partial", dir=parent)
        os.close(handle)
        path = Path(name)
        try:
            yield path
            path.chmod(0o666 & ~_umask())
            _create(url, path)
        finally:
            path.unlink(missing_ok=True)


def _create(url: str, path: Path) -> None:
    root = local_root(url)
    folder, name = _split(url)
    try:
        if root is not None:
            os.link(path, root)
        else:
            _put_new(folder, name, path)
    except (AlreadyExistsError, FileExistsError):
        if not _holds(url, path):
            raise StoreError(
                f"{url}: is there with other content, and is not replaced; name another file, or move it away"
            ) from None


def _holds(url: str, path: Path) -> bool:
    root = local_root(url)
    if root is not None and not root.is_file():
        return False
    folder, name = _split(url)
    found = obstore.get(open_store(folder), name).stream()
    with path.open("rb") as file:
        return all(file.read(len(part)) == part for part in map(bytes, found)) and not file.read(1)


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current


# --------------------------------------------------------------------------------------------- directories


def is_free(url: str) -> bool:
    """Return whether a path or URL is free: no file, no folder with something in it, no object.

    Raises:
        StoreError: if it cannot be listed.
    """
    root = local_root(url)
    if root is None:
        return next(stored_files(url), None) is None
    with store_errors(url):
        if root.is_symlink() or root.exists():
            return root.is_dir() and not any(root.iterdir())
    return True


def put_directory(source: Path, url: str, *, last: str) -> None:
    """Copy a local directory to a free path or URL, with the usual permissions; a link to an empty folder is followed.

    Args:
        source: the directory.
        url: where to.
        last: name of the file that marks it as complete, and is put last on object storage.

    Raises:
        StoreError: if something is there, or it cannot be written.
    """
    if not is_free(url):
        raise StoreError(f"{url}: something is here already; name a directory that is not there yet")
    root = local_root(url)
    if root is not None:
        with _copied_beside(source, root.resolve(), url) as partial:
            partial.rename(root.resolve())  # an empty folder gives way; another one refuses
        return
    for path in _in_order(source, last):
        with store_errors(f"{url}/{path}"):
            try:
                _put_new(url, path, source / path)
            except (AlreadyExistsError, FileExistsError):
                raise StoreError(f"{url}/{path}: was written meanwhile; name a directory of its own") from None


def replace_directory(source: Path, url: str, *, own: Iterable[str], last: str) -> None:
    """Copy a local directory to a path or URL of ours, replacing an older one of ours.

    Args:
        source: the directory.
        url: where to.
        own: paths of the files of the older one that Pairwright wrote, as its record says.
        last: name of the file that marks it as complete.

    Raises:
        StoreError: if a file is there that is neither in ``own`` nor in ``source``, or it cannot be written.
    """
    if is_free(url):
        put_directory(source, url, last=last)
        return
    new = _in_order(source, last)
    check_own(url, {*own, *new})
    root = local_root(url)
    if root is not None:
        old = root.with_name(f".{root.name}-{uuid4().hex[:8]}.old")
        with _copied_beside(source, root, url) as partial:
            root.rename(old)
            partial.rename(root)
            shutil.rmtree(old)  # all of it was just found to be ours
        return
    store = open_store(url)
    with store_errors(url):
        for path in new:
            obstore.put(store, path, source / path)
        for stored in list(stored_files(url)):
            if stored.path not in new:
                obstore.delete(store, stored.path)


def check_own(url: str, own: set[str]) -> None:
    """Refuse a directory that holds a file, or a link, that is not ours.

    Raises:
        StoreError: naming the first of them.
    """
    foreign = [stored.path for stored in stored_files(url) if stored.is_link or stored.path not in own]
    if foreign:
        raise StoreError(
            f"{url}: holds {named(foreign)}, which Pairwright did not write, and is not replaced; move it away, then "
            "run the command again"
        )


def _put_new(url: str, path: str, file: Path) -> None:
    store = open_store(url)
    if file.stat().st_size < MOST_BYTES_AT_ONCE:
        obstore.put(store, path, file, mode="create", use_multipart=False)
        return
    with suppress(FileNotFoundError):
        obstore.head(store, path)
        raise FileExistsError
    obstore.put(store, path, file)


def _in_order(source: Path, last: str) -> list[str]:
    paths = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    return [*(path for path in paths if path != last), *(path for path in paths if path == last)]


@contextmanager
def _copied_beside(source: Path, target: Path, url: str) -> Iterator[Path]:
    """Yield a copy of a directory beside where it is to go; it is gone at the end, unless it went there."""
    partial: Path | None = None
    try:
        with store_errors(url):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".partial", dir=target.parent))
            for path in source.rglob("*"):
                if path.is_file():
                    copied = partial / path.relative_to(source)
                    copied.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copied)
            partial.chmod(stat.S_IMODE(0o777 & ~_umask()))
            yield partial
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
