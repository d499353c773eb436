"""Many small files -> few of a target size, the same rows in the same order. Plans are pure; a merge reads and writes.

Only neighbours are merged, so that order needs no sorting and a file that is large enough is never touched.
"""

from collections.abc import Mapping, Sequence

import msgspec
import pyarrow as pa

from pairwright.data.table.table import DataFile, Manifest, Table


class Merged(msgspec.Struct, frozen=True):
    """What some files became."""

    paths: tuple[str, ...]
    file: DataFile


def plan_merges(files: Sequence[DataFile], file_bytes: int) -> list[list[DataFile]]:
    """Return runs of neighbours, each of two files or more and of at most ``file_bytes`` in all."""
    runs: list[list[DataFile]] = []
    filled = file_bytes
    for file in files:
        if filled + file.bytes > file_bytes or not runs:
            runs.append([])
            filled = 0
        runs[-1].append(file)
        filled += file.bytes
    return [run for run in runs if len(run) > 1]


def merge(table: Table, files: Sequence[DataFile]) -> Merged:
    """Write some files as one; they must be of one folder.

    Raises:
        StoreError: if one cannot be read, or the new one cannot be written.
    """
    if files[0].path.startswith("data/"):
        merged = table.write_data(pa.concat_tables([table.read_file(file) for file in files]))
    else:
        merged = table.write_refused([refused for file in files for refused in table.read_refused(file)])
    assert merged.rows == sum(file.rows for file in files)
    return Merged(tuple(file.path for file in files), merged)


def after_compaction(newest: Manifest, merged: Mapping[tuple[str, ...], DataFile]) -> Manifest:
    """Return the version after ``newest`` with merged files in the place of theirs; its digest stays the same."""
    return msgspec.structs.replace(
        newest,
        operation="compact",
        files=_with(newest.files, merged),
        refused_files=_with(newest.refused_files, merged),
        content_digest=newest.digest,
    )


def _with(files: Sequence[DataFile], merged: Mapping[tuple[str, ...], DataFile]) -> list[DataFile]:
    first = {paths[0]: file for paths, file in merged.items()}
    gone = {path for paths in merged for path in paths}
    kept = [first.get(file.path, file) for file in files if file.path not in gone or file.path in first]
    assert sum(file.rows for file in kept) == sum(file.rows for file in files)
    return kept
