"""Calibration: how often a model that is p sure is right, and the temperature that makes it say so.

The probability that the chosen completion is better is sigmoid(reward difference / T). T is fitted on one half of the
prompts and reported on the other, so what is reported was not fitted.
"""

import math
from dataclasses import dataclass

import numpy as np

from pairwright.evaluation.statistics.intervals import Estimate, Resamples
from pairwright.evaluation.statistics.pair_arrays import Floats, Ints, PairArrays
from pairwright.evaluation.statistics.pair_metrics import correct

NUM_BINS = 10
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3
_STEPS = 200


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Pairs on which the model is about as sure: at least ``low``, below ``high`` (1 is in the last)."""

    low: float
    high: float
    pairs: int
    weight: float
    confidence: float | None
    """Weighted mean of the model's probability for the completion that it prefers."""
    accuracy: Estimate
    """How often it is right."""


@dataclass(frozen=True, slots=True)
class CalibrationMetrics:
    """Calibration at one temperature."""

    temperature: float
    pairs: int
    prompts: int
    log_loss: Estimate
    brier: Estimate
    """Mean of (1 - probability of the chosen) squared; 0.25 for a model that knows nothing."""
    expected_calibration_error: float | None
    """Mean distance of confidence and accuracy over the bins, by weight."""
    bins: list[ReliabilityBin]


@dataclass(frozen=True, slots=True)
class Calibration:
    """The temperature, and calibration with and without it on the prompts that it was not fitted on."""

    temperature: float | None
    """None where the half to fit on has no pairs."""
    fitted_on_prompts: int
    whole: CalibrationMetrics
    """All prompts, temperature 1."""
    before: CalibrationMetrics
    """The other half, temperature 1."""
    after: CalibrationMetrics | None
    """The other half, at the fitted temperature."""


def calibrate(arrays: PairArrays, resamples: Resamples) -> Calibration:
    """Return the calibration of a model on all pairs."""
    fitted_P = arrays.is_fitted_Q[arrays.prompt_P]
    weight_P = arrays.weight_P * arrays.repeats_P
    temperature = None
    if fitted_P.any():
        temperature = fit_temperature(arrays.difference_P[fitted_P], weight_P[fitted_P])

    def metrics(rows: Ints, at: float) -> CalibrationMetrics:
        return calibration_metrics(
            arrays.difference_P[rows], weight_P[rows], arrays.prompt_P[rows], resamples, temperature=at
        )

    rest = np.flatnonzero(~fitted_P)
    return Calibration(
        temperature=temperature,
        fitted_on_prompts=len(np.unique(arrays.prompt_P[fitted_P])),
        whole=metrics(np.arange(len(fitted_P)), 1.0),
        before=metrics(rest, 1.0),
        after=None if temperature is None else metrics(rest, temperature),
    )


def fit_temperature(difference_P: Floats, weight_P: Floats) -> float:
    """Return the temperature of least log loss, between 0.001 and 1,000; the loss has one minimum in 1 / T.

    Bisection on the derivative: its sign is all that is needed, and it cannot diverge. A model that is always right
    gets the lowest temperature, one that is no better than chance the highest.
    """
    low, high = math.log(1 / MAX_TEMPERATURE), math.log(1 / MIN_TEMPERATURE)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        slope = -(weight_P * difference_P * _sigmoid(-difference_P * math.exp(middle))).sum()
        if slope < 0:
            low = middle
        else:
            high = middle
    return float(np.exp(-(low + high) / 2))


def calibration_metrics(
    difference_P: Floats, weight_P: Floats, prompt_P: Ints, resamples: Resamples, *, temperature: float
) -> CalibrationMetrics:
    """Return log loss, Brier score, calibration error and reliability curve at a temperature."""
    scaled_P = difference_P / temperature
    confidence_P, correct_P = _sigmoid(np.abs(scaled_P)), correct(difference_P)
    bin_P = np.minimum(((confidence_P - 0.5) * 2 * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    bins = []
    for number in range(NUM_BINS):
        rows = np.flatnonzero(bin_P == number)
        weight = weight_P[rows]
        total = float(weight.sum())
        bins.append(
            ReliabilityBin(
                low=0.5 + number / (2 * NUM_BINS),
                high=0.5 + (number + 1) / (2 * NUM_BINS),
                pairs=len(rows),
                weight=total,
                confidence=float((weight * confidence_P[rows]).sum() / total) if total else None,
                accuracy=resamples.ratio(weight * correct_P[rows], weight, prompt_P[rows], is_share=True),
            )
        )
    return CalibrationMetrics(
        temperature=temperature,
        pairs=len(difference_P),
        prompts=len(np.unique(prompt_P)),
        log_loss=resamples.ratio(weight_P * np.logaddexp(0.0, -scaled_P), weight_P, prompt_P),
        brier=resamples.ratio(weight_P * _sigmoid(-scaled_P) ** 2, weight_P, prompt_P),
        expected_calibration_error=_calibration_error(bins),
        bins=bins,
    )


def _calibration_error(bins: list[ReliabilityBin]) -> float | None:
    total = math.fsum(one.weight for one in bins)
    if not total:
        return None
    distances = (
        one.weight * abs(one.confidence - one.accuracy.value)
        for one in bins
        if one.confidence is not None and one.accuracy.value is not None
    )
    return math.fsum(distances) / total


def _sigmoid(values: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -values))
