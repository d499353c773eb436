"""The synthetic rankings follow the truth that they claim."""

import csv
import itertools
import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from pairwright.data.synthetic import make_rankings, true_accuracy, true_reward, write_rankings, write_sheet
from pairwright.records import PAIRS_SCHEMA, Annotation

ANNOTATIONS = list(make_rankings(400, seed=0))


def pairs_table(annotations: list[dict]) -> pa.Table:
    """Expand each annotation by itself, a weight of 1 a pair; an oracle apart from data/pairs/build_pairs.py."""
    rows = []
    for annotation in annotations:
        ranks = annotation["ranks"]
        pairs = [
            {"chosen": a, "rejected": b, "weight": 1.0, "margin": None}
            for a, b in itertools.permutations(range(len(ranks)), 2)
            if ranks[a] < ranks[b]
        ]
        completions = [completion | {"model": None} for completion in annotation["completions"]]
        row = dict.fromkeys(PAIRS_SCHEMA.names, None) | {"completions": completions, "pairs": pairs}
        rows.append(row | {"group_id": "g", "prompt_id": "p", "prompt": [], "annotators": [], "split": "train"})
    return pa.Table.from_pylist([row | {"num_annotations": 1} for row in rows], schema=PAIRS_SCHEMA)


def test_every_line_is_a_native_annotation_with_dense_ranks():
    for line in ANNOTATIONS:
        annotation = msgspec.convert(line, Annotation)
        assert annotation.ranks is not None
        assert 4 <= len(annotation.completions) == len(annotation.ranks) <= 9
        assert sorted(set(annotation.ranks)) == list(range(1, max(annotation.ranks) + 1))
    assert len({line["id"] for line in ANNOTATIONS}) == len(ANNOTATIONS)


def test_groups_depend_on_seed_and_number_alone():
    assert list(itertools.islice(make_rankings(10_000, seed=0), 50)) == ANNOTATIONS[:50]
    assert next(make_rankings(1, seed=1)) != ANNOTATIONS[0]


def test_some_groups_have_several_annotators_and_some_prompts_several_groups():
    groups: dict[str, list[dict]] = {}
    for line in ANNOTATIONS:
        groups.setdefault(line["id"].rsplit("-", 1)[0], []).append(line)
    several = [lines for lines in groups.values() if len(lines) > 1]
    assert len(groups) == 400
    assert 40 < len(several) < 160
    for first, *others in several:
        for other in others:
            assert (other["prompt"], other["completions"]) == (first["prompt"], first["completions"])
            assert other["annotator"] != first["annotator"]
    prompts = [json.dumps(lines[0]["prompt"]) for lines in groups.values()]
    assert 50 < len(set(prompts)) < 390
    assert any(isinstance(lines[0]["prompt"], list) for lines in groups.values())


@pytest.mark.parametrize(
    ("text", "reward"), [("flawless.", 16.2), ("flawless harmful.", 0.4), ("unheard of", 0.0), ("", 0.0)]
)
def test_the_reward_is_the_average_worth_and_a_little_for_each_word(text: str, reward: float):
    assert true_reward(text) == pytest.approx(reward)


def test_two_completions_compare_as_bradley_terry_says():
    """Share of wins in bins of the true difference, against the logistic function, within four standard errors."""
    outcomes: dict[int, list[float]] = {}
    for line in make_rankings(1500, seed=3, tie_gap=0.0):
        rewards = [true_reward(completion["text"]) for completion in line["completions"]]
        # One disjoint pair a ranking: pairs that share a completion are not independent.
        difference = rewards[0] - rewards[1]
        win = float(line["ranks"][0] < line["ranks"][1])
        outcomes.setdefault(round(difference), []).append(win - 1.0 / (1.0 + math.exp(-difference)))
    checked = {near: np.mean(surplus) for near, surplus in outcomes.items() if len(surplus) >= 50}
    assert len(checked) >= 7
    for near, surplus in checked.items():
        assert abs(surplus) < 4 * 0.5 / math.sqrt(len(outcomes[near])), near


def test_without_a_gap_there_are_no_ties_and_a_wider_one_ties_more():
    shares = []
    for gap in (0.0, 0.3, 1.0):
        lines = list(make_rankings(200, seed=0, tie_gap=gap))
        shares.append(np.mean([1 - len(set(line["ranks"])) / len(line["ranks"]) for line in lines]))
    assert shares[0] == 0
    assert shares[0] < shares[1] < shares[2]


def test_the_truth_is_far_above_length_and_below_certainty():
    right = total = 0
    for line in ANNOTATIONS:
        lengths = [len(completion["text"]) for completion in line["completions"]]
        for a, b in itertools.permutations(range(len(lengths)), 2):
            if line["ranks"][a] < line["ranks"][b]:
                total += 1
                right += (lengths[a] > lengths[b]) + 0.5 * (lengths[a] == lengths[b])
    assert 0.52 < right / total < 0.62
    assert 0.88 < true_accuracy(pairs_table(ANNOTATIONS)) < 0.94


def test_true_accuracy_weighs_pairs_and_counts_equal_rewards_half():
    texts = ["flawless.", "harmful.", "harmful."]
    pairs = [
        {"chosen": 0, "rejected": 1, "weight": 4.0, "margin": None},
        {"chosen": 2, "rejected": 0, "weight": 1.0, "margin": None},
        {"chosen": 1, "rejected": 2, "weight": 3.0, "margin": None},
    ]
    table = pairs_table([{"ranks": [1, 1, 1], "completions": [{"id": str(k), "text": t} for k, t in enumerate(texts)]}])
    column = pa.array([pairs], PAIRS_SCHEMA.field("pairs").type)
    table = table.set_column(table.schema.names.index("pairs"), PAIRS_SCHEMA.field("pairs"), column)
    assert true_accuracy(table) == pytest.approx((4.0 + 3.0 / 2) / 8.0)
    with pytest.raises(ValueError, match="holds no pair"):
        true_accuracy(table.slice(0, 0))


def test_what_is_written_is_what_is_made(tmp_path: Path):
    path = tmp_path / "new" / "rankings.jsonl"
    num_annotations = write_rankings(path, 20, seed=0)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == num_annotations
    assert lines == ANNOTATIONS[:num_annotations]


def test_a_sheet_holds_two_answers_a_row_and_which_one_is_better(tmp_path: Path):
    num_rows = write_sheet(tmp_path / "answers.csv", 50, seed=3)
    with (tmp_path / "answers.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    annotations = list(make_rankings(50, seed=3, completions_per_group=(2, 2)))
    assert len(rows) == num_rows == len(annotations)
    for row, annotation in zip(rows, annotations, strict=True):
        assert [row["answer_a"], row["answer_b"]] == [one["text"] for one in annotation["completions"]]
        first, second = annotation["ranks"]
        assert row["preference"] == ("tie" if first == second else "A" if first < second else "B")
    assert {row["preference"] for row in rows} == {"A", "B", "tie"}
