"""The kernels for CPUs change speed and memory: rewards and gradients are those of plain attention up to rounding."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.model.attention.interface import IMPLEMENTATION, PLAIN_IMPLEMENTATION
from pairwright.model.collate import Layout, collate
from pairwright.model.reward_model import RewardModel

Outcome = tuple[torch.Tensor, torch.Tensor]


def _outcome(model: RewardModel, groups: list[TokenGroup], layout: Layout) -> Outcome:
    """Return the rewards and the gradient of their weighted sum."""
    model.accept_packed_sequences(enabled=True)
    reward_N = model.rewards(collate(groups, 0, layout))
    weight_N = torch.linspace(-1, 1, len(reward_N), dtype=reward_N.dtype)
    gradients = torch.autograd.grad((reward_N * weight_N).sum(), list(model.parameters()), allow_unused=True)
    return reward_N.detach(), torch.cat([gradient.double().flatten() for gradient in gradients if gradient is not None])


@pytest.mark.parametrize("layout", ["shared", "packed"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=str
)
def test_rewards_and_gradient_are_the_same_without_them(
    load: Callable[..., RewardModel],
    random_group: Callable[..., TokenGroup],
    layout: Layout,
    architecture: str,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    rng = np.random.default_rng(5)
    groups = [random_group(rng, num_completions=k, vocab=(5, 200)) for k in (4, 2, 7)]
    on, off = (
        _outcome(load(architecture, dtype=dtype, cpu_kernels=cpu_kernels), groups, layout)
        for cpu_kernels in (True, False)
    )
    spread = off[0].std()
    assert float((on[0] - off[0]).abs().max() / spread) < tolerance
    assert float((on[1] - off[1]).norm() / off[1].norm()) < tolerance


def test_one_key_chooses_the_implementation_and_leaves_layers_without_hooks(load: Callable[..., RewardModel]) -> None:
    for cpu_kernels, expected in ((True, IMPLEMENTATION), (False, PLAIN_IMPLEMENTATION)):
        model = load("llama", cpu_kernels=cpu_kernels)
        model.accept_packed_sequences(enabled=True)
        assert model.model.config._attn_implementation == expected
        assert any(module._forward_pre_hooks for module in model.modules()) == cpu_kernels
