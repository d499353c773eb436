"""The last hidden state of each completion: the input of a frozen model's reward head.

Wide states are projected to ``MAX_FEATURES`` by a fixed Gaussian matrix, which keeps distances about as they are
(Johnson and Lindenstrauss 1984), so that a refit takes milliseconds whatever the model.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.evaluation.rewards import plan_by_length, rewards_of_groups
from pairwright.model.reward_model import RewardHead, RewardModel

MAX_FEATURES = 256
_SEED = 17


def features_of_groups(
    model: RewardModel,
    groups: Sequence[TokenGroup],
    *,
    pad_token_id: int,
    micro_batch_tokens: int,
    device: torch.device | str,
) -> list[NDArray[np.float32]]:
    """Return the features of each group's completions, float32, shape (K, D), D at most MAX_FEATURES.

    Raises:
        ConfigError: as ``rewards_of_groups``.
    """
    plan = plan_by_length(
        [len(group.completion_ids) for group in groups],
        [group.prompt_ids.size + max(ids.size for ids in group.completion_ids) for group in groups],
        micro_batch_tokens=micro_batch_tokens,
    )
    head = next(module for module in model.modules() if isinstance(module, RewardHead))
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu()))
    found: dict[int, NDArray[np.float32]] = {}
    try:
        for positions in plan:
            seen.clear()
            batch = [groups[position] for position in positions]
            rewards = rewards_of_groups(
                model, batch, pad_token_id=pad_token_id, micro_batch_tokens=micro_batch_tokens, device=device
            )
            states_ND = projected(torch.cat(seen).numpy())
            ends = np.cumsum([len(reward_K) for reward_K in rewards])[:-1]
            found |= zip(positions, np.split(states_ND, ends), strict=True)
    finally:
        hook.remove()
    return [found[position] for position in range(len(groups))]


def projected(states_ND: NDArray[Any]) -> NDArray[np.float32]:
    """Return states of at most MAX_FEATURES columns."""
    width = states_ND.shape[1]
    if width <= MAX_FEATURES:
        return states_ND.astype(np.float32)
    matrix = np.random.Generator(np.random.PCG64(_SEED)).standard_normal((width, MAX_FEATURES))
    return (states_ND @ (matrix / np.sqrt(MAX_FEATURES))).astype(np.float32)
