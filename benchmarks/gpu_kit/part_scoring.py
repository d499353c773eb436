"""Part h: rewards of 8 and 64 completions of one prompt, as a step of RL asks for them: groups and texts a second.

Planned as the server plans (model/batching/prefix_groups.py), whose time is counted; tokenising and HTTP are not.
"""

import statistics
from functools import partial

import numpy as np
import torch
from kit import TINY, Kit, build, free, milliseconds, spread, start
from model_flops import SHAPES
from numpy.typing import NDArray
from reward_groups import PAD_ID

from pairwright.data.tokens.token_group import TokenGroup
from pairwright.model.batching.prefix_groups import PrefixGroup, fill_micro_batches, prefix_groups
from pairwright.model.collate import Layout, collate
from pairwright.model.reward_model import RewardModel

MICRO_BATCH_TOKENS = 16_384
PROMPT, COMPLETION = 512, 256


def token_group(row_ids: list[NDArray[np.int32]], group: PrefixGroup) -> TokenGroup:
    """Return texts with a common prefix as a group without pairs."""
    none, no_weight = np.zeros(0, np.int64), np.zeros(0, np.float32)
    return TokenGroup(
        group_id="",
        subset=None,
        prompt_ids=row_ids[group.rows[0]][: group.prefix],
        completion_ids=[row_ids[row][group.prefix :] for row in group.rows],
        num_characters=np.zeros(len(group.rows), np.int32),
        completion_index=np.arange(len(group.rows), dtype=np.int16),
        chosen_P=none,
        rejected_P=none,
        weight_P=no_weight,
        margin_P=no_weight,
    )


@torch.inference_mode()
def rewards(kit: Kit, model: RewardModel, row_ids: list[NDArray[np.int32]], layout: Layout) -> torch.Tensor:
    """Return the rewards of texts, in the order of the micro-batches."""
    if layout == "shared":
        groups = prefix_groups(row_ids)
    else:
        groups = [PrefixGroup((row,), 0, len(ids)) for row, ids in enumerate(row_ids)]
    parts = fill_micro_batches(row_ids, groups, micro_batch_tokens=MICRO_BATCH_TOKENS, filled_tokens=MICRO_BATCH_TOKENS)
    found = []
    for part in parts:
        batch = collate([token_group(row_ids, group) for group in part], PAD_ID, layout).to(kit.device)
        found.append(model.rewards(batch).float().cpu())
    return torch.cat(found)


def compare(kit: Kit, name: str, model: RewardModel, num_completions: int, vocab_size: int) -> None:
    """Record the times of every layout on one prompt's completions."""
    rng = np.random.default_rng(0)
    prompt_tokens, completion_tokens = (24, 12) if kit.is_tiny else (PROMPT, COMPLETION)
    prompt = rng.integers(2, vocab_size, prompt_tokens, dtype=np.int32)
    completions = [rng.integers(2, vocab_size, completion_tokens, dtype=np.int32) for _ in range(num_completions)]
    row_ids = [np.concatenate([prompt, completion]) for completion in completions]
    expected: torch.Tensor | None = None
    layouts: tuple[Layout, ...] = ("padded", "packed", "shared")
    for layout in layouts:
        if kit.deadline.is_near(needs_seconds=3):
            return
        model.accept_packed_sequences(enabled=layout != "padded")
        score = partial(rewards, kit, model, row_ids, layout)
        found = score()
        expected = found if expected is None else expected
        times = milliseconds(score, kit.device, repeats=2 if kit.is_tiny else 5)
        seconds = statistics.median(times) / 1e3
        kit.record(
            name,
            layout=layout,
            texts=f"{num_completions} of {prompt_tokens}/{completion_tokens}",
            groups_per_s=1 / seconds,
            texts_per_s=num_completions / seconds,
            off_padded=float((found - expected).abs().max()),
            spread_of_rewards=float(expected.std()),
            **spread(times),
        )


def main() -> None:
    kit = start("h")
    for name in ("tiny",) if kit.is_tiny else ("1B", "8B"):
        shape = TINY if kit.is_tiny else SHAPES[name]
        torch.manual_seed(0)
        model = build(shape, kit.device).eval()
        for num_completions in (8, 64):
            compare(kit, name, model, num_completions, shape.vocab_size)
        del model
        free()


if __name__ == "__main__":
    main()
