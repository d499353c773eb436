"""Bytes kept for the backward pass of one group: its pairs as TRL runs them, against our layouts.

    python benchmarks/stored_activations.py

What autograd saves between forward and backward (``torch.autograd.graph.saved_tensors_hooks``), each storage once,
weights left out; the model is that of train_vs_trl.py, bfloat16 autocast, no gradient checkpointing. The expanded pairs
are two rows a pair in one forward, through transformers' own attention, as TRL's collator builds them.
"""

import argparse
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from reward_groups import PAD_ID, random_groups
from stored_bytes import stored_bytes
from torch import Tensor
from train_vs_trl import VOCAB_SIZE, Ours, small_llama
from transformers import PreTrainedModel
from trl_peer import pairs_of

from pairwright.config import LossConfig
from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.model.collate import Layout, collate
from pairwright.model.loss import preference_loss

# K, prompt and completion tokens, and the part of the expanded pairs' bytes that may be kept at most.
CASES = ((2, 512, 256, None), (4, 512, 128, 1 / 6), (4, 512, 256, None), (9, 128, 128, None), (9, 512, 128, 1 / 15))


def of_layout(make: Callable[[], PreTrainedModel], group: TokenGroup, layout: Layout) -> int:
    """Return the bytes that a group keeps in one of our layouts."""
    ours = Ours(make(), layout, "bf16")
    batch = collate([group], PAD_ID, layout)

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            rewards = ours.model(
                batch.input_ids_RT, batch.position_ids_RT, batch.attention_mask_RT, batch.segments, batch.last_N
            )
        return preference_loss(rewards, batch.targets, LossConfig(), global_weight=torch.tensor(1.0))

    return stored_bytes(ours.model, forward)


def of_pairs(make: Callable[[], PreTrainedModel], group: TokenGroup) -> int:
    """Return the bytes that a group keeps as expanded pairs, two rows each."""
    model = make().train()
    pairs = pairs_of([group])
    rows = [pair["chosen_ids"] for pair in pairs] + [pair["rejected_ids"] for pair in pairs]
    input_ids = torch.tensor(rows)

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False).logits
        chosen, rejected = logits.float().squeeze(-1).chunk(2)
        return -torch.nn.functional.logsigmoid(chosen - rejected).mean()

    return stored_bytes(model, forward)


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes kept for the backward pass of one group.")
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    make = small_llama(VOCAB_SIZE)
    lines = [
        "# Activations kept for the backward pass of one group",
        "",
        f"`python benchmarks/stored_activations.py`, {datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, "
        f"torch {version('torch')}, transformers {version('transformers')}. The same at every run.",
        "",
        "| K | prompt / completion | expanded pairs MiB | padded MiB | packed MiB | shared MiB | pairs / shared | "
        "must reach |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for num_completions, prompt, completion, most in CASES:
        (group,) = random_groups(
            1,
            num_completions=num_completions,
            prompt_tokens=prompt,
            completion_tokens=completion,
            vocab_size=VOCAB_SIZE,
            rng=np.random.default_rng(0),
        )
        pairs = of_pairs(make, group)
        padded, packed, shared = (of_layout(make, group, layout) for layout in ("padded", "packed", "shared"))
        cells = [f"{stored / 2**20:.1f}" for stored in (pairs, padded, packed, shared)]
        wanted = "" if most is None else f"{1 / most:.0f}"
        lines.append(
            f"| {num_completions} | {prompt}/{completion} | {' | '.join(cells)} | {pairs / shared:.1f} | {wanted} |"
        )
    print("\n".join(lines))
    if not options.no_file:
        name = f"stored_activations_{os.cpu_count()}cpu_{datetime.now(UTC):%Y-%m-%d}.md"
        (Path(__file__).parent / "results" / name).write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
