"""Sources of unknown layouts: reading stops early, and the [fields] that is printed reads them once it is pasted."""

import csv
import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pairwright.cli.main import app
from pairwright.config import IngestConfig, LayoutFile, load_config
from pairwright.data.ingest.dry_run import validate
from pairwright.data.ingest.fields.suggested_fields import suggest_fields
from pairwright.data.ingest.ingest import ingest
from pairwright.data.table.table import Table
from pairwright.terminal import escaped

LAKES = ["Lake Como, in the north of Italy.", "A puddle in the yard.", "The Baltic Sea."]


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_lines(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ranks_after_pasting(source: str, tmp_path: Path) -> list[tuple[list[str], list[int]]]:
    """Ingest a source twice: without a layout, which must print one, and with what was printed."""
    first = ingest([source], str(tmp_path / "table"), IngestConfig())
    assert (first.manifest, [uri for uri, _ in first.failed]) == (None, [source])
    printed = first.text()
    start = printed.index("\n[fields]\n") + 1
    table = printed[start : printed.index("\n\n", start)]
    pasted = tmp_path / "fields.toml"
    pasted.write_text(table)
    config = load_config(IngestConfig, str(pasted), [])
    summary = ingest([source], str(tmp_path / "table"), config)
    assert (summary.failed, summary.rejections) == ([], [])
    table_of = Table.open(str(tmp_path / "table"), "annotations")
    assert summary.manifest is not None
    rows = [row for part in table_of.read(summary.manifest) for row in part.to_pylist()]
    return [([one["text"] for one in row["completions"]], row["ranks"]) for row in rows]


def test_a_wide_table_with_two_answers_and_a_preference(tmp_path: Path) -> None:
    rows = [
        {"nr": k, "prompt": f"Name lake {k}.", "answer_a": LAKES[0], "answer_b": LAKES[1], "preference": word}
        for k, word in enumerate(["A", "B", "tie", "A"])
    ]
    found = ranks_after_pasting(write_csv(tmp_path / "wide.csv", rows), tmp_path)
    assert found == [(LAKES[:2], ranks) for ranks in ([1, 2], [2, 1], [1, 1], [1, 2])]


def test_a_wide_table_with_k_answers_and_scores_of_which_some_are_blank(tmp_path: Path) -> None:
    rows = [
        {"Question": f"Name lake {k}."}
        | {f"Response {n + 1}": LAKES[n] if n < 3 - k else "" for n in range(3)}
        | {f"Score {n + 1}": n + 2 if n < 3 - k else "" for n in range(3)}
        for k in range(2)
    ]
    found = ranks_after_pasting(write_csv(tmp_path / "k.csv", rows), tmp_path)
    assert found == [(LAKES, [3, 2, 1]), (LAKES[:2], [2, 1])]


def test_a_long_table_of_one_completion_a_row(tmp_path: Path) -> None:
    rows = [
        {"qid": k, "question": f"Name lake {k}.", "answer": text, "model": f"m{n}", "rating": 5 - n, "rater": "u1"}
        for k in range(2)
        for n, text in enumerate(LAKES)
    ]
    assert ranks_after_pasting(write_csv(tmp_path / "long.csv", rows), tmp_path) == [(LAKES, [1, 2, 3])] * 2


@pytest.mark.parametrize(
    ("judgement", "ranks"),
    [
        ({"rank_a": 2, "rank_b": 1, "rank_c": 3}, [2, 1, 3]),
        ({"ranking": "B > A = C"}, [2, 1, 2]),
        ({"ranking": ["b", ["a", "c"]]}, [2, 1, 2]),
        ({"best": "answer_c"}, [2, 2, 1]),
        ({"winner": 1}, [1, 2, 2]),
    ],
)
def test_wide_tables_of_three_judged_in_other_ways(tmp_path: Path, judgement: dict[str, Any], ranks: list[int]) -> None:
    sides = dict(zip(("answer_a", "answer_b", "answer_c"), LAKES, strict=True))
    rows = [{"task": f"Name lake {k}."} | sides | judgement for k in range(3)]
    found = ranks_after_pasting(write_lines(tmp_path / "three.jsonl", rows), tmp_path)
    assert found == [(LAKES, ranks)] * 3


@pytest.mark.parametrize(
    "record",
    [
        {"request": "Name a lake.", "preferred": LAKES[0], "dispreferred": LAKES[1]},
        {"request": "Name a lake.", "replies": [{"body": LAKES[0], "position": 0}, {"body": LAKES[1], "position": 1}]},
        {"data": {"query": "Name a lake."}, "outputs": LAKES[:2], "ratings": [4, 2]},
        {"ask.me": "x", "query": "Name a lake.", "left_output": LAKES[0], "right_output": LAKES[1], "vote": "left"},
        {"user_id": "u", "prompt": "Name a lake.", "modelA": "m", "modelB": "n", "ansA": LAKES[0], "ansB": LAKES[1],
         "verdict": "A>>B"},
    ],
    ids=["pair", "items", "lists", "left and right", "comparison"],
)  # fmt: skip
def test_other_layouts(tmp_path: Path, record: dict[str, Any]) -> None:
    assert ranks_after_pasting(write_lines(tmp_path / "one.jsonl", [record]), tmp_path) == [(LAKES[:2], [1, 2])]


def test_reading_stops_after_a_thousand_records_and_validate_says_the_same(tmp_path: Path) -> None:
    big = tmp_path / "big.jsonl"
    line = json.dumps({"speech": "x" * 1000, "remark": "y"}) + "\n"
    big.write_text(line * 30_000)
    summary = ingest([str(big)], str(tmp_path / "t"), IngestConfig())
    [(uri, reason)] = summary.failed
    assert uri == str(big)
    match = re.search(r"none of its first ([0-9,]+) records can be read as a known layout", reason)
    assert match is not None
    assert 1000 <= int(match[1].replace(",", "")) < 10_000
    [suggestion] = summary.suggestions.values()
    assert [(key.path, key.types) for key in suggestion.keys] == [("speech", "str"), ("remark", "str")]
    assert len(suggestion.keys[0].example) < 100
    found = validate([str(big)], IngestConfig(), against=None, limit=10, scratch=None)
    assert found.summary.suggestions == summary.suggestions
    assert "[fields]" in found.text()
    result = CliRunner().invoke(app, ["validate", str(big), "--json"])
    assert result.exit_code == 1
    assert tomllib.loads(json.loads(result.output)["suggestions"][str(big)]["toml"]) == {"fields": {}}


def test_a_source_whose_layout_is_named_keeps_its_refusals(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"question": "x"}])
    summary = ingest([source], str(tmp_path / "t"), IngestConfig(format="native"))
    assert (summary.failed, len(summary.rejections)) == ([], 1)


def test_examples_hide_secrets_and_control_characters(tmp_path: Path) -> None:
    record = {
        "api_key": "very-secret-1",
        "note": "see s3://KEY:very-secret-2@bucket/x",
        "header": "Bearer very-secret-3",
        "id": "sk-very-secret-4",
        "odd \x1b[31m\u202e": "\x1b]0;x\x07",
    }
    source = write_lines(tmp_path / "a.jsonl", [record])
    text = ingest([source], str(tmp_path / "t"), IngestConfig()).text()
    assert "very-secret" not in text
    assert text.replace("\n", "").isprintable()


KEYS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["prompt", "answer_a", "answer_b", "score_a", "score_b", "winner", "rank", "text", "id", "A", "B"]),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.dictionaries(KEYS, VALUES, min_size=1, max_size=8), min_size=1, max_size=4))
def test_whatever_the_records_hold_the_table_is_toml_whose_keys_are_known(records: list[dict[str, Any]]) -> None:
    suggestion = suggest_fields(records, len(records))
    found = tomllib.loads(suggestion.toml)
    assert found["fields"].keys() <= LayoutFile.model_fields["fields"].annotation.model_fields.keys()  # type: ignore[union-attr]
    assert [escaped(line) for line in suggestion.lines()] == suggestion.lines()
