"""Evaluates a split as exact sums: the model's, those of the length-only baseline, and the model's by length.

All sums add: parts may be computed anywhere and merged in any order, and the metrics are the same to the last bit
(model/reward_metrics.py). The data alone decides the parts, not the number of workers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pairwright.data.tokens.tokenize_groups import TokenGroup, TokenTable
from pairwright.evaluation.rewards import plan_by_length, rewards_of_groups
from pairwright.model.reward_metrics import EvaluationSums, PairSums
from pairwright.model.reward_model import RewardModel

MAX_PARTS = 256


@dataclass(slots=True)
class Evaluation:
    """Sums over the groups counted so far."""

    model: EvaluationSums = field(default_factory=EvaluationSums)
    """The model's rewards."""
    longer_wins: EvaluationSums = field(default_factory=EvaluationSums)
    """The baseline on the same pairs: its reward is the completion's length in characters, so equal lengths tie."""
    chosen_longer: PairSums = field(default_factory=PairSums)
    """The model's rewards on the pairs whose chosen completion is the longer one."""
    chosen_shorter: PairSums = field(default_factory=PairSums)
    """... is the shorter one: accuracy here is not due to length."""
    equal_length: PairSums = field(default_factory=PairSums)
    """... is as long as the rejected one."""

    def add(self, reward_K: ArrayLike, group: TokenGroup) -> None:
        """Count one group.

        Raises:
            ModelError: if a reward is not finite, naming the group.
        """
        length_K = group.num_characters.astype(np.float64)
        longer_by_P = length_K[group.chosen_P] - length_K[group.rejected_P]
        self.model.add(reward_K, group)
        self.longer_wins.add(length_K, group)
        self.chosen_longer.add(_sums(reward_K, group, longer_by_P > 0))
        self.chosen_shorter.add(_sums(reward_K, group, longer_by_P < 0))
        self.equal_length.add(_sums(reward_K, group, longer_by_P == 0))

    def merge(self, other: "Evaluation") -> None:
        """Add another worker's sums; exact, in any order."""
        self.model.merge(other.model)
        self.longer_wins.merge(other.longer_wins)
        self.chosen_longer.add(other.chosen_longer)
        self.chosen_shorter.add(other.chosen_shorter)
        self.equal_length.add(other.equal_length)


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """A split of a tokens table, in parts of about equal cost."""

    parts: list[list[list[int]]]
    """[part][micro-batch] -> rows of the tokens table."""

    @classmethod
    def of(cls, tokens: TokenTable, split: str, *, micro_batch_tokens: int) -> "EvaluationPlan":
        """Return the plan; it depends on the table, the split and the budget, so every worker computes the same."""
        rows = tokens.rows_of_split(split)
        rows = rows[tokens.num_pairs_G[rows] > 0]
        positions = plan_by_length(
            tokens.num_completions_G[rows],
            tokens.longest_row_tokens_G[rows],
            micro_batch_tokens=micro_batch_tokens,
        )
        micro_batches = [rows[np.array(batch)].tolist() for batch in positions]
        # Longest first and in turn, so that the parts cost about the same.
        num_parts = min(len(micro_batches), MAX_PARTS)
        return cls([micro_batches[part::num_parts] for part in range(num_parts)])


def evaluate_groups(
    model: RewardModel,
    groups: Iterable[TokenGroup],
    *,
    pad_token_id: int,
    micro_batch_tokens: int,
    device: torch.device | str,
) -> Evaluation:
    """Return the evaluation of some groups, which fit in memory together.

    Raises:
        ConfigError: if one completion is over the budget, or the device's memory is too small for it.
        ModelError: if a reward is not finite, naming the group.
    """
    every = list(groups)
    plan = plan_by_length(
        [len(group.completion_ids) for group in every],
        [group.prompt_ids.size + max(ids.size for ids in group.completion_ids) for group in every],
        micro_batch_tokens=micro_batch_tokens,
    )
    evaluation = Evaluation()
    for positions in plan:
        batch = [every[position] for position in positions]
        rewards = rewards_of_groups(
            model, batch, pad_token_id=pad_token_id, micro_batch_tokens=micro_batch_tokens, device=device
        )
        for reward_K, group in zip(rewards, batch, strict=True):
            evaluation.add(reward_K, group)
    return evaluation


def merged(parts: Sequence[Evaluation]) -> Evaluation:
    """Return the sums of all parts."""
    total = Evaluation()
    for part in parts:
        total.merge(part)
    return total


def _sums(reward_K: ArrayLike, group: TokenGroup, of_pairs_P: NDArray[np.bool_]) -> PairSums:
    if not of_pairs_P.any():
        return PairSums()
    kept = replace(
        group,
        chosen_P=group.chosen_P[of_pairs_P],
        rejected_P=group.rejected_P[of_pairs_P],
        weight_P=group.weight_P[of_pairs_P],
        margin_P=group.margin_P[of_pairs_P],
    )
    sums = EvaluationSums()
    sums.add(reward_K, kept)
    return sums.overall
