"""What a user names (files, directories, patterns, object-store URLs) -> the sources to read, with their identity.

A source is known by its URI, its size and a tag of its content, so that a second run finds it in the table and adds
nothing. A remote source's tag is the store's own etag. A local file has no such thing: what the file system offers
(inode, mtime) changes under ``touch`` and ``cp`` and stays the same under ``cp -p`` of other content over it, so the
tag is the SHA-256 of the bytes, at the price of one more read (1 GB/s a core, in tasks of the ingestion).
"""

import fnmatch
import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import obstore
from obstore.exceptions import BaseError

from pairwright.data.locations import absolute_url, open_store
from pairwright.errors import SourceError, StoreError

Compression = Literal["gzip", "zstd"]

LINE_ENDINGS = (".jsonl", ".ndjson", ".json")
COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
EXPECTED = "expected JSON Lines: .jsonl, .ndjson or .json, plain or compressed as .gz or .zst"
_WILDCARD = re.compile(r"[*?\[]")
READ_BYTES = 2 * 1024 * 1024
"""What is read, and so parsed, at a time: 1 to 4 MB stay in the cache, 64 MB at a time halve the rate of parsing."""


@dataclass(frozen=True, slots=True)
class SourceRef:
    """One source as it was when it was listed; ``etag`` is None for a local file until it was hashed."""

    uri: str
    """Absolute path, or URL of an object."""
    size: int
    """Bytes as stored."""
    etag: str | None

    @property
    def is_local(self) -> bool:
        """Whether the source lies in a file system of this machine."""
        return "://" not in self.uri

    @property
    def compression(self) -> Compression | None:
        """The compression that the name says, or None."""
        return COMPRESSIONS.get(PurePosixPath(self.uri).suffix.lower())


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

    In a directory, names that start with ``.`` or ``_`` are no data (``_SUCCESS``); other files that do not look like
    JSON Lines are ignored and listed as such. A file named by itself must look like JSON Lines.

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
        raise SourceError("\n".join(problems))
    return Listing(list(sources.values()), ignored)


def content_tag(source: SourceRef) -> str:
    """Return the tag of a local source's content: its SHA-256.

    Raises:
        SourceError: if it cannot be read, or is shorter than when it was listed.
    """
    digest = hashlib.sha256()
    for block in read_blocks(source, 0, source.size):
        digest.update(block)
    return f"sha256:{digest.hexdigest()}"


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


def with_etag(source: SourceRef, etag: str) -> SourceRef:
    """Return the source with the tag of its content."""
    return replace(source, etag=etag)


def read_blocks(source: SourceRef, start: int, end: int) -> Iterator[bytes]:
    """Yield the stored bytes in [start, end), in blocks of about 2 MB; what was added since the listing is not read.

    Raises:
        SourceError: if the source cannot be read or has changed since it was listed.
    """
    position = start
    try:
        for block in _local_blocks(source, start, end) if source.is_local else _remote_blocks(source, start, end):
            position += len(block)
            yield block
    except FileNotFoundError:
        raise SourceError(f"{source.uri}: is gone since it was listed; run the command again") from None
    except (OSError, BaseError) as error:
        raise SourceError(f"{source.uri}: cannot be read: {_first_line(error)}") from None
    if position < end:
        raise SourceError(
            f"{source.uri}: ended at byte {position:,} of {source.size:,}: something is changing it; "
            "ingest it when it is finished"
        )


# ------------------------------------------------------------------------------------------------ local


def _is_local(name: str) -> bool:
    return "://" not in name or name.startswith("file://")


def _find_local(name: str) -> Listing:
    path = Path(absolute_url(name))
    if path.is_dir():
        return _checked(name, "directory", _walk(path), _local_source)
    if not path.exists():
        if not _WILDCARD.search(name):
            raise SourceError(f"{name}: no such file or directory")
        found = glob.iglob(str(path), recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
        return _checked(name, "pattern", sorted(match for match in found if Path(match).is_file()), _local_source)
    _check_name(name)
    return Listing([_local_source(str(path))], [])


def _walk(directory: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(directory):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (str(Path(folder) / name) for name in sorted(files) if not _is_hidden(name))


def _local_source(path: str) -> SourceRef:
    try:
        return SourceRef(uri=path, size=Path(path).stat().st_size, etag=None)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from None


def _local_blocks(source: SourceRef, start: int, end: int) -> Iterator[bytes]:
    with Path(source.uri).open("rb") as file:
        file.seek(start)
        left = end - start
        while left > 0 and (block := file.read(min(READ_BYTES, left))):
            left -= len(block)
            yield block


# ----------------------------------------------------------------------------------------------- remote


def _find_remote(url: str) -> Listing:
    try:
        return _list_remote(url)
    except StoreError as error:
        raise SourceError(str(error)) from None
    except (OSError, BaseError, ValueError) as error:
        raise SourceError(f"{url}: cannot be listed: {_first_line(error)}") from None


def _list_remote(url: str) -> Listing:
    root, key = _split_url(url)
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
        if (fnmatch.fnmatchcase(item["path"], key) if wildcard else not _is_hidden(item["path"][len(prefix) :]))
    }
    return _checked(url, "pattern" if wildcard else "directory", sorted(found), found.__getitem__)


def _remote_blocks(source: SourceRef, start: int, end: int) -> Iterator[bytes]:
    if start >= end:
        return
    root, key = _split_url(source.uri)
    try:
        options: obstore.GetOptions = {"range": (start, end), "if_match": source.etag}
        for block in obstore.get(open_store(root), key, options=options).stream(min_chunk_size=READ_BYTES):
            yield bytes(block)
    except StoreError as error:
        raise SourceError(str(error)) from None
    except obstore.exceptions.PreconditionError:
        raise SourceError(f"{source.uri}: has changed since it was listed; run the command again") from None


def _split_url(url: str) -> tuple[str, str]:
    """Return bucket URL and key of an object's URL."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key


def _is_hidden(key: str) -> bool:
    return any(part.startswith((".", "_")) for part in key.split("/"))


# -------------------------------------------------------------------------------------------------- both


def _looks_like_lines(name: str) -> bool:
    path = PurePosixPath(name.lower())
    return (PurePosixPath(path.stem) if path.suffix in COMPRESSIONS else path).suffix in LINE_ENDINGS


def _check_name(name: str) -> None:
    if not _looks_like_lines(name):
        raise SourceError(f"{name}: unknown kind of file; {EXPECTED}")


def _checked(name: str, what: str, places: Iterable[str], describe: Callable[[str], SourceRef]) -> Listing:
    every = list(places)
    sources = [describe(place) for place in every if _looks_like_lines(place)]
    if not sources:
        held = f"holds {len(every)} files, none of them JSON Lines" if every else "holds no files"
        held = held if what == "directory" else held.replace("holds", "matches")
        raise SourceError(f"{name}: {what} {held}; {EXPECTED}")
    return Listing(sources, [place for place in every if not _looks_like_lines(place)])


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
