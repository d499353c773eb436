"""Part f: memory of forward and backward of the same groups in one micro-batch: our layouts, and their pairs as rows.

``kept_gib`` is what autograd keeps between the passes, ``peak_gib`` what the GPU held at most beyond the weights.
"""

import dataclasses

import numpy as np
import torch
from kit import TINY, TINY_CASE, Kit, build, free, in_words, loss_of, start
from model_flops import SHAPES
from reward_groups import PAD_ID, random_groups
from stored_bytes import stored_bytes

from pairwright.data.tokens.token_group import TokenGroup
from pairwright.model.collate import Layout, collate
from pairwright.model.reward_model import RewardModel

CASES = ((4, 512, 256), (9, 512, 128))
WAYS: tuple[tuple[str, Layout], ...] = (
    ("shared", "shared"),
    ("packed", "packed"),
    ("padded", "padded"),
    ("pairs, two rows each", "padded"),
)


def as_pairs(group: TokenGroup) -> list[TokenGroup]:
    """Return each pair as a group of its own, as trainers on pairs have them."""
    one, other = np.zeros(1, np.int64), np.ones(1, np.int64)
    return [
        dataclasses.replace(
            group,
            completion_ids=[group.completion_ids[chosen], group.completion_ids[rejected]],
            num_characters=group.num_characters[:2],
            completion_index=group.completion_index[:2],
            chosen_P=one,
            rejected_P=other,
            weight_P=group.weight_P[number : number + 1],
            margin_P=group.margin_P[number : number + 1],
        )
        for number, (chosen, rejected) in enumerate(zip(group.chosen_P, group.rejected_P, strict=True))
    ]


def measure(kit: Kit, model: RewardModel, groups: list[TokenGroup], layout: Layout) -> dict[str, float | None]:
    """Return the bytes of one way."""
    model.accept_packed_sequences(enabled=layout != "padded")
    batch = collate(groups, PAD_ID, layout).to(kit.device)
    model.zero_grad()
    free()
    kept = stored_bytes(model, lambda: loss_of(model, batch, 1))
    free()
    if kit.device.type == "cpu":
        loss_of(model, batch, 1).backward()
        return {"kept_gib": kept / 2**30, "peak_gib": None}
    # Gradients are there before, so that only activations and workspace count.
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss_of(model, batch, 1).backward()
    torch.cuda.synchronize()
    return {"kept_gib": kept / 2**30, "peak_gib": (torch.cuda.max_memory_allocated() - before) / 2**30}


def main() -> None:
    kit = start("f")
    name = "tiny" if kit.is_tiny else "1B"
    shape = TINY if kit.is_tiny else SHAPES[name]
    torch.manual_seed(0)
    model = build(shape, kit.device)
    for num_completions, prompt, completion in (TINY_CASE,) if kit.is_tiny else CASES:
        (group,) = random_groups(
            1,
            num_completions=num_completions,
            prompt_tokens=prompt,
            completion_tokens=completion,
            vocab_size=shape.vocab_size,
            rng=np.random.default_rng(0),
        )
        for way, layout in WAYS:
            groups = as_pairs(group) if way.startswith("pairs") else [group]
            more = {"model": name, "group": f"K={num_completions} {prompt}/{completion}"}
            try:
                kit.record(way, **more, **measure(kit, model, groups, layout))
            except torch.OutOfMemoryError as error:
                kit.record(way, **more, error=in_words(error))


if __name__ == "__main__":
    main()
