"""Computes the rewards of groups under a token budget, for evaluation and scoring.

Groups and budget alone decide the micro-batches, never the workers, so a reward is the same to the last digit wherever
it is computed. Groups of similar length share a micro-batch, longest first: that needs little padding, and a budget too
large for the device fails at once. A group over the budget takes several forward passes.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.errors import ConfigError
from pairwright.model.collate import MicroBatch, collate
from pairwright.model.reward_model import RewardModel

Rewards: TypeAlias = NDArray[np.float32]


def plan_by_length(
    num_completions_G: ArrayLike, longest_row_tokens_G: ArrayLike, *, micro_batch_tokens: int
) -> list[list[int]]:
    """Return micro-batches as indices of groups, longest first, each group in exactly one.

    A group over the budget is a micro-batch of its own; ``rewards_of_groups`` splits it by rows.

    Args:
        num_completions_G: completions of each group, shape (G,).
        longest_row_tokens_G: prompt and longest completion of each group, tokens, shape (G,).
        micro_batch_tokens: token budget of one forward pass, padding included.
    """
    num_completions, num_tokens = np.asarray(num_completions_G), np.asarray(longest_row_tokens_G)
    micro_batches: list[list[int]] = []
    rows = width = 0
    for position in np.argsort(-num_tokens, kind="stable").tolist():
        group_rows = int(num_completions[position])
        if not micro_batches or (rows + group_rows) * width > micro_batch_tokens:
            micro_batches.append([])
            rows, width = 0, int(num_tokens[position])
        micro_batches[-1].append(position)
        rows += group_rows
    return micro_batches


def rewards_of_groups(
    model: RewardModel,
    groups: Sequence[TokenGroup],
    *,
    pad_token_id: int,
    micro_batch_tokens: int,
    device: torch.device | str,
) -> list[Rewards]:
    """Return each group's rewards, float32, shape (K,), from one micro-batch.

    Raises:
        ConfigError: if one row is over the budget, or the device's memory is too small for it.
    """
    batch = collate(groups, pad_token_id, "padded")
    num_rows, num_tokens = batch.input_ids_RT.shape
    if num_tokens > micro_batch_tokens:
        longest = max(groups, key=_longest_row)
        raise ConfigError(
            f"group {longest.group_id}: its longest completion takes {num_tokens} tokens with its prompt, more than "
            f"the {micro_batch_tokens} of micro_batch_tokens; raise it to at least {num_tokens}"
        )
    try:
        reward_N = _forward(model, batch.to(device), num_rows, rows_per_forward=micro_batch_tokens // num_tokens)
    except torch.OutOfMemoryError:
        raise ConfigError(
            f"the device's memory is too small for a forward pass of {micro_batch_tokens} tokens ({num_tokens} a row); "
            f"lower micro_batch_tokens, to no less than {num_tokens}"
        ) from None
    ends = np.cumsum([len(group.completion_ids) for group in groups])
    return np.split(reward_N, ends[:-1])


@torch.inference_mode()
def _forward(model: RewardModel, batch: MicroBatch, num_rows: int, *, rows_per_forward: int) -> Rewards:
    assert batch.attention_mask_RT is not None
    width = batch.input_ids_RT.shape[1]
    rewards = [
        model(
            batch.input_ids_RT[rows],
            batch.position_ids_RT[rows],
            batch.attention_mask_RT[rows],
            None,
            batch.last_N[rows] - rows.start * width,
        )
        for rows in (slice(start, start + rows_per_forward) for start in range(0, num_rows, rows_per_forward))
    ]
    return torch.cat(rewards).float().cpu().numpy()


def _longest_row(group: TokenGroup) -> int:
    return group.prompt_ids.size + max(ids.size for ids in group.completion_ids)
