"""Calibration, against models whose probabilities are known to be true."""

import math

import numpy as np
import pytest

from pair_groups import Judged, arrays_of
from pairwright.evaluation.statistics.calibration import calibrate, calibration_metrics, fit_temperature
from pairwright.evaluation.statistics.intervals import Resamples
from pairwright.evaluation.statistics.pair_arrays import PairArrays


def drawn(rng: np.random.Generator, num_prompts: int, *, stretched: float) -> PairArrays:
    """Pairs whose preferences are drawn from sigmoid(difference), and whose rewards are stretched after that."""
    groups = []
    for prompt in range(num_prompts):
        reward = rng.normal(size=2) * 1.5
        first_wins = rng.random() < 1 / (1 + math.exp(reward[1] - reward[0]))
        groups.append(Judged(prompt, [[1, 2] if first_wins else [2, 1]], (stretched * reward).tolist()))
    return arrays_of(groups)


@pytest.mark.parametrize("stretched", [0.25, 1.0, 4.0])
def test_the_temperature_undoes_a_known_stretch(stretched: float) -> None:
    arrays = drawn(np.random.default_rng(7), 8_000, stretched=stretched)
    found = calibrate(arrays, Resamples.of(arrays.num_prompts, num_resamples=100))
    assert found.temperature == pytest.approx(stretched, rel=0.08)
    assert found.after is not None
    assert found.after.expected_calibration_error == pytest.approx(0, abs=0.02)
    if stretched != 1:
        assert (found.before.expected_calibration_error or 0) > 0.05
        assert (found.after.log_loss.value or 9) < (found.before.log_loss.value or 0)


def test_the_halves_share_no_prompt_and_hold_all() -> None:
    arrays = drawn(np.random.default_rng(1), 500, stretched=2.0)
    found = calibrate(arrays, Resamples.of(arrays.num_prompts))
    assert found.fitted_on_prompts + found.before.prompts == 500
    assert found.fitted_on_prompts == 250
    fitted_Q = np.isin(np.arange(500), arrays.prompt_P[arrays.is_fitted_Q[arrays.prompt_P]])
    assert fitted_Q.sum() == 250


def test_the_fitted_temperature_has_the_least_log_loss_of_a_grid() -> None:
    rng = np.random.default_rng(3)
    difference, weight = rng.normal(1, 3, 300), rng.random(300)

    def loss(temperature: float) -> float:
        return float((weight * np.logaddexp(0, -difference / temperature)).sum())

    found = fit_temperature(difference, weight)
    assert all(loss(found) <= loss(other) for other in np.geomspace(0.01, 100, 400))


def test_metrics_are_those_of_a_loop_over_pairs_and_bins() -> None:
    rng = np.random.default_rng(4)
    difference, weight = rng.normal(0.5, 2, 400).round(1), rng.random(400)
    prompt = np.arange(400)
    found = calibration_metrics(difference, weight, prompt, Resamples.of(400), temperature=2.0)
    brier = log_loss = 0.0
    bins: dict[int, list[tuple[float, float, float]]] = {}
    for d, w in zip(difference.tolist(), weight.tolist(), strict=True):
        p = 1 / (1 + math.exp(-d / 2.0))
        brier += w * (1 - p) ** 2
        log_loss += w * -math.log(p)
        sure = max(p, 1 - p)
        right = 0.5 if d == 0 else float(d > 0)
        bins.setdefault(min(int((sure - 0.5) * 20), 9), []).append((w, sure, right))
    total = weight.sum()
    error = sum(
        abs(sum(w * sure for w, sure, _ in rows) - sum(w * right for w, _, right in rows)) for rows in bins.values()
    )
    assert found.brier.value == pytest.approx(brier / total)
    assert found.log_loss.value == pytest.approx(log_loss / total)
    assert found.expected_calibration_error == pytest.approx(error / total)
    assert [one.pairs for one in found.bins] == [len(bins.get(number, [])) for number in range(10)]


def test_a_model_that_knows_nothing_has_ln_2_a_quarter_and_no_calibration_error() -> None:
    arrays = arrays_of([Judged(prompt, [[1, 2, 3]], [5.0, 5.0, 5.0]) for prompt in range(20)])
    found = calibrate(arrays, Resamples.of(20)).whole
    assert (found.log_loss.value, found.brier.value) == pytest.approx((math.log(2), 0.25))
    assert found.expected_calibration_error == pytest.approx(0)
