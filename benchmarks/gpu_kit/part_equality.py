"""Part b: loss and gradient of the shared-prefix and packed layouts against padded rows, in float32 and bfloat16.

The truth is padded rows in float32. In bfloat16 padded rows are off by their own rounding; the other layouts may be as
far off, not farther.
"""

import numpy as np
import torch
from kit import Kit, architectures, free, in_words, loss_of, small_model, start
from reward_groups import PAD_ID, random_groups

from pairwright.data.tokens.token_group import TokenGroup
from pairwright.model.collate import Layout, collate
from pairwright.model.reward_model import RewardModel

LAYOUTS: tuple[Layout, ...] = ("padded", "shared", "packed")
FP32_TOLERANCE = 1e-4
"""Of the gradient, as a share of its norm; measured on CPUs: 2e-6."""
TIMES_PADDED = 2.0
"""How many times farther off than padded rows the gradient may be in bfloat16."""


def groups_of(kit: Kit, vocab_size: int) -> list[TokenGroup]:
    """Return groups of several lengths, some longer than a sliding window."""
    rng = np.random.default_rng(0)
    sizes = [(2, 300, 90), (4, 40, 200), (9, 180, 60), (3, 1, 300)]
    return [
        group
        for number, prompt, completion in sizes
        for group in random_groups(
            1,
            num_completions=number,
            prompt_tokens=max(1, prompt // 10) if kit.is_tiny else prompt,
            completion_tokens=completion // 10 if kit.is_tiny else completion,
            vocab_size=vocab_size,
            rng=rng,
        )
    ]


def outcome(
    model: RewardModel, groups: list[TokenGroup], layout: Layout, device: torch.device
) -> tuple[float, torch.Tensor]:
    """Return the loss and the gradient, one row of float32 on the device."""
    model.accept_packed_sequences(enabled=layout != "padded")
    model.zero_grad()
    loss = loss_of(model, collate(groups, PAD_ID, layout).to(device), len(groups))
    loss.backward()
    return loss.item(), torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])


def compare(kit: Kit, architecture: str) -> None:
    """Record how far every layout and dtype is from padded rows in float32."""
    sizes = architectures(is_tiny=kit.is_tiny)[architecture]
    groups = groups_of(kit, sizes["vocab_size"])
    right_loss, right = 0.0, torch.zeros(())
    allowed = FP32_TOLERANCE
    for dtype in (torch.float32, torch.bfloat16):
        model = small_model(architecture, sizes, dtype, kit.device)
        for layout in LAYOUTS:
            loss, gradient = outcome(model, groups, layout, kit.device)
            if dtype == torch.float32 and layout == "padded":
                right_loss, right = loss, gradient
            off = float((gradient - right).norm() / right.norm())
            if layout == "padded" and dtype == torch.bfloat16:
                allowed = TIMES_PADDED * off
            kit.record(
                architecture,
                dtype=str(dtype).removeprefix("torch."),
                layout=layout,
                loss=loss,
                loss_off=abs(loss - right_loss),
                gradient_off=off,
                allowed=allowed,
                # Written so that NaN is wrong.
                is_right=bool(off <= allowed),
            )
        del model
        free()


def main() -> None:
    kit = start("b")
    for architecture in architectures(is_tiny=kit.is_tiny):
        try:
            compare(kit, architecture)
        except (RuntimeError, ValueError, TypeError) as error:
            kit.record(architecture, error=in_words(error))


if __name__ == "__main__":
    main()
