"""`restore`: an old version is the newest one again, nothing is lost, and nothing erased comes back."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pairwright.cli.main import app
from pairwright.config import IngestConfig
from pairwright.data.ingest.ingest import ingest
from pairwright.data.table.erase import erase
from pairwright.data.table.table import Table
from pairwright.data.table.vacuum import vacuum
from pairwright.data.table.version_log import restore
from pairwright.errors import StoreError

CONFIG = IngestConfig()


def write(path: Path, *names: str) -> str:
    good = {"completions": [{"text": "x"}, {"text": "y"}], "ranks": [1, 2], "annotator": "ann"}
    path.write_text("".join(json.dumps(good | {"id": name, "prompt": f"question {name}"}) + "\n" for name in names))
    return str(path)


def ids_of(table: Table, version: int | None = None) -> list[str]:
    return [name for rows in table.read(table.manifest(version), ["id"]) for name in rows["id"].to_pylist()]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Make a table of three versions: two sources one after the other, and one of them replaced."""
    url = str(tmp_path / "t")
    a, b = write(tmp_path / "a.jsonl", "a1", "a2"), write(tmp_path / "b.jsonl", "b1")
    ingest([a], url, CONFIG)
    ingest([b], url, CONFIG)
    write(tmp_path / "a.jsonl", "a3")
    ingest([a], url, CONFIG, replace=True)
    return Table.open(url, "annotations")


def test_an_old_version_is_the_newest_again_and_every_other_stays(table: Table, tmp_path: Path) -> None:
    before = {number: sorted(ids_of(table, number)) for number in table.versions()}
    assert before == {1: ["a1", "a2"], 2: ["a1", "a2", "b1"], 3: ["a3", "b1"]}
    files = set((tmp_path / "t/data").iterdir())
    found = restore(table.url, 1)
    assert (found["version"], found["is_new"], found["rows"], found["rows_before"]) == (4, True, 2, 2)
    assert {number: sorted(ids_of(table, number)) for number in table.versions()} == before | {4: ["a1", "a2"]}
    assert set((tmp_path / "t/data").iterdir()) == files
    newest, old = table.manifest(4), table.manifest(1)
    assert (newest.digest, newest.totals, newest.sources, newest.parent) == (old.digest, old.totals, old.sources, 3)
    assert newest.operation == "restore"
    assert restore(table.url, 1)["is_new"] is False
    assert ingest([str(tmp_path / "b.jsonl")], table.url, CONFIG).sources[0].accepted == 1  # new again
    assert restore(table.url, 3)["version"] == 6
    assert sorted(ids_of(table)) == before[3]


def test_a_dry_run_changes_nothing(table: Table) -> None:
    result = CliRunner().invoke(app, ["restore", table.url, "--version", "2", "--dry-run"])
    assert "would hold again what version 2 held: 3 rows in place of 2" in result.output
    assert table.versions() == [1, 2, 3]
    as_json = CliRunner().invoke(app, ["restore", table.url, "--version", "2", "--json"])
    assert json.loads(as_json.output)["version"] == 4


def test_a_version_that_is_gone_or_was_never_there_is_refused(table: Table) -> None:
    with pytest.raises(StoreError, match="no version 9"):
        restore(table.url, 9)
    vacuum(table.url, older_than=__import__("datetime").timedelta(), keep_versions=1, is_dry_run=False)
    with pytest.raises(StoreError, match="version 1"):
        restore(table.url, 1)


def test_what_was_erased_does_not_come_back(table: Table) -> None:
    erase(table.url, annotators=["ann"], prompts=[], is_exact=False)
    with pytest.raises(StoreError, match="version 2 holds what `pairwright forget` erased in version 4"):
        restore(table.url, 2)
    assert ids_of(table) == []
