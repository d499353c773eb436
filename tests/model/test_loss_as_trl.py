"""The loss is that of TRL's RewardTrainer, by its own code, where TRL has the same terms."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pairwright.config import LossConfig
from pairwright.model.loss import preference_loss
from pairwright.model.targets import PreferenceTargets
from ranked_groups import group_of_pairs

datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl")


def _trl_loss(
    model: Path, scratch: Path, reward_2P1: torch.Tensor, centre: float | None, margin_P: torch.Tensor | None
) -> Any:
    """Return what RewardTrainer computes from these rewards, the chosen ones first."""
    config = trl.RewardConfig(
        output_dir=str(scratch), center_rewards_coefficient=centre, use_cpu=True, bf16=False, report_to="none"
    )
    trainer = trl.RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, trust_remote_code=False),
        args=config,
        train_dataset=datasets.Dataset.from_list([{"chosen_ids": [1], "rejected_ids": [2]}]),
        processing_class=AutoTokenizer.from_pretrained(model, trust_remote_code=False),
    )
    inputs = {"attention_mask": torch.ones_like(reward_2P1)} | ({} if margin_P is None else {"margin": margin_P})
    return trainer.compute_loss(lambda **_: SimpleNamespace(logits=reward_2P1), inputs)


@pytest.mark.parametrize("centre", [None, 0.01])
@pytest.mark.parametrize("use_margin", [True, False])
def test_loss_and_gradient_are_those_of_trl(small_model, tmp_path: Path, centre, use_margin):
    rng = np.random.default_rng(2)
    num_pairs = 16
    reward_2P1 = torch.from_numpy(rng.normal(0.5, 2, (2 * num_pairs, 1))).float().requires_grad_()
    margin_P = torch.from_numpy(rng.uniform(0, 2, num_pairs)).float()
    expected = _trl_loss(small_model("llama"), tmp_path, reward_2P1, centre, margin_P if use_margin else None)
    (expected_gradient,) = torch.autograd.grad(expected, reward_2P1)

    pairs = [(p, num_pairs + p, 1.0, margin) for p, margin in enumerate(margin_P.tolist())]
    config = LossConfig(use_margin=use_margin, center_coefficient=centre or 0.0)
    targets, weight = PreferenceTargets.of([group_of_pairs(2 * num_pairs, pairs)]), torch.tensor(float(num_pairs))
    reward_N = reward_2P1.detach()[:, 0].requires_grad_()
    loss = preference_loss(reward_N, targets, config, global_weight=weight)
    loss.backward()
    assert reward_N.grad is not None
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert reward_N.grad.tolist() == pytest.approx(expected_gradient[:, 0].tolist(), rel=2e-6, abs=1e-8)
