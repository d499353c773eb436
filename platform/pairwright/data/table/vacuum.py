"""Vacuum: removes files that no version of a table names, and old versions where asked.

What no version names is left by a job that died, or belongs to one at work: age tells them apart, by the store's own
clock of last change. Only names that Pairwright alone gives are ever removed (data/storage/ownership.py); any other
file in a table's folders is counted and left alone. Old versions go only where that is asked for, and the newest never.
A removed version leaves a mark in its manifest's place, since a writer that looked before could otherwise create that
number once more, below the newest. Marks come first, so that a vacuum that dies leaves files without a version, never
the other way.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import obstore

from pairwright.data.storage.object_store import open_store, store_errors
from pairwright.data.storage.ownership import (
    INDEX,
    OLD_NAMES,
    STAGING,
    TABLE,
    Stored,
    delete_empty_folders,
    delete_files,
    named,
    stored_files,
)
from pairwright.data.table.manifest import Manifest
from pairwright.data.table.table import REMOVED, Table, version_path
from pairwright.terminal import counted, one_per_line

FOLDERS = ("data", INDEX, *OLD_NAMES, *OLD_NAMES.values())
NUM_SHOWN = 20


@dataclass(frozen=True)
class VacuumSummary:
    """What went, or would go, and what stays although nothing names it."""

    url: str
    is_dry_run: bool
    removed_versions: list[int]
    kept_versions: list[int]
    num_young_versions: int
    """Versions beyond those to keep that were the newest too recently to go: somebody may be reading them."""
    removed_files: list[str]
    removed_bytes: int
    num_kept_files: int
    kept_bytes: int
    num_young_files: int
    """Files that no version names and that are too young to go: a job that is at work may have written them."""
    young_bytes: int
    foreign_files: list[str]
    """Files in the table's folders that Pairwright did not name: none is ever removed."""

    def as_dict(self) -> dict[str, Any]:
        """Return the same for programs, JSON-able."""
        return asdict(self)

    def text(self) -> str:
        """Return the same for people."""
        done = "would remove" if self.is_dry_run else "removed"
        lines = [f"{done} {counted(len(self.removed_files), 'file')}, {self.removed_bytes / 1e6:,.1f} MB"]
        if self.removed_versions:
            noun = "version" if len(self.removed_versions) == 1 else "versions"
            lines.append(f"{done} {noun} {', '.join(map(str, self.removed_versions))}")
        if self.is_dry_run:
            lines += [f"  {path}" for path in self.removed_files[:NUM_SHOWN]]
            more = len(self.removed_files) - NUM_SHOWN
            lines += [f"  and {more:,} more; --json has them all"] if more > 0 else []
        kept = f"{counted(self.num_kept_files, 'file')}, {self.kept_bytes / 1e6:,.1f} MB"
        lines.append(f"{self.url} keeps {counted(len(self.kept_versions), 'version')}, {kept}")
        if self.num_young_versions:
            lines.append(
                f"{self.num_young_versions:,} of them stay because they were the newest less than --retention ago: "
                "somebody may be reading them"
            )
        if self.num_young_files:
            lines.append(
                f"kept {counted(self.num_young_files, 'file')} that no version names "
                f"({self.young_bytes / 1e6:,.1f} MB), younger than --retention: perhaps a job is at work"
            )
        if self.foreign_files:
            are, were = ("is", "was") if len(self.foreign_files) == 1 else ("are", "were")
            lines.append(
                f"{counted(len(self.foreign_files), 'file')} in its folders {are} not the table's and "
                f"{were} left alone: {named(self.foreign_files)}"
            )
        return one_per_line(lines)


def vacuum(url: str, *, older_than: timedelta, keep_versions: int | None, is_dry_run: bool) -> VacuumSummary:
    """Remove what no version of a table needs, and old versions where asked.

    Args:
        url: a table of any kind.
        older_than: what was written, or was the newest version, more recently than this stays; no reader or writer at
            work may take longer.
        keep_versions: how many versions stay; None for all of them.
        is_dry_run: only say what would go.

    Raises:
        StoreError: if there is no table, or it cannot be read or written.
    """
    table = Table.open(url)
    before = datetime.now(UTC) - older_than
    found = [file for folder in (*FOLDERS, "versions") for file in stored_files(table.url, below=folder)]
    stored = [file for file in found if not file.is_link and TABLE.deletable.fullmatch(file.path)]
    foreign = [file.path for file in found if file.is_link or not TABLE.leftovers.fullmatch(file.path)]
    versions = table.versions()
    superseded = _superseded(table, versions, keep_versions, before)
    kept = [version for version in versions if version not in superseded]
    needed = _named(table, kept)
    unnamed = [file for file in stored if file.path not in needed]
    old = [file for file in unnamed if file.modified <= before]
    if not is_dry_run:
        old = _remove(table, superseded, old, newest=versions[-1])
    kept_files = [file for file in stored if file.path in needed]
    young = [file for file in unnamed if file.modified > before]
    return VacuumSummary(
        url=url,
        is_dry_run=is_dry_run,
        removed_versions=superseded,
        kept_versions=kept,
        num_young_versions=0 if keep_versions is None else max(0, len(kept) - keep_versions),
        removed_files=[file.path for file in old],
        removed_bytes=_total(old),
        num_kept_files=len(kept_files),
        kept_bytes=_total(kept_files),
        num_young_files=len(young),
        young_bytes=_total(young),
        foreign_files=sorted(path for path in foreign if path not in needed),
    )


def _superseded(table: Table, versions: Sequence[int], keep_versions: int | None, before: datetime) -> list[int]:
    """Return the versions to remove: those before the newest ones, whose successor was there ``before`` already."""
    if keep_versions is None:
        return []
    created = {version: _created_at(table.manifest(version)) for version in versions}
    last = [(version, created[following]) for version, following in pairwise(versions)]
    candidates = last[: max(0, len(versions) - keep_versions)]
    return [version for version, replaced_at in candidates if replaced_at <= before]


def _created_at(manifest: Manifest) -> datetime:
    return datetime.fromisoformat(manifest.created_at)


def _named(table: Table, versions: Sequence[int]) -> set[str]:
    return {path for version in versions for path in table.manifest(version).paths}


def _remove(table: Table, versions: Sequence[int], files: Sequence[Stored], *, newest: int) -> list[Stored]:
    """Remove versions, then files but those that a version named since; return the files that went."""
    for version in versions:
        with store_errors(f"{table.url}/{version_path(version)}"):
            obstore.put(open_store(table.url), version_path(version), REMOVED)
    since = _named(table, [version for version in table.versions() if version > newest])
    gone = [file for file in files if file.path not in since]
    delete_files(table.url, [file.path for file in gone], TABLE)
    staged = (f"{STAGING}/", f"{OLD_NAMES[STAGING]}/")
    folders = {"/".join(file.path.split("/")[:2]) for file in gone if file.path.startswith(staged)}
    delete_empty_folders(table.url, folders)
    return gone


def _total(files: Sequence[Stored]) -> int:
    return sum(file.bytes for file in files)
