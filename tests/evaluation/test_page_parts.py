"""The parts of an evaluation's page: the verdict follows the metrics; pictures, texts and curves are true to them."""

import json
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from evaluations import DATA, IDENTITY
from pair_groups import Judged, arrays_of, drawn_groups
from pairwright.errors import StoreError
from pairwright.evaluation.evaluation_report import Measured, build_report, report_json
from pairwright.evaluation.page.model_page import PageContent, render_page
from pairwright.evaluation.page.pair_examples import pair_examples
from pairwright.evaluation.page.run_history import history_of, read_history
from pairwright.evaluation.page.verdict import Verdict, verdict
from pairwright.evaluation.reports.comparison import COMPARISON
from pairwright.evaluation.reports.report_file import REPORT, page_url
from pairwright.evaluation.reports.report_schema import Report
from pairwright.pages.svg_charts import Axis, Curve, curves, thinned
from pairwright.pages.word_differences import different_words


def report_on(groups: list[Judged]) -> dict[str, Any]:
    return build_report(Measured(arrays_of(groups)), IDENTITY, DATA)[0]


def verdict_on(report: dict[str, Any]) -> Verdict:
    return verdict(msgspec.convert(report, Report))


def good_groups(number: int = 200) -> list[Judged]:
    return drawn_groups(np.random.default_rng(2), number)


def test_a_skilled_model_is_said_to_be_above_the_length_rule_by_the_very_points() -> None:
    report = report_on(good_groups())
    found = verdict_on(report)
    assert found.level != "alarm"
    points = 100 * (report["overall"]["accuracy"]["value"] - report["overall"]["longer_wins"]["value"])
    assert f"It is {points:.1f} points above the rule that the longer text wins." in [
        one.text for one in found.sentences
    ]
    assert f"{100 * report['overall']['accuracy']['value']:.1f} %" in found.summary


@pytest.mark.parametrize(
    ("reward", "length"),
    [
        (lambda rank: 0.0, lambda rank: 10),
        (lambda rank: rank, lambda rank: 10),
        (lambda rank: -(rank % 3), lambda rank: 90 - 9 * rank),
    ],
    ids=["constant", "upside down", "below the length rule"],
)
def test_a_model_no_better_than_chance_or_length_is_not_to_be_used(reward: Any, length: Any) -> None:
    ranks = [1, 2, 3, 4, 5]
    groups = [
        Judged(n, [ranks], [float(reward(rank)) for rank in ranks], lengths=[length(rank) for rank in ranks])
        for n in range(60)
    ]
    found = verdict_on(report_on(groups))
    assert found.headline.startswith("Do not use it")
    assert found.sentences[0].level == "alarm"


def test_a_model_that_takes_length_for_merit_is_not_to_be_trained_against() -> None:
    lengths = [[90, 50, 10], [90, 50, 10], [90, 50, 10], [10, 50, 90]]
    groups = [Judged(n, [[1, 2, 3]], [float(m) for m in lengths[n % 4]], lengths=lengths[n % 4]) for n in range(80)]
    groups += [Judged(n, [[1, 2]], [2.0, 1.0], lengths=[10, 10]) for n in range(80, 200)]
    found = verdict_on(report_on(groups))
    assert found.headline == "Do not train against it: it takes length for merit"


def test_a_split_that_was_trained_on_is_no_measure() -> None:
    report = report_on(good_groups())
    report["pairs"]["split"] = "train"
    assert "trained on these pairs" in verdict_on(report).headline


def test_one_text_under_many_prompts_that_the_model_loves_is_named() -> None:
    groups = good_groups(60)
    for group in groups:
        group.texts = [7, *range(10**6 + 100 * group.prompt, 10**6 + 100 * group.prompt + len(group.rewards) - 1)]
        group.rewards = [99.0, *group.rewards[1:]]
    found = verdict_on(report_on(groups))
    assert any(one.section == "poison" and "60 prompts" in one.text for one in found.sentences)


@pytest.mark.parametrize("seed", range(20))
def test_texts_with_marked_words_are_the_texts_and_unmarked_words_stand_in_both(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = ["a", "ß", "don't", "\n", "  ", "東京", "x.y", "\u202e"]
    first, second = ("".join(rng.choice(words, rng.integers(0, 40))) for _ in range(2))
    sides = different_words(first, second)
    assert ["".join(piece.text for piece in side) for side in sides] == [first, second]
    common = ["".join(piece.text for piece in side if not piece.differs) for side in sides]
    assert common[0] == common[1]
    assert not any(piece.differs for side in different_words(first, first) for piece in side)


def test_texts_of_one_word_repeated_are_compared_in_bounded_time() -> None:
    started = time.process_time()
    different_words("good " * 10**5, "good bad " * 10**5)
    assert time.process_time() - started < 5


def test_a_step_taken_again_after_a_restart_counts_as_it_was_taken_last() -> None:
    first = [{"kind": "step", "step": n, "loss": 1.0, "accuracy": 0.5} for n in range(1, 6)]
    second = [{"kind": "resumed", "step": 4}, {"kind": "step", "step": 5, "loss": 0.25, "accuracy": None}]
    logs = ["\n".join(map(json.dumps, lines)).encode() for lines in (first, second)]
    found = history_of(None, [logs[0] + b'\n{"kind": "step", "st', logs[1]])
    assert found.loss == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 0.25)]
    assert found.resumes == [4]
    assert found.facts is None


def test_a_model_in_no_run_has_no_history(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert read_history(str(tmp_path / "model")) is None
    assert read_history(str(tmp_path / "nowhere" / "model")) is None


@pytest.mark.parametrize(
    "values", [[], [0.0], [5.0, 5.0], [1e-9, 2e-9], [-3e30, 7e30], [0.61, 0.64], [float("nan"), 1.0]]
)
def test_an_axis_holds_its_values_and_has_few_round_ticks(values: list[float]) -> None:
    axis = Axis.around(values)
    assert axis.low < axis.high
    assert all(0 <= axis.share(value) <= 1 for value in values if np.isfinite(value))
    assert all(axis.low <= value <= axis.high for value in values if np.isfinite(value))
    assert 2 <= len(axis.ticks()) <= 9


def test_a_long_run_is_a_small_picture_of_the_same_mean() -> None:
    points = [(float(n), float(n % 7)) for n in range(30_000)]
    few = thinned(points)
    assert len(few) == 300
    assert np.mean([y for _, y in few]) == pytest.approx(np.mean([y for _, y in points]))
    axis = Axis(0, 30_000)
    assert len(curves("x", [Curve("y", few, has_dots=False)], axis, Axis(0, 7))) < 10_000


def test_the_examples_are_the_pairs_that_the_model_gets_most_wrong() -> None:
    arrays = arrays_of(good_groups(40))
    texts = {
        name: {
            "group_id": name,
            "prompt": [{"role": "user", "content": "p"}],
            "completions": [{"text": f"{name} {k}", "model": None} for k in range(9)],
        }
        for name in arrays.group_ids
    }
    found = pair_examples(arrays, 2.0, lambda names: {name: texts[name] for name in names})
    errors = [one for one in found if one.kind == "error"]
    differences = [one.rewards[0] - one.rewards[1] for one in errors]
    assert differences == sorted(differences)
    assert differences[0] < 0
    for one, difference in zip(errors, differences, strict=True):
        assert one.probability == pytest.approx(1 / (1 + np.exp(-difference / 2.0)))


def test_the_page_replaces_an_older_page_alone_and_only_when_asked(tmp_path: Path) -> None:
    url = str(tmp_path / "mine.json")
    assert page_url(url) == str(tmp_path / "mine.html")
    report = report_on(good_groups(20))
    page = render_page(report, PageContent())
    REPORT.put(url, report_json(report), lambda: page, overwrite=False)
    with pytest.raises(StoreError, match="--overwrite"):
        REPORT.check(url, overwrite=False)
    REPORT.put(url, report_json(report), lambda: page.replace("Report", "report"), overwrite=True)
    with pytest.raises(StoreError, match="is not a comparison of"):
        COMPARISON.check(url, overwrite=True)
    (tmp_path / "mine.html").write_text("my notes")
    with pytest.raises(StoreError, match="is not a page of"):
        REPORT.check(url, overwrite=True)
    assert (tmp_path / "mine.html").read_text() == "my notes"
