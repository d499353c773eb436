"""Limits on the way from a line to pairs refuse what is above them, and leave what is not exactly as it is."""

import json

import pytest

from pairwright.config import ExpandConfig, IngestConfig
from pairwright.data.ingest.adapters import native, parser_for
from pairwright.data.ingest.parse import MAX_RECORD_COPIES, annotations_to_arrow, parse_lines
from pairwright.data.pairs.build_pairs import expand_groups
from pairwright.records import Rejection

CONFIG = IngestConfig(max_completions=12, max_characters=50_000)
LONG = "".join(chr(0x1F600 + n % 50) + "é中 \n"[n % 4] for n in range(25_000))


def line(prompt: object, texts: list[str]) -> bytes:
    completions = [{"text": text} for text in texts]
    record = {"id": "r", "prompt": prompt, "completions": completions, "ranks": list(range(1, len(texts) + 1))}
    return json.dumps(record).encode()


def accepted(raw: bytes) -> dict:
    """Return the row of the pairs table that a line becomes."""
    annotations, refused = parse_lines(raw, 1, "s", native, CONFIG)
    assert not refused, refused
    table, _ = expand_groups(annotations_to_arrow(annotations), ExpandConfig())
    return table.to_pylist()[0]


def test_what_is_just_within_the_limits_comes_out_whole() -> None:
    assert len(LONG) == CONFIG.max_characters
    texts = [LONG[:-2] + f"{number:02}" for number in range(12)]
    row = accepted(line(LONG, texts))
    assert [(turn["role"], turn["content"]) for turn in row["prompt"]] == [("user", LONG)]
    assert [completion["text"] for completion in row["completions"]] == texts
    assert len(row["pairs"]) == 66


@pytest.mark.parametrize(
    ("raw", "path", "found"),
    [
        (line(LONG + "x", ["a", "b"]), "$.prompt", "50,001"),
        (line([{"role": "user", "content": LONG}, {"role": "user", "content": "x"}], ["a", "b"]), "$.prompt", "50,001"),
        (line("p", ["a", LONG + "x"]), "$.completions[1].text", "50,001"),
        (line("p", [f"c{number}" for number in range(13)]), "$.completions", "got 13"),
    ],
)
def test_one_more_is_refused_and_nothing_of_it_kept(raw: bytes, path: str, found: str) -> None:
    annotations, refused = parse_lines(raw, 1, "s", native, CONFIG)
    assert annotations == []
    assert [(one.path, found in one.reason) for one in refused] == [(path, True)]


LABELLED = {
    "id": "r",
    "prompt": [{"role": "user", "content": "p"}],
    "completions": [{"text": "a", "id": "x", "model": "m"}, {"text": "b"}],
    "ranks": [1, 2],
    "annotator": "w",
    "subset": "s",
    "metadata": {"page": "7"},
}
LIMITED = IngestConfig(max_label_characters=10, max_turns=2, max_metadata=2, max_characters=100)


@pytest.mark.parametrize(
    ("changes", "path", "reason"),
    [
        ({"id": "x" * 11}, "$.id", "expected an id of at most 10 characters, got 11; set max_label_characters"),
        ({"annotator": "x" * 11}, "$.annotator", "expected an annotator of at most 10"),
        ({"subset": "x" * 11}, "$.subset", "expected a subset of at most 10"),
        ({"prompt": [{"role": "x" * 11, "content": "p"}]}, "$.prompt[0].role", "expected a role of at most 10"),
        ({"prompt": [{"role": "u", "content": "p"}] * 3}, "$.prompt", "expected at most 2 turns, got 3; set max_turns"),
        ({"completions": [{"text": "a", "id": "x" * 11}, {"text": "b"}]}, "$.completions[0].id", "expected an id of"),
        (
            {"completions": [{"text": "a"}, {"text": "b", "model": "x" * 11}]},
            "$.completions[1].model",
            "expected a model of at most 10 characters, got 11",
        ),
        ({"metadata": dict.fromkeys("abc", "")}, "$.metadata", "expected at most 2 entries, got 3; set max_metadata"),
        ({"metadata": {"x" * 11: ""}}, "$.metadata", "expected names of at most 10 characters, got 11"),
        ({"metadata": {"a": "x" * 100}}, "$.metadata", "expected metadata of at most 100 characters, got 101"),
    ],
)
def test_names_turns_and_metadata_have_limits_too(changes: dict, path: str, reason: str) -> None:
    annotations, refused = parse_lines(json.dumps(LABELLED | changes).encode(), 1, "s", native, LIMITED)
    assert annotations == []
    assert [(one.path, one.reason.startswith(reason)) for one in refused] == [(path, True)], refused
    annotations, refused = parse_lines(json.dumps(LABELLED).encode(), 1, "s", native, LIMITED)
    assert (len(annotations), refused) == (1, [])


# ------------------------------------------------------------------------------- records with many judgements


def pairwise_task(num_annotations: int, **changes: object) -> dict:
    result = {"type": "pairwise", "value": {"selected": "left"}, "to_name": "a,b"}
    made = [{"id": number, "result": [result]} for number in range(num_annotations)]
    return {"id": 1, "data": {"prompt": "p", "a": "x", "b": "y"}, "annotations": made} | changes


def ingested(record: dict, name: str, **limits: int) -> tuple[int, list[Rejection]]:
    config = IngestConfig.model_validate({"limits": limits})
    annotations, refused = parse_lines(json.dumps(record).encode(), 1, "s", parser_for(name, config), config)
    return len(annotations), refused


def test_a_record_of_too_many_judgements_is_refused_before_any_is_made() -> None:
    assert ingested(pairwise_task(5), "label-studio", max_judgements=5) == (5, [])
    for record, name, path in [
        (pairwise_task(6), "label-studio", "$.annotations"),
        ({"fields": {}, "responses": {f"q{n}": [{"value": 1}] for n in range(6)}}, "argilla", "$.responses"),
    ]:
        num_accepted, [refused] = ingested(record, name, max_judgements=5)
        assert (num_accepted, refused.path) == (0, path)
        assert "set limits.max_judgements to take more" in refused.reason


def test_a_record_of_too_many_fields_is_refused() -> None:
    fields = {f"f{number}": "x" for number in range(6)}
    for record, name in [
        (pairwise_task(1, data=fields), "label-studio"),
        ({"fields": fields, "responses": {}}, "argilla"),
    ]:
        _, [refused] = ingested(record, name, max_columns=5)
        assert refused.reason == "expected at most 5 fields, got 6; set limits.max_columns to take more"


def test_judgements_that_each_repeat_a_long_text_are_taken_up_to_a_limit() -> None:
    # A task of one megabyte with a thousand annotations became a gigabyte of rows.
    task = pairwise_task(100, data={"prompt": "p" * 1000, "a": "x", "b": "y"})
    num_accepted, refused = ingested(task, "label-studio", max_record_bytes=20_000)
    assert num_accepted == 19
    assert {one.reason.partition(",")[0] for one in refused} == {"expected a record whose rows hold at most 20"}
    assert num_accepted + len(refused) == 100


def test_the_text_of_a_record_is_kept_with_its_first_refused_judgements_alone() -> None:
    skipped = {"id": 1, "result": [], "was_cancelled": True}
    _, refused = ingested({"id": 1, "data": {}, "annotations": [skipped] * 30}, "label-studio")
    assert len(refused) == 30
    assert [bool(one.record) for one in refused] == [True] * MAX_RECORD_COPIES + [False] * (30 - MAX_RECORD_COPIES)


@pytest.mark.timeout(30)
def test_names_of_tags_that_are_digits_take_no_quadratic_time() -> None:
    # `\\d+$` took hours for a tag of two megabytes.
    tag = "1" * 2_000_000 + "x"
    task = pairwise_task(1)
    task["annotations"][0]["result"][0]["to_name"] = f"{tag},{tag}y"
    _, [refused] = ingested(task, "label-studio")
    assert refused.reason.startswith("expected a field that the tag `111")
    task["annotations"][0]["result"][0]["to_name"] = "t-1,t-2"
    task["data"] = {"prompt": "p", "text1": "x", "text2": "y"}
    assert ingested(task, "label-studio") == (1, [])
