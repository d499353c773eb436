"""Ingestion as a whole: what is in the table afterwards, what is not, and why."""

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from pairwright.config import FieldPaths, IngestConfig
from pairwright.data.id_index import id_index
from pairwright.data.ingest import dedup
from pairwright.data.ingest.ingest import IngestSummary, ingest
from pairwright.data.table.table import Manifest, Table
from pairwright.errors import ConfigError, SourceError, StoreError
from pairwright.records import Rejection
from racing_executor import CHECKED, READ, RacingExecutor

DATA = Path(__file__).parents[3].parent / "shared/data"
CONFIG = IngestConfig()


def record(name: str, **change: object) -> bytes:
    good = {"id": name, "prompt": f"question {name}", "completions": [{"text": "x"}, {"text": "y"}], "ranks": [1, 2]}
    return json.dumps(good | change).encode() + b"\n"


def records(*names: object) -> bytes:
    return b"".join(record(str(name)) for name in names)


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def rows_of(url: Path | str, version: int | None = None) -> list[dict[str, Any]]:
    table = Table.open(str(url), "annotations")
    return [row for rows in table.read(table.manifest(version)) for row in rows.to_pylist()]


def refused_of(url: Path | str) -> list[Rejection]:
    table = Table.open(str(url), "annotations")
    return [one for file in table.manifest().quarantined_files for one in table.read_quarantined(file)]


def ids_of(url: Path | str) -> list[str]:
    return [row["id"] for row in rows_of(url)]


def files_in(table: Path, folder: str) -> set[str]:
    return {f"{folder}/{path.name}" for path in (table / folder).glob("*")}


def named_in(manifest: Manifest) -> set[str]:
    return {file.path for file in [*manifest.files, *manifest.quarantined_files]}


def committed(summary: IngestSummary) -> Manifest:
    assert summary.manifest is not None
    return summary.manifest


def test_the_real_rankings_go_in_whole_by_field_paths(tmp_path: Path) -> None:
    path = DATA / "rankings_dev.jsonl.zst"
    if not path.exists():
        pytest.skip(f"{path.name} is not here: shared/data is handed out with the project, not in it")
    fields = FieldPaths(
        id="id", prompt="instruction", completions="answers", text="text", rank="rank", model="model",
        subset="subset", annotator="judge",
    )  # fmt: skip
    summary = ingest([str(path)], str(tmp_path / "t"), IngestConfig(fields=fields))
    source = summary.sources[0]
    assert (source.lines, source.accepted, source.refused) == (2436, 2436, 0)
    assert committed(summary).totals["annotations"] == 2436
    rows = rows_of(tmp_path / "t")
    assert len({row["group_id"] for row in rows}) == 2436
    assert len({row["prompt_id"] for row in rows}) == 406
    assert [row["line"] for row in rows] == list(range(1, 2437))
    again = ingest([str(path)], str(tmp_path / "t"), IngestConfig(fields=fields))
    assert (again.manifest, again.skipped) == (None, [str(path)])


def test_bad_records_are_kept_and_counted_and_the_good_ones_go_in(tmp_path: Path) -> None:
    content = (
        records("a")
        + b"\n"
        + record("b", ranks=[1])
        + b'{"\xff":1}\n'
        + record("c", completions=[{"text": "x"}])
        + record("d")[:-1]
    )
    summary = ingest([write(tmp_path / "s.jsonl", content)], str(tmp_path / "t"), CONFIG)
    source = summary.sources[0]
    assert (source.lines, source.accepted, source.refused) == (6, 2, 3)
    assert committed(summary).totals == {
        "annotations": 2, "refused": 3, "duplicates": 0, "erased": 0, "blank": 1, "lines": 6, "sources": 1,
        "completions": 4,
    }  # fmt: skip
    assert ids_of(tmp_path / "t") == ["a", "d"]
    refused = refused_of(tmp_path / "t")
    assert [str(one).removeprefix(f"{tmp_path}/") for one in refused] == [
        "s.jsonl:3: expected one rank a completion, got 1 for 2 completions at $.ranks",
        "s.jsonl:4: expected UTF-8, got byte 0xff at byte 2 of the line; write the source in UTF-8, or "
        "set cells.encoding of a CSV file (cp1252, latin-1, ...)",
        "s.jsonl:5: expected 2 to 64 completions, got 1; one alone cannot be ranked at $.completions",
    ]
    assert refused == summary.rejections
    assert json.loads(refused[0].record)["id"] == "b"
    assert sum(summary.reasons.values()) == 3


@pytest.mark.parametrize("split_bytes", [1024, 3000])
def test_ranges_change_files_and_nothing_else(tmp_path: Path, split_bytes: int) -> None:
    path = write(tmp_path / "s.jsonl", b"\n" + records(*range(100)) + record("bad", ranks=[0, 1]))
    whole = ingest([path], str(tmp_path / "whole"), CONFIG)
    cut = ingest([path], str(tmp_path / "cut"), IngestConfig(split_bytes=split_bytes))
    assert len(committed(cut).files) > 3 > len(committed(whole).files)
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    assert refused_of(tmp_path / "cut") == refused_of(tmp_path / "whole")
    assert committed(cut).totals == committed(whole).totals
    assert cut.sources == whole.sources


def test_a_source_that_cannot_be_read_to_its_end_leaves_nothing_and_stops_no_other(tmp_path: Path) -> None:
    packed = gzip.compress(records(*range(30_000)))
    sources = [
        write(tmp_path / "s/cut.jsonl.gz", packed[:-20]),
        write(tmp_path / "s/good.jsonl", records("a")),
        write(tmp_path / "s/half.jsonl.zst", zstandard.compress(records("x", "y", "z"))[:-3]),
        write(tmp_path / "s/packed.jsonl", packed),
    ]
    summary = ingest(sources, str(tmp_path / "t"), IngestConfig(split_bytes=100_000))
    assert ids_of(tmp_path / "t") == ["a"]
    assert [source.uri for source in summary.sources] == [sources[1]]
    failed = dict(summary.failed)
    assert failed.keys() == {sources[0], sources[2], sources[3]}
    assert failed[sources[0]].startswith("not a whole gzip file: Truncated compressed stream after 2,")
    assert failed[sources[2]].startswith("not a whole zstd file")
    assert failed[sources[3]] == "starts like a gzip file; name it .gz"
    assert files_in(tmp_path / "t", "data") | files_in(tmp_path / "t", "quarantine") == named_in(committed(summary))


def test_only_failing_sources_commit_nothing(tmp_path: Path) -> None:
    summary = ingest([write(tmp_path / "s.jsonl.gz", b"")], str(tmp_path / "t"), CONFIG)
    assert (summary.manifest, summary.sources, len(summary.failed)) == (None, [], 1)
    assert Table(str(tmp_path / "t"), "annotations").versions() == []


def test_an_empty_source_counts_no_lines_and_is_known_the_next_time(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", b"")
    summary = ingest([path], str(tmp_path / "t"), CONFIG)
    assert [(source.uri, source.lines) for source in summary.sources] == [(path, 0)]
    assert ingest([path], str(tmp_path / "t"), CONFIG).skipped == [path]
    write(tmp_path / "s.jsonl", records("a"))
    assert ingest([path], str(tmp_path / "t"), CONFIG).sources[0].accepted == 1


def test_nothing_is_read_where_a_source_is_missing_or_a_path_is_wrong(tmp_path: Path) -> None:
    good = write(tmp_path / "s.jsonl", records("a"))
    with pytest.raises(SourceError, match=r"none\.jsonl: no such file"):
        ingest([good, str(tmp_path / "none.jsonl")], str(tmp_path / "t"), CONFIG)
    fields = FieldPaths(prompt="a..b", completions="c", ranks="r")
    with pytest.raises(ConfigError, match=r"fields\.prompt: cannot read the path"):
        ingest([good], str(tmp_path / "t"), IngestConfig(fields=fields))
    assert not (tmp_path / "t").exists()


def test_a_table_of_another_kind_is_not_touched(tmp_path: Path) -> None:
    ingest([write(tmp_path / "s.jsonl", records("a"))], str(tmp_path / "t"), CONFIG)
    manifest = tmp_path / "t/versions/00000001.json"
    manifest.write_text(manifest.read_text().replace('"kind": "annotations"', '"kind": "pairs"'))
    with pytest.raises(StoreError, match="holds pairs, expected annotations"):
        ingest([write(tmp_path / "s2.jsonl", records("b"))], str(tmp_path / "t"), CONFIG)


def test_a_repeated_id_is_refused_wherever_it_stood_first(tmp_path: Path) -> None:
    first = write(tmp_path / "0.jsonl", records("old"))
    ingest([first], str(tmp_path / "t"), CONFIG)
    b = write(tmp_path / "b.jsonl", records("x", "y", "x", "old"))
    changed = record("y", ranks=[1, 1])
    a = write(tmp_path / "a.jsonl", records("z") + changed + records("w"))
    summary = ingest([b, a], str(tmp_path / "t"), IngestConfig(split_bytes=1024))
    assert ids_of(tmp_path / "t") == ["old", "x", "y", "z", "w"]
    assert [(source.accepted, source.refused) for source in summary.sources] == [(2, 2), (2, 1)]
    assert summary.reasons == {"duplicate annotation": 2, "duplicate id at $.id": 1}
    totals = committed(summary).totals
    assert (totals["annotations"], totals["refused"], totals["duplicates"]) == (5, 3, 2)
    assert [source.duplicates for source in summary.sources] == [2, 0]
    told = [str(one).replace(f"{tmp_path}/", "") for one in summary.rejections]
    assert told == [
        "b.jsonl:3: duplicate annotation, got `x`, which stands at b.jsonl:1 word for word; once is enough",
        "b.jsonl:4: duplicate annotation, got `old`, which stands at 0.jsonl:1 word for word; once is enough",
        "a.jsonl:2: duplicate id, got `y`, which stands at b.jsonl:2 with other content; "
        "ids are unique in a table at $.id",
    ]
    assert [one.record.encode() + b"\n" for one in refused_of(tmp_path / "t")] == [
        record("x"), record("old"), changed,
    ]  # fmt: skip
    assert files_in(tmp_path / "t", "data") | files_in(tmp_path / "t", "quarantine") == named_in(committed(summary))


def test_ids_whose_hashes_meet_are_both_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # With 2-bit hashes every id meets another, and only equal ones are refused.
    def few(ids: Sequence[str]) -> np.ndarray:
        return np.array([hashlib.blake2b(name.encode()).digest()[0] % 4 for name in ids], dtype="<u8")

    monkeypatch.setattr(id_index, "hash_ids", few)
    monkeypatch.setattr(dedup, "hash_ids", few)
    path = write(tmp_path / "s.jsonl", records(*range(20), 7))
    more = write(tmp_path / "more.jsonl", records(*range(19, 25)))
    for source in (path, more):
        ingest([source], str(tmp_path / "t"), IngestConfig())
    assert ids_of(tmp_path / "t") == [str(n) for n in range(25)]
    assert sorted((Path(one.source).name, one.line) for one in refused_of(tmp_path / "t")) == [
        ("more.jsonl", 1),
        ("s.jsonl", 21),
    ]


def test_a_known_source_is_skipped_and_a_changed_one_fails(tmp_path: Path) -> None:
    path = write(tmp_path / "s/a.jsonl", records("a"))
    ingest([path], str(tmp_path / "t"), CONFIG)
    os.utime(path, (1, 1))
    more = write(tmp_path / "s/b.jsonl", records("b"))
    summary = ingest([str(tmp_path / "s")], str(tmp_path / "t"), CONFIG)
    assert (summary.skipped, [source.uri for source in summary.sources]) == ([path], [more])
    write(tmp_path / "s/a.jsonl", records("c"))
    os.utime(path, (1, 1))
    summary = ingest([path], str(tmp_path / "t"), CONFIG)
    assert summary.manifest is None
    assert [(uri, reason.partition(";")[0]) for uri, reason in summary.failed] == [
        (path, "has changed since it was ingested")
    ]
    assert "--replace" in summary.failed[0][1]
    assert ids_of(tmp_path / "t") == ["a", "b"]


def test_a_source_of_which_nothing_was_accepted_is_read_again_with_another_configuration(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", b'{"p":"q","c":["x","y"],"r":[1,2]}\n\n')
    native = IngestConfig(format="native")
    wrong = ingest([path], str(tmp_path / "t"), native)
    assert committed(wrong).totals["refused"] == 1
    again = ingest([path], str(tmp_path / "t"), native)
    assert (again.manifest, again.skipped) == (None, [path])
    right = ingest([path], str(tmp_path / "t"), IngestConfig(fields=FieldPaths(prompt="p", completions="c", ranks="r")))
    totals = committed(right).totals
    assert (totals["annotations"], totals["refused"], totals["blank"], totals["lines"], totals["sources"]) == (
        1,
        0,
        1,
        2,
        1,
    )
    assert refused_of(tmp_path / "t") == []
    assert len(committed(right).sources) == 1


def test_the_same_records_under_another_name_add_nothing_twice_and_no_second_version(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", records(1, 2))
    ingest([path], str(tmp_path / "t"), CONFIG)
    copy = shutil.copy(path, tmp_path / "b.jsonl")
    summary = ingest([str(copy)], str(tmp_path / "t"), CONFIG)
    assert (summary.sources[0].accepted, summary.sources[0].refused) == (0, 2)
    assert ids_of(tmp_path / "t") == ["1", "2"]
    assert ingest([str(copy)], str(tmp_path / "t"), CONFIG).manifest is None


def test_a_table_inside_a_source_directory_does_not_feed_on_itself(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", records("a") + b"bad\n")
    ingest([str(tmp_path)], str(tmp_path / "table"), CONFIG)
    summary = ingest([str(tmp_path)], str(tmp_path / "table"), CONFIG)
    assert (summary.manifest, summary.failed) == (None, [])
    assert summary.skipped == [str(tmp_path / "a.jsonl")]
    inside = {*(tmp_path / "table/quarantine").glob("*"), *(tmp_path / "table/versions").glob("*")}
    inside |= set((tmp_path / "table/index").glob("*"))
    assert {Path(name) for name in summary.ignored} == inside | set((tmp_path / "table/data").glob("*"))


def test_an_ingestion_that_commits_meanwhile_is_kept_and_its_ids_count(tmp_path: Path) -> None:
    ours = write(tmp_path / "ours.jsonl", records("a", "b"))
    theirs = write(tmp_path / "theirs.jsonl", records("b", "c"))
    table = str(tmp_path / "t")
    race = RacingExecutor(lambda: ingest([theirs], table, CONFIG), before=CHECKED)
    summary = ingest([ours], table, CONFIG, executor=race)
    assert race.num_maps > 1, "the other one was first"
    assert sorted(ids_of(table)) == ["a", "b", "c"]
    assert (summary.sources[0].accepted, summary.sources[0].refused) == (1, 1)
    assert "which stands at" in summary.rejections[0].reason
    assert committed(summary).totals["annotations"] == 3
    assert {Path(source.uri).name for source in committed(summary).sources} == {"ours.jsonl", "theirs.jsonl"}
    assert files_in(tmp_path / "t", "data") | files_in(tmp_path / "t", "quarantine") == named_in(committed(summary))


def test_the_same_source_ingested_twice_at_once_goes_in_once(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", records("a", "b"))
    table = str(tmp_path / "t")
    race = RacingExecutor(lambda: ingest([path], table, CONFIG), before=READ)
    summary = ingest([path], table, CONFIG, executor=race)
    assert race.num_maps == 1
    assert (summary.manifest, summary.skipped) == (None, [path])
    assert ids_of(table) == ["a", "b"]
    assert files_in(tmp_path / "t", "data") == {file.path for file in Table.open(table).manifest().files}


def test_a_table_that_cannot_be_written_is_told_in_one_message(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", records("a"))
    blocked = write(tmp_path / "file", b"")
    with pytest.raises(StoreError, match=str(blocked)):
        ingest([path], f"{blocked}/table", CONFIG)
