"""Evaluates the groups of a split: one row a group with its rewards, from which the report is computed.

Parts may be computed anywhere and merged in any order, and the rows are the same to the last bit
(evaluation/group_rows.py). The data alone decides the parts, not the number of workers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from pairwright.data.tokens.tokenize_groups import TokenGroup, TokenTable
from pairwright.evaluation.degenerate_texts import DegenerateReward
from pairwright.evaluation.group_rows import merged_rows, reward_rows
from pairwright.evaluation.rewards import plan_by_length, rewards_in_layout
from pairwright.model.collate import Layout
from pairwright.model.reward_model import RewardModel

MAX_PARTS = 256


@dataclass(frozen=True, slots=True)
class EvaluatedPart:
    """What one worker computed: rows in REWARD_ROWS, and the rewards of degenerate texts."""

    rows: pa.Table
    degenerate: tuple[DegenerateReward, ...] = ()


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
    layout: Layout,
    pad_token_id: int,
    micro_batch_tokens: int,
    device: torch.device | str,
) -> EvaluatedPart:
    """Return the rows of some groups, which fit in memory together.

    Raises:
        ConfigError: if one completion is over the budget, or the device's memory is too small for it.
        ModelError: if a reward is not finite, naming the group.
    """
    every = list(groups)
    rewards = rewards_in_layout(
        model,
        every,
        layout=layout,
        pad_token_id=pad_token_id,
        micro_batch_tokens=micro_batch_tokens,
        device=device,
    )
    return EvaluatedPart(reward_rows(every, rewards))


def merged(parts: Sequence[EvaluatedPart]) -> EvaluatedPart:
    """Return the rows of all parts, sorted by group."""
    degenerate = sorted(reward for part in parts for reward in part.degenerate)
    return EvaluatedPart(merged_rows(part.rows for part in parts), tuple(degenerate))
