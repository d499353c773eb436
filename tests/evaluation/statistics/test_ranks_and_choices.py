"""Correlations within groups and best-of-N, against enumeration and scipy's formulas written out."""

import itertools
import math

import numpy as np
import pytest

from pair_groups import Judged, arrays_of, drawn_groups
from pairwright.evaluation.statistics.best_of_n import best_of_n, pick_probabilities
from pairwright.evaluation.statistics.intervals import Resamples
from pairwright.evaluation.statistics.pair_arrays import PairArrays
from pairwright.evaluation.statistics.rank_correlation import kendall, rank_correlation, spearman


def average_ranks(values: list[float]) -> list[float]:
    return [sum(other < one for other in values) + (sum(other == one for other in values) + 1) / 2 for one in values]


def spearman_by_hand(first: list[float], second: list[float]) -> float:
    return float(np.corrcoef(average_ranks(first), average_ranks(second))[0, 1])


def kendall_by_hand(first: list[float], second: list[float]) -> float:
    """Tau-b by its definition: concordant less discordant pairs, over what ties leave."""
    concordant = discordant = first_only = second_only = 0
    for i, j in itertools.combinations(range(len(first)), 2):
        a, b = np.sign(first[i] - first[j]), np.sign(second[i] - second[j])
        concordant += a * b > 0
        discordant += a * b < 0
        first_only += a == 0 and b != 0
        second_only += b == 0 and a != 0
    size = (concordant + discordant + first_only) * (concordant + discordant + second_only)
    return (concordant - discordant) / math.sqrt(size)


def test_correlations_with_ties_equal_their_definitions() -> None:
    rng = np.random.default_rng(2)
    for size in range(2, 10):
        values = rng.integers(0, 4, (40, size)).astype(float)
        truth = rng.integers(0, 4, (40, size)).astype(float)
        truth[:, 0], truth[:, 1] = -1, 9
        found_s, found_k = spearman(values, truth), kendall(values, truth)
        for row in range(40):
            if len(set(values[row])) == 1:
                assert (found_s[row], found_k[row]) == (0, 0), (
                    "a constant model has no correlation, and is not left out"
                )
                continue
            assert found_s[row] == pytest.approx(spearman_by_hand(values[row].tolist(), truth[row].tolist()))
            assert found_k[row] == pytest.approx(kendall_by_hand(values[row].tolist(), truth[row].tolist()))
    assert np.isnan(spearman(np.array([[1.0, 2.0]]), np.array([[3.0, 3.0]]))).all()


def test_the_true_order_has_correlation_one_and_its_reverse_minus_one() -> None:
    groups = drawn_groups(np.random.default_rng(0), 40)
    for sign in (1, -1):
        arrays = arrays_of(groups)
        ordered = PairArrays(**{**_fields(arrays), "reward_N": sign * arrays.worth_N})
        found = rank_correlation(ordered, Resamples.of(ordered.num_prompts))
        assert (found.spearman.value, found.kendall.value) == pytest.approx((sign, sign))


def _fields(arrays: PairArrays) -> dict:
    return {name: getattr(arrays, name) for name in PairArrays.__dataclass_fields__}


def test_the_chance_to_be_picked_is_that_of_all_subsets_written_out() -> None:
    rng = np.random.default_rng(1)
    for size, n in [(2, 2), (4, 2), (5, 3), (6, 6), (7, 4)]:
        values = rng.integers(0, 4, (10, size)).astype(float)
        found = pick_probabilities(values, n)
        for row in range(10):
            expected = np.zeros(size)
            subsets = list(itertools.combinations(range(size), n))
            for subset in subsets:
                best = max(values[row, list(subset)])
                top = [k for k in subset if values[row, k] == best]
                for k in top:
                    expected[k] += 1 / len(top) / len(subsets)
            assert found[row] == pytest.approx(expected)
    assert pick_probabilities(rng.random((3, 5)), 3).sum(axis=1) == pytest.approx(np.ones(3))


def test_a_constant_models_choice_is_worth_what_a_random_one_is() -> None:
    groups = drawn_groups(np.random.default_rng(5), 80)
    for group in groups:
        group.rewards = [0.0] * len(group.rewards)
    arrays = arrays_of(groups)
    rows = best_of_n(arrays, Resamples.of(arrays.num_prompts))
    assert [row.n for row in rows] == list(range(2, 10))
    for row in rows:
        assert row.model.value == pytest.approx(0.5, abs=1e-12)
        assert row.gained.value == pytest.approx(0, abs=1e-12)
        assert row.best.value is not None
        assert row.best.value > 0.5
        assert row.groups == sum(len(group.rewards) >= row.n for group in groups)


def test_a_perfect_models_choice_is_worth_the_best_and_more_with_more_to_choose_from() -> None:
    ranking = [1, 2, 3, 4, 5]
    arrays = arrays_of([Judged(prompt, [ranking], [-rank for rank in ranking]) for prompt in range(10)])
    rows = best_of_n(arrays, Resamples.of(10))
    # 5 completions are worth 1, 3/4, ..., 0.
    for row in rows:
        subsets = itertools.combinations([1, 0.75, 0.5, 0.25, 0], row.n)
        assert row.best.value == pytest.approx(np.mean([max(subset) for subset in subsets]))
        assert row.model.value == row.best.value
        assert row.gained.value == pytest.approx(1)
