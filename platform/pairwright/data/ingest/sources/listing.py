"""Lists the sources that a user names by files, directories, patterns and URLs, and what was ignored there."""

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import msgspec
import obstore
from obstore.exceptions import BaseError

from pairwright.addresses import shown_address
from pairwright.config import CellConfig, SourceLimits
from pairwright.data.ingest.sources.file_search import (
    NO_FILE,
    NO_UTF8,
    WILDCARD,
    Found,
    files_below,
    files_matching,
    is_hidden,
    is_utf8,
    objects_at,
    shown,
)
from pairwright.data.ingest.sources.foreign_files import file_head, foreign_file_advice
from pairwright.data.ingest.sources.source import DEFAULT_CELLS, DEFAULT_LIMITS, SourceRef, file_format_of, split_url
from pairwright.data.storage.object_store import absolute_url, first_line, open_store
from pairwright.data.storage.ownership import OLD_NAMES
from pairwright.data.table.manifest import Manifest
from pairwright.errors import SourceError, StoreError, one_line
from pairwright.records import UNREADABLE_JSON
from pairwright.suggestions import did_you_mean_path
from pairwright.terminal import counted

EXPECTED = (
    "expected JSON Lines (.jsonl, .ndjson, .json), a JSON array (.json), .csv or .tsv, plain or compressed as .gz or "
    ".zst; or .xlsx, .parquet, .arrow, .feather or .ipc"
)
_MARKS = {
    re.compile(r"^(.*?/?)_delta_log/"): "a Delta table, whose files hold removed rows too; name it as delta+{url}",
    re.compile(r"^(.*?/?)metadata/[^/]+\.metadata\.json$"): "an Iceberg table, whose files hold removed rows too; name "
    "it as iceberg://CATALOG/NAMESPACE.TABLE",
    re.compile(r"^(.*?/?)dataset_info\.json$"): "a saved Hugging Face dataset; name it as hf+{url}",
}
# LLaMA-Factory calls its list of data sets by the same name; keys of this one are fields of `datasets.DatasetInfo`.
_DATASET_INFO = "dataset_info.json"
_DATASET_INFO_KEYS = frozenset(
    {"builder_name", "citation", "config_name", "dataset_name", "description", "features", "homepage", "license"}
    | {"splits", "version"}
)
REGISTRY = "another tool's list of data sets (LLaMA-Factory's), no data"
TABLE_FOLDERS = frozenset({"data", "versions", *OLD_NAMES, *OLD_NAMES.values()})
_OWN_VERSION = re.compile(r"^(.*?/?)versions/(\d{8,})\.json$", re.DOTALL)
MAX_MANIFEST_BYTES = 256 * 1024 * 1024
NO_SOURCE = "no source by its name"


@dataclass(frozen=True, slots=True)
class Listing:
    """The sources that names stand for, and what was ignored or could not be listed."""

    sources: list[SourceRef]
    """In the order they were named, those of one directory or pattern sorted, none twice."""
    ignored: dict[str, str] = field(default_factory=dict)
    """What was ignored in named directories, and why."""
    failed: dict[str, str] = field(default_factory=dict)
    """Parts of named directories that cannot be listed, and why."""


def list_sources(
    names: Sequence[str], limits: SourceLimits = DEFAULT_LIMITS, cells: CellConfig = DEFAULT_CELLS
) -> list[SourceRef]:
    """Return the sources that files, directories, patterns and URLs name, where all of each could be listed.

    Raises:
        SourceError: as ``find_sources``, and if a part of a directory cannot be listed.
    """
    listing = find_sources(names, limits, cells)
    if listing.failed:
        raise SourceError([f"{path}: {reason}" for path, reason in listing.failed.items()])
    return listing.sources


def find_sources(
    names: Sequence[str], limits: SourceLimits = DEFAULT_LIMITS, cells: CellConfig = DEFAULT_CELLS
) -> Listing:
    """Return the sources that files, directories (with what is below them), patterns and URLs name.

    In a directory, names that start with ``.`` or ``_`` are no data (``_SUCCESS``); other files that are no sources by
    their names, or belong to a table of ours, are ignored and listed as such, and so are links that lead out of it. A
    file named by itself must be a source, and a link named by itself is followed.

    Args:
        names: as a user gives them.
        limits: what each source may cost.
        cells: how CSV files and spreadsheets are written.

    Raises:
        SourceError: if anything named is missing, holds no source, or cannot be read; names all of them.
    """
    every = Listing([])
    sources: dict[str, SourceRef] = {}
    problems: list[str] = [] if names else ["no source was named; name files, directories, patterns or URLs"]
    for name in names:
        try:
            found = _find_local(name) if _is_local(name) else _find_remote(name)
        except SourceError as error:
            problems.append(str(error))
            continue
        for source in found.sources:
            sources.setdefault(source.uri, replace(source, limits=limits, cells=cells))
        every.ignored.update(found.ignored)
        every.failed.update(found.failed)
    if problems:
        raise SourceError(problems)
    return replace(every, sources=list(sources.values()))


# ------------------------------------------------------------------------------------------------ local


def _is_local(name: str) -> bool:
    return "://" not in name or name.startswith("file://")


def _find_local(name: str) -> Listing:
    if not is_utf8(name):
        raise SourceError(f"{shown(name)}: {NO_UTF8}")
    try:
        path = Path(absolute_url(name))
    except StoreError as error:
        raise SourceError(str(error)) from None
    if path.is_dir():
        return _checked(name, "directory", files_below(path), _read_local)
    if not path.exists():
        if not WILDCARD.search(name):
            raise SourceError(f"{shown_address(name)}: no such file or directory{did_you_mean_path(name)}")
        return _checked(name, "pattern", files_matching(str(path)), _read_local)
    _check_name(name, str(path), file_head(str(path)) if path.is_file() else b"")
    if not path.is_file():
        raise SourceError(f"{name}: {NO_FILE}, expected a file, a directory or a pattern")
    try:
        return Listing([SourceRef(uri=str(path), size=path.stat().st_size, etag=None)])
    except OSError as error:
        raise SourceError(f"{name}: cannot be read: {error.strerror}") from None


def _read_local(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(MAX_MANIFEST_BYTES)


# ----------------------------------------------------------------------------------------------- remote


def _find_remote(url: str) -> Listing:
    try:
        absolute_url(url)  # refuses what an address must not hold, the whole of it
        return _list_remote(url)
    except StoreError as error:
        raise SourceError(str(error)) from None
    except (OSError, BaseError, ValueError) as error:
        raise SourceError(f"{url}: cannot be listed: {one_line(first_line(error))}") from None


def _list_remote(url: str) -> Listing:
    root, key = split_url(url)
    store = open_store(root)
    wildcard = WILDCARD.search(key)
    if key and not key.endswith("/"):
        try:
            head = obstore.head(store, key)
        except FileNotFoundError:
            if not wildcard and PurePosixPath(key).suffix:
                raise SourceError(f"{url}: no such object") from None
        else:
            _check_name(url, url)
            return Listing([SourceRef(f"{root}/{key}", head["size"], head["e_tag"])])
    prefix = key[: wildcard.start()].rpartition("/")[0] if wildcard else key.rstrip("/")
    found = objects_at(store, root, prefix)
    files = [file for file in found.files if _is_asked_for(file.name, key, prefix, is_pattern=bool(wildcard))]
    files = sorted((replace(file, name=f"{root}/{file.name}") for file in files), key=lambda file: file.name)

    def read(name: str) -> bytes:
        return bytes(obstore.get(store, name.removeprefix(f"{root}/")).bytes())

    return _checked(url, "pattern" if wildcard else "directory", replace(found, files=files), read)


def _is_asked_for(key: str, asked: str, prefix: str, *, is_pattern: bool) -> bool:
    if is_pattern:
        return fnmatch.fnmatchcase(key, asked)
    below = key[len(prefix) :]
    return not any(map(is_hidden, below.split("/"))) or "_delta_log/" in below


# -------------------------------------------------------------------------------------------------- both


def _check_name(name: str, path: str, head: bytes = b"") -> None:
    if file_format_of(name) is None:
        advice = foreign_file_advice(path, head)
        raise SourceError(f"{name}: is {advice}" if advice else f"{name}: unknown kind of file; {EXPECTED}")


def _checked(name: str, what: str, found: Found, read: Callable[[str], bytes]) -> Listing:
    """Return the sources among the files of a directory or pattern.

    Args:
        name: as the user gave it.
        what: directory or pattern.
        found: what is there.
        read: returns the content of a file.
    """
    paths = [file.name for file in found.files]
    registries = {path for path in paths if path.rpartition("/")[2] == _DATASET_INFO and _is_registry(read, path)}
    if what == "directory":
        _refuse_foreign_tables([path for path in paths if path not in registries])
    own = _own_tables(paths, read)
    is_source = {
        path: file_format_of(path) is not None and not _is_part_of(path, own) and path not in registries
        for path in paths
    }
    sources = [SourceRef(file.name, file.size, file.etag) for file in found.files if is_source[file.name]]
    if not sources and not found.failed:
        num_files = len(paths) + len(found.ignored)
        held = f"holds {counted(num_files, 'file')}, none of them a source" if num_files else "holds no files"
        held = held if what == "directory" else held.replace("holds", "matches")
        raise SourceError(f"{name}: {what} {held}; {EXPECTED}")
    others = {path: "part of a table" if _is_part_of(path, own) else _why_not(path) for path in paths}
    others |= dict.fromkeys(registries, REGISTRY)
    ignored = {path: reason for path, reason in others.items() if not is_source[path]}
    return Listing(sources, ignored | found.ignored, found.failed)


def _why_not(path: str) -> str:
    advice = foreign_file_advice(path, file_head(path) if "://" not in path else b"")
    return NO_SOURCE if advice is None else f"it is {advice}"


def _own_tables(paths: Sequence[str], read: Callable[[str], bytes]) -> set[str]:
    """Return the roots of the tables of ours among some files: there a version is a manifest, not by its name alone."""
    roots: set[str] = set()
    for path in reversed(paths):
        match = _OWN_VERSION.match(path)
        if match and match[1] not in roots and _is_manifest(read, path, int(match[2])):
            roots.add(match[1])
    return roots


def _is_manifest(read: Callable[[str], bytes], path: str, version: int) -> bool:
    try:
        return msgspec.json.decode(read(path), type=Manifest).version == version
    except (*UNREADABLE_JSON, OSError, BaseError):
        return False


def _is_registry(read: Callable[[str], bytes], path: str) -> bool:
    """Return whether a ``dataset_info.json`` is an object, and nothing that `datasets` writes of a saved dataset."""
    try:
        found = msgspec.json.decode(read(path), type=dict[str, msgspec.Raw])
    except (*UNREADABLE_JSON, OSError, BaseError):
        return False
    return bool(found) and not found.keys() & _DATASET_INFO_KEYS


def _refuse_foreign_tables(paths: Sequence[str]) -> None:
    """Refuse a directory that holds a table of another system: which of its files count, only its own log says."""
    for path in paths:
        for mark, meaning in _MARKS.items():
            if match := mark.match(path):
                url = match[1].rstrip("/")
                raise SourceError(f"{url}: is {meaning.format(url=url if '://' in url else f'file://{url}')}")


def _is_part_of(path: str, roots: set[str]) -> bool:
    """Return whether a file lies in the folders of one of the tables of ours at ``roots``."""
    return any(path.startswith(root) and path[len(root) :].partition("/")[0] in TABLE_FOLDERS for root in roots)
