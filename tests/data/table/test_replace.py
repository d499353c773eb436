"""`ingest --replace`: a source that changed takes the place of its old records, in one commit; and care on Ray."""

import json
from pathlib import Path
from typing import Any

import pytest

from pairwright.cluster.sized_executor import SizedExecutor
from pairwright.config import IngestConfig
from pairwright.data.executor import LOCAL, Executor
from pairwright.data.ingest.ingest import ingest
from pairwright.data.table.compact import compact
from pairwright.data.table.diff import diff
from pairwright.data.table.erase import erase
from pairwright.data.table.table import Table
from racing_executor import CHECKED, RacingExecutor

CONFIG = IngestConfig()
BAD = b'{"id": "bad"}\n'


def record(name: str, **change: object) -> bytes:
    good = {"id": name, "prompt": f"question {name}", "completions": [{"text": "x"}, {"text": "y"}], "ranks": [1, 2]}
    return json.dumps(good | change).encode() + b"\n"


def records(*names: object) -> bytes:
    return b"".join(record(str(name)) for name in names)


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def rows_of(table: str, version: int | None = None) -> dict[str, Any]:
    opened = Table.open(table)
    return {row["id"]: row for rows in opened.read(opened.manifest(version)) for row in rows.to_pylist()}


def refused_of(table: str, version: int | None = None) -> list[tuple[str, int]]:
    opened = Table.open(table)
    found = [one for file in opened.manifest(version).quarantined_files for one in opened.read_quarantined(file)]
    return [(Path(one.source).name, one.line) for one in found]


def assert_accounted_for(table: str) -> None:
    """Every total is what a count of the rows gives, and every stored file is named by some version."""
    opened = Table.open(table)
    newest = opened.manifest()
    rows, refused = rows_of(table), refused_of(table)
    assert newest.totals["annotations"] == len(rows) == sum(source.accepted for source in newest.sources)
    assert newest.totals["refused"] == len(refused) == sum(source.refused for source in newest.sources)
    assert newest.totals["completions"] == sum(len(row["completions"]) for row in rows.values())
    assert newest.totals["lines"] == len(rows) + len(refused) + newest.totals["blank"] + newest.totals["erased"]
    named = {path for version in opened.versions() for path in opened.manifest(version).paths}
    stored = {
        f"{folder}/{path.name}" for folder in ("data", "index", "quarantine") for path in Path(table, folder).glob("*")
    }
    assert stored == named


def test_a_changed_source_takes_the_place_of_its_old_records_in_one_commit(tmp_path: Path) -> None:
    table = str(tmp_path / "t")
    a = write(tmp_path / "a.jsonl", records(1, 2, 3) + BAD)
    b = write(tmp_path / "b.jsonl", records(4, 5) + BAD + b"\n")
    ingest([a, b], table, CONFIG)
    write(tmp_path / "a.jsonl", record("2", ranks=[2, 1]) + records(6) + BAD + BAD)  # 2 with other content, 6 new
    summary = ingest([a, b], table, CONFIG, replace=True)
    assert (summary.failed, summary.replaced, summary.skipped) == ([], {a: 3}, [b])
    assert [(source.accepted, source.refused) for source in summary.sources] == [(2, 2)]
    assert Table.open(table).versions() == [1, 2]
    assert rows_of(table).keys() == {"2", "4", "5", "6"}
    assert rows_of(table)["2"]["ranks"] == [2, 1]
    assert sorted(refused_of(table)) == [("a.jsonl", 3), ("a.jsonl", 4), ("b.jsonl", 3)]
    assert rows_of(table, 1).keys() == {"1", "2", "3", "4", "5"}
    assert sorted(refused_of(table, 1)) == [("a.jsonl", 4), ("b.jsonl", 3)]
    assert_accounted_for(table)
    again = ingest([a, b], table, CONFIG, replace=True)
    assert (again.manifest, sorted(again.skipped)) == (None, [a, b])


def test_new_content_of_which_nothing_can_be_read_replaces_nothing(tmp_path: Path) -> None:
    table = str(tmp_path / "t")
    a = write(tmp_path / "a.jsonl", records(1))
    ingest([a], table, CONFIG)
    write(tmp_path / "a.jsonl", BAD)
    summary = ingest([a], table, CONFIG, replace=True)
    assert summary.manifest is None
    assert "its old records stay" in dict(summary.failed)[a]
    write(tmp_path / "a.jsonl", b"")
    assert ingest([a], table, CONFIG, replace=True).replaced == {a: 1}
    assert rows_of(table) == {}
    assert_accounted_for(table)


@pytest.mark.parametrize("same", [True, False])
def test_of_two_that_replace_one_source_at_once_one_wins_and_the_other_says_so(tmp_path: Path, same: bool) -> None:
    table = str(tmp_path / "t")
    a = write(tmp_path / "a.jsonl", records(1, 2))
    other = write(tmp_path / "other.jsonl", records(7))
    ingest([a], table, CONFIG)
    ours, theirs = records(2, 3), records(3, 4)
    write(tmp_path / "a.jsonl", ours)

    def the_other() -> None:
        write(tmp_path / "a.jsonl", ours if same else theirs)
        ingest([a], table, CONFIG, replace=True)

    race = RacingExecutor(the_other, before=CHECKED)
    summary = ingest([a, other], table, CONFIG, replace=True, executor=race)
    assert race.num_maps > 1, "the other one was first"
    if same:
        assert (summary.failed, summary.skipped) == ([], [a])
        assert rows_of(table).keys() == {"2", "3", "7"}
    else:
        assert [(uri, reason.partition(";")[0]) for uri, reason in summary.failed] == [
            (a, "another ingestion brought other content under this name meanwhile")
        ]
        assert rows_of(table).keys() == {"3", "4", "7"}
    assert_accounted_for(table)


def test_a_replacement_that_loses_the_race_is_made_again_on_what_came_first(tmp_path: Path) -> None:
    table = str(tmp_path / "t")
    a = write(tmp_path / "a.jsonl", records(1, 2) + BAD)
    other = write(tmp_path / "other.jsonl", records(2, 9))  # 2 is ours in the table, and again once we have replaced it
    ingest([a], table, CONFIG)
    write(tmp_path / "a.jsonl", records(2, 3))
    race = RacingExecutor(lambda: ingest([other], table, CONFIG), before=CHECKED)
    assert ingest([a], table, CONFIG, replace=True, executor=race).replaced == {a: 2}
    assert race.num_maps > 1, "the other one was first"
    assert rows_of(table).keys() == {"2", "3", "9"}
    assert sorted(refused_of(table)) == [("other.jsonl", 1)]
    assert_accounted_for(table)


@pytest.mark.usefixtures("ray_cluster")
def test_large_tables_are_maintained_on_ray_and_small_ones_in_this_process_with_the_same_result(tmp_path: Path) -> None:
    sources = [
        write(tmp_path / f"{n}.jsonl", record(f"{n}a", annotator="ann") + record(f"{n}b") + BAD) for n in range(3)
    ]
    found = []
    executors: dict[str, Executor] = {"here": LOCAL, "ray": SizedExecutor(small_bytes=-1)}
    for name, executor in executors.items():
        table = str(tmp_path / name)
        ingest(sources, table, CONFIG, executor=executor)
        summary = erase(table, annotators=["ann"], prompts=[], executor=executor)
        told = diff(table, 1, 2, executor=executor)
        compacted = compact(table, file_bytes=1 << 20, executor=executor)
        rows = rows_of(table)
        assert_accounted_for(table)
        found.append((summary.as_dict() | {"url": ""}, told["rows"], told["examples"], compacted.num_files, rows))
    assert found[0] == found[1]
    assert found[0][4].keys() == {"0b", "1b", "2b"}
    assert found[0][1]["removed"] == 3
