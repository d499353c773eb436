"""The manifest of a table version: its files, totals, sources and lineage. Plain values in and out.

A manifest lists every file of its version, so that reading one needs no other; the price is about 200 bytes a file
in each. Its digest is over content alone, so that what is made from a table can tell whether it changed.
"""

import hashlib
from typing import Any

import msgspec

FORMAT_VERSION = 1


class DataFile(msgspec.Struct, frozen=True):
    """One immutable file of a table; ``path`` is relative to the table's URL."""

    path: str
    rows: int
    bytes: int
    sha256: str


class IndexFile(msgspec.Struct, frozen=True):
    """One immutable file of an id index: sorted hashes of ids in blocks, behind a directory of the blocks' checksums.

    ``directory_sha256`` is that of the directory alone, so that a search verifies what it reads without reading all.
    """

    path: str
    rows: int
    bytes: int
    directory_sha256: str


class IdIndex(msgspec.Struct, frozen=True):
    """Which of some data files may hold an id: hashes of all their ids, each with the number of its file.

    ``data_files`` are names without folder and ending, and may include files that the version has no more.
    ``files`` hold equal parts of the range of hashes, in order.
    """

    data_files: list[str]
    files: list[IndexFile]

    @property
    def rows(self) -> int:
        """How many ids it holds."""
        return sum(file.rows for file in self.files)


class Source(msgspec.Struct, frozen=True):
    """One source of a table, and what became of its lines.

    ``blank`` of its lines hold no record; the others hold ``accepted + refused`` judgements, at least one each, in the
    layout that ``format`` names (empty where none was recognised, and native was tried). ``erased`` counts the
    judgements that were accepted and then erased by `forget`; ``duplicates`` those of the refused that say what
    another annotation says word for word, under the same id.
    """

    uri: str
    size: int
    etag: str | None
    lines: int
    accepted: int
    refused: int
    blank: int = 0
    format: str = ""
    erased: int = 0
    duplicates: int = 0

    @property
    def identity(self) -> tuple[int, str | None]:
        """What tells one content under this name from another."""
        return self.size, self.etag

    @property
    def is_taken(self) -> bool:
        """Whether anything of it was ever accepted: then it is not read again, even where `forget` took all of it."""
        return self.accepted + self.erased > 0


class Input(msgspec.Struct, frozen=True):
    """The version of another table that this one was made from."""

    url: str
    version: int
    digest: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a table.

    ``commit`` fills in ``version``, ``parent``, ``created_at``, ``code_version`` and ``commit_id``; who builds a
    manifest leaves them out. ``content_digest`` is set where a version only holds in other files what an earlier one
    did: the digest of that one.
    """

    version: int = 0
    parent: int | None = None
    kind: str
    operation: str
    created_at: str = ""
    files: list[DataFile]
    quarantined_files: list[DataFile]
    totals: dict[str, int | float]
    sources: list[Source]
    inputs: list[Input]
    config: dict[str, Any]
    config_digest: str
    code_version: str = ""
    commit_id: str = ""
    content_digest: str = ""
    indexes: list[IdIndex] = []
    """Of an annotations table; a data file that none names is read by every ingestion."""
    format_version: int = FORMAT_VERSION

    @property
    def all_files(self) -> list[DataFile]:
        """Every file of rows and of refused records that the version names."""
        return [*self.files, *self.quarantined_files]

    @property
    def index_files(self) -> list[IndexFile]:
        """Every index file that the version names."""
        return [file for index in self.indexes for file in index.files]

    @property
    def paths(self) -> set[str]:
        """Path of every file that the version names."""
        return {file.path for file in [*self.all_files, *self.index_files]}

    @property
    def digest(self) -> str:
        """SHA-256 of what the version holds, 64 hex digits.

        Names, order and times of files do not enter: the same content made twice has the same digest, and so has
        the same content compacted.
        """
        if self.content_digest:
            return self.content_digest
        content = [self.kind, self.config_digest, sorted((file.sha256, file.rows) for file in self.files)]
        return hashlib.sha256(msgspec.json.encode(content)).hexdigest()
