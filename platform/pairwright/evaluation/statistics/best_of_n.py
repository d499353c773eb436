"""Best-of-N: what the completion is worth that the model picks out of N, against a random, the longest, the best one.

The worth of a completion is the share of its group's other completions that the annotations put below it (a tie is
half), so a random choice is worth exactly 50 %. The expectation over all C(K,N) subsets is computed, not drawn: sorted
by reward, the completion with r others above it and no ties is picked with probability C(K-1-r, N-1) / C(K, N); a block
of equal rewards shares its probability. Groups of fewer than N completions have no best of N, so the groups differ from
one N to the next: compare a row with its own columns.
"""

import math
from dataclasses import dataclass

import numpy as np

from pairwright.evaluation.statistics.intervals import Estimate, Resamples
from pairwright.evaluation.statistics.pair_arrays import Floats, PairArrays
from pairwright.evaluation.statistics.rank_correlation import groups_by_size

MAX_N = 64


@dataclass(frozen=True, slots=True)
class BestOfN:
    """What a choice out of N is worth, for the groups of at least N completions."""

    n: int
    groups: int
    random: float
    """Exactly 0.5."""
    model: Estimate
    longest: Estimate
    best: Estimate
    """What a perfect choice would be worth: below 1 where N is less than K, or where the best ones tie."""
    gained: Estimate
    """(model - random) / (best - random): the share of what can be gained."""


def best_of_n(arrays: PairArrays, resamples: Resamples) -> list[BestOfN]:
    """Return one row for each N from 2 to the largest group, at most ``MAX_N``."""
    largest = int(arrays.num_completions_G.max(initial=0))
    return [_best_of(n, arrays, resamples) for n in range(2, min(largest, MAX_N) + 1)]


def _best_of(n: int, arrays: PairArrays, resamples: Resamples) -> BestOfN:
    names = ("model", "longest", "best")
    worth = {name: np.full(arrays.num_groups, np.nan) for name in names}
    for groups, index_GK in groups_by_size(arrays):
        if index_GK.shape[1] < n:
            continue
        true_GK = arrays.worth_N[index_GK]
        by = (arrays.reward_N[index_GK], arrays.characters_N[index_GK].astype(np.float64), true_GK)
        for name, values_GK in zip(names, by, strict=True):
            worth[name][groups] = (pick_probabilities(values_GK, n) * true_GK).sum(axis=1)
    known = np.flatnonzero(~np.isnan(worth["model"]))
    prompt = arrays.prompt_G[known]
    model, longest, best = (
        resamples.mean(worth[name][known], prompt, is_share=True) if len(known) else Estimate(None, None)
        for name in names
    )
    gained = resamples.ratio(worth["model"][known] - 0.5, worth["best"][known] - 0.5, prompt)
    return BestOfN(n=n, groups=len(known), random=0.5, model=model, longest=longest, best=best, gained=gained)


def pick_probabilities(values_GK: Floats, n: int) -> Floats:
    """Return for each completion the chance to be the one of the highest value among N drawn from its row."""
    size = values_GK.shape[1]
    above_GK = (values_GK[:, :, None] < values_GK[:, None, :]).sum(axis=2)
    equal_GK = (values_GK[:, :, None] == values_GK[:, None, :]).sum(axis=2)
    # Subsets whose highest value is at or below a level, less those below it, shared by the block of that level.
    ways = np.array([math.comb(left, n) / math.comb(size, n) for left in range(size + 1)])
    return (ways[size - above_GK] - ways[size - above_GK - equal_GK]) / equal_GK
