"""Vacuum: what goes, what never does, and that a number is given once."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from annotation_tables import annotation_row, annotations_table, manifest
from pairwright.data.table.commit import commit_written
from pairwright.data.table.table import DataFile, Manifest, Table
from pairwright.data.table.vacuum import VacuumSummary, vacuum
from pairwright.data.table.version_log import version_log
from pairwright.errors import StoreError

DAY = 24 * 3600
LANDED = f"staging/{'0a' * 16}/{'1b' * 16}.jsonl"


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(str(tmp_path / "t"), "annotations")


def file_of(table: Table, name: str) -> DataFile:
    return table.write_data(annotations_table([annotation_row(name, ["a", "b"], [1, 2])]))


def holding(*files: DataFile) -> Callable[[Manifest | None], Manifest]:
    return lambda newest: manifest(kind="annotations", files=list(files), totals={"annotations": len(files)})


def commit(table: Table, *files: DataFile) -> None:
    assert table.commit(holding(*files)) is not None


def clean(table: Table, hours: float = 0, keep: int | None = None, dry: bool = False) -> VacuumSummary:
    return vacuum(table.url, older_than=timedelta(hours=hours), keep_versions=keep, is_dry_run=dry)


def make_old(table: Table, *names: str) -> None:
    for name in names:
        before = time.time() - DAY
        os.utime(Path(table.url) / name, (before, before))


def stored(table: Table) -> set[str]:
    root = Path(table.url)
    return {
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.parent.name != "versions"
    }


def test_only_what_no_version_names_and_what_is_old_goes(table: Table) -> None:
    named, old, young = (file_of(table, name) for name in "abc")
    commit(table, named)
    half = Path(table.url) / f"{old.path}#1"  # what obstore writes first; a writer that was killed leaves it
    half.write_bytes(b"x" * 10)
    shard = Path(table.url) / LANDED
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"{}\n")
    make_old(table, named.path, old.path, f"{old.path}#1", LANDED)
    dry = clean(table, hours=12, dry=True)
    assert stored(table) == {named.path, old.path, young.path, f"{old.path}#1", LANDED}
    summary = clean(table, hours=12)
    assert sorted(summary.removed_files) == sorted(dry.removed_files)
    assert sorted(summary.removed_files) == sorted([old.path, f"{old.path}#1", LANDED])
    assert summary.removed_bytes == dry.removed_bytes == old.bytes + 10 + 3
    assert (summary.num_young_files, summary.young_bytes) == (1, young.bytes)
    assert stored(table) == {named.path, young.path}
    assert not shard.parent.exists()
    assert clean(table, hours=12).removed_files == []


def test_old_versions_go_where_asked_with_their_files_and_the_newest_never(table: Table) -> None:
    first, second, third = (file_of(table, name) for name in "abc")
    commit(table, first)
    commit(table, first, second)
    commit(table, second, third)
    assert clean(table).removed_files == []
    young = clean(table, hours=1, keep=1)  # superseded a moment ago: somebody may be reading it
    assert (young.removed_versions, young.num_young_versions) == ([], 2)
    summary = clean(table, keep=2)
    assert (summary.removed_versions, summary.removed_files, summary.kept_versions) == ([1], [], [2, 3])
    summary = clean(table, keep=1)
    assert (summary.removed_versions, summary.removed_files) == ([2], [first.path])
    assert clean(table, keep=1).removed_versions == []
    assert stored(table) == {second.path, third.path}
    assert [rows.num_rows for rows in table.read(table.manifest())] == [1, 1]


def test_a_removed_version_says_so_and_its_number_is_not_given_again(table: Table) -> None:
    for name in "abc":
        commit(table, file_of(table, name))
    clean(table, keep=1)
    assert (table.versions(), table.removed_versions()) == ([3], [1, 2])
    found = version_log(table.url, last=5)
    assert (found["removed"], [entry["changed_totals"] for entry in found["versions"]]) == ([1, 2], [{}])
    with pytest.raises(StoreError, match=r"version 2 was removed by `pairwright vacuum`; there are 3"):
        table.manifest(2)
    commit(table, file_of(table, "d"))
    assert table.versions() == [3, 4]


def test_a_writer_that_looked_before_versions_were_removed_still_comes_after_the_newest(table: Table) -> None:
    commit(table, file_of(table, "a"))
    ours = file_of(table, "ours")
    looked = []

    def build(newest: Manifest | None) -> Manifest:
        assert newest is not None
        looked.append(newest.version)
        if len(looked) == 1:  # meanwhile two versions come, and the one whose number we would take goes again
            commit(table, *newest.files, file_of(table, "b"))
            commit(table, *newest.files, file_of(table, "c"))
            vacuum(table.url, older_than=timedelta(), keep_versions=1, is_dry_run=False)
            Path(table.url, ours.path).touch()
            return manifest(kind="annotations", files=newest.files)
        return manifest(kind="annotations", files=newest.files)

    committed = table.commit(build)
    assert committed is not None
    assert (looked, committed.version, committed.parent) == ([1, 3], 4, 3)


def test_a_commit_that_would_name_a_file_that_is_gone_is_refused(table: Table) -> None:
    commit(table, file_of(table, "a"))
    ours = file_of(table, "ours")
    clean(table)
    with pytest.raises(StoreError, match=r"removed before it was committed.*--retention.*run the command again"):
        commit(table, ours)
    assert table.versions() == [1]


def test_a_vacuum_that_died_half_way_is_finished_by_the_next(table: Table) -> None:
    first, second = file_of(table, "a"), file_of(table, "b")
    commit(table, first)
    commit(table, second)
    (Path(table.url) / "versions/00000001.json").write_bytes(b"")  # it died after the first thing it does
    assert clean(table).removed_files == [first.path]
    assert stored(table) == {second.path}


def test_a_version_that_comes_during_a_vacuum_keeps_its_files(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(table, file_of(table, "a"))
    ours = file_of(table, "ours")
    versions = Table.versions
    asked = []

    def late(self: Table) -> list[int]:
        found = versions(self)
        asked.append(1)
        if len(asked) == 2:  # after it has seen the newest version, before it removes anything
            monkeypatch.setattr(Table, "versions", versions)
            commit(table, *table.manifest().files, ours)
        return found

    monkeypatch.setattr(Table, "versions", late)
    clean(table)
    assert len(list(table.read(table.manifest()))) == 2


class LosesAnswers(Table):
    """A table whose versions are made, and the answers lost for good."""

    def _create_version(self, manifest: Manifest) -> bool:
        super()._create_version(manifest)
        raise StoreError("timed out")


@pytest.mark.parametrize("fails", ["before", "after"])
def test_files_are_deleted_after_a_failure_only_where_no_version_can_name_them(table: Table, fails: str) -> None:
    commit(table, file_of(table, "a"))
    ours = file_of(table, "ours")

    def build(newest: Manifest | None) -> Manifest:
        if fails == "before":
            raise StoreError("a file could not be read")
        return manifest(kind="annotations", files=[ours])

    writer = table if fails == "before" else LosesAnswers(table.url, "annotations")
    with pytest.raises(StoreError):
        commit_written(writer, build, lambda: [ours])
    assert (Path(table.url) / ours.path).exists() == (fails == "after")
    assert all(rows.num_rows == 1 for rows in table.read(table.manifest()))


def test_what_a_build_wrote_and_did_not_name_is_deleted_when_it_is_done(table: Table) -> None:
    used, unused = file_of(table, "a"), file_of(table, "b")
    assert commit_written(table, holding(used), lambda: [used, unused]) is not None
    assert stored(table) == {used.path}
    assert commit_written(table, lambda newest: None, lambda: [used]) is None
