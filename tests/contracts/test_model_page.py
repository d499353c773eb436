"""The page of an evaluation: whole, safe whatever the data say, bounded, and shown by a browser without a complaint."""

import base64
import hashlib
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report_page import CHROMIUM, PROBE, Parsed, seen_in_a_browser

import hostile_text
from evaluations import DATA, IDENTITY
from pair_groups import Judged, arrays_of, drawn_groups
from pairwright.evaluation.evaluation_report import Measured, build_report
from pairwright.evaluation.page.lineage import Ancestor
from pairwright.evaluation.page.model_page import PageContent, render_page
from pairwright.evaluation.page.pair_examples import pair_examples
from pairwright.evaluation.page.run_history import history_of
from pairwright.evaluation.statistics.pair_arrays import PairArrays
from report_tables import HOSTILE


def row_of(name: str, arrays: PairArrays, text: str) -> dict[str, Any]:
    size = int(arrays.index_N.max()) + 1
    return {
        "group_id": name,
        "prompt": [{"role": "user", "content": f"{name}: {text}"}],
        "completions": [{"text": f"{k} {text} {name}", "model": f"{text} {k}"} for k in range(size)],
    }


def log() -> bytes:
    """A run that lost its workers after step 5, and took step 5 again."""
    steps = [{"kind": "step", "step": n, "num_steps": 9, "loss": 1 / n, "accuracy": 0.5 + n / 20} for n in range(1, 6)]
    again = [{"kind": "step", "step": n, "num_steps": 9, "loss": 0.25, "accuracy": 0.75} for n in range(5, 10)]
    events = [{"kind": "restart", "causes": [f"rank 1 {HOSTILE}"]}, {"kind": "resumed", "step": 4, "num_steps": 9}]
    last = [{"kind": "evaluation", "step": n, "log_loss": 0.6, "accuracy": 0.7, "groups": 3} for n in (4, 9)]
    return b"\n".join(json.dumps(line).encode() for line in [*steps, *events, *again, *last]) + b"\nnot json\n[1]\n"


def page_of(groups: Sequence[Judged], text: str = "some words") -> str:
    arrays = arrays_of(groups)

    def read_texts(names: Sequence[str]) -> dict[str, dict[str, Any]]:
        return {name: row_of(name, arrays, text) for name in names}

    report, found = build_report(Measured(arrays), IDENTITY, DATA, read_texts)
    report["annotators"] = [
        {
            "annotator": f"{text} {n}",
            "annotations": 3,
            "prompts": 3,
            "pairs": 3,
            "accuracy": {"value": 0.5, "interval": [0.4, 0.7]},
            "other_annotators": {"value": None, "interval": None},
        }
        for n in range(3)
    ]
    report["model"]["path"] = f"/{text}/model"
    run = json.dumps(
        {"pairs_url": text, "pairs_version": 1, "model_digest": "a", "tokens_digest": "b", "config": {"model": {}}}
    )
    content = PageContent(
        pair_examples(arrays, found.calibration.temperature, read_texts),
        history_of(run.encode(), [log()]),
        [Ancestor("pairs", f"s3://{text}", "version 1", "d" * 64), Ancestor("source", text, text, text)],
    )
    return render_page(report, content)


def hostile_groups(text: str) -> list[Judged]:
    groups = drawn_groups(np.random.default_rng(3), 60)
    for group in groups:
        group.subsets = (text, "plain")
        group.annotators = tuple(f"{text} {n}" for n, _ in enumerate(group.rankings))
        group.authors = [f"{text} {k % 3}" for k, _ in enumerate(group.rewards)]
        group.texts = [7, *range(10**6 + 100 * group.prompt, 10**6 + 100 * group.prompt + len(group.rewards) - 1)]
    return groups


@pytest.fixture(scope="module")
def page() -> str:
    return page_of(hostile_groups(HOSTILE), HOSTILE)


def test_the_page_is_whole_and_runs_nothing_but_its_own_script(page: str) -> None:
    parsed = Parsed(page)
    tags = [tag for tag, _ in parsed.tags]
    assert not set(tags) & {"img", "iframe", "object", "embed", "form", "base", "foreignobject", "use", "image"}
    assert tags.count("script") == 1
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(attributes["content"] for _, attributes in parsed.tags if attributes.get("http-equiv")) or ""
    assert f"script-src 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy
    for tag, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "srcset", "action", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,")), attributes
    assert "url(" not in page
    assert "@import" not in page


def test_what_the_data_say_is_text_and_nothing_else(page: str) -> None:
    assert page.count("<script") == 1
    assert "<img" not in page
    text = "".join(Parsed(page).text)
    assert text.count("<script>") >= 20
    for place in (f"/{HOSTILE}/model", f"s3://{HOSTILE}", f"subset {HOSTILE}", f"rank 1 {HOSTILE}"):
        assert place[:60] in text, place


def test_control_characters_and_marks_of_direction_are_shown_as_escapes() -> None:
    page = page_of(hostile_groups(hostile_text.HOSTILE), hostile_text.HOSTILE)
    hostile_text.check_shown(page.replace(hostile_text.FORGED, ""))  # where a line of HTML begins means nothing
    assert page.count("<bdi") == page.count("</bdi>")
    assert page.count("evil\\x1b]0;OWNED") >= 20


def test_every_link_leads_somewhere_and_tables_and_pictures_have_words(page: str) -> None:
    parsed = Parsed(page)
    anchors = {attributes["id"] for _, attributes in parsed.tags if "id" in attributes}
    targets = {(attributes["href"] or "").removeprefix("#") for tag, attributes in parsed.tags if tag == "a"}
    assert targets <= anchors
    assert len(targets) >= 10
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in parsed.tags if tag == "th")
    pictures = [attributes for tag, attributes in parsed.tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(pictures) == 4
    assert all(attributes["aria-label"] for attributes in pictures)


def test_equal_data_give_equal_bytes_but_for_the_time() -> None:
    def undated(page: str) -> str:
        return re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d\+00:00)?", "", page)

    groups = drawn_groups(np.random.default_rng(5), 20)
    assert undated(page_of(groups)) == undated(page_of(groups))


def test_a_page_of_a_hundred_thousand_pairs_and_megabytes_of_text_has_a_bound() -> None:
    rng = np.random.default_rng(1)
    groups = drawn_groups(rng, 6500)
    for number, group in enumerate(groups):
        group.subsets = (f"subset {number % 300}",)
    assert len(arrays_of(groups).group_P) > 100_000
    started = time.process_time()
    page = page_of(groups, "many words, the same in both texts. " * 30_000)
    assert time.process_time() - started < 60
    assert len(page.encode()) < 3_000_000
    assert "more are not shown" in page or "more characters" in page


@pytest.mark.parametrize("groups", [[Judged(0, [[1, 2]], [1.0, 0.0])], [Judged(0, [[1, 2, 3]], [7.0] * 3)]])
def test_an_evaluation_of_one_group_has_a_page(groups: list[Judged]) -> None:
    page = page_of(groups)
    assert Parsed(page).tags
    assert "One prompt says nothing about others" in page
    assert "nan" not in re.sub(r"<[^>]*>", " ", page).lower().split()


@pytest.mark.skipif(not CHROMIUM, reason="no browser: apt-get install chromium, to look at the page in one")
@pytest.mark.parametrize(("scheme", "number"), [("light", 1), ("dark", 0)])
def test_a_browser_shows_the_page_on_a_phone_and_filters_the_examples(
    scheme: str, number: int, page: str, tmp_path: Path
) -> None:
    filtered = """const all = held.querySelectorAll(".example").length, select = held.querySelector("#filter select");
      select.value = "errors"; select.dispatchEvent(new Event("input"));
      const shown = [...held.querySelectorAll(".example")].filter(one => !one.hidden).length;
      document.querySelector("#found").textContent = JSON.stringify({all, shown,"""
    probe = PROBE.replace('document.querySelector("#found").textContent = JSON.stringify({', filtered)
    found = seen_in_a_browser(page, tmp_path, scheme, number, probe)
    assert found["sections"] == 11
    assert 0 < found["shown"] < found["all"]
