"""What `inspect` shows: true figures, lineage back to the source files, a sample that can be read."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from annotation_tables import annotation_row, annotations_table, manifest
from pairwright.config import ExpandConfig
from pairwright.data.pairs.build_pairs import expand_groups
from pairwright.data.profile.table_report import find_annotations
from pairwright.data.table.inspect import format_inspection, inspect_version
from pairwright.data.table.table import Input, Source, Table
from pairwright.errors import StoreError
from pairwright.records import TOKENS_SCHEMA, Rejection

ROWS = [
    annotation_row(
        f"{i}",
        [f"{i} answer {text}" for text in "abc"],
        scores=[3.0, 1.0, 1.0],
        prompt=f"Why {i}?",
        annotator="ann",
        created_at=datetime(2026, 11, 20, tzinfo=UTC),
        metadata=[("k", "v")],
    )
    for i in range(50)
]
SOURCE = Source(uri="s3://bucket/a.jsonl", size=9, etag="e", lines=52, accepted=50, refused=2)


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Table, Table]:
    """Return an annotations table with two refused records, and a pairs table made from it."""
    annotations, pairs = Table(str(tmp_path / "annotations"), "annotations"), Table(str(tmp_path / "pairs"), "pairs")
    refused = [Rejection(source=SOURCE.uri, line=n, path="$.id", reason="expected `str`", record="{}") for n in (3, 7)]
    files = [annotations.write_data(annotations_table(part)) for part in (ROWS[:20], ROWS[20:])]
    read = annotations.commit(
        lambda newest: manifest(
            kind="annotations",
            files=files,
            quarantined_files=[annotations.write_quarantined(refused)],
            sources=[SOURCE],
            totals={"annotations": 50},
        )
    )
    assert read is not None
    made, totals = expand_groups(annotations_table(ROWS), ExpandConfig(margin="score_difference"))
    file = pairs.write_data(made)
    made_from = Input(url=annotations.url, version=1, digest=read.digest)
    pairs.commit(lambda newest: manifest(files=[file], totals=totals, inputs=[made_from], config={"ties": "drop"}))
    return annotations, pairs


def test_a_description_is_json_and_holds_the_figures_of_the_manifest(tables: tuple[Table, Table]) -> None:
    for table in tables:
        description = json.loads(json.dumps(inspect_version(table.url, version=None, num_sample=50)))
        newest = table.manifest()
        assert description["kind"] == table.kind
        assert description["totals"] == newest.totals
        assert description["digest"] == newest.digest
        assert description["rows"] == 50
        assert len(description["sample"]) == 50


def test_lineage_runs_back_to_the_source_files(tables: tuple[Table, Table]) -> None:
    annotations, pairs = tables
    (parent,) = inspect_version(pairs.url, version=None, num_sample=0)["lineage"]
    assert (parent["url"], parent["version"], parent["kind"]) == (annotations.url, 1, "annotations")
    assert [source["uri"] for source in parent["sources"]] == ["s3://bucket/a.jsonl"]
    assert "s3://bucket/a.jsonl: 52 lines, 50 accepted, 2 refused" in text_of(pairs)


def test_a_parent_that_is_gone_is_said_to_be_and_the_rest_is_shown(tables: tuple[Table, Table]) -> None:
    annotations, pairs = tables
    Path(annotations.url).rename(f"{annotations.url} moved")
    (parent,) = inspect_version(pairs.url, version=None, num_sample=1)["lineage"]
    assert "no table here" in parent["missing"]
    assert "no longer there" in text_of(pairs)


def test_the_sample_is_spread_over_all_files_and_the_same_each_time(tables: tuple[Table, Table]) -> None:
    annotations, _ = tables
    sample = inspect_version(annotations.url, version=None, num_sample=5)["sample"]
    assert [row["id"] for row in sample] == ["5", "15", "25", "35", "45"]
    assert sample == inspect_version(annotations.url, version=None, num_sample=5)["sample"]
    assert sample[0]["metadata"] == {"k": "v"}
    assert sample[0]["created_at"] == "2026-11-20T00:00:00+00:00"
    assert len(inspect_version(annotations.url, version=None, num_sample=99)["sample"]) == 50


def test_refused_records_are_counted_and_some_are_shown(tables: tuple[Table, Table]) -> None:
    annotations, _ = tables
    refused = inspect_version(annotations.url, version=None, num_sample=0)["refused"]
    assert refused["records"] == 2
    assert refused["examples"][0] == "s3://bucket/a.jsonl:3: expected `str` at $.id"
    assert "s3://bucket/a.jsonl:7: expected `str` at $.id" in text_of(annotations)


def test_text_shows_totals_pairs_and_margins(tables: tuple[Table, Table]) -> None:
    text = text_of(tables[1], num_sample=1)
    assert "0 > 1 weight 0.3333 margin 2; 0 > 2 weight 0.3333 margin 2" in text
    assert "comparisons           150" in text
    assert "ties  drop" in text
    assert "user: Why" in text


def test_long_texts_are_cut_and_say_how_long_they_were(tmp_path: Path) -> None:
    table = Table(str(tmp_path), "annotations")
    file = table.write_data(annotations_table([annotation_row("1", ["a" * 5000, "line\n\nbreak"], [1, 2])]))
    table.commit(lambda newest: manifest(kind="annotations", files=[file]))
    text = text_of(table, num_sample=1)
    assert "a... (5,000 characters)" in text
    assert "[1] line break" in text
    assert max(map(len, text.splitlines())) < 250


def test_a_tokens_table_shows_lengths_and_not_ids(tmp_path: Path) -> None:
    table = Table(str(tmp_path), "tokens")
    row = {
        "group_id": "g",
        "split": "train",
        "subset": None,
        "prompt_ids": [5, 6, 7],
        "completion_ids": [[1], [2, 3]],
        "completion_index": [0, 1],
        "num_characters": [4, 9],
        "pairs": [{"chosen": 1, "rejected": 0, "weight": 1.0, "margin": None}],
    }
    file = table.write_data(pa.Table.from_pylist([row], schema=TOKENS_SCHEMA), compress=False)
    table.commit(lambda newest: manifest(kind="tokens", files=[file]))
    (shown,) = inspect_version(str(tmp_path), version=None, num_sample=1)["sample"]
    assert (shown["prompt_tokens"], shown["completion_tokens"]) == (3, [1, 2])
    assert "prompt 3 tokens, completions [1, 2]" in text_of(table, num_sample=1)


def test_older_versions_are_listed_and_can_be_described(tables: tuple[Table, Table]) -> None:
    annotations, _ = tables
    for _ in range(12):
        annotations.commit(lambda newest: manifest(kind="annotations"))
    versions = inspect_version(annotations.url, version=None, num_sample=1)["versions"]
    assert (versions["number"], versions["first"], versions["last"]) == (13, 1, 13)
    assert [facts["version"] for facts in versions["newest"]] == list(range(13, 3, -1))
    assert inspect_version(annotations.url, version=1, num_sample=0)["rows"] == 50
    with pytest.raises(StoreError, match="no version 14; there are 1 to 13"):
        inspect_version(annotations.url, version=14, num_sample=0)


def test_an_empty_table_is_described(tmp_path: Path) -> None:
    Table(str(tmp_path), "pairs").commit(lambda newest: manifest())
    assert "0 rows" in text_of(Table(str(tmp_path), "pairs"), num_sample=3)


def text_of(table: Table, *, num_sample: int = 0) -> str:
    return format_inspection(inspect_version(table.url, version=None, num_sample=num_sample))


def commit_made_from(table: Table, *inputs: Input) -> Input:
    """Commit a version that says it was made from others, and return how it would be named as one."""
    committed = table.commit(lambda newest: manifest(inputs=list(inputs)))
    assert committed is not None
    return Input(url=table.url, version=committed.version, digest=committed.digest)


def pairs_at(tmp_path: Path, name: str) -> Table:
    return Table(str(tmp_path / name), "pairs")


@pytest.mark.parametrize("length", [1, 3])
def test_a_lineage_that_leads_back_to_itself_ends_with_a_word_on_it(tmp_path: Path, length: int) -> None:
    tables = [pairs_at(tmp_path, f"t{n}") for n in range(length)]
    digest = manifest().digest
    for table, following in zip(tables, [*tables[1:], tables[0]], strict=True):
        commit_made_from(table, Input(url=following.url, version=1, digest=digest))
    described = text_of(tables[0])
    assert described.count("by its manifests it was made from itself") == 1
    with pytest.raises(StoreError, match=r"by its manifests pairs .*t0 version 1 was made from itself; name the ann"):
        find_annotations(tables[0].url, None)


def test_a_lineage_of_any_depth_or_width_is_followed_so_far_and_no_further(tmp_path: Path) -> None:
    table = pairs_at(tmp_path, "first")
    given = commit_made_from(table)
    for n in range(40):
        table = pairs_at(tmp_path, f"t{n}")
        given = commit_made_from(table, given, given)  # 2^40 ways back to the first
    described = json.dumps(inspect_version(given.url, version=None, num_sample=0))
    assert "more than 16 tables in a row, or 256 in all" in described
    assert "not followed: more than 16" in text_of(table)
    with pytest.raises(StoreError, match="is 16 tables away from its annotations; name the annotations table"):
        find_annotations(given.url, None)
