"""What annotators disagree about: opposed groups and annotations, with their texts, in a page of bounded size."""

import re
from collections import defaultdict
from html.parser import HTMLParser
from itertools import combinations
from typing import Any

import pytest

from annotation_tables import annotation_row
from pairwright.data.profile.agreement import (
    COMPLETIONS_SHOWN,
    JUDGEMENTS_SHOWN,
    MAX_CONTESTED,
    ROWS_PER_ANNOTATOR,
    TEXT_CHARACTERS,
)
from pairwright.data.profile.profile_page import render
from report_tables import HOSTILE, metrics_of, random_rows


def ranks_by_text(row: dict[str, Any]) -> dict[str, int]:
    return {one["text"]: rank for one, rank in zip(row["completions"], row["ranks"], strict=True)}


def opposed(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """Return the comparisons of two annotators with opposite preferences, and those where both have one: a loop."""
    first: dict[str, dict[str, int]] = {}
    for number, row in enumerate(sorted(rows, key=lambda row: row["id"])):
        first.setdefault(row["annotator"] or f"unnamed {number}", ranks_by_text(row))
    opposite = decisive = 0
    for one, other in combinations(first.values(), 2):
        for a, b in combinations(one, 2):
            gaps = one[a] - one[b], other[a] - other[b]
            decisive += all(gaps)
            opposite += gaps[0] * gaps[1] < 0
    return opposite, decisive


def test_the_most_opposed_groups_are_those_that_a_loop_finds() -> None:
    rows = [row for row in random_rows(200) if len(set(ranks_by_text(row))) == len(row["completions"])]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["group_id"]].append(row)
    expected = {name: opposed(held) for name, held in groups.items()}
    order = sorted(
        (name for name, (opposite, _) in expected.items() if opposite),
        key=lambda name: (-expected[name][0] / expected[name][1], -expected[name][0], name),
    )
    found = metrics_of(rows).contested
    assert [one.group_id for one in found] == order[:MAX_CONTESTED]
    assert [(one.opposite, one.decisive_by_both) for one in found] == [expected[name] for name in order[:MAX_CONTESTED]]
    for one in found:
        held = {row["annotator"]: row for row in groups[one.group_id]}
        assert one.num_judgements == len(groups[one.group_id])
        for judgement in one.judgements:
            texts = [completion.text for completion in one.completions]
            if sum(row["annotator"] == judgement.annotator for row in groups[one.group_id]) == 1:
                ranks = ranks_by_text(held[judgement.annotator])
                assert judgement.ranks == [ranks[text or ""] for text in texts]


def test_rows_of_an_annotator_are_those_most_against_the_others() -> None:
    rows = [
        annotation_row(
            f"{group}-{name}",
            ["good", "bad"],
            [2, 1] if name == "eve" and group < 3 else [1, 2],
            prompt=f"prompt {group}",
            annotator=name,
        )
        for group in range(9)
        for name in ("ann", "bob", "eve")
    ]
    eve = next(one for one in metrics_of(rows).annotators if one.name == "eve")
    assert len(eve.rows) == ROWS_PER_ANNOTATOR
    shown = [(row.prompt, row.preferred, row.preferred_by_others, row.against_consensus) for row in eve.rows]
    assert shown[:3] == [(f"prompt {group}", "bad", "good", 1) for group in range(3)]
    assert {row[1:] for row in shown[3:]} == {("good", "good", 0)}


@pytest.mark.parametrize("number", [3, 40])
def test_hostile_texts_are_shown_as_text_and_the_page_has_a_bound(number: int) -> None:
    long = HOSTILE + "\u202e\x1b[31m" + "z" * 100_000
    rows = [
        annotation_row(
            f"{group}-{name}",
            [f"{long[: 50 + k]} {k} {long}" for k in range(number)],
            [(k * (1 if name % 2 else -1)) for k in range(number)],
            prompt=f"{HOSTILE} {group} {long}",
            annotator=f"{HOSTILE}{name}",
        )
        for group in range(2)
        for name in range(number)
    ]
    metrics = metrics_of(rows)
    assert len(metrics.contested) == 2
    for group in metrics.contested:
        assert len(group.completions) <= COMPLETIONS_SHOWN
        assert len(group.judgements) <= JUDGEMENTS_SHOWN
        assert all(len(one.text or "") <= TEXT_CHARACTERS + 3 for one in group.completions)
    page = render(metrics)
    assert len(page.encode()) < 600_000
    assert "\x1b" not in page
    assert "\u202e" not in page
    seen = _Tags()
    seen.feed(page)
    assert not seen.names & {"script", "img", "iframe", "object", "link rel=stylesheet", "form"}
    assert not re.search(r"\son\w+=", re.sub(r">[^<]*<", "><", page))
    assert page.count("<details") == page.count("</details>")


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)


def test_where_nobody_disagrees_the_page_says_so() -> None:
    rows = [annotation_row(f"a-{name}", ["x", "y"], [1, 2], annotator=name) for name in ("ann", "bob")]
    metrics = metrics_of(rows)
    assert metrics.contested == []
    assert "No two annotators have opposite preferences." in render(metrics)
