"""Computes the rewards of groups under a token budget, for evaluation and scoring.

Groups and budget alone decide the micro-batches, never the workers, so a reward is the same to the last digit wherever
it is computed. Groups of similar length share a micro-batch, longest first: that needs little padding, and a budget too
large for the device fails at once. A group over the budget takes several forward passes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.errors import ConfigError
from pairwright.model.collate import Layout, MicroBatch, collate
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
        raise ConfigError(_too_long(longest, num_tokens, micro_batch_tokens))
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


def rewards_in_layout(
    model: RewardModel,
    groups: Sequence[TokenGroup],
    *,
    layout: Layout,
    pad_token_id: int,
    micro_batch_tokens: int,
    device: torch.device | str,
) -> list[Rewards]:
    """Return each group's rewards, float32, shape (K,), in as many micro-batches as the budget takes.

    Args:
        model: switched to the layout (model/layout_check.py).
        groups: in any order; their lengths alone decide the micro-batches.
        layout: ``shared`` computes each prompt once, ``packed`` and ``padded`` once for each completion.
        pad_token_id: fills padded rows.
        micro_batch_tokens: budget of one forward pass, padding included.
        device: on which the model lies.

    Raises:
        ConfigError: if one row is over the budget, or the device's memory is too small for it.
    """
    if layout == "padded":
        planned = plan_by_length(
            [len(group.completion_ids) for group in groups],
            [_longest_row(group) for group in groups],
            micro_batch_tokens=micro_batch_tokens,
        )
        found: list[Rewards] = [np.empty(0, np.float32)] * len(groups)
        for positions in planned:
            batch = [groups[position] for position in positions]
            rewards = rewards_of_groups(
                model, batch, pad_token_id=pad_token_id, micro_batch_tokens=micro_batch_tokens, device=device
            )
            for position, reward_K in zip(positions, rewards, strict=True):
                found[position] = reward_K
        return found
    found = [np.empty(len(group.completion_ids), np.float32) for group in groups]
    for parts in _packed_micro_batches(groups, layout, micro_batch_tokens):
        reward_N = _packed_rewards(model, groups, parts, layout, pad_token_id, device)
        ends = np.cumsum([len(part.completions) for part in parts])[:-1]
        for part, values in zip(parts, np.split(reward_N, ends), strict=True):
            found[part.group][part.completions.start : part.completions.stop] = values
    return found


class _Part(NamedTuple):
    """Some completions of a group, which its prompt is computed once for."""

    group: int
    completions: range
    num_tokens: int


def _packed_micro_batches(groups: Sequence[TokenGroup], layout: Layout, budget: int) -> list[list[_Part]]:
    """Return parts of groups as micro-batches within the budget, longest first; only a group over it is split."""
    every = [part for number, group in enumerate(groups) for part in _parts(number, group, layout, budget)]
    micro_batches: list[list[_Part]] = []
    left = 0
    for part in sorted(every, key=lambda part: (-part.num_tokens, part.group, part.completions.start)):
        if part.num_tokens > left:
            micro_batches.append([])
            left = budget
        micro_batches[-1].append(part)
        left -= part.num_tokens
    return micro_batches


def _parts(number: int, group: TokenGroup, layout: Layout, budget: int) -> Iterator[_Part]:
    prompt = group.prompt_ids.size
    start, total = 0, prompt if layout == "shared" else 0
    for k, ids in enumerate(group.completion_ids):
        tokens = ids.size if layout == "shared" else prompt + ids.size
        if prompt + ids.size > budget:
            raise ConfigError(_too_long(group, prompt + ids.size, budget))
        if k > start and total + tokens > budget:
            yield _Part(number, range(start, k), total)
            start, total = k, prompt if layout == "shared" else 0
        total += tokens
    yield _Part(number, range(start, len(group.completion_ids)), total)


@torch.inference_mode()
def _packed_rewards(
    model: RewardModel,
    groups: Sequence[TokenGroup],
    parts: Sequence[_Part],
    layout: Layout,
    pad_token_id: int,
    device: torch.device | str,
) -> Rewards:
    batch = collate([_cut(groups[part.group], part.completions) for part in parts], pad_token_id, layout)
    try:
        return model.rewards(batch.to(device)).float().cpu().numpy()
    except torch.OutOfMemoryError:
        raise ConfigError(
            f"the device's memory is too small for a forward pass of {batch.num_tokens} tokens; lower "
            "micro_batch_tokens"
        ) from None


def _cut(group: TokenGroup, completions: range) -> TokenGroup:
    """Return some completions of a group, without pairs."""
    cut = slice(completions.start, completions.stop)
    none = np.zeros(0, np.int64)
    return replace(
        group,
        completion_ids=group.completion_ids[cut],
        num_characters=group.num_characters[cut],
        completion_index=group.completion_index[cut],
        chosen_P=none,
        rejected_P=none,
        weight_P=np.zeros(0, np.float32),
        margin_P=np.zeros(0, np.float32),
    )


def _too_long(group: TokenGroup, num_tokens: int, budget: int) -> str:
    return (
        f"group {group.group_id}: its longest completion takes {num_tokens} tokens with its prompt, more than the "
        f"{budget} of micro_batch_tokens; raise it to at least {num_tokens}"
    )


def _longest_row(group: TokenGroup) -> int:
    return group.prompt_ids.size + max(ids.size for ids in group.completion_ids)
