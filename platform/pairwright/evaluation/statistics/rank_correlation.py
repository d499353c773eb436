"""Spearman's and Kendall's correlation of rewards and annotations within each group, with ties.

Groups of one size go through together, as (groups, K) matrices. Ties have average ranks in Spearman's correlation, and
Kendall's is tau-b. A group whose annotations are all ties has none; a model that gives a group equal rewards has 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pairwright.evaluation.statistics.intervals import Estimate, Resamples
from pairwright.evaluation.statistics.pair_arrays import Floats, Ints, PairArrays


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """The mean over groups of the correlation of rewards and annotations within each."""

    groups: int
    spearman: Estimate
    kendall: Estimate
    length_spearman: Estimate
    """The same for the length of the text instead of the reward."""


def rank_correlation(arrays: PairArrays, resamples: Resamples) -> RankCorrelation:
    """Return the mean correlations; a group counts once."""
    spearman_G, kendall_G, length_G = (np.full(arrays.num_groups, np.nan) for _ in range(3))
    for groups, index_GK in groups_by_size(arrays):
        worth = arrays.worth_N[index_GK]
        spearman_G[groups] = spearman(arrays.reward_N[index_GK], worth)
        kendall_G[groups] = kendall(arrays.reward_N[index_GK], worth)
        length_G[groups] = spearman(arrays.characters_N[index_GK].astype(np.float64), worth)

    def mean(values_G: Floats) -> Estimate:
        known = np.flatnonzero(~np.isnan(values_G))
        return resamples.mean(values_G[known], arrays.prompt_G[known])

    return RankCorrelation(int((~np.isnan(spearman_G)).sum()), mean(spearman_G), mean(kendall_G), mean(length_G))


def groups_by_size(arrays: PairArrays) -> Iterator[tuple[Ints, NDArray[np.int64]]]:
    """Yield the groups of each size, and the indices into N of their completions, shape (groups, K)."""
    for size in np.unique(arrays.num_completions_G).tolist():
        groups = np.flatnonzero(arrays.num_completions_G == size)
        yield groups, arrays.starts_G[groups][:, None] + np.arange(size)


def spearman(values_GK: Floats, truth_GK: Floats) -> Floats:
    """Return the correlation of average ranks in each row; NaN where the truth is constant, 0 where the values are."""
    return _correlation(_average_ranks(values_GK), _average_ranks(truth_GK))


def kendall(values_GK: Floats, truth_GK: Floats) -> Floats:
    """Return tau-b of each row; NaN where the truth is constant, 0 where the values are."""
    first, second = np.triu_indices(values_GK.shape[1], 1)
    return _cosine(
        np.sign(values_GK[:, first] - values_GK[:, second]), np.sign(truth_GK[:, first] - truth_GK[:, second])
    )


def _average_ranks(values_GK: Floats) -> Floats:
    below = (values_GK[:, :, None] > values_GK[:, None, :]).sum(axis=2)
    equal = (values_GK[:, :, None] == values_GK[:, None, :]).sum(axis=2)
    return below + (equal + 1) / 2.0


def _correlation(first_GK: Floats, second_GK: Floats) -> Floats:
    centered = first_GK - first_GK.mean(axis=1, keepdims=True), second_GK - second_GK.mean(axis=1, keepdims=True)
    return _cosine(*centered)


def _cosine(first: Floats, second: Floats) -> Floats:
    product = (first * second).sum(axis=1)
    size_first, size_second = (first**2).sum(axis=1), (second**2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(size_first > 0, product / np.sqrt(size_first * size_second), 0.0)
    return np.where(size_second > 0, found, np.nan)
