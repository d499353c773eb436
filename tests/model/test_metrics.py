"""Figures are weighted sums over pairs, exact on any split of the groups."""

import math
import pickle
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.errors import ModelError
from pairwright.model.reward_metrics import NO_SUBSET, EvaluationSums, merged

MakeGroup = Callable[..., TokenGroup]


@pytest.fixture(scope="module")
def judged(random_group: MakeGroup) -> list[tuple[np.ndarray, TokenGroup]]:
    """Groups with rewards, some of them equal."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(120):
        num_completions = int(rng.integers(2, 10))
        subset = [None, "code", "chat"][rng.integers(3)]
        group = random_group(
            rng, num_completions=num_completions, num_annotators=int(rng.integers(1, 4)), subset=subset
        )
        rewards = rng.normal(0, 2, num_completions).astype(np.float32)
        rewards[-1] = rewards[0]
        found.append((rewards, group))
    return found


def _sums(judged: list[tuple[np.ndarray, TokenGroup]]) -> EvaluationSums:
    sums = EvaluationSums()
    for rewards, group in judged:
        sums.add(rewards, group)
    return sums


def _reference(judged: list[tuple[np.ndarray, TokenGroup]]) -> dict[str, float]:
    totals: dict[str, float] = defaultdict(float)
    for rewards, group in judged:
        for c, r, weight in zip(group.chosen_P, group.rejected_P, group.weight_P.tolist(), strict=True):
            difference = float(rewards[c]) - float(rewards[r])
            totals["pairs"] += 1
            totals["weight"] += weight
            totals["accuracy"] += weight * (1.0 if difference > 0 else 0.5 if difference == 0 else 0.0)
            totals["log_loss"] += weight * math.log(1 + math.exp(-difference))
            totals["reward_margin"] += weight * difference
    for name in ("accuracy", "log_loss", "reward_margin"):
        totals[name] /= totals["weight"]
    return {**totals, "groups": len(judged)}


def test_figures_equal_a_loop_over_all_pairs(judged):
    report = _sums(judged).report()
    assert report["overall"] == pytest.approx(_reference(judged), rel=1e-12)
    by_k, by_subset = defaultdict(list), defaultdict(list)
    for rewards, group in judged:
        by_k[str(len(group.completion_ids))].append((rewards, group))
        by_subset[group.subset or NO_SUBSET].append((rewards, group))
    assert report["by_num_completions"].keys() == by_k.keys()
    assert report["by_subset"].keys() == by_subset.keys()
    for part, groups in by_k.items():
        assert report["by_num_completions"][part] == pytest.approx(_reference(groups), rel=1e-12)
    for part, groups in by_subset.items():
        assert report["by_subset"][part] == pytest.approx(_reference(groups), rel=1e-12)


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_figures_are_the_same_to_the_last_bit_on_any_split_in_any_order(judged, data):
    order = data.draw(st.permutations(range(len(judged))))
    world_size = data.draw(st.integers(1, 9))
    owner = data.draw(st.lists(st.integers(0, world_size - 1), min_size=len(judged), max_size=len(judged)))
    parts = [_sums([judged[i] for i in order if owner[i] == rank]) for rank in range(world_size)]
    assert merged(parts).report() == _sums(judged).report()


def test_a_mean_of_rank_means_would_be_another_number(judged):
    ordered = sorted(judged, key=lambda item: len(item[1].completion_ids))
    halves = [_sums(ordered[:90]), _sums(ordered[90:])]
    mean_of_means = sum(half.report()["overall"]["accuracy"] for half in halves) / 2
    assert mean_of_means != pytest.approx(merged(halves).report()["overall"]["accuracy"], abs=1e-4)


def test_a_group_in_several_subsets_counts_in_each_of_them_and_as_often_in_all(judged):
    moved = [(rewards, replace(group, more_subsets=("hard", "new"))) for rewards, group in judged[:7]]
    sums = _sums([*moved, *judged[7:]])
    report, num_again = sums.report(), 2 * sum(len(group.chosen_P) for _, group in moved)
    assert report["by_subset"]["hard"] == report["by_subset"]["new"] == _sums(judged[:7]).report()["overall"]
    assert report["by_subset"] == _sums(judged).report()["by_subset"] | {
        name: report["by_subset"][name] for name in ("hard", "new")
    }
    assert report["overall"] == _sums([*judged, *judged[:7], *judged[:7]]).report()["overall"]
    assert sum(part["pairs"] for part in report["by_num_completions"].values()) == report["overall"]["pairs"]
    assert (sums.pairs_again, merged([_sums(moved), _sums(judged[7:])]).pairs_again) == (num_again, num_again)


def test_equal_rewards_count_half(judged):
    _, group = judged[0]
    sums = EvaluationSums()
    sums.add(np.zeros(len(group.completion_ids)), group)
    figures = sums.report()["overall"]
    assert figures["accuracy"] == 0.5
    assert figures["log_loss"] == pytest.approx(math.log(2), rel=1e-15)


def test_nearly_equal_rewards_are_no_tie(random_group: MakeGroup):
    group = random_group(np.random.default_rng(0), num_completions=2)
    chosen, rejected = int(group.chosen_P[0]), int(group.rejected_P[0])
    rewards = np.zeros(2, np.float32)
    rewards[chosen], rewards[rejected] = 10.02, 10.00  # one number in bfloat16
    assert _sums([(rewards, group)]).report()["overall"]["accuracy"] == 1.0


def test_large_differences_stay_finite(random_group: MakeGroup):
    group = random_group(np.random.default_rng(0), num_completions=2)
    rewards = np.zeros(2)
    rewards[group.rejected_P[0]] = 1e4
    assert _sums([(rewards, group)]).report()["overall"]["log_loss"] == pytest.approx(1e4)


def test_no_groups_have_counts_and_no_means():
    assert EvaluationSums().report() == {
        "overall": {"groups": 0, "pairs": 0, "weight": 0.0},
        "by_subset": {},
        "by_num_completions": {},
    }


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_stops_the_evaluation_and_names_the_group(judged, bad):
    rewards, group = judged[0]
    with pytest.raises(ModelError, match=group.group_id):
        EvaluationSums().add(np.where(np.arange(rewards.size) == 1, bad, rewards), group)


def test_rewards_of_another_number_of_completions_are_refused(judged):
    rewards, group = judged[0]
    with pytest.raises(ValueError, match="completions"):
        EvaluationSums().add(rewards[:-1], group)


def test_sums_travel_between_processes(judged):
    sums = _sums(judged)
    assert pickle.loads(pickle.dumps(sums)).report() == sums.report()
