"""Ownership of files at a path or URL: decides what Pairwright may create, replace and delete there, for every verb.

A directory is claimed only if it is empty, or holds nothing but what a killed command of ours left. A file is deleted
only if it lies in a claimed directory, has the form of name that Pairwright gives there, and no link leads to it.
Everything else is foreign: it is never moved, overwritten or deleted, but named, and left alone.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import obstore

from pairwright.data.storage.object_store import local_root, open_store, store_errors
from pairwright.errors import StoreError

MAX_NAMES = 3
"""Foreign files that a message names."""
_STAGED = r"(#\w+)?"  # what obstore calls a local file while it writes it


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of directory that Pairwright owns, by the names that it gives to files, relative to the directory."""

    name: str
    """What a person calls it, without an article."""
    leftovers: re.Pattern[str]
    """What a command that was killed before its first commit can leave."""
    deletable: re.Pattern[str]
    """What may be deleted in a directory that is ours: names that only Pairwright gives."""

    @property
    def folders(self) -> set[str]:
        """Names of the folders that it has of its own."""
        return set(re.findall(r"(\w+)/", self.leftovers.pattern))


QUARANTINE = "quarantine"
"""Folder of the records that were refused, in a table and in scores."""
INDEX = "index"
"""Folder of a table's index of ids."""
STAGING = "staging"
"""Folder of a table for files that last one command."""
OLD_NAMES = {QUARANTINE: "refused", STAGING: "landing"}
"""Names of these folders in tables and scores that were made before: still read, vacuumed and erased."""


def _any_of(folder: str, rest: str) -> str:
    """Return a pattern for a file in a folder, under the folder's name or its old one."""
    return f"{folder}/{rest}|{OLD_NAMES[folder]}/{rest}"


_TABLE_FILES = "|".join(
    [
        r"data/[0-9a-f]{32}\.arrow",
        rf"{INDEX}/[0-9a-f]{{32}}\.ids",
        _any_of(QUARANTINE, r"[0-9a-f]{32}\.jsonl"),
        _any_of(STAGING, r"[0-9a-f]{32}/([0-9a-f]{32}\.jsonl|\d+)"),
    ]
)
TABLE = Kind(
    "table",
    leftovers=re.compile(rf"({_TABLE_FILES}|versions/\d{{8,}}\.json){_STAGED}"),
    deletable=re.compile(rf"({_TABLE_FILES}){_STAGED}|versions/\d{{8,}}\.json#\w+"),
)
_REJECTIONS = _any_of(QUARANTINE, r"[0-9a-f]{12}-\d{5}\.jsonl")
_SCORES = re.compile(rf"(scores/[0-9a-f]{{12}}-\d{{5}}\.parquet|{_REJECTIONS}){_STAGED}")
SCORES = Kind("scores", leftovers=_SCORES, deletable=_SCORES)
CHECKPOINT_NAME = re.compile(r"step-\d{8,}-[0-9a-f]{6}")
"""What a run calls its checkpoints; see ``training.loop``."""
RUN = Kind(
    "run",
    leftovers=re.compile(rf"lease/\d{{8}}\.json{_STAGED}|tokens/[0-9a-f]{{32}}/({TABLE.leftovers.pattern})"),
    deletable=re.compile(
        rf"lease/\d{{8}}\.json{_STAGED}"
        rf"|checkpoints(-best)?/(\.[0-9a-f]{{8}}\.partial/)?{CHECKPOINT_NAME.pattern}"
        rf"/(checkpoint\.json|files-\d{{5}}\.json|state/.+)"
    ),
)


@dataclass(frozen=True, slots=True)
class Stored:
    """A file or object in a directory."""

    path: str
    """Relative to the directory."""
    bytes: int
    modified: datetime
    is_link: bool = False


# ---------------------------------------------------------------------------------------------- claiming


def refuse_occupied(url: str, kind: Kind, *, advice: str) -> None:
    """Refuse a directory that is neither empty nor left by a killed command of ours.

    Names that begin with a dot, right below the directory, are nobody's content; they are never touched.

    Raises:
        StoreError: if it is a file, holds anything foreign, a link among that, or cannot be listed.
    """
    root = local_root(url)
    for ancestor in () if root is None else (root, *root.parents):
        if ancestor.is_file():
            raise StoreError(f"{url}: {ancestor.name} is a file; give the {kind.name} a folder of its own")
    foreign: dict[str, None] = {}
    for path in foreign_files(url, kind.leftovers):
        top = path.partition("/")[0]
        foreign[path if top in kind.folders else top] = None
        if len(foreign) > MAX_NAMES:
            break
    if foreign:
        raise StoreError(f"{url}: holds no {kind.name} but {named(list(foreign))}; {advice}")


def foreign_files(url: str, own: re.Pattern[str], *, below: str = "") -> Iterator[str]:
    """Yield the foreign paths in a directory: other names, and links whatever their names."""
    for stored in stored_files(url, below=below):
        is_hidden = stored.path.startswith(".") and not below
        if not is_hidden and (stored.is_link or not own.fullmatch(stored.path)):
            yield stored.path


def stored_files(url: str, *, below: str = "") -> Iterator[Stored]:
    """Yield every file below a folder of a directory, in no order; a link is one entry, and is not followed.

    Args:
        url: of the directory.
        below: folder in it; the whole directory if empty.

    Raises:
        StoreError: if it cannot be listed.
    """
    root = local_root(url)
    if root is not None:
        yield from _local_files(root, below)
        return
    with store_errors(f"{url}/{below}" if below else url):
        for chunk in obstore.list(open_store(url), prefix=below or None):
            for entry in chunk:
                # Empty objects by which some tools mark folders are no content.
                if entry["size"] or "." in entry["path"].rpartition("/")[2]:
                    yield Stored(entry["path"], entry["size"], entry["last_modified"])


def _local_files(root: Path, below: str) -> Iterator[Stored]:
    def refuse(error: OSError) -> None:
        raise StoreError(f"{error.filename}: cannot be read: {error.strerror}")

    top = root / below
    if below and top.is_symlink():
        yield _described(root, top)
        return
    if not top.is_dir():
        return
    for folder, folders, files in os.walk(top, onerror=refuse):
        names = [*files, *(name for name in folders if Path(folder, name).is_symlink())]
        yield from (_described(root, Path(folder, name)) for name in sorted(names))


def _described(root: Path, path: Path) -> Stored:
    try:
        state = path.lstat()
    except FileNotFoundError:  # removed since it was listed
        return Stored(path.relative_to(root).as_posix(), 0, datetime.now(UTC))
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    modified = datetime.fromtimestamp(state.st_mtime, UTC)
    return Stored(path.relative_to(root).as_posix(), state.st_size, modified, is_link=path.is_symlink())


def named(paths: Sequence[str]) -> str:
    """Return paths for a message: the first few."""
    more = " and more" if len(paths) > MAX_NAMES else ""
    return f"{', '.join(paths[:MAX_NAMES])}{more}"


# ---------------------------------------------------------------------------------------------- deleting


def delete_files(url: str, paths: Iterable[str], kind: Kind) -> None:
    """Delete files of a directory that is ours; one that is gone already is no error, and one behind a link stays.

    Args:
        url: of the directory.
        paths: relative to it; each has the form that ``kind`` says may be deleted.
        kind: of the directory.

    Raises:
        StoreError: if one cannot be deleted.
    """
    wanted = list(paths)
    for path in wanted:
        assert kind.deletable.fullmatch(path), path
        assert ".." not in path.split("/"), path
    root = local_root(url)
    with store_errors(url):
        if root is None:
            _delete_objects(url, wanted)
            return
        for path in wanted:
            if not _is_behind_link(root, path):
                (root / path).unlink(missing_ok=True)


def _delete_objects(url: str, paths: list[str]) -> None:
    store = open_store(url)
    for path in paths:
        try:
            obstore.delete(store, path)
        except FileNotFoundError:
            continue


def delete_empty_folders(url: str, folders: Iterable[str]) -> None:
    """Remove local folders below a directory that hold no file any more, those named and what is below them."""
    root = local_root(url)
    for name in () if root is None else folders:
        assert root is not None
        if _is_behind_link(root, name):
            continue
        for folder, _, _ in os.walk(root / name, topdown=False):
            if not any(os.scandir(folder)):
                Path(folder).rmdir()


def delete_folder(url: str, name: str, kind: Kind) -> None:
    """Delete what is ours in a folder of a directory, and the folder itself where nothing else is in it.

    Raises:
        StoreError: if it cannot be read or written.
    """
    stored = list(stored_files(url, below=name))
    delete_files(url, [file.path for file in stored if not file.is_link and kind.deletable.fullmatch(file.path)], kind)
    delete_empty_folders(url, [name])


def _is_behind_link(root: Path, path: str) -> bool:
    """Return whether a path, or a folder on the way to it, is a link: what it means is elsewhere."""
    ancestor = root
    for part in path.split("/"):
        ancestor /= part
        if ancestor.is_symlink():
            return True
    return False
