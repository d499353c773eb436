"""One source: where it is, its file format, its identity, and its limits.

A source is identified by its URI, its size and a hash of its content, so that a second run finds it in the table and
adds nothing. For a remote source that is the store's own etag. A local file has no such thing: what the file system
offers (inode, mtime) changes under ``touch`` and ``cp`` and stays the same under ``cp -p`` of other content over it, so
it is the SHA-256 of the bytes, at the price of one more read (1 GB/s a core, in tasks of the ingestion).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from pairwright.config import CellConfig, SourceLimits
from pairwright.errors import SourceError

DEFAULT_LIMITS = SourceLimits()
DEFAULT_CELLS = CellConfig()

Compression = Literal["gzip", "zstd"]
FileFormat = Literal["lines", "json", "csv", "tsv", "xlsx", "parquet", "arrow"]
"""The file format, by the name; ``json`` is JSON Lines or one array, which only the content says."""

TEXT_FORMATS: dict[str, FileFormat] = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
}
TABLE_FORMATS: dict[str, FileFormat] = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
}
TEXT_CELLS = frozenset({"csv", "tsv", "xlsx"})
"""File formats whose cells are text, also where they hold a list or a number."""
COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A staged file of JSON Lines: some rows of an external source."""

    uri: str
    size: int
    etag: str | None
    rows: int


@dataclass(frozen=True, slots=True)
class SourceRef:
    """One source as it was when it was listed; ``etag`` is None for a local file until it was hashed."""

    uri: str
    """Absolute path, URL of an object, or connection URL of an external source, without credentials."""
    size: int
    """Bytes as stored."""
    etag: str | None
    staged_files: tuple[StagedFile, ...] | None = None
    """Where its rows are staged, in order, if it is an external source."""
    newlines: tuple[int, ...] | None = None
    """Newlines in each block of 64 MB that was hashed."""
    limits: SourceLimits = DEFAULT_LIMITS
    """Limits on its size and shape."""
    cells: CellConfig = DEFAULT_CELLS
    """How its cells are written, if it is a CSV file or a spreadsheet."""

    @property
    def is_local(self) -> bool:
        """Whether the source lies in a file system of this machine."""
        return "://" not in self.uri

    @property
    def compression(self) -> Compression | None:
        """The compression that the name says, or None."""
        return COMPRESSIONS.get(PurePosixPath(self.uri).suffix.lower()) if self.staged_files is None else None

    @property
    def file_format(self) -> FileFormat:
        """The file format that its name says."""
        if self.staged_files is not None:
            return "lines"
        file_format = file_format_of(self.uri)
        assert file_format is not None, self.uri
        return file_format


def file_state(source: SourceRef) -> tuple[int, ...]:
    """Return the file state of a local source, to detect a change while it is read; nothing for a remote one.

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


def with_checksum(source: SourceRef, etag: str, newlines: Sequence[int]) -> SourceRef:
    """Return the source with the hash of its content and the newlines of its blocks."""
    return replace(source, etag=etag, newlines=tuple(newlines))


def split_url(url: str) -> tuple[str, str]:
    """Return bucket URL and key of an object's URL."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key


def file_format_of(name: str) -> FileFormat | None:
    """Return the file format that a file's name says, or None where it says none."""
    path = PurePosixPath(name.lower())
    if path.suffix in COMPRESSIONS:
        return TEXT_FORMATS.get(PurePosixPath(path.stem).suffix)
    return TEXT_FORMATS.get(path.suffix) or TABLE_FORMATS.get(path.suffix)
