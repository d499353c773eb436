"""Intervals hold the truth as often as they say, and depend on nothing but the data."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pair_groups import arrays_of, drawn_groups
from pairwright.evaluation.statistics.intervals import Resamples, holm, interval_of, on_a_grid, t_quantile, two_sided_p
from pairwright.evaluation.statistics.pair_arrays import PairArrays
from pairwright.evaluation.statistics.pair_metrics import PairTerms, PartMetrics

NUM_DRAWS = 1000


def coverage(num_prompts: int, draw, truth: float, *, is_share: bool) -> float:
    """Return how many of 1,000 synthetic evaluations have an interval that holds the truth."""
    rng = np.random.default_rng(num_prompts)
    resamples = Resamples.of(num_prompts)
    held = 0
    for _ in range(NUM_DRAWS):
        terms, weights, prompt = draw(rng)
        low, high = resamples.ratio(terms, weights, prompt, is_share=is_share).interval or (math.nan, math.nan)
        held += low <= truth <= high
    return held / NUM_DRAWS


@pytest.mark.parametrize("num_prompts", [20, 30, 60, 150, 300])
def test_95_percent_intervals_of_accuracy_hold_the_truth_in_93_to_97_percent_of_1000_draws(
    num_prompts: int,
) -> None:
    """Pairs of a prompt go together: each prompt has a skill of its own, and 1 to 36 pairs that weigh by K."""

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        skill = rng.beta(6, 2, num_prompts)  # mean 0.75
        size = rng.integers(2, 10, num_prompts)
        num_pairs = size * (size - 1) // 2
        prompt = np.repeat(np.arange(num_prompts), num_pairs)
        right = (rng.random(len(prompt)) < skill[prompt]).astype(np.float64)
        weight = 1.0 / num_pairs[prompt]
        return weight * right, weight, prompt

    assert 0.93 <= coverage(num_prompts, draw, 0.75, is_share=True) <= 0.97


@pytest.mark.parametrize("num_prompts", [20, 60, 200])
def test_95_percent_intervals_of_a_skewed_mean_hold_the_truth(num_prompts: int) -> None:
    """Log losses are skewed, and prompts have 1 to 36 pairs."""

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        size = rng.integers(2, 10, num_prompts)
        num_pairs = (size * (size - 1) // 2).astype(np.float64)
        return rng.gamma(2, 0.3, num_prompts) * num_pairs, num_pairs, np.arange(num_prompts)

    assert 0.93 <= coverage(num_prompts, draw, 0.6, is_share=False) <= 0.97


def test_an_interval_of_two_prompts_is_wide_and_finite() -> None:
    found = Resamples.of(2).mean(np.array([0.2, 0.6]), np.arange(2))
    low, high = found.interval or (math.nan, math.nan)
    assert low < -1
    assert 2 < high < 10
    share = Resamples.of(2).mean(np.array([0.2, 0.6]), np.arange(2), is_share=True).interval or (math.nan, math.nan)
    assert 0 < share[0] < 0.1
    assert 0.9 < share[1] < 1


def test_more_prompts_than_clusters_give_the_interval_of_the_normal_law() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(3, 1, 20_000)
    found = Resamples.of(len(values)).mean(values, np.arange(len(values)))
    assert found.interval is not None
    error = values.std() / math.sqrt(len(values))
    assert found.interval == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=error / 4)


def test_an_interval_is_the_same_in_any_order_of_the_terms() -> None:
    rng = np.random.default_rng(1)
    numerator, denominator = rng.random(500) * 1e-7, rng.random(500) * 3
    prompt = rng.integers(0, 40, 500)
    order = rng.permutation(500)
    resamples = Resamples.of(40)
    one = resamples.ratio(numerator, denominator, prompt)
    # On a grid the sums of a prompt still depend on the order by a bit: rows are sorted for that.
    other = resamples.ratio(numerator[order], denominator[order], prompt[order])
    assert other.value == one.value
    assert other.interval == pytest.approx(one.interval, rel=1e-12)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_sums_on_a_grid_are_exact_in_any_order(values: list[float], seed: int) -> None:
    terms = on_a_grid(np.array(values)[:, None], len(values))[:, 0]
    # No unit is below the smallest normal number, so what is smaller becomes 0.
    smallest = float(np.finfo(np.float64).smallest_normal)
    assert terms == pytest.approx(np.array(values), abs=max(map(abs, values)) * 1e-12 + smallest)
    mixed = np.random.default_rng(seed).permutation(terms)
    assert float(np.cumsum(mixed)[-1]) == math.fsum(terms)


def test_where_every_prompt_is_right_the_interval_is_wilsons_and_not_a_point() -> None:
    found = Resamples.of(50).mean(np.ones(50), np.arange(50), is_share=True)
    assert found.value == 1.0
    z = 1.959963984540054
    assert found.interval == pytest.approx((50 / (50 + z * z), 1.0), abs=1e-9)


def test_one_prompt_has_no_interval_and_no_prompt_no_value() -> None:
    resamples = Resamples.of(1)
    one = resamples.mean(np.array([0.5]), np.array([0]))
    assert (one.value, one.interval) == (0.5, None)
    none = resamples.mean(np.empty(0), np.empty(0, np.int64))
    assert (none.value, none.interval) == (None, None)
    assert interval_of(0.5, np.array([np.nan]), 5, is_share=False) is None


@pytest.mark.parametrize(
    ("degrees", "expected"),  # of a printed table of Student's t
    [(1, 12.706), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_quantiles_of_students_t_are_those_of_the_table(degrees: int, expected: float) -> None:
    assert t_quantile(degrees) == pytest.approx(expected, rel=2e-3)


def test_p_values_and_holms_correction_are_those_of_the_textbook() -> None:
    assert two_sided_p(1.959963984540054) == pytest.approx(0.05)
    # Holm's own example: the smallest times 4, the next times 3, never falling.
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.empty(0)).size == 0


# ------------------------------------------------------------------------------------------- accuracy


@pytest.fixture(scope="module")
def arrays() -> PairArrays:
    return arrays_of(drawn_groups(np.random.default_rng(8), 200, groups_per_prompt=2))


def test_a_constant_model_has_exactly_half(arrays: PairArrays) -> None:
    found = PairTerms.of(replace(arrays, reward_N=np.full(len(arrays.reward_N), 3.25))).metrics()
    assert (found.accuracy.value, found.accuracy_by_prompt.value, found.reward_margin.value) == (0.5, 0.5, 0.0)
    assert found.accuracy.interval == (0.5, 0.5)
    assert found.log_loss.value == pytest.approx(math.log(2), abs=1e-15)


def test_swapping_chosen_and_rejected_gives_exactly_one_minus_the_accuracy(arrays: PairArrays) -> None:
    swapped = replace(arrays, chosen_P=arrays.rejected_P, rejected_P=arrays.chosen_P)
    one, other = PairTerms.of(arrays).metrics(), PairTerms.of(swapped).metrics()
    assert one.accuracy.value is not None
    assert other.accuracy.value == 1.0 - one.accuracy.value
    assert one.accuracy.interval is not None
    low, high = one.accuracy.interval
    assert other.accuracy.interval == pytest.approx((1 - high, 1 - low), abs=1e-3)


def by_loops(arrays: PairArrays, rows: list[int]) -> dict[str, float]:
    """Return the metrics, pair by pair."""
    weight = right = log_loss = margin = longer = 0.0
    prompts: dict[int, list[float]] = {}
    for row in rows:
        group = int(arrays.group_P[row])
        w = float(arrays.weight_P[row]) * int(arrays.repeats_G[group])
        chosen, rejected = int(arrays.chosen_P[row]), int(arrays.rejected_P[row])
        d = float(arrays.reward_N[chosen] - arrays.reward_N[rejected])
        by = int(arrays.characters_N[chosen] - arrays.characters_N[rejected])
        is_right = 0.5 if d == 0 else float(d > 0)
        weight, right = weight + w, right + w * is_right
        log_loss += w * (math.log1p(math.exp(-abs(d))) + max(-d, 0.0))
        margin, longer = margin + w * d, longer + w * (0.5 if by == 0 else float(by > 0))
        of_prompt = prompts.setdefault(int(arrays.prompt_G[group]), [0.0, 0.0])
        of_prompt[0] += w * is_right
        of_prompt[1] += w
    return {
        "accuracy": right / weight,
        "log_loss": log_loss / weight,
        "reward_margin": margin / weight,
        "longer_wins": longer / weight,
        "accuracy_by_prompt": sum(a / b for a, b in prompts.values()) / len(prompts),
    }


def values_of(metrics: PartMetrics) -> dict[str, float | None]:
    names = ("accuracy", "log_loss", "reward_margin", "longer_wins", "accuracy_by_prompt")
    return {name: getattr(metrics, name).value for name in names}


def test_metrics_equal_a_loop_over_pairs_overall_and_in_any_part(arrays: PairArrays) -> None:
    terms = PairTerms.of(arrays)
    everything = list(range(len(arrays.group_P)))
    assert values_of(terms.metrics()) == pytest.approx(by_loops(arrays, everything), abs=1e-12)
    part = np.random.default_rng(3).random(len(everything)) < 0.3
    found = terms.metrics(part)
    assert values_of(found) == pytest.approx(by_loops(arrays, np.flatnonzero(part).tolist()), abs=1e-12)
    assert found.groups == sum(int(arrays.repeats_G[g]) for g in set(arrays.group_P[part].tolist()))
    for name in ("accuracy", "log_loss", "reward_margin", "longer_wins", "accuracy_by_prompt"):
        estimate = getattr(found, name)
        assert estimate.interval[0] <= estimate.value <= estimate.interval[1]


def test_rank_and_worth_are_those_of_the_annotation(arrays: PairArrays) -> None:
    groups = drawn_groups(np.random.default_rng(4), 60)
    single = [group for group in groups if len(group.rankings) == 1]
    found = arrays_of(single)
    for number, group in enumerate(single):
        (ranks,) = group.rankings
        dense = [1 + len({other for other in ranks if other < one}) for one in ranks]
        kept = slice(found.starts_G[number], found.starts_G[number + 1])
        assert found.rank_N[kept].tolist() == dense
        worth = [
            np.mean([0.5 if a == b else float(a < b) for j, b in enumerate(ranks) if j != i])
            for i, a in enumerate(ranks)
        ]
        assert found.worth_N[kept] == pytest.approx(worth)
