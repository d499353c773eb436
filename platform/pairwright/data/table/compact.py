"""Compacts a table: a version of few larger files with the same rows in the same order, and the same digest.

Only neighbours are merged, so that order needs no sorting and a file that is large enough is never touched. A task
holds one new file's rows in memory, about four times ``file_bytes`` of text. The small files stay with the older
versions that name them until `vacuum` removes those.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import pyarrow as pa

from pairwright.data.executor import LOCAL, Executor
from pairwright.data.group_by import partition_files
from pairwright.data.id_index.id_index import index_all, unindexed, write_indexed
from pairwright.data.id_index.index_merges import IndexMerger
from pairwright.data.table.commit import commit_written
from pairwright.data.table.manifest import IdIndex, IndexFile
from pairwright.data.table.table import DataFile, Manifest, Table
from pairwright.errors import StoreError
from pairwright.terminal import counted, escaped, one_per_line

COMPACTABLE = ("annotations", "pairs")


@dataclass(frozen=True)
class CompactSummary:
    """How many files there were, and how many there are."""

    url: str
    version: int
    is_new: bool
    num_files_before: int
    num_files: int
    num_rows: int
    num_bytes_before: int
    num_bytes: int
    is_dry_run: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the same for programs, JSON-able."""
        return asdict(self)

    def text(self) -> str:
        """Return the same for people."""
        if not self.is_new:
            return escaped(
                f"nothing to compact: version {self.version} of {self.url} has {counted(self.num_files, 'file')}"
            )
        if self.is_dry_run:
            return escaped(
                f"dry run: {counted(self.num_files, 'file')} instead of {self.num_files_before:,} would hold the "
                f"{self.num_rows:,} rows of {self.url}; nothing was written"
            )
        before, now = self.num_bytes_before / 1e6, self.num_bytes / 1e6
        lines = [
            f"version {self.version} of {self.url} holds the same {counted(self.num_rows, 'row')} in "
            f"{counted(self.num_files, 'file')} "
            f"({now:,.1f} MB) instead of {self.num_files_before:,} ({before:,.1f} MB)",
            "the old files stay with the older versions until "
            f"`pairwright vacuum {self.url} --keep-versions 1` removes those",
        ]
        return one_per_line(lines)


def compact(url: str, *, file_bytes: int, is_dry_run: bool = False, executor: Executor = LOCAL) -> CompactSummary:
    """Commit a version of a table in which neighbouring small files are one, where there are any.

    Args:
        url: an annotations or a pairs table.
        file_bytes: most bytes of a merged file, compressed.
        is_dry_run: only count the files that there would be; their bytes are known once they are written.
        executor: what maps over the files to write.

    Raises:
        StoreError: if there is no such table, or a file cannot be read or written.
    """
    table = Table.open(url)
    if table.kind not in COMPACTABLE:
        raise StoreError(f"{url}: holds {table.kind}, which `pairwright train` maps into memory as they are")
    if is_dry_run:
        return _planned(table, file_bytes)
    compaction = _Compaction(table, file_bytes, executor)
    committed = commit_written(table, compaction.manifest_on, compaction.written)
    after = committed or table.manifest()
    before = after if committed is None or committed.parent is None else table.manifest(committed.parent)
    return CompactSummary(
        url=url,
        version=after.version,
        is_new=committed is not None,
        num_files_before=len(before.all_files),
        num_files=len(after.all_files),
        num_rows=sum(file.rows for file in after.files),
        num_bytes_before=sum(file.bytes for file in before.all_files),
        num_bytes=sum(file.bytes for file in after.all_files),
    )


def _planned(table: Table, file_bytes: int) -> CompactSummary:
    newest = table.manifest()
    runs = _runs_of(newest, file_bytes)
    num_bytes = sum(file.bytes for file in newest.all_files)
    return CompactSummary(
        url=table.url,
        version=newest.version,
        is_new=bool(runs),
        num_files_before=len(newest.all_files),
        num_files=len(newest.all_files) - sum(len(run) - 1 for run in runs),
        num_rows=sum(file.rows for file in newest.files),
        num_bytes_before=num_bytes,
        num_bytes=num_bytes,
        is_dry_run=True,
    )


def _runs_of(manifest: Manifest, file_bytes: int) -> list[list[DataFile]]:
    return [run for files in (manifest.files, manifest.quarantined_files) for run in plan_merges(files, file_bytes)]


class _Compaction:
    """Merged files, kept for the next version where another writer is first."""

    def __init__(self, table: Table, file_bytes: int, executor: Executor) -> None:
        self._table = table
        self._file_bytes = file_bytes
        self._executor = executor
        self._merged: dict[tuple[str, ...], Merged] = {}
        self._merger = IndexMerger(table, executor)
        self._new_indexes: dict[str, IdIndex] = {}

    def manifest_on(self, newest: Manifest | None) -> Manifest | None:
        """Return the version after ``newest``, or None where neither files nor indexes are to be merged."""
        assert newest is not None
        runs = _runs_of(newest, self._file_bytes)
        self._merge([run for run in runs if _paths(run) not in self._merged])
        merged = [self._merged[_paths(run)] for run in runs]
        proposed = after_compaction(newest, {each.paths: each.file for each in merged})
        new = [each.index for each in merged if each.index is not None]
        indexes = self._indexes(proposed.files, [*newest.indexes, *new])
        is_same = not runs and indexes == newest.indexes
        return None if is_same else msgspec.structs.replace(proposed, indexes=indexes)

    def _indexes(self, files: Sequence[DataFile], indexes: Sequence[IdIndex]) -> list[IdIndex]:
        """Return the indexes of a version with some data files: few, and of all of them."""
        if self._table.kind != "annotations":
            return []
        known = [*indexes, *self._new_indexes.values()]
        found = self._merger.compacted(files, known)
        if missing := unindexed(files, found):
            new = index_all(self._table, missing, self._table, self._executor)
            self._new_indexes |= {index.data_files[0]: index for index in new}
            found = self._merger.compacted(files, [*found, *new])
        return found

    def written(self) -> list[DataFile | IndexFile]:
        """Return every file that was written."""
        new = [each.index for each in self._merged.values() if each.index is not None]
        indexed = [file for index in [*new, *self._new_indexes.values()] for file in index.files]
        return [*(each.file for each in self._merged.values()), *indexed, *self._merger.written()]

    def _merge(self, runs: Sequence[Sequence[DataFile]]) -> None:
        table = self._table

        def work(files: Sequence[DataFile]) -> Iterator[Merged]:
            yield merge(table, files)

        sizes = [sum(file.bytes for file in run) for run in runs]
        for merged in self._executor.map_items(work, runs, sizes, Merged, what="files merged"):
            self._merged[merged.paths] = merged


def _paths(files: Sequence[DataFile]) -> tuple[str, ...]:
    return tuple(file.path for file in files)


class Merged(msgspec.Struct, frozen=True):
    """Some files, and the one that replaces them."""

    paths: tuple[str, ...]
    file: DataFile
    index: IdIndex | None = None


def plan_merges(files: Sequence[DataFile], file_bytes: int) -> list[list[DataFile]]:
    """Return sequences of neighbours, each of two files or more and of at most ``file_bytes`` in all."""
    return [files for files in partition_files(files, file_bytes) if len(files) > 1]


def merge(table: Table, files: Sequence[DataFile]) -> Merged:
    """Write some files as one; they must be of one folder.

    Raises:
        StoreError: if one cannot be read, or the new one cannot be written.
    """
    index = None
    if files[0].path.startswith("data/"):
        merged, index = write_indexed(table, pa.concat_tables([table.read_file(file) for file in files]))
    else:
        merged = table.write_quarantined([refused for file in files for refused in table.read_quarantined(file)])
    assert merged.rows == sum(file.rows for file in files)
    return Merged(_paths(files), merged, index)


def after_compaction(newest: Manifest, merged: Mapping[tuple[str, ...], DataFile]) -> Manifest:
    """Return the version after ``newest`` with merged files in place of the small ones; its digest stays the same."""
    return msgspec.structs.replace(
        newest,
        operation="compact",
        files=_with(newest.files, merged),
        quarantined_files=_with(newest.quarantined_files, merged),
        content_digest=newest.digest,
    )


def _with(files: Sequence[DataFile], merged: Mapping[tuple[str, ...], DataFile]) -> list[DataFile]:
    first = {paths[0]: file for paths, file in merged.items()}
    gone = {path for paths in merged for path in paths}
    kept = [first.get(file.path, file) for file in files if file.path not in gone or file.path in first]
    assert sum(file.rows for file in kept) == sum(file.rows for file in files)
    return kept
