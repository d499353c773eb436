"""Two models on the same pairs: the difference, its interval and p-value, on models whose difference is known."""

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from evaluations import DATA, IDENTITY
from pair_groups import arrays_of, drawn_groups
from pairwright.evaluation.reports.comparison import (
    Candidate,
    Comparison,
    compare_models,
    format_comparison,
    is_comparison,
)
from pairwright.evaluation.statistics.pair_arrays import PairArrays
from pairwright.evaluation.statistics.paired_comparison import common_pairs, sign_flip_p


@pytest.fixture(scope="module")
def arrays() -> PairArrays:
    return arrays_of(drawn_groups(np.random.default_rng(1), 250))


def noisy(arrays: PairArrays, seed: int, noise: float) -> PairArrays:
    rng = np.random.default_rng(seed)
    return replace(arrays, reward_N=arrays.worth_N + rng.normal(size=len(arrays.worth_N)) * noise)


def no_texts(names: Sequence[str]) -> dict:
    completions = [{"text": f"text {k}"} for k in range(9)]
    return {name: {"prompt": [{"content": "[bold]?"}], "completions": completions} for name in names}


def compared(*candidates: list[PairArrays]) -> Comparison:
    named = [Candidate(f"model-{n}", [(IDENTITY, run) for run in runs]) for n, runs in enumerate(candidates)]
    return compare_models(named, pairs=DATA, read_texts=no_texts)


def test_a_better_model_is_better_surely_and_a_model_is_no_better_than_itself(arrays: PairArrays) -> None:
    good, bad = noisy(arrays, 1, 0.3), noisy(arrays, 2, 1.0)
    found = compared([bad], [good], [good])
    better, again, equal = found.differences
    assert (better.first, better.second) == ("model-0", "model-1")
    low, high = better.result.difference.interval or (0, 0)
    assert 0 < low < (better.result.difference.value or 0) < high
    assert (better.p_value or 1) < 0.001
    first, second = found.models[0].accuracy.value, found.models[1].accuracy.value
    assert better.result.difference.value == pytest.approx((second or 0) - (first or 0))
    assert again.result == better.result
    assert (equal.result.difference.value, equal.p_value, equal.result.disagreement) == (0.0, 1.0, 0.0)
    assert equal.disagreements == []


def test_the_interval_of_a_paired_difference_is_narrower_than_those_of_the_accuracies(arrays: PairArrays) -> None:
    one = noisy(arrays, 1, 0.5)
    other = replace(one, reward_N=one.reward_N + np.random.default_rng(3).normal(size=len(one.reward_N)) * 0.05)
    found = compared([one], [other])
    low, high = found.differences[0].result.difference.interval or (0, 0)
    for model in found.models:
        bottom, top = model.accuracy.interval or (0, 0)
        assert high - low < (top - bottom) / 2


def test_p_values_of_equal_models_are_below_5_percent_in_about_5_percent_of_draws() -> None:
    rng = np.random.default_rng(4)
    found = np.array([sign_flip_p(rng.standard_t(3, size=60), num_flips=500, seed=seed) for seed in range(400)])
    assert 0.025 <= (found < 0.05).mean() <= 0.08
    assert found.min() > 0


def test_a_sign_flip_p_value_is_that_of_all_flips_written_out() -> None:
    difference = np.array([0.5, 1.0, -0.25, 2.0, 0.75, 0.1, 1.5, -0.3])
    signs = (np.arange(256)[:, None] >> np.arange(8) & 1) * 2 - 1
    exact = (np.abs(signs @ difference) >= abs(difference.sum()) - 1e-12).mean()
    assert sign_flip_p(difference) == pytest.approx(exact, abs=0.01)


def test_runs_of_several_seeds_are_one_model_with_a_spread(arrays: PairArrays) -> None:
    runs = [noisy(arrays, seed, 0.6) for seed in range(3)]
    found = compared([noisy(arrays, 9, 0.6)], runs)
    one, several = found.models
    assert one.spread.standard_deviation is None
    assert several.spread.standard_deviation == pytest.approx(np.std(several.accuracy_of_runs, ddof=1))
    assert several.accuracy.value == pytest.approx(np.mean(several.accuracy_of_runs))
    assert (several.spread.lowest, several.spread.highest) == (
        min(several.accuracy_of_runs),
        max(several.accuracy_of_runs),
    )
    assert "3 runs" in format_comparison(found)


def test_only_pairs_that_every_model_was_given_are_compared(arrays: PairArrays) -> None:
    names = ("group_P", "chosen_P", "rejected_P", "weight_P", "margin_P")
    kept = np.flatnonzero(np.random.default_rng(5).random(len(arrays.group_P)) < 0.6)
    fewer = replace(arrays, **{name: getattr(arrays, name)[kept] for name in names})
    rows = common_pairs([arrays, fewer])
    assert sorted(rows[0].tolist()) == kept.tolist()
    np.testing.assert_array_equal(arrays.chosen_P[rows[0]], fewer.chosen_P[rows[1]])
    assert compared([arrays], [fewer]).common_pairs == len(kept)
    nothing = replace(arrays, group_ids=[f"other-{name}" for name in arrays.group_ids])
    with pytest.raises(ValueError, match="no pair is left"):
        compared([arrays], [nothing])


def test_a_slice_where_one_model_fails_and_the_pairs_are_named(arrays: PairArrays) -> None:
    good = noisy(arrays, 1, 0.3)
    hard_N = np.array([names == ("hard",) for names in arrays.subsets_G])[arrays.group_N]
    broken = replace(good, reward_N=np.where(hard_N, -good.reward_N, good.reward_N))
    (difference,) = compared([broken], [good]).differences
    named = {(row.kind, row.name) for row in difference.slices if row.p_value < 0.05}
    assert ("subset", "hard") in named
    hard = {name for name, subsets in zip(arrays.group_ids, arrays.subsets_G, strict=True) if subsets == ("hard",)}
    assert difference.disagreements
    for row in difference.disagreements:
        assert row.group_id in hard
        wrong, right = sorted([row.reward_margin_first, row.reward_margin_second])
        assert wrong < 0 < right


def test_the_json_reads_back_and_the_text_has_the_verdict(arrays: PairArrays) -> None:
    found = compared([noisy(arrays, 2, 1.0)], [noisy(arrays, 1, 0.3)])
    content = msgspec.json.encode(found)
    assert msgspec.json.decode(content, type=Comparison) == found
    assert is_comparison(content)
    assert not is_comparison(b"{}")
    text = format_comparison(found)
    assert "model-1 less model-0" in text
    assert "they differ" in text
    assert "[bold]?" in text
