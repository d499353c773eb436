"""On a GPU the losses are what they are on the CPU, and the host waits for none of it."""

import numpy as np
import pytest
import torch

from pairwright.config import LossConfig
from pairwright.model.loss import preference_loss
from pairwright.model.targets import PreferenceTargets
from ranked_groups import ranked_group

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and torch sees none"),
]


@pytest.mark.parametrize(
    "config",
    [
        LossConfig(label_smoothing=0.1, center_coefficient=0.01),
        LossConfig(kind="hinge"),
        LossConfig(kind="plackett_luce", use_margin=False),
    ],
    ids=lambda config: config.kind,
)
def test_loss_and_gradient_are_those_of_the_cpu_and_nothing_waits(config: LossConfig) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 10, 32).tolist()
    targets = PreferenceTargets.of([ranked_group([rng.integers(1, 6, k).tolist()], ties="half") for k in sizes])
    rewards = torch.from_numpy(rng.normal(0, 3, sum(sizes))).float()
    cpu_N, gpu_N = rewards.clone().requires_grad_(), rewards.cuda().requires_grad_()
    expected = preference_loss(cpu_N, targets, config, global_weight=torch.tensor(32.0))
    expected.backward()

    moved, weight = targets.to("cuda"), torch.tensor(32.0, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = preference_loss(gpu_N, moved, config, global_weight=weight)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert cpu_N.grad is not None
    assert gpu_N.grad is not None
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(gpu_N.grad.cpu(), cpu_N.grad, rtol=1e-5, atol=1e-7)
