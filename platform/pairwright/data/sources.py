"""What a user names (files, directories, patterns, object-store URLs) -> the sources to read, with their identity.

A source is known by its URI, its size and a tag of its content, so that a second run finds it in the table and adds
nothing. A remote source's tag is the store's own etag. A local file has no such thing: what the file system offers
(inode, mtime) changes under ``touch`` and ``cp`` and stays the same under ``cp -p`` of other content over it, so the
tag is the SHA-256 of the bytes, at the price of one more read (1 GB/s a core, in tasks of the ingestion).
"""

import fnmatch
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import obstore
from obstore.exceptions import BaseError

from pairwright.addresses import shown_address
from pairwright.data.locations import absolute_url, first_line, open_store
from pairwright.errors import SourceError, StoreError

Compression = Literal["gzip", "zstd"]
Layout = Literal["lines", "json", "csv", "tsv", "parquet", "arrow"]
"""How a source keeps its records, by its name; ``json`` is JSON Lines or one array, which only its content says."""

TEXT_LAYOUTS: dict[str, Layout] = {".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".tsv": "tsv"}
TABLE_LAYOUTS: dict[str, Layout] = {".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow"}
COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
EXPECTED = (
    "expected JSON Lines (.jsonl, .ndjson, .json), a JSON array (.json), .csv or .tsv, plain or compressed as .gz or "
    ".zst; or .parquet, .arrow, .feather or .ipc"
)
_MARKS = {
    re.compile(r"^(.*?/?)_delta_log/"): "a Delta table, whose files hold removed rows too; name it as delta+{url}",
    re.compile(r"^(.*?/?)metadata/[^/]+\.metadata\.json$"): "an Iceberg table, whose files hold removed rows too; name "
    "it as iceberg://CATALOG/NAMESPACE.TABLE",
    re.compile(r"^(.*?/?)dataset_info\.json$"): "a saved Hugging Face dataset; name it as hf+{url}",
}
TABLE_FOLDERS = frozenset({"data", "landing", "refused", "versions"})
_OWN_VERSION = re.compile(r"^(.*?/?)versions/\d{8,}\.json$")
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Shard:
    """JSON Lines that were landed of a source that is no file: a part of its rows."""

    uri: str
    size: int
    etag: str | None
    rows: int


@dataclass(frozen=True, slots=True)
class SourceRef:
    """One source as it was when it was listed; ``etag`` is None for a local file until it was hashed."""

    uri: str
    """Absolute path, URL of an object, or address of what was landed, without credentials."""
    size: int
    """Bytes as stored."""
    etag: str | None
    shards: tuple[Shard, ...] | None = None
    """Where its rows lie, in order, if it is no file and was landed."""
    newlines: tuple[int, ...] | None = None
    """Newlines in each block of 64 MB that was hashed."""

    @property
    def is_local(self) -> bool:
        """Whether the source lies in a file system of this machine."""
        return "://" not in self.uri

    @property
    def compression(self) -> Compression | None:
        """The compression that the name says, or None."""
        return COMPRESSIONS.get(PurePosixPath(self.uri).suffix.lower()) if self.shards is None else None

    @property
    def layout(self) -> Layout:
        """How it keeps its records, as far as its name says."""
        if self.shards is not None:
            return "lines"
        layout = _layout_of(self.uri)
        assert layout is not None, self.uri
        return layout


@dataclass(frozen=True, slots=True)
class Listing:
    """What the named places hold."""

    sources: list[SourceRef]
    """In the order they were named, those of one directory or pattern sorted, none twice."""
    ignored: list[str]
    """Files in named directories that are no sources by their name."""


def list_sources(names: Sequence[str]) -> list[SourceRef]:
    """Return the sources that files, directories, patterns and URLs name; raises what ``find_sources`` raises."""
    return find_sources(names).sources


def find_sources(names: Sequence[str]) -> Listing:
    """Return the sources that files, directories (with what is below them), patterns and URLs name.

    In a directory, names that start with ``.`` or ``_`` are no data (``_SUCCESS``); other files that are no sources by
    their names, or belong to a table of ours, are ignored and listed as such. A file named by itself must be a source.

    Raises:
        SourceError: if anything named is missing, holds no source, or cannot be read; names all of them.
    """
    sources: dict[str, SourceRef] = {}
    ignored: list[str] = []
    problems: list[str] = [] if names else ["no source was named; name files, directories, patterns or URLs"]
    for name in names:
        try:
            found = _find_local(name) if _is_local(name) else _find_remote(name)
        except SourceError as error:
            problems.append(str(error))
            continue
        for source in found.sources:
            sources.setdefault(source.uri, source)
        ignored += [path for path in found.ignored if path not in ignored]
    if problems:
        raise SourceError(problems)
    return Listing(list(sources.values()), ignored)


def file_state(source: SourceRef) -> tuple[int, ...]:
    """Return what a file system says of a local source, to notice a change while it is read; nothing for a remote one.

    Remote reads are tied to the etag instead.

    Raises:
        SourceError: if it is gone.
    """
    if not source.is_local:
        return ()
    try:
        state = Path(source.uri).stat()
    except OSError as error:
        raise SourceError(f"{source.uri}: cannot be read: {error.strerror}") from None
    return state.st_ino, state.st_size, state.st_mtime_ns


def surveyed(source: SourceRef, etag: str, newlines: Sequence[int]) -> SourceRef:
    """Return the source with the tag of its content and the newlines of its blocks."""
    return replace(source, etag=etag, newlines=tuple(newlines))


# ------------------------------------------------------------------------------------------------ local


def _is_local(name: str) -> bool:
    return "://" not in name or name.startswith("file://")


def _find_local(name: str) -> Listing:
    try:
        path = Path(absolute_url(name))
    except StoreError as error:
        raise SourceError(str(error)) from None
    if path.is_dir():
        return _checked(name, "directory", _walk(path), _local_source)
    if not path.exists():
        if not _WILDCARD.search(name):
            raise SourceError(f"{shown_address(name)}: no such file or directory")
        found = glob.iglob(str(path), recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
        return _checked(name, "pattern", sorted(match for match in found if Path(match).is_file()), _local_source)
    _check_name(name)
    return Listing([_local_source(str(path))], [])


def _walk(directory: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(directory):
        if "_delta_log" in folders:
            yield str(Path(folder) / "_delta_log" / "0")
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (str(Path(folder) / name) for name in sorted(files) if not _is_hidden(name))


def _local_source(path: str) -> SourceRef:
    try:
        return SourceRef(uri=path, size=Path(path).stat().st_size, etag=None)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from None


# ----------------------------------------------------------------------------------------------- remote


def _find_remote(url: str) -> Listing:
    try:
        absolute_url(url)  # refuses what must not stand in an address, the whole of it
        return _list_remote(url)
    except StoreError as error:
        raise SourceError(str(error)) from None
    except (OSError, BaseError, ValueError) as error:
        raise SourceError(f"{url}: cannot be listed: {first_line(error)}") from None


def _list_remote(url: str) -> Listing:
    root, key = split_url(url)
    store = open_store(root)
    wildcard = _WILDCARD.search(key)
    if key and not key.endswith("/"):
        try:
            head = obstore.head(store, key)
        except FileNotFoundError:
            if not wildcard and PurePosixPath(key).suffix:
                raise SourceError(f"{url}: no such object") from None
        else:
            _check_name(url)
            return Listing([SourceRef(f"{root}/{key}", head["size"], head["e_tag"])], [])
    prefix = key[: wildcard.start()].rpartition("/")[0] if wildcard else key.rstrip("/")
    found = {
        f"{root}/{item['path']}": SourceRef(f"{root}/{item['path']}", item["size"], item["e_tag"])
        for chunk in obstore.list(store, prefix=prefix or None)
        for item in chunk
        if (fnmatch.fnmatchcase(item["path"], key) if wildcard else _may_be_data(item["path"][len(prefix) :]))
    }
    return _checked(url, "pattern" if wildcard else "directory", sorted(found), found.__getitem__)


def split_url(url: str) -> tuple[str, str]:
    """Return bucket URL and key of an object's URL."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key


def _is_hidden(key: str) -> bool:
    return any(part.startswith((".", "_")) for part in key.split("/"))


# -------------------------------------------------------------------------------------------------- both


def _layout_of(name: str) -> Layout | None:
    path = PurePosixPath(name.lower())
    if path.suffix in COMPRESSIONS:
        return TEXT_LAYOUTS.get(PurePosixPath(path.stem).suffix)
    return TEXT_LAYOUTS.get(path.suffix) or TABLE_LAYOUTS.get(path.suffix)


def _may_be_data(key: str) -> bool:
    return not _is_hidden(key) or "_delta_log/" in key


def _check_name(name: str) -> None:
    if _layout_of(name) is None:
        raise SourceError(f"{name}: unknown kind of file; {EXPECTED}")


def _checked(name: str, what: str, places: Iterable[str], describe: Callable[[str], SourceRef]) -> Listing:
    every = list(places)
    if what == "directory":
        _refuse_foreign_tables(every)
    own = {match[1] for match in map(_OWN_VERSION.match, every) if match}
    is_source = {place: _layout_of(place) is not None and not _is_part_of(place, own) for place in every}
    sources = [describe(place) for place in every if is_source[place]]
    if not sources:
        held = f"holds {len(every)} files, none of them a source" if every else "holds no files"
        held = held if what == "directory" else held.replace("holds", "matches")
        raise SourceError(f"{name}: {what} {held}; {EXPECTED}")
    return Listing(sources, [place for place in every if not is_source[place]])


def _refuse_foreign_tables(places: Sequence[str]) -> None:
    """Refuse a directory that holds a table of another system: which of its files count, only its own log says."""
    for place in places:
        for mark, meaning in _MARKS.items():
            if match := mark.match(place):
                url = match[1].rstrip("/")
                raise SourceError(f"{url}: is {meaning.format(url=url if '://' in url else f'file://{url}')}")


def _is_part_of(place: str, roots: set[str]) -> bool:
    """Return whether a file lies in the folders of one of the tables of ours at ``roots``."""
    return any(place.startswith(root) and place[len(root) :].partition("/")[0] in TABLE_FOLDERS for root in roots)
