"""Dropout on every layout: rates of 0 are no dropout, others draw from the seed (under DeepSpeed: zero_ranks)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.model.collate import Layout, collate
from pairwright.model.load_model import load_reward_model
from pairwright.model.reward_model import RewardModel
from zero_runs import LAYOUTS


def load(directory: Path, layout: Layout, *, dropout: bool) -> RewardModel:
    model = load_reward_model(
        str(directory),
        dtype=torch.float32,
        seed=0,
        dropout=dropout,
        gradient_checkpointing=False,
        pad_token_id=None,
        vocab_size=None,
        cpu_kernels=True,
    )
    model.accept_packed_sequences(enabled=layout != "padded")
    return model.train()


def rewards_and_gradient(model: RewardModel, groups: list[TokenGroup], layout: Layout) -> list[torch.Tensor]:
    torch.manual_seed(1)
    reward_N = model.rewards(collate(groups, 0, layout))
    reward_N.square().sum().backward()
    return [reward_N.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rates_of_zero_are_no_dropout_and_others_draw_from_the_seed(
    small_model: Callable[[str], Path], random_group: Callable[..., TokenGroup], tmp_path: Path, layout: Layout
) -> None:
    directory = shutil.copytree(small_model("gpt2"), tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    rates = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    assert all(config[name] > 0 for name in rates)
    draw = np.random.default_rng(0)
    groups = [random_group(draw, num_completions=k, vocab=(10, 250)) for k in (2, 4)]
    first, second = (rewards_and_gradient(load(directory, layout, dropout=True), groups, layout) for _ in range(2))
    off = rewards_and_gradient(load(directory, layout, dropout=False), groups, layout)
    (directory / "config.json").write_text(json.dumps(config | rates))
    zero = rewards_and_gradient(load(directory, layout, dropout=True), groups, layout)
    assert all(torch.equal(a, b) for a, b in zip(zero, off, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert (first[0] - off[0]).abs().max() > 1e-3
