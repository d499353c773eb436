"""95 % intervals over prompts: pairs of one prompt are not independent, prompts are.

Every metric is a ratio of two sums over prompts. A resample draws as many prompts as there are, with replacement, and
gives the ratio anew. All metrics use the same 1,000 resamples, so that a difference of two metrics has an interval too.

Sums are exact: the terms of a prompt are rounded to a grid on which every sum of them is a float64 without rounding, so
no order, library or number of threads shows in an interval. With few prompts a plain percentile interval is too narrow,
so each kind of metric has the interval that held the truth of 20 to 300 synthetic prompts best (docs/evaluation.md):

- shares, such as accuracy: Student's t on log odds (Korn and Graubard 1998, Survey Methodology 24(2)), or Wilson 1927
  where every prompt agrees;
- other ratios, such as log loss: bootstrap-t (Efron and Tibshirani 1993, section 12.5), no narrower than Student's t;
- what is no ratio, such as a correlation: expanded percentiles (Hesterberg 2015, arXiv:1411.5279, section 5.3).

Standard errors are the jackknife's, which err on the large side (Efron and Stein 1981).
"""

# ruff: noqa: N815 - shape suffixes: Q prompts, C clusters, B resamples, M metrics

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pairwright.evaluation.statistics.pair_arrays import Floats, Ints, sums_by

CONFIDENCE = 0.95
NUM_RESAMPLES = 1000
MAX_CLUSTERS = 1024
"""More prompts than that are joined to clusters, which are as independent as prompts are: memory stays bounded."""
SEED = 17
MOST_T = 3.0
"""Quantiles of bootstrap-t are cut at so many times Student's: of very few prompts some resamples have no spread."""
_NORMAL = NormalDist()
_Z = _NORMAL.inv_cdf(0.5 + CONFIDENCE / 2)

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric and its 95 % interval; both None where there is nothing to compute it from."""

    value: float | None
    interval: Interval | None


NOTHING = Estimate(None, None)


@dataclass(frozen=True, slots=True)
class Resamples:
    """How often each cluster of prompts is drawn in each resample.

    Attributes:
        cluster_Q: the cluster of each prompt.
        counts_BC: float64, whole numbers.
    """

    cluster_Q: Ints
    counts_BC: Floats

    @classmethod
    def of(cls, num_prompts: int, *, num_resamples: int = NUM_RESAMPLES, seed: int = SEED) -> "Resamples":
        """Return the resamples of so many prompts: a function of their number alone."""
        num_clusters = max(1, min(num_prompts, MAX_CLUSTERS))
        rng = np.random.Generator(np.random.PCG64(seed))
        drawn = rng.integers(num_clusters, size=(num_resamples, num_clusters))
        drawn += np.arange(num_resamples)[:, None] * num_clusters
        counts = np.bincount(drawn.ravel(), minlength=num_resamples * num_clusters)
        counts_BC = counts.reshape(num_resamples, num_clusters).astype(np.float64)
        return cls(np.arange(num_prompts) % num_clusters, counts_BC)

    def ratio(self, numerator: Floats, denominator: Floats, prompt: Ints, *, is_share: bool = False) -> Estimate:
        """Return sum(numerator) / sum(denominator) over terms, each of a prompt.

        Args:
            numerator: terms, shape (any,).
            denominator: terms, 0 or more, same shape.
            prompt: index of each term's prompt.
            is_share: the ratio lies between 0 and 1.
        """
        return self.ratios([numerator], denominator, prompt, are_shares=[is_share])[0]

    def ratios(
        self, numerators: Sequence[Floats], denominator: Floats, prompt: Ints, *, are_shares: Sequence[bool]
    ) -> list[Estimate]:
        """Return several ratios over one denominator; see ``ratio``."""
        total = math.fsum(denominator.tolist())
        if not total > 0:
            return [NOTHING] * len(numerators)
        num_prompts = self._num_prompts(denominator, prompt)
        sums_CM, counts_BC = self._cluster_sums([*numerators, denominator], denominator, prompt)
        found = []
        for numerator, sums_C, is_share in zip(numerators, sums_CM.T, are_shares, strict=False):
            value = _exact_share(numerator, denominator, total) if is_share else math.fsum(numerator.tolist()) / total
            if num_prompts < 2:
                interval = None
            elif is_share:
                interval = _share_interval(value, sums_C, sums_CM[:, -1], num_prompts)
            else:
                interval = _studentized_interval(value, sums_C, sums_CM[:, -1], counts_BC)
            found.append(Estimate(value, interval))
        return found

    def ratios_of_resamples(self, numerator: Floats, denominator: Floats, prompt: Ints) -> tuple[Floats, int]:
        """Return the ratio of each resample, NaN where its denominator is 0, and how many prompts have a term."""
        sums_CM, counts_BC = self._cluster_sums([numerator, denominator], denominator, prompt)
        totals_BM = counts_BC @ sums_CM
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio_B = np.where(totals_BM[:, 1] > 0, totals_BM[:, 0] / totals_BM[:, 1], np.nan)
        return ratio_B, self._num_prompts(denominator, prompt)

    def _cluster_sums(self, terms: Sequence[Floats], denominator: Floats, prompt: Ints) -> tuple[Floats, Floats]:
        """Return the sums of the clusters that have a denominator, on a grid, and how often each is drawn."""
        cluster, num_clusters = self.cluster_Q[prompt], self.counts_BC.shape[1]
        sums_CM = np.stack([sums_by(cluster, one, num_clusters) for one in terms], axis=1)
        used = np.flatnonzero(sums_by(cluster, denominator, num_clusters) > 0)
        counts = self.counts_BC if len(used) == num_clusters else self.counts_BC[:, used]
        return on_a_grid(sums_CM[used], num_clusters), counts

    def _num_prompts(self, denominator: Floats, prompt: Ints) -> int:
        has_term = np.zeros(len(self.cluster_Q), dtype=bool)
        has_term[prompt[denominator > 0]] = True
        return int(has_term.sum())

    def mean(self, values: Floats, prompt: Ints, *, is_share: bool = False) -> Estimate:
        """Return the mean of values, each of a prompt."""
        return self.ratio(values, np.ones_like(values), prompt, is_share=is_share)


def on_a_grid(terms: NDArray[np.float64], num_terms: int) -> NDArray[np.float64]:
    """Return each column rounded to multiples of a power of 2 so large that any ``num_terms`` of it add exactly."""
    rounded = np.empty_like(terms)
    for column in range(terms.shape[1]):
        largest = float(np.abs(terms[:, column]).max(initial=0.0)) * max(1, num_terms)
        unit = 2.0 ** max(math.frexp(largest)[1] - 53, -1022)
        rounded[:, column] = np.rint(terms[:, column] / unit) * unit
    return rounded


def _share_interval(value: float, sums_C: Floats, totals_C: Floats, num_prompts: int) -> Interval:
    """Return a t interval on the scale of log odds, where a share's error is symmetric and stays between 0 and 1."""
    if value in (0.0, 1.0):
        return _wilson(value, num_prompts)
    error = _jackknife_error(sums_C, totals_C)
    if error == 0.0:
        return value, value
    odds, reach = math.log(value / (1 - value)), t_quantile(len(sums_C) - 1) * error / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-min(max(end, -700.0), 700.0))) for end in (odds - reach, odds + reach))
    return low, high


def _studentized_interval(value: float, sums_C: Floats, totals_C: Floats, counts_BC: Floats) -> Interval:
    """Return a bootstrap-t interval: the quantiles are those of (resample - value) / (standard error in the resample).

    They follow a skewed metric, where percentiles lag behind, and are no narrower than Student's t.
    """
    error = _jackknife_error(sums_C, totals_C)
    if error == 0.0:
        return value, value
    rest_C = sums_C - value * totals_C
    terms = np.stack([rest_C, totals_C, rest_C**2, rest_C * totals_C, totals_C**2], axis=1)
    rest_B, total_B, squares_B, products_B, totals_squared_B = (counts_BC @ on_a_grid(terms, len(terms))).T
    with np.errstate(invalid="ignore", divide="ignore"):
        moved_B = np.where(total_B > 0, rest_B / total_B, np.nan)
        variance_B = squares_B - 2 * moved_B * products_B + moved_B**2 * totals_squared_B
        t_B = moved_B * total_B / np.sqrt(np.where(variance_B > 1e-9 * squares_B, variance_B, np.nan))
    known = t_B[np.isfinite(t_B)] * math.sqrt((len(terms) - 1) / len(terms))
    least = t_quantile(len(terms) - 1)
    low, high = np.quantile(known, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2]) if known.size else (-least, least)
    below, above = (float(min(max(least, end), MOST_T * least)) for end in (high, -low))
    return value - below * error, value + above * error


def _jackknife_error(sums_C: Floats, totals_C: Floats) -> float:
    """Return the standard error of a ratio from the ratios without each cluster; 0 where all agree."""
    left_C, number = totals_C.sum() - totals_C, len(sums_C)
    if number < 2:
        return 0.0
    ratio_C = (sums_C.sum() - sums_C) / left_C
    spread_C = ratio_C - ratio_C.mean()
    error = math.sqrt((number - 1) / number * float(spread_C @ spread_C))
    return error if error > 1e-12 * float(np.abs(ratio_C).max(initial=0.0)) else 0.0


def interval_of(value: float, drawn_B: Floats, num_prompts: int, *, is_share: bool) -> Interval | None:
    """Return the 95 % interval of a metric from its values in the resamples.

    None for a metric of a single prompt, which says nothing about others.
    """
    drawn = drawn_B[~np.isnan(drawn_B)]
    if num_prompts < 2 or not drawn.size:
        return None
    if is_share and value in (0.0, 1.0):
        return _wilson(value, num_prompts)
    # Widened: the variance of a resample is that of n draws, and n estimates it; t instead of normal quantiles.
    reach = t_quantile(num_prompts - 1) * math.sqrt(num_prompts / (num_prompts - 1))
    tail = _NORMAL.cdf(-reach)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(min(low, value)), float(max(high, value))


def standard_error(drawn_B: Floats, num_prompts: int) -> float | None:
    """Return the standard error of a metric from its values in the resamples; None if it cannot be known."""
    drawn = drawn_B[~np.isnan(drawn_B)]
    if num_prompts < 2 or drawn.size < 2:
        return None
    return float(drawn.std(ddof=1)) * math.sqrt(num_prompts / (num_prompts - 1))


def t_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t, to 0.1 % from 3 degrees of freedom on.

    Source: Cornish-Fisher expansion, Abramowitz and Stegun 1964, 26.7.5; exact values below.
    """
    exact = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764}
    if degrees in exact:
        return exact[degrees]
    z, n = _Z, float(degrees)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / n ** (power + 1) for power, term in enumerate(terms))


def two_sided_p(z: float) -> float:
    """Return the p-value of a standard normal deviate."""
    return math.erfc(abs(z) / math.sqrt(2))


def holm(p_values: Floats) -> Floats:
    """Return p-values adjusted for their number (Holm 1979): the chance of any false one stays below the level."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return adjusted


def _exact_share(numerator: Floats, denominator: Floats, total: float) -> float:
    """Return a share so that it and the share of the rest add to exactly 1: a whole number of 2**-53."""
    part, rest = math.fsum(numerator.tolist()), math.fsum((denominator - numerator).tolist())
    smaller = round(min(part, rest) / total * 2.0**53) / 2.0**53
    return smaller if part <= rest else 1.0 - smaller


def _wilson(value: float, num_prompts: int) -> Interval:
    center = (value + _Z**2 / (2 * num_prompts)) / (1 + _Z**2 / num_prompts)
    reach = (_Z**2 / (2 * num_prompts)) / (1 + _Z**2 / num_prompts)
    return (0.0, center + reach) if value == 0.0 else (center - reach, 1.0)
