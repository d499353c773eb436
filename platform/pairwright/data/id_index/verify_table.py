"""Verifies a version of a table: reads every file that it names, and compares hashes and the ids that indexes hold.

A damaged index file costs time, not data: the next ingestion reads the data files that it was for, and indexes them
again.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import numpy as np

from pairwright.data.executor import LOCAL, Executor
from pairwright.data.id_index.id_index import index_name
from pairwright.data.id_index.index_files import IndexFileReader, file_numbers, truncated
from pairwright.data.identity import hash_ids
from pairwright.data.table.manifest import IdIndex, Manifest
from pairwright.data.table.table import DataFile, Table
from pairwright.errors import StoreError
from pairwright.terminal import counted


@dataclass(frozen=True)
class VerifiedTable:
    """What a reading of every file of a version found."""

    files: int
    """Files of rows and of refused records that were read."""
    index_files: int
    damaged: list[str]
    """Why a file of rows or of refused records is not the one that was written."""
    damaged_indexes: list[str]
    """Why an index file is not, or does not hold the ids of a data file."""
    not_indexed: int
    """Data files of an annotations table that no index names."""

    def as_dict(self) -> dict[str, Any]:
        """Return the same for programs, JSON-able."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the same for people."""
        read = f"{counted(self.files, 'file')} and {counted(self.index_files, 'index file')} read"
        lines = [f"{read}, {len(self.damaged) + len(self.damaged_indexes)} damaged", *self.damaged]
        lines += self.damaged_indexes
        if self.not_indexed or self.damaged_indexes:
            lines.append(
                "the next `pairwright ingest` or `pairwright compact` indexes what is not indexed; it is slower"
            )
        return lines


class _FileCheck(msgspec.Struct, frozen=True):
    path: str
    problem: str | None = None
    hash_sum: int = 0
    """Sum of the truncated hashes of a data file's ids, modulo 2**64."""


def verify_table(table: Table, manifest: Manifest, *, executor: Executor = LOCAL) -> VerifiedTable:
    """Read every file that a version of a table names, and return what is wrong with them."""

    def work(file: DataFile) -> Iterator[_FileCheck]:
        yield _check_file(table, file)

    sizes = [file.bytes for file in manifest.all_files]
    checks = {
        check.path: check
        for check in executor.map_items(work, manifest.all_files, sizes, _FileCheck, what="files verified")
    }
    by_name = {index_name(file): file for file in manifest.files}
    problems = [_check_index(table, index, by_name, checks) for index in manifest.indexes]
    named = {name for index in manifest.indexes for name in index.data_files}
    is_indexed = manifest.kind == "annotations"
    return VerifiedTable(
        files=len(manifest.all_files),
        index_files=len(manifest.index_files),
        damaged=[check.problem for check in checks.values() if check.problem],
        damaged_indexes=[problem for problem in problems if problem],
        not_indexed=len(by_name.keys() - named) if is_indexed else 0,
    )


def _check_file(table: Table, file: DataFile) -> _FileCheck:
    try:
        if not file.path.startswith("data/"):
            table.read_quarantined(file)
            return _FileCheck(file.path)
        rows = table.read_file(file, ["id"])
    except StoreError as error:
        return _FileCheck(file.path, str(error))
    if table.kind != "annotations":
        return _FileCheck(file.path)
    hashes = truncated(hash_ids(rows.column("id").to_pylist()))
    return _FileCheck(file.path, hash_sum=int(hashes.sum(dtype=np.uint64)))


def _check_index(
    table: Table, index: IdIndex, by_name: dict[str, DataFile], checks: dict[str, _FileCheck]
) -> str | None:
    """Return what is wrong with an index: a file of it, or that it does not hold the ids of its data files."""
    rows = np.zeros(len(index.data_files), np.int64)
    sums = np.zeros(len(index.data_files), "<u8")
    try:
        for file in index.files:
            for entries in IndexFileReader(table.url, file).all_blocks():
                numbers = file_numbers(entries)
                if numbers.max(initial=0) >= len(rows):
                    return f"{table.url}/{file.path}: names a data file that the index does not list"
                rows += np.bincount(numbers, minlength=len(rows))
                np.add.at(sums, numbers, truncated(entries))
    except StoreError as error:
        return str(error)
    for number, name in enumerate(index.data_files):
        if (data := by_name.get(name)) is None or checks[data.path].problem:
            continue
        if (int(rows[number]), int(sums[number])) != (data.rows, checks[data.path].hash_sum):
            return f"{table.url}/{index.files[0].path}: does not hold the ids of {data.path}"
    return None
