"""Which pairs, groups and annotators deserve a second look, by what the model says of them.

- Likely wrong: pairs where a confident model and the annotation disagree.
- Least sure: groups on which the model hardly knows which completion is better; a judgement there says most.
- Unexplained: annotators whose decisive pairs the model predicts surely worse than those of all together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pairwright.evaluation.statistics.ceiling import AnnotatorFit
from pairwright.evaluation.statistics.intervals import two_sided_p
from pairwright.evaluation.statistics.pair_arrays import Floats, PairArrays

CONFIDENT = 0.9
MAX_ROWS = 1000
MIN_PROMPTS = 20
SIGNIFICANCE = 0.05
_HALF_WIDTH = 1.96


@dataclass(frozen=True, slots=True)
class LikelyWrong:
    """A pair of which the model is sure that the rejected completion is better."""

    group_id: str
    chosen: int
    """Index into the pairs table's group."""
    rejected: int
    confidence: float
    """The model's probability that the rejected one is better, at the fitted temperature."""
    reward_chosen: float
    reward_rejected: float


@dataclass(frozen=True, slots=True)
class LeastSure:
    """A group whose ranking the model is unsure of."""

    group_id: str
    confidence: float
    """Mean over the pairs of completions of the model's probability for the one that it prefers; 0.5 is none."""
    completions: int


def likely_wrong(arrays: PairArrays, temperature: float, *, least: float = CONFIDENT) -> list[LikelyWrong]:
    """Return the pairs, at most one a group, the most confident first; of at least a confidence.

    A pair on which the annotations of its group are split is not listed against their minority.
    """
    low, high, net = arrays.votes
    width = len(arrays.group_N) + 1
    first_P = np.minimum(arrays.chosen_P, arrays.rejected_P)
    vote_P = np.searchsorted(low * width + high, first_P * width + np.maximum(arrays.chosen_P, arrays.rejected_P))
    agrees_P = np.sign(net[vote_P]) == np.where(arrays.chosen_P == first_P, 1, -1)
    confidence_P = _sigmoid(-arrays.difference_P / temperature)
    rows = np.flatnonzero(agrees_P & (confidence_P >= least))
    rows = rows[np.argsort(arrays.difference_P[rows], kind="stable")]
    rows = rows[np.sort(np.unique(arrays.group_P[rows], return_index=True)[1])][:MAX_ROWS]
    return [
        LikelyWrong(
            group_id=arrays.group_ids[int(arrays.group_P[row])],
            chosen=int(arrays.index_N[arrays.chosen_P[row]]),
            rejected=int(arrays.index_N[arrays.rejected_P[row]]),
            confidence=float(confidence_P[row]),
            reward_chosen=float(arrays.reward_N[arrays.chosen_P[row]]),
            reward_rejected=float(arrays.reward_N[arrays.rejected_P[row]]),
        )
        for row in rows.tolist()
    ]


def least_sure(arrays: PairArrays, temperature: float) -> list[LeastSure]:
    """Return the groups, the least sure first."""
    low, high, _ = arrays.votes
    sure = _sigmoid(np.abs(arrays.reward_N[low] - arrays.reward_N[high]) / temperature)
    group = arrays.group_N[low]
    num_G = np.bincount(group, minlength=arrays.num_groups)
    mean_G = np.bincount(group, sure, arrays.num_groups) / np.maximum(num_G, 1)
    known = np.flatnonzero(num_G)
    order = known[np.argsort(mean_G[known], kind="stable")][:MAX_ROWS]
    return [LeastSure(arrays.group_ids[g], float(mean_G[g]), int(arrays.num_completions_G[g])) for g in order.tolist()]


def unexplained(fits: Sequence[AnnotatorFit], accuracy: float | None) -> list[AnnotatorFit]:
    """Return the annotators of enough prompts whom the model explains surely worse than all pairs together.

    Bonferroni's correction for the number of annotators that were tested.
    """
    tested = [fit for fit in fits if fit.prompts >= MIN_PROMPTS and fit.accuracy.interval is not None]
    found = []
    for fit in tested:
        value, interval = fit.accuracy.value, fit.accuracy.interval
        if value is None or interval is None or accuracy is None or value >= accuracy:
            continue
        error = (interval[1] - interval[0]) / (2 * _HALF_WIDTH)
        if error > 0 and two_sided_p((value - accuracy) / error) * len(tested) < SIGNIFICANCE:
            found.append(fit)
    return found


def _sigmoid(values: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -values))
