"""Forget: what leaves, what is proven, and what is said where it cannot be done."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from annotation_tables import annotation_row, annotations_table, manifest
from pairwright.cli import app
from pairwright.cluster.compact import compact
from pairwright.cluster.forget import forget
from pairwright.data.forgetting import look, proof_of, removal_of
from pairwright.data.history import history
from pairwright.data.rules import prompt_id
from pairwright.data.store import Input, Source, Table
from pairwright.errors import ConfigError, DataError, StoreError
from pairwright.records import Message, Rejection

QUESTION = "Who painted the night watch?"
ID = prompt_id([Message(role="user", content=QUESTION)])


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Return a table of two sources in three files, and a file of refused records."""
    table = Table(str(tmp_path / "t"), "annotations")
    who = ["ann", "bob", None, "ann", "bob"]
    rows = [
        annotation_row(f"r{n}", ["a", "b"], [1, 2], annotator=name, source=f"s3://b/{'x' if n < 3 else 'y'}.jsonl")
        for n, name in enumerate(who)
    ]
    rows[1] |= {"prompt": [{"role": "user", "content": QUESTION}], "prompt_id": ID}
    refused = [
        Rejection(source="s3://b/x.jsonl", line=7, path="$.ranks", reason="expected", record='{"annotator": "ann"}'),
        Rejection(source="s3://b/x.jsonl", line=8, path="$", reason="expected", record=json.dumps({"q": QUESTION})),
    ]
    files = [table.write_data(annotations_table(rows[start : start + 2])) for start in (0, 2, 4)]
    sources = [
        Source(uri="s3://b/x.jsonl", size=1, etag="e", lines=5, accepted=3, refused=2),
        Source(uri="s3://b/y.jsonl", size=1, etag="f", lines=2, accepted=2, refused=0),
    ]
    totals = {"annotations": 5, "refused": 2, "forgotten": 0, "lines": 7, "completions": 10}
    refused_files = [table.write_refused(refused)]
    table.commit(
        lambda newest: manifest(
            kind="annotations", files=files, refused_files=refused_files, sources=sources, totals=totals
        )
    )
    return table


def test_an_annotator_is_in_no_file_of_the_new_version_and_files_without_him_are_the_same_ones(table: Table) -> None:
    before = table.manifest()
    summary = forget(table.url, annotators=["ann"], prompts=[])
    after = table.manifest()
    assert summary.sources == {"s3://b/x.jsonl": 1, "s3://b/y.jsonl": 1}
    assert after.files[2] == before.files[2]
    names = [name for rows in table.read(after) for name in rows.column("annotator").to_pylist()]
    assert names == ["bob", None, "bob"]
    assert [(s.accepted, s.forgotten) for s in after.sources] == [(2, 1), (1, 1)]
    assert (after.totals["annotations"], after.totals["forgotten"], after.totals["completions"]) == (3, 2, 6)
    refused = table.read_refused(after.refused_files[0])
    assert [(one.line, one.record) for one in refused] == [(7, ""), (8, json.dumps({"q": QUESTION}))]
    assert (summary.proof.num_files, summary.proof.num_rows, summary.proof.num_refused) == (3, 3, 2)
    assert '"ann"' not in json.dumps(after.config)
    assert [row.num_rows for row in table.read(table.manifest(1))] == [2, 2, 1]
    assert history(table.url, last=9)["versions"][0]["sources"]["thinned"] == ["s3://b/x.jsonl", "s3://b/y.jsonl"]


@pytest.mark.parametrize("named", ["id", "text file", "messages"])
def test_a_prompt_is_named_by_its_id_its_text_or_its_messages(table: Table, tmp_path: Path, named: str) -> None:
    (tmp_path / "prompt.txt").write_text(f"\n{QUESTION} \n")
    (tmp_path / "prompt.json").write_text(json.dumps([{"role": "user", "content": QUESTION}]))
    given = {"id": ID, "text file": str(tmp_path / "prompt.txt"), "messages": str(tmp_path / "prompt.json")}[named]
    summary = forget(table.url, annotators=[], prompts=[given])
    assert (summary.num_annotations, summary.num_refused_without_text) == (1, 1)
    newest = table.manifest()
    assert [row["id"] for rows in table.read(newest) for row in rows.to_pylist()] == ["r0", "r2", "r3", "r4"]
    assert [one.record for one in table.read_refused(newest.refused_files[0])] == ['{"annotator": "ann"}', ""]


def test_what_nothing_matches_makes_no_version_and_exits_with_1(table: Table) -> None:
    with pytest.raises(DataError, match=r"nothing of the newest version holds annotator nobody"):
        forget(table.url, annotators=["nobody"], prompts=[])
    assert table.versions() == [1]
    done = CliRunner().invoke(app, ["forget", table.url, "--annotator", "nobody"])
    assert isinstance(done.exception, DataError)
    stored = {f"data/{path.name}" for path in Path(table.url, "data").iterdir()}
    assert stored == {file.path for file in table.manifest().files}


@pytest.mark.parametrize(
    ("annotators", "prompts", "message"),
    [
        ([], [], "nothing to forget was named"),
        ([""], [], "an empty one"),
        ([], ["no such file"], "neither a prompt_id"),
    ],
)
def test_what_cannot_be_meant_is_refused(annotators: list[str], prompts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        removal_of(annotators, prompts)


def test_pairs_point_to_the_annotations_that_they_were_made_from(tmp_path: Path) -> None:
    pairs = Table(str(tmp_path / "pairs"), "pairs")
    pairs.commit(lambda newest: manifest(inputs=[Input(url="s3://b/annotations", version=3, digest="d")]))
    with pytest.raises(StoreError, match=r"forget there \(`pairwright forget s3://b/annotations \.\.\.`\)"):
        forget(pairs.url, annotators=["ann"], prompts=[])


def test_a_version_that_still_holds_something_is_no_proof(table: Table) -> None:
    removal = removal_of(["ann"], [])
    newest = table.manifest()
    looked = [look(table, file, removal) for file in newest.all_files]
    assert [each.found for each in looked] == [1, 1, 0, 1]
    with pytest.raises(StoreError, match="1 of them to be forgotten"):
        proof_of(newest, looked, table.url)
    with pytest.raises(StoreError, match="was not read"):
        proof_of(newest, [], table.url)


def test_a_compacted_version_is_the_same_content_and_is_what_pairs_were_made_from(table: Table) -> None:
    before = table.manifest()
    assert compact(table.url, file_bytes=1 << 20).num_files == 2
    after = table.manifest()
    assert (after.digest, after.totals, after.sources) == (before.digest, before.totals, before.sources)
    rows = [[row for rows in table.read(version) for row in rows.to_pylist()] for version in (before, after)]
    assert rows[0] == rows[1]
    assert not compact(table.url, file_bytes=1 << 20).is_new
    forget(table.url, annotators=["ann"], prompts=[])
    assert table.manifest().digest != before.digest
