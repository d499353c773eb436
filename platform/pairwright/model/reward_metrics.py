"""Metrics of a reward model: accuracy, log loss and reward margin, from sums that add over workers exactly.

A group's terms are computed in float64 and added as integers in units of 2**-80. Integer addition is exact in any
order, so the metrics do not depend, to the last bit, on how the groups were distributed or in which order the partial
sums were merged. A mean of means could not promise that at any precision, and is wrong where parts differ in size.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pairwright.data.tokens.token_group import TokenGroup
from pairwright.errors import ModelError

UNITS_PER_ONE = 2.0**80
NO_SUBSET = "(none)"
Metrics = dict[str, float | int]


class Report(TypedDict):
    """Metrics of an evaluation, overall and by part."""

    overall: Metrics
    by_subset: dict[str, Metrics]
    by_num_completions: dict[str, Metrics]


@dataclass(slots=True)
class PairSums:
    """Sums over the pairs of some groups; the last four in units of 2**-80."""

    groups: int = 0
    pairs: int = 0
    weight: int = 0
    weight_correct: int = 0
    weighted_log_loss: int = 0
    weighted_reward_margin: int = 0

    def add(self, other: "PairSums") -> None:
        """Add another part's sums to these."""
        self.groups += other.groups
        self.pairs += other.pairs
        self.weight += other.weight
        self.weight_correct += other.weight_correct
        self.weighted_log_loss += other.weighted_log_loss
        self.weighted_reward_margin += other.weighted_reward_margin

    def metrics(self) -> Metrics:
        """Return the counts, and the weighted means if there is any weight."""
        counts: Metrics = {"groups": self.groups, "pairs": self.pairs, "weight": self.weight / UNITS_PER_ONE}
        if self.weight == 0:
            return counts
        return counts | {
            "accuracy": self.weight_correct / self.weight,
            "log_loss": self.weighted_log_loss / self.weight,
            "reward_margin": self.weighted_reward_margin / self.weight,
        }


@dataclass(slots=True)
class EvaluationSums:
    """Sums over the groups counted so far: overall, by subset and by number of completions.

    A group in several subsets counts once in each of them, and as often overall: the subsets add up.
    """

    overall: PairSums = field(default_factory=PairSums)
    by_subset: dict[str, PairSums] = field(default_factory=dict)
    by_num_completions: dict[int, PairSums] = field(default_factory=dict)
    pairs_again: int = 0
    """Pairs that count again overall because their group is in a further subset."""

    def add(self, reward_N: ArrayLike, group: TokenGroup) -> None:
        """Count one group.

        Args:
            reward_N: reward of each of the group's completions, shape (N,).
            group: with pairs that index these completions.

        Raises:
            ValueError: if there is not one reward for each completion.
            ModelError: if a reward is not finite, naming the group.
        """
        sums = _sums_of_group(np.asarray(reward_N, np.float64), group)
        subsets = (group.subset if group.subset is not None else NO_SUBSET, *group.more_subsets)
        for subset in subsets:
            self._add_part(sums, subset, len(group.completion_ids))
        self.pairs_again += sums.pairs * (len(subsets) - 1)

    def merge(self, other: "EvaluationSums") -> None:
        """Add another worker's sums; exact, in any order."""
        self.overall.add(other.overall)
        self.pairs_again += other.pairs_again
        for subset, sums in other.by_subset.items():
            self.by_subset.setdefault(subset, PairSums()).add(sums)
        for num_completions, sums in other.by_num_completions.items():
            self.by_num_completions.setdefault(num_completions, PairSums()).add(sums)

    def report(self) -> Report:
        """Return the metrics: ``overall``, ``by_subset`` and ``by_num_completions``, JSON-able, keys sorted.

        Each has groups, pairs and weight; and, weighted over pairs, accuracy (equal rewards count half), log_loss
        (nats, without margins or smoothing) and reward_margin (reward of chosen minus that of rejected).
        """
        return {
            "overall": self.overall.metrics(),
            "by_subset": {subset: self.by_subset[subset].metrics() for subset in sorted(self.by_subset)},
            "by_num_completions": {
                str(num): self.by_num_completions[num].metrics() for num in sorted(self.by_num_completions)
            },
        }

    def _add_part(self, sums: PairSums, subset: str, num_completions: int) -> None:
        self.overall.add(sums)
        self.by_subset.setdefault(subset, PairSums()).add(sums)
        self.by_num_completions.setdefault(num_completions, PairSums()).add(sums)


def merged(parts: Iterable[EvaluationSums]) -> EvaluationSums:
    """Return the sums of all parts, such as those of every rank."""
    total = EvaluationSums()
    for part in parts:
        total.merge(part)
    return total


def check_rewards(group: TokenGroup, reward_N: NDArray[np.floating[Any]]) -> None:
    """Refuse rewards that are not one finite number a completion.

    Raises:
        ValueError: if their number differs from that of the completions.
        ModelError: if one is not finite.
    """
    if reward_N.shape != (len(group.completion_ids),):
        raise ValueError(
            f"group {group.group_id}: rewards of shape {reward_N.shape} for {len(group.completion_ids)} completions"
        )
    if not np.isfinite(reward_N).all():
        raise ModelError(
            f"group {group.group_id}: the model's rewards are {reward_N.tolist()}, expected finite numbers; its "
            "weights may hold NaN (a run that diverged), or its dtype may overflow"
        )


def _sums_of_group(reward_N: NDArray[np.float64], group: TokenGroup) -> PairSums:
    check_rewards(group, reward_N)
    difference_P = reward_N[group.chosen_P] - reward_N[group.rejected_P]
    weight_P = group.weight_P.astype(np.float64)
    # Equal rewards count half: as wrong they would punish a model that abstains, as right they would reward it.
    correct_P = (np.sign(difference_P) + 1) / 2
    return PairSums(
        groups=1,
        pairs=int(difference_P.size),
        weight=_units(weight_P),
        weight_correct=_units(weight_P * correct_P),
        weighted_log_loss=_units(weight_P * np.logaddexp(0.0, -difference_P)),
        weighted_reward_margin=_units(weight_P * difference_P),
    )


def _units(term_P: NDArray[np.float64]) -> int:
    return round(float(term_P.sum()) * UNITS_PER_ONE)
