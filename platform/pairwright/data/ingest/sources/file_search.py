"""Finds the files in a folder, a pattern or an object-store prefix, and says what was skipped there and why.

Nothing odd in a folder stops the rest of it: names that are not UTF-8, pipes, links that lead elsewhere, folders that
cannot be opened, keys that the store's client refuses.
"""

import glob
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import InvalidPathError

from pairwright.data.storage.object_store import ObjectStore
from pairwright.errors import one_line

WILDCARD = re.compile(r"[*?\[]")
NO_UTF8 = "its name is not UTF-8; rename it"
NO_FILE = "it is no regular file"
LEADS_OUT = "a link that leads out of the folder; name it by itself to read it"
LINKED_FOLDER = "a link to a folder; name it by itself to read it"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One file or object."""

    name: str
    """Absolute path, or key."""
    size: int
    etag: str | None


@dataclass(frozen=True, slots=True)
class Found:
    """The files that were found, and what was skipped."""

    files: list[FoundFile] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    """What was skipped, and why."""
    failed: dict[str, str] = field(default_factory=dict)
    """Folders or prefixes that cannot be listed, and why."""


def shown(path: str) -> str:
    r"""Return a path as text; a byte that is not UTF-8 stands as ``\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_utf8(path: str) -> bool:
    """Return whether a path can be written down; what came from a file system may hold any bytes."""
    return shown(path) == path


def is_hidden(name: str) -> bool:
    """Return whether a name is one that folders of data hold beside data, such as ``_SUCCESS``."""
    return name.startswith((".", "_"))


def files_below(directory: Path) -> Found:
    """Return the files of a folder and all folders below it, sorted in each."""
    found = Found()
    outermost = os.path.realpath(directory)

    def cannot_list(error: OSError) -> None:
        found.failed[shown(str(error.filename))] = f"cannot be listed: {error.strerror}"

    for folder, folders, files in os.walk(directory, onerror=cannot_list):
        if "_delta_log" in folders:
            found.files.append(FoundFile(str(Path(folder) / "_delta_log" / "0"), 0, None))
        kept = []
        for name in sorted(name for name in folders if not is_hidden(name)):
            path = str(Path(folder) / name)
            if Path(path).is_symlink():
                found.ignored[shown(path)] = LINKED_FOLDER
            else:
                kept.append(name)
        folders[:] = kept
        for name in sorted(name for name in files if not is_hidden(name)):
            _add(found, str(Path(folder) / name), outermost)
    return found


def files_matching(pattern: str) -> Found:
    """Return the files that an absolute pattern matches, sorted; ``**`` goes into folders and not through links."""
    found = Found()
    before = pattern[: match.start()] if (match := WILDCARD.search(pattern)) else pattern
    outermost = os.path.realpath(before.rpartition("/")[0] or "/")
    for path in sorted(_recursive(pattern) if "**" in Path(pattern).parts else glob.iglob(pattern)):  # noqa: PTH207
        if not Path(path).is_dir():
            _add(found, path, outermost)
    return found


def _recursive(pattern: str) -> Iterator[str]:
    """Yield what a pattern with ``**`` matches; ``glob`` would follow links, also those in a circle."""
    path = Path(pattern)
    steps = path.relative_to(path.anchor)
    steps = steps / "*" if steps.name == "**" else steps
    named = {part for part in steps.parts if part.startswith(".")}
    for match in Path(path.anchor).glob(str(steps)):
        if not any(part.startswith(".") and part not in named for part in match.parts):
            yield str(match)


def _add(found: Found, path: str, outermost: str) -> None:
    """Add one file, or the reason why it is skipped."""
    if not is_utf8(path):
        found.ignored[shown(path)] = NO_UTF8
        return
    try:
        state = Path(path).stat()
    except OSError as error:
        found.ignored[path] = f"cannot be looked at: {error.strerror}"
        return
    if not stat.S_ISREG(state.st_mode):
        found.ignored[path] = NO_FILE
    elif not Path(os.path.realpath(path)).is_relative_to(outermost):
        found.ignored[path] = LEADS_OUT
    else:
        found.files.append(FoundFile(path, state.st_size, None))


# ----------------------------------------------------------------------------------------------- objects


def objects_at(store: ObjectStore, root: str, prefix: str) -> Found:
    """Return the objects below a prefix, or all where it is empty.

    The client refuses a whole listing for one key with a control character, ``..`` or ``//`` in it. Then each level is
    listed by itself, so that only the level with such a key fails.

    Args:
        store: at the bucket.
        root: URL of the bucket.
        prefix: keys down to a slash.
    """
    try:
        listed = [entry for chunk in obstore.list(store, prefix=prefix or None) for entry in chunk]
        return Found([_object(entry) for entry in listed])
    except InvalidPathError:
        pass
    found = Found()
    waiting = [prefix]
    while waiting:
        level = waiting.pop()
        try:
            listing = obstore.list_with_delimiter(store, prefix=level or None)
        except InvalidPathError as error:
            found.failed[f"{root}/{level}"] = _refused_key(error)
            continue
        found.files.extend(map(_object, listing["objects"]))
        waiting += listing["common_prefixes"]
    return found


def _object(entry: Mapping[str, Any]) -> FoundFile:
    return FoundFile(entry["path"], entry["size"], entry["e_tag"])


def _refused_key(error: Exception) -> str:
    what = one_line(str(error).partition("\n\n")[0].removeprefix("Encountered object with invalid path: "))
    return f"cannot be listed: {what}; rename or remove that key, or name the other objects one by one"
