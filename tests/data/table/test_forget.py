"""Forget: what leaves, what is proven, and what is said where it cannot be done."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from annotation_tables import annotation_row, annotations_table, manifest
from pairwright.cli.main import app
from pairwright.cli.render import render_erasure
from pairwright.data.identity import prompt_id
from pairwright.data.storage.local_cache import cache_folder
from pairwright.data.table.compact import compact
from pairwright.data.table.delete_rows import DeletePredicate, rewrite_quarantine_file, without_text
from pairwright.data.table.erase import (
    MAX_PROMPT_BYTES,
    count_matches,
    erase,
    erase_predicate,
    preview_erasure,
    verify_erasure,
)
from pairwright.data.table.table import Input, Source, Table
from pairwright.data.table.version_log import version_log
from pairwright.errors import ConfigError, DataError, StoreError
from pairwright.records import Message, Rejection

QUESTION = "Who painted the night watch?"
ID = prompt_id([Message(role="user", content=QUESTION)])
HOLDER = """
import sys
from pathlib import Path
from pairwright.data.storage.local_cache import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
input()
"""


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
    totals = {"annotations": 5, "refused": 2, "erased": 0, "lines": 7, "completions": 10}
    quarantined_files = [table.write_quarantined(refused)]
    table.commit(
        lambda newest: manifest(
            kind="annotations", files=files, quarantined_files=quarantined_files, sources=sources, totals=totals
        )
    )
    return table


@pytest.mark.parametrize(("annotators", "prompts"), [(["ANN"], []), ([], [ID]), (["bob"], [ID])])
def test_a_preview_says_what_an_erasure_then_does_and_changes_nothing(
    annotators: list[str], prompts: list[str], table: Table
) -> None:
    before = sorted(Path(table.url).rglob("*"))
    preview = preview_erasure(table.url, annotators=annotators, prompts=prompts)
    assert sorted(Path(table.url).rglob("*")) == before
    done = erase(table.url, annotators=annotators, prompts=prompts)
    assert (preview.num_annotations, preview.num_refused_without_text, preview.similar_names) == (
        done.num_annotations,
        done.num_refused_without_text,
        done.similar_names,
    )


def test_a_misspelt_annotator_is_answered_with_the_closest_one(table: Table) -> None:
    assert preview_erasure(table.url, annotators=["annn"], prompts=[]).close_names == ["ann"]
    done = erase(table.url, annotators=["annn"], prompts=[])  # refused records lose their text, whoever is named
    assert (done.num_annotations, done.close_names) == (0, ["ann"])
    assert "did you mean 'ann'?" in render_erasure(done)
    for do in (erase, preview_erasure):
        with pytest.raises(DataError, match=r"holds annotator annn; did you mean 'ann'\? older versions"):
            do(table.url, annotators=["annn"], prompts=[])
        with pytest.raises(DataError, match=r"holds annotator zoe; older versions"):
            do(table.url, annotators=["zoe"], prompts=[])


def test_a_compaction_previewed_has_as_many_files_as_the_compaction_then_has(table: Table) -> None:
    before = sorted(Path(table.url).rglob("*"))
    preview = compact(table.url, file_bytes=1 << 20, is_dry_run=True)
    assert sorted(Path(table.url).rglob("*")) == before
    assert "would hold the 5 rows" in preview.text()
    done = compact(table.url, file_bytes=1 << 20)
    assert (preview.num_files_before, preview.num_files, preview.num_rows, preview.is_new) == (
        done.num_files_before,
        done.num_files,
        done.num_rows,
        done.is_new,
    )


def test_an_annotator_is_in_no_file_of_the_new_version_and_files_without_him_are_the_same_ones(table: Table) -> None:
    before = table.manifest()
    summary = erase(table.url, annotators=["ann"], prompts=[])
    after = table.manifest()
    assert summary.sources == {"s3://b/x.jsonl": 1, "s3://b/y.jsonl": 1}
    assert after.files[2] == before.files[2]
    names = [name for rows in table.read(after) for name in rows.column("annotator").to_pylist()]
    assert names == ["bob", None, "bob"]
    assert [(s.accepted, s.erased) for s in after.sources] == [(2, 1), (1, 1)]
    assert (after.totals["annotations"], after.totals["erased"], after.totals["completions"]) == (3, 2, 6)
    refused = table.read_quarantined(after.quarantined_files[0])
    assert [(one.line, one.record) for one in refused] == [(7, ""), (8, "")]
    assert (summary.verification.num_files, summary.verification.num_rows, summary.verification.num_refused) == (
        3,
        3,
        2,
    )
    assert '"ann"' not in json.dumps(after.config)
    assert [row.num_rows for row in table.read(table.manifest(1))] == [2, 2, 1]
    assert version_log(table.url, last=9)["versions"][0]["sources"]["thinned"] == ["s3://b/x.jsonl", "s3://b/y.jsonl"]


@pytest.mark.parametrize("named", ["id", "text file", "messages"])
def test_a_prompt_is_named_by_its_id_its_text_or_its_messages(table: Table, tmp_path: Path, named: str) -> None:
    (tmp_path / "prompt.txt").write_text(f"\n{QUESTION} \n")
    (tmp_path / "prompt.json").write_text(json.dumps([{"role": "user", "content": QUESTION}]))
    given = {"id": ID, "text file": str(tmp_path / "prompt.txt"), "messages": str(tmp_path / "prompt.json")}[named]
    summary = erase(table.url, annotators=[], prompts=[given])
    assert (summary.num_annotations, summary.num_refused_without_text) == (1, 2)
    newest = table.manifest()
    assert [row["id"] for rows in table.read(newest) for row in rows.to_pylist()] == ["r0", "r2", "r3", "r4"]
    assert [one.record for one in table.read_quarantined(newest.quarantined_files[0])] == ["", ""]


def test_what_nothing_matches_makes_no_version_and_exits_with_1(table: Table) -> None:
    summary = erase(table.url, annotators=["nobody"], prompts=[])  # a refused record may hold any name
    assert (summary.num_annotations, summary.num_refused_without_text) == (0, 2)
    assert "no annotation matched" in render_erasure(summary)
    with pytest.raises(DataError, match=r"nothing of the newest version holds annotator nobody"):
        erase(table.url, annotators=["nobody"], prompts=[])
    assert table.versions() == [1, 2]
    done = CliRunner().invoke(app, ["forget", table.url, "--annotator", "nobody"])
    assert isinstance(done.exception, DataError)
    stored = {f"data/{path.name}" for path in Path(table.url, "data").iterdir()}
    assert stored == {file.path for file in table.manifest().files}


@pytest.mark.parametrize(
    ("annotators", "prompts", "message"),
    [
        ([], [], "nothing to forget was named"),
        ([""], [], "an empty one"),
        (["\u200b "], [], "an empty one"),
        (["caf\udce9"], [], "expected UTF-8"),
        ([], ["no such file"], "neither a prompt_id"),
        ([], ["/dev/zero"], "no regular file"),
        ([], ["."], "no regular file"),
    ],
)
def test_what_cannot_be_meant_is_refused(annotators: list[str], prompts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        erase_predicate(annotators, prompts)


def test_pairs_point_to_the_annotations_that_they_were_made_from(tmp_path: Path) -> None:
    pairs = Table(str(tmp_path / "pairs"), "pairs")
    pairs.commit(lambda newest: manifest(inputs=[Input(url="s3://b/annotations", version=3, digest="d")]))
    with pytest.raises(StoreError, match=r"forget there \(`pairwright forget s3://b/annotations \.\.\.`\)"):
        erase(pairs.url, annotators=["ann"], prompts=[])


def test_a_version_that_still_holds_something_is_no_proof(table: Table) -> None:
    predicate = erase_predicate(["ann"], [])
    newest = table.manifest()
    looked = [count_matches(table, file, predicate) for file in newest.all_files]
    assert [each.found for each in looked] == [1, 1, 0, 2]
    with pytest.raises(StoreError, match="1 of them to be forgotten"):
        verify_erasure(newest, looked, table.url)
    with pytest.raises(StoreError, match="was not read"):
        verify_erasure(newest, [], table.url)


def test_a_compacted_version_is_the_same_content_and_is_what_pairs_were_made_from(table: Table) -> None:
    before = table.manifest()
    assert compact(table.url, file_bytes=1 << 20).num_files == 2
    after = table.manifest()
    assert (after.digest, after.totals, after.sources) == (before.digest, before.totals, before.sources)
    rows = [[row for rows in table.read(version) for row in rows.to_pylist()] for version in (before, after)]
    assert rows[0] == rows[1]
    assert not compact(table.url, file_bytes=1 << 20).is_new
    erase(table.url, annotators=["ann"], prompts=[])
    assert table.manifest().digest != before.digest


# ------------------------------------------------------------------------------------------ names


NAMES = ["Quixotina", " Quixotina ", "QUIXOTINA", "\uff31uixotina", "Quixo\u200btina", "Jose\u0301", "JOS\u00c9"]
OTHERS = ["quixotina@example.com", "Quixotina;2026", "Quixotinas", "Jos\ufffd", "bob", None]


@pytest.fixture
def spellings(tmp_path: Path) -> Table:
    """Return a table with a row for each of NAMES and OTHERS, and one of bob's that names Quixotina beside."""
    table = Table(str(tmp_path / "s"), "annotations")
    rows = [annotation_row(f"r{n}", ["a", "b"], [1, 2], annotator=name) for n, name in enumerate([*NAMES, *OTHERS])]
    rows.append(annotation_row("n", ["a", "b"], [1, 2], annotator="bob", metadata=[("reviewer", "quixotina")]))
    source = Source(uri="s3://b/by-Quixotin%61.jsonl", size=1, etag="e", lines=14, accepted=14, refused=0)
    files = [table.write_data(annotations_table(rows))]
    table.commit(
        lambda newest: manifest(kind="annotations", files=files, sources=[source], totals={"annotations": len(rows)})
    )
    return table


def names_in(table: Table) -> list[str | None]:
    return [name for rows in table.read(table.manifest()) for name in rows.column("annotator").to_pylist()]


def test_a_name_matches_in_any_case_white_space_and_unicode_form_and_what_looks_like_it_is_listed(
    spellings: Table,
) -> None:
    summary = erase(spellings.url, annotators=["quixotina", "Jos\u00e9"], prompts=[])
    assert names_in(spellings) == [*OTHERS, "bob"]
    assert summary.spellings == dict.fromkeys(NAMES, 1)
    assert summary.similar_names == {"quixotina@example.com": 1, "Quixotina;2026": 1}
    assert summary.num_naming == 1
    assert summary.named_in_sources == ["s3://b/by-Quixotin%61.jsonl"]
    told = render_erasure(summary)
    for words in ("quixotina@example.com (1)", "but by others: 1 annotation, which stay", "source s3://b/by-Quixotin"):
        assert words in told
    with pytest.raises(DataError, match=r"other annotators with such a name: Quixotina;2026 \(1\), quixotina@ex"):
        erase(spellings.url, annotators=["quixotina"], prompts=[])


def test_exact_takes_a_name_to_the_letter(spellings: Table) -> None:
    done = CliRunner().invoke(app, ["forget", spellings.url, "--annotator", "QUIXOTINA", "--exact", "--json"])
    assert json.loads(done.stdout)["spellings"] == {"QUIXOTINA": 1}
    assert set(NAMES) - set(names_in(spellings)) == {"QUIXOTINA"}


# -------------------------------------------------------------------------------- refused records


@pytest.mark.parametrize(
    ("record", "reason", "path"),
    [
        ("[" * 900 + "1" + "]" * 900, "expected `object`, got `array`", "$"),
        ('{"annotator": "Quixot', "not JSON: the record is cut off; a record stands on one whole line", "$"),
        ("x" * 10_000, "duplicate id, got `ann-1`, which stands at ann.jsonl:1", "$.id"),
        ('{"by": "Jos\ufffd"}', "object contains unknown field `ann`; a record of this format is {...}", "$"),
        ("{}", "invalid enum value 'ann'; a record of this format is {...}", '$["ann.responses"]'),
        ("{}", "expected ids of their own, got `ann`", "$.fields.ann"),
        ("{}", "missing field `a`ann`", "$.ann[2]"),
        ("", "expected one list of items with an `id` for the tag `ann`, got none", "$.data"),
        ("\x00\ud7ff", "", ""),
    ],
)
def test_no_refused_record_keeps_a_text_or_a_quote_whatever_it_was(record: str, reason: str, path: str) -> None:
    refused = Rejection(source="s.jsonl", line=7, path=path, reason=reason, record=record)
    left = without_text(refused)
    assert (left.source, left.line, left.record) == ("s.jsonl", 7, "")
    assert "ann" not in left.reason + left.path
    assert without_text(left) == left


def test_a_reason_in_words_of_ours_stays() -> None:
    refused = Rejection(
        source="s", line=1, path="$.completions[2].text", reason="expected `int` >= 1 (1 = best), got 0", record="{}"
    )
    left = without_text(refused)
    assert (left.reason, left.path) == ("expected `int` >= 1 (1 = best)", "$.completions[2].text")
    assert without_text(msgspec.structs.replace(refused, reason="missing field `prompt`; name")).reason == (
        "missing field `prompt`"
    )


def test_deeply_nested_refused_records_of_every_depth_do_not_stop_it(tmp_path: Path) -> None:
    table = Table(str(tmp_path / "deep"), "annotations")
    records = ["[" * depth + "1" + "]" * depth for depth in range(1, 5000)]
    refused = [Rejection(source="s", line=1, path="$", reason="expected", record=text) for text in records]
    files = [table.write_data(annotations_table([annotation_row("r", ["a", "b"], [1, 2], annotator="ann")]))]
    kept = [table.write_quarantined(refused)]
    table.commit(lambda newest: manifest(kind="annotations", files=files, quarantined_files=kept))
    assert erase(table.url, annotators=["ann"], prompts=[]).num_refused_without_text == len(records)


def test_a_source_that_is_replaced_takes_no_text_of_other_sources_with_it(table: Table) -> None:
    file = table.manifest().quarantined_files[0]
    other = rewrite_quarantine_file(table, file, DeletePredicate(sources=frozenset(["s3://b/other.jsonl"])))
    assert other.file == file


# ---------------------------------------------------------------------------------------- prompts, caches


def test_the_file_of_a_prompt_is_read_up_to_a_limit_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="no regular file"):
        erase_predicate([], [str(tmp_path / "fifo")])
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_PROMPT_BYTES + 1)
    with pytest.raises(ConfigError, match=r"67,108,865 bytes, expected at most 67,108,864"):
        erase_predicate([], [str(tmp_path / "large")])
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="neither a prompt_id"):
        erase_predicate([], [str(tmp_path / "deep.json")])


def test_the_caches_of_tokens_and_models_are_emptied_but_for_models_in_use(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tokens, models = cache_folder("tokens"), cache_folder("models")
    for path in (tokens / "aa.arrow", tokens / "bb.unfinished", models / "aa.json", models / "bb.json"):
        path.write_text("1234")
    for name in ("aa", "aa.x1y2", "bb"):
        (models / name / "deep").mkdir(parents=True)
        (models / name / "deep" / "weights").write_text("1234")
    command = [sys.executable, "-c", HOLDER, str(models / "bb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        user.stdout.readline()
        said = forget_apart(table, "ann")
        user.communicate(b"\n")
    assert "caches of tokens and models emptied on 1 machine: 4 files, 0.0 MB" in said
    assert "kept 1 model in use;" in said
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert {path for path in left if path.suffix not in (".lock", ".using")} == {
        models / "bb" / "deep" / "weights",
        models / "bb.json",
    }
    forget_apart(table, "bob")
    assert not list(models.glob("*/**/weights"))


def forget_apart(table: Table, annotator: str) -> str:
    """Forget in a process of its own, and return what it says: workers of a Ray here would know another cache."""
    command = [sys.executable, "-m", "pairwright", "forget", table.url, "--annotator", annotator]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_what_else_may_hold_them_is_listed_with_the_command_that_removes_it(table: Table) -> None:
    told = render_erasure(erase(table.url, annotators=["ann"], prompts=[]))
    for words in (
        f"`pairwright vacuum {table.url} --keep-versions 1 --retention 0`",
        f"`pairwright expand {table.url} --output PAIRS`",
        "`rm -r tokens`",
        "models trained on them",
        "`report`",
        "`score`",
        "`export-pairs`",
        "s3://b/x.jsonl (1), s3://b/y.jsonl (1)",
    ):
        assert words in told


def test_a_prompt_with_tools_and_calls_is_named_by_a_file_of_its_record(tmp_path: Path) -> None:
    call = [{"function": {"name": "w", "arguments": {"place": "Oslo"}}}]
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": None, "tool_calls": call}]
    tools = [{"type": "function", "function": {"name": "w"}}]
    (tmp_path / "prompt.json").write_text(json.dumps({"prompt": turns, "tools": tools}))
    extra = msgspec.json.encode({"tool_calls": call}).decode()
    messages = [Message("user", QUESTION), Message("assistant", "", extra)]
    expected = prompt_id(messages, msgspec.json.encode({"tools": tools}).decode())
    assert erase_predicate([], [str(tmp_path / "prompt.json")]).prompt_ids == {expected}
