"""Rankings into weighted pairs, against a brute-force expansion and against what the papers say."""

import math
import random
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotation_tables import annotation_row, annotations_table, real_rows
from brute_force import LLAMA_2, expand_by_hand
from pairwright.config import ExpandConfig
from pairwright.data.pairs.build_pairs import expand_groups, split_of
from pairwright.errors import DataError
from pairwright.records import PAIRS_SCHEMA

WEIGHT_TOLERANCE = 1e-6
"""Relative; weights are stored as float32."""


@st.composite
def annotations_of_a_group(draw: st.DrawFn, group: int) -> list[dict[str, Any]]:
    """Draw one to four annotations of one group: shuffled completions, repeated texts, ties, scores on some."""
    texts = draw(st.lists(st.sampled_from("abcdefghi"), min_size=2, max_size=draw(st.sampled_from([2, 9]))))
    rows = []
    for number in range(draw(st.integers(1, 4))):
        order = draw(st.permutations(texts))
        judged = st.lists(st.integers(1, len(texts)), min_size=len(texts), max_size=len(texts))
        values = draw(judged)
        scored = draw(st.booleans())
        row = annotation_row(
            draw(st.sampled_from([f"{number}", "same"])),
            order,
            None if scored else values,
            scores=[value / 4 for value in values] if scored else None,
            prompt=f"prompt {group}",
            annotator=draw(st.sampled_from(["ann", "bob", None])),
            line=number + 1,
        )
        if len(texts) == 2 and row["ranks"] != [1, 1]:
            row["grade"] = draw(st.sampled_from([None, *LLAMA_2["small"]]))
        rows.append(row)
    return rows + draw(st.lists(st.sampled_from(rows), max_size=2))


@st.composite
def annotations(draw: st.DrawFn) -> list[dict[str, Any]]:
    return [row for group in range(draw(st.integers(0, 4))) for row in draw(annotations_of_a_group(group))]


configs = st.builds(
    ExpandConfig,
    pair_weight=st.sampled_from(["comparisons", "group", "uniform"]),
    ties=st.sampled_from(["drop", "half"]),
    margin=st.sampled_from(["none", "score_difference", "strength"]),
    margin_table=st.sampled_from(["small", "large"]),
    margin_scale=st.sampled_from([1.0, 0.5]),
)


def pairs_of(table: pa.Table) -> dict[str, dict[tuple[int, int], tuple[float, float | None]]]:
    found = {}
    for row in table.to_pylist():
        pairs = {(pair["chosen"], pair["rejected"]): (pair["weight"], pair["margin"]) for pair in row["pairs"]}
        assert len(pairs) == len(row["pairs"]), "a direction stands there twice"
        found[row["group_id"]] = pairs
    return found


def expanded(rows: list[dict[str, Any]], **config: Any) -> list[dict[str, Any]]:
    return expand_groups(annotations_table(rows), ExpandConfig(**config))[0].to_pylist()


def texts_of_pairs(row: dict[str, Any]) -> dict[tuple[str, str], float]:
    text = [completion["text"] for completion in row["completions"]]
    return {(text[pair["chosen"]], text[pair["rejected"]]): pair["weight"] for pair in row["pairs"]}


@settings(max_examples=300, deadline=None)
@given(rows=annotations(), config=configs)
def test_pairs_equal_a_brute_force_expansion(rows: list[dict[str, Any]], config: ExpandConfig) -> None:
    table, totals = expand_groups(annotations_table(rows), config)
    table.validate(full=True)
    assert table.schema.equals(PAIRS_SCHEMA, check_metadata=True)
    rules = config.model_dump(include={"pair_weight", "ties", "margin", "margin_table", "margin_scale"})
    expected, counts = expand_by_hand(rows, **rules)
    found = pairs_of(table)
    assert found.keys() == expected.keys()
    for group_id, pairs in expected.items():
        assert found[group_id].keys() == pairs.keys()
        for direction, (weight, margin) in pairs.items():
            found_weight, found_margin = found[group_id][direction]
            assert found_weight == pytest.approx(float(weight), rel=WEIGHT_TOLERANCE)
            assert found_margin == (margin if margin is None else pytest.approx(margin, rel=WEIGHT_TOLERANCE))
    for name in ("comparisons", "decisive", "ties", "identical", "identical_ties"):
        assert totals[name] == counts[name]
    assert totals["groups"] == len(expected)
    assert totals["groups_without_pairs"] == sum(not pairs for pairs in expected.values())
    assert totals["pairs"] == sum(len(pairs) for pairs in expected.values())
    weight_sum = sum(float(weight) for pairs in expected.values() for weight, _ in pairs.values())
    assert totals["weight"] == pytest.approx(weight_sum, rel=WEIGHT_TOLERANCE)


@settings(max_examples=100, deadline=None)
@given(rows=annotations(), config=configs, order=st.randoms(use_true_random=False), cut=st.integers(0, 5))
def test_result_depends_neither_on_the_order_of_rows_nor_on_chunks(
    rows: list[dict[str, Any]], config: ExpandConfig, order: random.Random, cut: int
) -> None:
    shuffled = order.sample(rows, len(rows))
    chunks = pa.concat_tables([annotations_table(shuffled[:cut]), annotations_table(shuffled[cut:])])
    one, totals = expand_groups(annotations_table(rows), config)
    other, other_totals = expand_groups(chunks, config)
    assert one.equals(other)
    assert totals == other_totals


def test_one_ranking_gives_every_pair_one_over_k_choose_two() -> None:
    """Ouyang et al. 2022, eq. 1."""
    (row,) = expanded([annotation_row("1", ["c", "a", "b", "d"], [3, 1, 2, 4])])
    ordered = [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
    assert texts_of_pairs(row) == dict.fromkeys(ordered, pytest.approx(1 / 6))


def test_a_nine_way_prompt_weighs_what_a_four_way_prompt_weighs() -> None:
    """Pitfall 7: by a mean over pairs one nine-way prompt among 63 four-way ones is 8.7 % of the loss, not 1/64."""
    sizes = [9] + [4] * 63
    rows = [
        annotation_row(f"{i}", [f"text {k}" for k in range(size)], list(range(size)), prompt=f"prompt {i}")
        for i, size in enumerate(sizes)
    ]
    for pair_weight, share in (("comparisons", 1 / 64), ("group", 1 / 64), ("uniform", 36 / (36 + 63 * 6))):
        groups = expanded(rows, pair_weight=pair_weight)
        weights = {len(row["completions"]): sum(pair["weight"] for pair in row["pairs"]) for row in groups}
        assert weights[9] / (weights[9] + 63 * weights[4]) == pytest.approx(share, rel=WEIGHT_TOLERANCE)


def test_a_tie_is_no_pair_when_ties_are_dropped() -> None:
    """Pitfall 13: a tie is neither a win of one side nor a pair of a completion with itself."""
    (row,) = expanded([annotation_row("1", ["a", "b", "c"], [1, 1, 2])])
    assert texts_of_pairs(row) == {("a", "c"): pytest.approx(1 / 3), ("b", "c"): pytest.approx(1 / 3)}


def test_a_tie_counts_half_in_both_directions_when_ties_are_halved() -> None:
    """Pitfall 13: both directions weigh the same, so that tied rewards are pulled together."""
    (row,) = expanded([annotation_row("1", ["a", "b", "c"], [1, 1, 2])], ties="half")
    assert texts_of_pairs(row) == {
        ("a", "b"): pytest.approx(1 / 6),
        ("b", "a"): pytest.approx(1 / 6),
        ("a", "c"): pytest.approx(1 / 3),
        ("b", "c"): pytest.approx(1 / 3),
    }


@given(ranks=st.lists(st.integers(1, 7), min_size=7, max_size=7))
def test_the_rejected_completion_is_always_ranked_below_the_chosen_one(ranks: list[int]) -> None:
    """Pitfall 14: a rejected one drawn from all others flips a quarter of the labels at K = 7."""
    (row,) = expanded([annotation_row("1", list("abcdefg"), ranks)])
    assert all(ranks[pair["chosen"]] < ranks[pair["rejected"]] for pair in row["pairs"])
    assert len(row["pairs"]) == sum(a < b for a in ranks for b in ranks)


def test_contradicting_annotators_give_both_directions_by_their_share_of_votes() -> None:
    votes = [[1, 2], [1, 2], [1, 2], [2, 1]]
    rows = [annotation_row(f"{i}", ["a", "b"], ranks, annotator=f"{i}") for i, ranks in enumerate(votes)]
    for pair_weight in ("comparisons", "group", "uniform"):
        (row,) = expanded(rows, pair_weight=pair_weight)
        assert texts_of_pairs(row) == {("a", "b"): pytest.approx(3 / 4), ("b", "a"): pytest.approx(1 / 4)}
        assert row["num_annotations"] == 4
        for difference in (-2.0, 0.3, 5.0):
            signed = {"a": difference, "b": -difference}
            weights = texts_of_pairs(row).items()
            loss = sum(weight * math.log1p(math.exp(-signed[chosen])) for (chosen, _), weight in weights)
            share = 1 / (1 + math.exp(-difference))
            assert loss == pytest.approx(-3 / 4 * math.log(share) - 1 / 4 * math.log(1 - share))


def test_an_annotation_that_says_nothing_still_takes_its_share_of_the_votes() -> None:
    rows = [annotation_row("1", ["a", "b"], [1, 2]), annotation_row("2", ["a", "b"], [1, 1])]
    assert texts_of_pairs(expanded(rows)[0]) == {("a", "b"): pytest.approx(1 / 2)}
    assert texts_of_pairs(expanded(rows, pair_weight="group")[0]) == {("a", "b"): pytest.approx(1)}


def test_completions_are_matched_by_text_and_take_the_order_of_the_first_annotation() -> None:
    rows = [
        annotation_row("2", ["c", "b", "a"], [3, 2, 1], annotator="bob"),
        annotation_row("1", ["b", "a", "c"], [2, 1, 3], annotator="ann"),
    ]
    (row,) = expanded(rows)
    assert [completion["text"] for completion in row["completions"]] == ["b", "a", "c"]
    assert texts_of_pairs(row) == dict.fromkeys([("a", "b"), ("a", "c"), ("b", "c")], pytest.approx(1 / 3))
    assert row["annotators"] == ["ann", "bob"]


def test_completions_of_equal_text_make_no_pair_and_are_counted() -> None:
    table, totals = expand_groups(annotations_table([annotation_row("1", ["a", "a", "b"], [1, 2, 3])]), ExpandConfig())
    assert [(pair["chosen"], pair["rejected"]) for pair in table["pairs"][0].as_py()] == [(0, 2), (1, 2)]
    assert (totals["comparisons"], totals["decisive"], totals["identical"], totals["pairs"]) == (3, 3, 1, 2)


def test_an_annotation_that_stands_there_twice_counts_once() -> None:
    """Two ingestions of one file at once can both bring it, under another name."""
    once = annotation_row("1", ["a", "b"], [1, 2], annotator="ann")
    table, totals = expand_groups(annotations_table([once, once | {"source": "copy.jsonl"}]), ExpandConfig())
    assert table["num_annotations"].to_pylist() == [1]
    assert (totals["annotations"], totals["duplicates"]) == (1, 1)
    again = annotation_row("1", ["a", "b"], [2, 1], annotator="ann", line=2)
    table, totals = expand_groups(annotations_table([once, again]), ExpandConfig())
    assert (totals["annotations"], totals["duplicates"], totals["conflicting"]) == (2, 0, 1)


def test_an_annotator_who_judges_a_group_again_is_counted() -> None:
    names = ["a", "a", "a", "b", None, None, "b"]
    prompts = ["p", "p", "q", "p", "p", "p", "p"]
    rows = [
        annotation_row(str(number), ["x", "y"], [1, 2], annotator=name, prompt=prompt)
        for number, (name, prompt) in enumerate(zip(names, prompts, strict=True))
    ]
    _, totals = expand_groups(annotations_table(rows), ExpandConfig())
    assert totals["repeat_annotations"] == 2


def test_a_grade_gives_the_margin_of_llama_2_averaged_over_those_who_agree() -> None:
    rows = [
        annotation_row("1", ["a", "b"], [1, 2], grade="significantly better"),
        annotation_row("2", ["b", "a"], [2, 1], grade="slightly better"),
        annotation_row("3", ["a", "b"], [2, 1], grade="better"),
        annotation_row("4", ["a", "b"], [1, 2]),
    ]
    (small,) = expanded(rows, margin="strength")
    (large,) = expanded(rows, margin="strength", margin_table="large", margin_scale=0.5)
    for row, margins in ((small, {0: (1 + 1 / 3) / 2, 1: 2 / 3}), (large, {0: 0.5 * (3 + 1) / 2, 1: 0.5 * 2})):
        found = {pair["chosen"]: pair["margin"] for pair in row["pairs"]}
        assert found == pytest.approx(margins, rel=WEIGHT_TOLERANCE)
    (faint,) = expanded([annotation_row("1", ["a", "b"], [1, 2], grade="negligibly better")], margin="strength")
    assert faint["pairs"][0]["margin"] == 0.0
    (ungraded,) = expanded([annotation_row("1", ["a", "b", "c"], [1, 2, 3], scores=[3, 2, 1])], margin="strength")
    assert {pair["margin"] for pair in ungraded["pairs"]} == {None}


def test_a_margin_is_the_mean_score_gap_of_those_who_agree() -> None:
    rows = [
        annotation_row("1", ["a", "b"], scores=[5.0, 1.0]),
        annotation_row("2", ["b", "a"], scores=[2.0, 4.0]),
        annotation_row("3", ["a", "b"], scores=[1.0, 2.5]),
        annotation_row("4", ["a", "b"], [1, 2]),
        annotation_row("5", ["a", "b"], scores=[3.0, 3.0]),
    ]
    (row,) = expanded(rows, margin="score_difference", margin_scale=0.5)
    assert {pair["chosen"]: pair["margin"] for pair in row["pairs"]} == {0: 0.5 * (4 + 2) / 2, 1: 0.5 * 1.5}
    (unscored,) = expanded([annotation_row("1", ["a", "b"], [1, 2])], margin="score_difference")
    assert unscored["pairs"][0]["margin"] is None
    (unwanted,) = expanded(rows, margin="none")
    assert {pair["margin"] for pair in unwanted["pairs"]} == {None}


def test_what_annotators_say_about_a_group_is_gathered_by_id() -> None:
    rows = [
        annotation_row("3", ["a", "b"], [1, 2], subset="late", metadata=[("k", "3"), ("z", "3")]),
        annotation_row("1", ["a", "b"], [1, 2]),
        annotation_row("2", ["a", "b"], [1, 2], subset="early", metadata=[("k", "2")], annotator="zoe"),
        annotation_row("4", ["a", "b"], [1, 2], annotator="ann"),
        annotation_row("5", ["a", "b"], [1, 2], annotator="zoe"),
    ]
    (row,) = expanded(rows)
    assert row["subset"] == "early"
    assert dict(row["metadata"]) == {"k": "2", "z": "3"}
    assert row["annotators"] == ["ann", "zoe"]
    assert row["num_annotations"] == 5


def test_a_group_that_annotations_put_under_several_subsets_stands_in_all_of_them() -> None:
    rows = [
        annotation_row("1", ["a", "b"], [1, 2]),
        annotation_row("2", ["a", "b"], [1, 2], subset="math"),
        annotation_row("3", ["a", "b"], [1, 2], subset="hard"),
        annotation_row("4", ["a", "b"], [1, 2], subset="math"),
        annotation_row("5", ["a", "b"], [2, 1], subset="easy"),
        annotation_row("6", ["c", "d"], [1, 2], subset="math"),
        annotation_row("7", ["c", "d"], [1, 2], subset="math"),
    ]
    table, totals = expand_groups(annotations_table(rows), ExpandConfig())
    found = {(row["subset"], tuple(row["more_subsets"] or ())) for row in table.to_pylist()}
    assert found == {("math", ("easy", "hard")), ("math", ())}
    assert (totals["groups_more_subsets"], totals["groups"], totals["pairs"]) == (1, 2, 3)


def test_annotations_of_one_group_that_list_other_texts_are_refused() -> None:
    one, other = annotation_row("1", ["a", "b"], [1, 2]), annotation_row("2", ["a", "c"], [1, 2])
    with pytest.raises(DataError, match="annotations 1 and 2 list different completions"):
        expanded([one, other | {"group_id": one["group_id"]}])


def test_no_annotations_make_an_empty_table() -> None:
    table, totals = expand_groups(annotations_table([]), ExpandConfig())
    assert table.num_rows == 0
    assert table.schema.equals(PAIRS_SCHEMA, check_metadata=True)
    assert set(totals.values()) == {0}


def test_all_groups_of_a_prompt_are_on_one_side_whatever_else_is_there() -> None:
    """Pitfall 12: neither the first rows nor a draw over rows; a prompt keeps its side when other data arrive."""
    rows = [
        annotation_row(f"{prompt}-{group}", [f"{group} a", f"{group} b"], [1, 2], prompt=f"prompt {prompt}")
        for prompt in range(500)
        for group in range(3)
    ]
    sides = {row["prompt_id"]: row["split"] for row in expanded(rows, validation_fraction=0.2)}
    for row in expanded(rows, validation_fraction=0.2) + expanded(rows[600:900], validation_fraction=0.2):
        assert row["split"] == sides[row["prompt_id"]]
    held_out = [i for i, row in enumerate(rows) if sides[row["prompt_id"]] == "validation"]
    assert 3 * 75 < len(held_out) < 3 * 125  # 3 sigma around a fifth of 500 prompts
    assert max(held_out) > 1200
    assert min(held_out) < 300


def test_a_larger_fraction_only_moves_prompts_from_train_to_validation() -> None:
    prompts = [f"{random.Random(i).getrandbits(128):032x}" for i in range(2000)]
    small = {prompt for prompt in prompts if split_of(prompt, 0.1) == "validation"}
    large = {prompt for prompt in prompts if split_of(prompt, 0.3) == "validation"}
    assert small < large
    assert not any(split_of(prompt, 0.0) == "validation" for prompt in prompts)
    assert split_of("f" * 32, 0.999) == "train"


def test_the_real_rankings_expand_to_the_pairs_that_are_known() -> None:
    rows = real_rows()
    table, totals = expand_groups(annotations_table(rows), ExpandConfig())
    assert (totals["groups"], totals["comparisons"], totals["decisive"]) == (2436, 47_090, 18_099)
    # One answer stands twice in a group, ranked apart: that comparison is decisive and makes no pair.
    assert (totals["identical"], totals["pairs"]) == (1, 18_098)
    expected, _ = expand_by_hand(
        rows, pair_weight="comparisons", ties="drop", margin="none", margin_table="small", margin_scale=1.0
    )
    weights = pairs_of(table)
    for group_id, pairs in expected.items():
        assert {d: w for d, (w, _) in weights[group_id].items()} == {
            d: pytest.approx(float(w), rel=WEIGHT_TOLERANCE) for d, (w, _) in pairs.items()
        }
    sides = Counter((row["prompt_id"], row["split"]) for row in table.select(["prompt_id", "split"]).to_pylist())
    assert len(sides) == len({prompt for prompt, _ in sides}) == 406
