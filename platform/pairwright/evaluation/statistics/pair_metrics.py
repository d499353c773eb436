"""Accuracy, log loss and reward margin of any part of the pairs, each with its interval.

Rule for ties: equal rewards count half. As wrong they would punish a model that abstains, as right they would reward
it; so a constant model has 50 %, and swapping chosen and rejected gives exactly 1 - accuracy.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pairwright.evaluation.statistics.intervals import NOTHING, Estimate, Resamples
from pairwright.evaluation.statistics.pair_arrays import Bools, Floats, Ints, PairArrays


@dataclass(frozen=True, slots=True)
class PartMetrics:
    """Metrics of some pairs."""

    groups: int
    prompts: int
    pairs: int
    weight: float
    accuracy: Estimate
    """Weighted over the pairs."""
    accuracy_by_prompt: Estimate
    """The mean over prompts of each one's accuracy."""
    log_loss: Estimate
    reward_margin: Estimate
    longer_wins: Estimate
    """Accuracy of the rule that the longer text wins."""


@dataclass(frozen=True)
class PairTerms:
    """The terms of each pair, once for all parts."""

    arrays: PairArrays
    resamples: Resamples

    @classmethod
    def of(cls, arrays: PairArrays) -> "PairTerms":
        return cls(arrays, Resamples.of(arrays.num_prompts))

    @cached_property
    def correct_P(self) -> Floats:
        """1 where the model agrees with the pair, 0.5 where its rewards are equal, else 0."""
        return correct(self.arrays.difference_P)

    @cached_property
    def longer_P(self) -> Floats:
        """The same for the rule that the longer text wins."""
        return correct(self.arrays.longer_by_P)

    @cached_property
    def log_loss_P(self) -> Floats:
        """-log sigmoid(reward difference), nats."""
        return np.logaddexp(0.0, -self.arrays.difference_P)

    def metrics(self, is_in_P: Bools | None = None, *, once: bool = False) -> PartMetrics:
        """Return the metrics of some pairs, all by default.

        Args:
            is_in_P: which pairs.
            once: count a group once, however many subsets it is in.
        """
        arrays = self.arrays
        kept = np.arange(len(arrays.group_P)) if is_in_P is None else np.flatnonzero(is_in_P)
        repeats = np.ones(len(kept), np.int64) if once else arrays.repeats_P[kept]
        weight, prompt = arrays.weight_P[kept] * repeats, arrays.prompt_P[kept]
        if not len(kept):
            return PartMetrics(0, 0, 0, 0.0, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)
        groups = np.unique(arrays.group_P[kept])
        correct_P = self.correct_P[kept]
        accuracy, log_loss, reward_margin, longer_wins = self.resamples.ratios(
            [
                weight * correct_P,
                weight * self.log_loss_P[kept],
                weight * arrays.difference_P[kept],
                weight * self.longer_P[kept],
            ],
            weight,
            prompt,
            are_shares=[True, False, False, True],
        )
        return PartMetrics(
            groups=int(len(groups) if once else arrays.repeats_G[groups].sum()),
            prompts=len(np.unique(prompt)),
            pairs=int(repeats.sum()),
            weight=float(weight.sum()),
            accuracy=accuracy,
            accuracy_by_prompt=self._by_prompt(weight, correct_P, prompt),
            log_loss=log_loss,
            reward_margin=reward_margin,
            longer_wins=longer_wins,
        )

    def _by_prompt(self, weight: Floats, correct_P: Floats, prompt: Ints) -> Estimate:
        total_Q = np.bincount(prompt, weight, self.arrays.num_prompts)
        right_Q = np.bincount(prompt, weight * correct_P, self.arrays.num_prompts)
        known = np.flatnonzero(total_Q > 0)
        return self.resamples.mean(right_Q[known] / total_Q[known], known, is_share=True)


def correct(difference: Floats | Ints) -> Floats:
    """Return 1 where a difference is above 0, 0.5 where it is 0, else 0."""
    return (np.sign(difference) + 1.0) / 2.0
