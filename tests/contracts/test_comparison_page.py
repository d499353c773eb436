"""The page of a comparison: true to its JSON, safe whatever names and texts say, bounded, shown by a browser."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from test_model_page import hostile_groups, log, row_of
from test_report_page import CHROMIUM, PROBE, Parsed, seen_in_a_browser

import hostile_text
from evaluations import DATA, IDENTITY
from pair_groups import arrays_of, drawn_groups
from pairwright.evaluation.page.comparison_page import ComparisonContent, comparison_verdict, render_comparison
from pairwright.evaluation.page.lineage import Ancestor
from pairwright.evaluation.page.run_history import history_of
from pairwright.evaluation.reports.comparison import Candidate, Comparison, compare_models, short_names
from pairwright.evaluation.statistics.pair_arrays import PairArrays
from report_tables import HOSTILE


def noisy(arrays: PairArrays, seed: int, noise: float) -> PairArrays:
    rng = np.random.default_rng(seed)
    return replace(arrays, reward_N=arrays.worth_N + rng.normal(size=len(arrays.worth_N)) * noise)


def compared(
    arrays: PairArrays, noises: dict[str, Sequence[float]], text: str = "some words"
) -> tuple[Comparison, str]:
    """Return a comparison, and its page; each model has a run for each of its noises."""

    def read_texts(names: Sequence[str]) -> dict[str, dict[str, Any]]:
        return {name: row_of(name, arrays, text) | {"subset": text, "annotators": [text]} for name in names}

    candidates = []
    for number, (name, runs) in enumerate(noises.items()):
        paths = [msgspec.structs.replace(IDENTITY, path=f"{name}/{run}") for run in range(len(runs))]
        rewards = [noisy(arrays, 10 * number + seed, noise) for seed, noise in enumerate(runs)]
        candidates.append(Candidate(name, list(zip(paths, rewards, strict=True))))
    found = compare_models(candidates, pairs=DATA, read_texts=read_texts)
    history = history_of(msgspec.json.encode({"pairs_url": text, "config": {}} | RUN), [log()])
    content = ComparisonContent(
        read_texts(arrays.group_ids),
        {run.path: history for model in found.models for run in model.runs},
        [Ancestor("pairs", f"s3://{text}", "version 1", "d" * 64)],
    )
    return found, render_comparison(found, content)


RUN = {"pairs_version": 1, "model_digest": "a", "tokens_digest": "b"}


@pytest.fixture(scope="module")
def page() -> str:
    models: dict[str, Sequence[float]] = {f"{HOSTILE} a": [0.3, 0.4], f"{HOSTILE} b": [0.9]}
    return compared(arrays_of(hostile_groups(HOSTILE)), models, HOSTILE)[1]


def words(page: str) -> str:
    return " ".join("".join(Parsed(page).text).split())


def test_the_page_says_what_the_json_says() -> None:
    arrays = arrays_of(drawn_groups(np.random.default_rng(1), 200))
    found, page = compared(arrays, {"runs/good/model": [0.3], "runs/bad/model": [1.2, 1.3, 1.1]})
    shown, (difference,) = words(page), found.differences
    assert "good is better than bad" in shown
    for model in found.models:
        assert f"{100 * (model.accuracy.value or 0):.1f} %" in shown
    spread = found.models[1].spread
    assert f"3 runs, {100 * spread.lowest:.1f} to {100 * spread.highest:.1f}" in shown
    low, high = difference.result.difference.interval or (0, 0)
    assert (
        f"{100 * (difference.result.difference.value or 0):+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]" in shown
    )
    assert page.count('class="example"') == len(difference.disagreements) > 5
    assert page.count('class="run"') == 3
    row = difference.disagreements[0]
    assert f"reward margin {row.reward_margin_first:+.3g} of good" in shown


def test_equal_models_are_not_said_to_differ_and_seeds_that_differ_more_are_named() -> None:
    arrays = arrays_of(drawn_groups(np.random.default_rng(2), 120))
    found, _ = compared(arrays, {"a/model": [0.8], "b/model": [0.8]})
    verdict = comparison_verdict(found, short_names(["a/model", "b/model"]))
    assert verdict.headline == "No difference is shown"
    assert any("one run" in one.text for one in verdict.sentences)
    found, _ = compared(arrays, {"a": [0.4, 1.4], "b": [0.8, 0.8]})
    assert any(
        "seeds may be all of it" in one.text for one in comparison_verdict(found, short_names(["a", "b"])).sentences
    )


def test_several_runs_have_a_short_name_that_tells_models_apart() -> None:
    assert short_names(["x/one/model", "x/two/model,x/three/model"]) == {
        "x/one/model": "one",
        "x/two/model,x/three/model": "two and 1 more run",
    }
    assert short_names(["x/run/model", "y/run/model"]) == {"x/run/model": "x/run/model", "y/run/model": "y/run/model"}


def test_names_and_texts_are_text_and_nothing_else(page: str) -> None:
    parsed = Parsed(page)
    assert page.count("<script") == 1
    assert "<img" not in page
    assert "".join(parsed.text).count("<script>") >= 20
    anchors = {attributes["id"] for _, attributes in parsed.tags if "id" in attributes}
    targets = {(attributes["href"] or "").removeprefix("#") for tag, attributes in parsed.tags if tag == "a"}
    assert targets <= anchors


def test_control_characters_and_marks_of_direction_are_shown_as_escapes() -> None:
    text = hostile_text.HOSTILE
    page = compared(arrays_of(hostile_groups(text)), {f"{text} a": [0.3], f"{text} b": [0.9]}, text)[1]
    hostile_text.check_shown(page.replace(hostile_text.FORGED, ""))


def test_many_models_and_megabytes_of_text_have_a_bound() -> None:
    arrays = arrays_of(drawn_groups(np.random.default_rng(3), 40))
    models: dict[str, Sequence[float]] = {f"runs/{n}/model": [0.2 + n / 10] for n in range(11)}
    found, page = compared(arrays, models, "many words, the same in both texts. " * 300)
    assert len(found.differences) == 55
    assert "10 more differences are in the JSON" in words(page)
    assert len(page.encode()) < 2_000_000


@pytest.mark.skipif(not CHROMIUM, reason="no browser: apt-get install chromium, to look at the page in one")
def test_a_browser_shows_the_page_on_a_phone_and_searches_the_examples(page: str, tmp_path: Path) -> None:
    searched = """const all = held.querySelectorAll(".example").length, search = held.querySelector("#filter input");
      search.value = "a alone is right"; search.dispatchEvent(new Event("input"));
      const shown = [...held.querySelectorAll(".example")].filter(one => !one.hidden).length;
      document.querySelector("#found").textContent = JSON.stringify({all, shown,"""
    probe = PROBE.replace('document.querySelector("#found").textContent = JSON.stringify({', searched)
    found = seen_in_a_browser(page, tmp_path, "dark", 0, probe)
    assert found["sections"] == len(re.findall("<section ", page)) == 5
    assert 0 < found["shown"] < found["all"]
