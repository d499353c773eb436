"""The report: its JSON keeps its contract, and its table can be read in a log file."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from evaluations import report_of
from hostile_text import check_shown
from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.evaluation.evaluation_report import report_json
from pairwright.evaluation.reports.report_file import REPORT
from pairwright.evaluation.reports.report_schema import Report
from pairwright.evaluation.reports.report_text import format_report
from pairwright.terminal import escaped


def group_of(name: str, subset: str | None, lengths: list[int], pairs: list[tuple[int, int]]) -> TokenGroup:
    return TokenGroup(
        group_id=name,
        subset=subset,
        prompt_ids=np.zeros(1, np.int32),
        completion_ids=[np.zeros(1, np.int32) for _ in lengths],
        num_characters=np.array(lengths, np.int32),
        completion_index=np.arange(len(lengths), dtype=np.int16),
        chosen_P=np.array([chosen for chosen, _ in pairs], np.int64),
        rejected_P=np.array([rejected for _, rejected in pairs], np.int64),
        weight_P=np.full(len(pairs), 0.5, np.float32),
        margin_P=np.full(len(pairs), np.nan, np.float32),
    )


@pytest.fixture
def report() -> dict:
    # Longer wins the first pair, ties the second; the model gets the first right and ties the second.
    first = group_of("a", "facts", [9, 5, 5], [(0, 1), (1, 2)])
    # The chosen one is shorter; the model is wrong.
    second = group_of("b", None, [3, 8], [(0, 1)])
    return report_of([first, second], [[2.0, 1.0, 1.0], [0.0, 3.0]])


def values(part: dict, *names: str) -> tuple[float, ...]:
    return tuple(part[name]["value"] for name in names)


def test_the_baseline_stands_beside_the_model_in_every_part(report: dict) -> None:
    assert values(report["overall"], "accuracy", "longer_wins") == (0.5, 0.5)
    assert values(report["by_subset"]["facts"], "accuracy", "longer_wins") == (0.75, 0.75)
    assert values(report["by_subset"]["(none)"], "accuracy", "longer_wins") == (0.0, 0.0)
    assert report["by_num_completions"]["3"]["pairs"] == 2


def test_accuracy_is_told_apart_by_which_completion_is_longer(report: dict) -> None:
    parts = report["by_length"]
    names = ("chosen_longer", "equal_length", "chosen_shorter")
    assert [values(parts[name], "accuracy") for name in names] == [(1.0,), (0.5,), (0.0,)]
    assert [parts[name]["pairs"] for name in ("chosen_longer", "equal_length", "chosen_shorter")] == [1, 1, 1]


def test_report_json_reads_back_as_the_report_and_one_may_replace_another(report: dict, tmp_path: Path) -> None:
    found = msgspec.json.decode(report_json(report), type=Report, strict=True)
    assert msgspec.json.decode(msgspec.json.encode(found)) == report
    assert found.format_version == 1
    REPORT.put(str(tmp_path / "report.json"), report_json(report), lambda: REPORT.mark, overwrite=False)
    REPORT.put(
        str(tmp_path / "report.json"), report_json(report | {"created_at": "x"}), lambda: REPORT.mark, overwrite=True
    )


def test_figures_of_no_pairs_are_null_and_not_nan() -> None:
    report = report_of([group_of("a", None, [5, 3], [(0, 1)])], [[1.0, 0.0]])
    empty = json.loads(report_json(report))["by_length"]["chosen_shorter"]
    assert empty["pairs"] == 0
    assert set(values(empty, "accuracy", "log_loss", "reward_margin", "longer_wins")) == {None}
    assert report["overall"]["accuracy"] == {"value": 1.0, "interval": None}, "one prompt says nothing about others"
    assert " - " in format_report(report)


def test_the_table_is_plain_text_of_a_hundred_columns_with_every_figure(
    report: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = format_report(report)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 100
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert lines["all"].split() == ["all", "2", "3", "50.0", "%", "[0.0,", "100.0]", "50.0", "%", "1.3517", "-0.667"]
    assert "facts" in text
    assert "chosen shorter" in text
    assert "3 of 4 pairs" in text
    assert "2 completions over it dropped, 1 pairs dropped" in text


def test_texts_with_special_tokens_are_said_with_what_became_of_them(report: dict) -> None:
    assert "special tokens" not in format_report(report)
    report["pairs"]["tokens"] |= {"groups_with_special": 7, "special_in_text:</s>": 9, "special_in_text:<pad>": 1200}
    text = format_report(report)
    assert "in all splits 7 groups hold special tokens in their texts (<pad> in 1,200, </s> in 9), read as" in text
    report["model"]["special_in_text"] = "split"
    assert 'read as ordinary text (special_in_text = "split")' in format_report(report)


def test_a_long_subset_name_keeps_the_columns_in_place(report: dict) -> None:
    report["by_subset"]["x" * 200] = report["by_subset"].pop("facts")
    assert max(map(len, format_report(report).splitlines())) <= 100


@pytest.mark.parametrize("name", ["[math]", "science[/hard]", ":smile:", "\x1b[2J\nall  9  9", "größe"])
def test_a_subset_has_its_name_in_table_and_json_whatever_it_is(report: dict, name: str) -> None:
    report["by_subset"][name] = report["by_subset"].pop("facts")
    text = format_report(report)
    check_shown(text)
    assert any(line.startswith(f"  {escaped(name)} ") for line in text.split("\n"))
    check_shown(report_json(report).decode())
    assert name in json.loads(report_json(report))["by_subset"]
