"""Part e: optimizer steps by TRL's RewardTrainer and by us on the same groups, bfloat16 autocast over float32 weights.

As train_vs_trl.py beside the kit: every side with its fastest batch size of a few, groups of the same sizes.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from kit import TINY, TINY_CASE, Kit, Shape, free, in_words, milliseconds, peak_gib, start
from model_flops import SHAPES, plain
from reward_groups import nameless_tokenizer, random_groups
from torch import nn
from train_vs_trl import LEARNING_RATE, Ours, compare, small_llama
from transformers import PreTrainedModel
from trl_peer import TrlPeer, pairs_of

from pairwright.data.tokens.token_group import TokenGroup

CASES = ((9, 512, 128, 2), (4, 512, 256, 8))
PAIRS_PER_FORWARD = (8, 16, 32)
BUDGETS = (16_384, 32_768)
STEPS = 2


def same_loss(kit: Kit) -> None:
    """Record how far losses and gradients lie apart in float32, on a small model."""
    make = small_llama(32_000)

    def on_device() -> PreTrainedModel:
        model = make()
        nn.Module.to(model, kit.device)
        return model

    with tempfile.TemporaryDirectory() as scratch:
        try:
            kit.record("same pairs, float32", result=compare(on_device, Path(scratch)))
        except (SystemExit, RuntimeError) as error:
            kit.record("same pairs, float32", error=in_words(error))


def ours(kit: Kit, shape: Shape, groups: Sequence[TokenGroup], record: dict[str, str]) -> None:
    """Record our steps."""
    side = Ours(seeded(shape, kit.device), "shared", "bf16")
    times, size = fastest(kit, {budget: partial(side.step, groups, budget) for budget in BUDGETS}, warm_ups=2)
    record_side(kit, "Pairwright, shared", times, len(groups), f"{size} tokens", record)


def trl(kit: Kit, shape: Shape, groups: Sequence[TokenGroup], record: dict[str, str]) -> None:
    """Record TRL's steps."""
    pairs = pairs_of(groups)
    with tempfile.TemporaryDirectory() as scratch:
        peer = TrlPeer(
            seeded(shape, kit.device),
            nameless_tokenizer(),
            learning_rate=LEARNING_RATE,
            precision="bf16",
            scratch=Path(scratch),
        )
        steps = {size: partial(peer.step, pairs, pairs_per_forward=size) for size in PAIRS_PER_FORWARD}
        times, size = fastest(kit, steps, warm_ups=1)
    record_side(kit, "TRL", times, len(groups), f"{size} pairs", record)


def fastest(kit: Kit, steps: Mapping[int, Callable[[], object]], *, warm_ups: int) -> tuple[list[float], int]:
    """Return the times of the fastest of steps of several sizes, smallest first, and its size.

    Raises:
        torch.OutOfMemoryError: if not even the smallest fits.
    """
    found: list[tuple[float, list[float], int]] = []
    for size, step in steps.items():
        try:
            times = milliseconds(step, kit.device, repeats=STEPS, warm_ups=warm_ups)
        except torch.OutOfMemoryError:
            if not found:
                raise
            break
        found.append((statistics.median(times), times, size))
    _, times, size = min(found)
    return times, size


def record_side(kit: Kit, name: str, times: list[float], num_groups: int, size: str, record: dict[str, str]) -> None:
    """Record the steps of one side."""
    median = statistics.median(times)
    kit.record(
        name,
        **record,
        step_s=median / 1e3,
        least_s=min(times) / 1e3,
        most_s=max(times) / 1e3,
        groups_per_s=1e3 * num_groups / median,
        forward=size,
        peak_gib=peak_gib(kit.device),
    )


def seeded(shape: Shape, device: torch.device) -> PreTrainedModel:
    """Return transformers' own model in float32, with the same weights every time."""
    torch.manual_seed(0)
    return plain(shape, device, torch.float32)


def main() -> None:
    kit = start("e")
    name = "tiny" if kit.is_tiny else "1B"
    shape = TINY if kit.is_tiny else SHAPES[name]
    cases = ((*TINY_CASE, 2),) if kit.is_tiny else CASES
    for num_completions, prompt, completion, num_groups in cases:
        if kit.deadline.is_near(needs_seconds=0 if kit.is_tiny else 10):
            break
        groups = random_groups(
            num_groups,
            num_completions=num_completions,
            prompt_tokens=prompt,
            completion_tokens=completion,
            vocab_size=shape.vocab_size,
            rng=np.random.default_rng(0),
        )
        record = {"model": name, "groups": f"{num_groups} of K={num_completions} {prompt}/{completion}"}
        for side in (trl, ours):
            if kit.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            try:
                side(kit, shape, groups, record)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                kit.record(side.__name__, **record, error=in_words(error))
            free()
    if kit.device.type == "cpu" or not kit.deadline.is_near(needs_seconds=10):
        same_loss(kit)


if __name__ == "__main__":
    main()
