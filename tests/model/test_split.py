"""Through a real model: the gradient is the same however a global batch is split into micro-batches and ranks.

Ranks are simulated by summing their shares, which is what the engine has the process group do.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from pairwright.config import LossConfig
from pairwright.data.tokens.token_group import GroupSizes
from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.model.batching.cost_model import ModelShape
from pairwright.model.batching.plan import Rules, plan_micro_batches
from pairwright.model.collate import MicroBatch, collate
from pairwright.model.loss import preference_loss
from pairwright.model.reward_model import RewardModel

SMOOTHING = 0.05
LOSS = LossConfig(label_smoothing=SMOOTHING)
SHAPE = ModelShape(linear_parameters=10_000, attention_width=64)
Gradient = dict[str, Tensor]


@pytest.fixture(scope="module")
def groups(random_group: Callable[..., TokenGroup]) -> list[TokenGroup]:
    """A global batch with every K from 2 to 9, ties, margins on some pairs and several annotators."""
    rng = np.random.default_rng(11)
    return [
        random_group(rng, num_completions=k, num_annotators=int(rng.integers(1, 4)), vocab=(5, 260))
        for k in range(2, 10)
    ]


def _relative_difference(found: Gradient, expected: Gradient) -> float:
    assert found.keys() == expected.keys()
    difference = math.sqrt(sum(float((found[n].double() - expected[n].double()).square().sum()) for n in expected))
    return difference / math.sqrt(sum(float(expected[n].double().square().sum()) for n in expected))


def _gradient(model: torch.nn.Module) -> Gradient:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def _reference_gradient(model: RewardModel, groups: list[TokenGroup]) -> Gradient:
    """Each row alone and without padding through transformers' own model in float64; then the formula, pair by pair."""
    plain = AutoModelForSequenceClassification.from_config(model.export_config, trust_remote_code=False).double().eval()
    plain.load_state_dict({name.removeprefix("model."): value for name, value in model.state_dict().items()})
    total = sum(weight for group in groups for weight in group.weight_P.tolist())
    loss = torch.zeros((), dtype=torch.float64)
    for group in groups:
        prompt = group.prompt_ids.tolist()
        rewards = [plain(torch.tensor([prompt + ids.tolist()])).logits[0, 0] for ids in group.completion_ids]
        for c, r, weight, margin in zip(
            group.chosen_P, group.rejected_P, group.weight_P.tolist(), group.margin_P.tolist(), strict=True
        ):
            z = rewards[c] - rewards[r] - (0.0 if math.isnan(margin) else margin)
            right, wrong = torch.sigmoid(z), torch.sigmoid(-z)
            loss = loss + weight / total * (-(1 - SMOOTHING) * torch.log(right) - SMOOTHING * torch.log(wrong))
    loss.backward()
    return {f"model.{name}": gradient for name, gradient in _gradient(plain).items()}


def _sizes(groups: list[TokenGroup]) -> GroupSizes:
    completions = [[ids.size for ids in group.completion_ids] for group in groups]
    prompt_tokens_G = np.array([group.prompt_ids.size for group in groups])
    return GroupSizes(
        num_completions_G=np.array([len(tokens) for tokens in completions]),
        prompt_tokens_G=prompt_tokens_G,
        completion_tokens_G=np.array([sum(tokens) for tokens in completions]),
        longest_row_tokens_G=prompt_tokens_G + np.array([max(tokens) for tokens in completions]),
    )


def _split_gradient(model: RewardModel, groups: list[TokenGroup], *, world_size: int, budget: int) -> Gradient:
    model.zero_grad()
    rules = Rules(layout="padded", shape=SHAPE, world_size=world_size, micro_batch_tokens=budget)
    plan = plan_micro_batches(_sizes(groups), lambda position: [], rules)
    assert not plan.split_positions()
    total = sum(float(group.weight_P.astype(np.float64).sum()) for group in groups)
    for rank in plan.unsplit:
        for planned in rank:
            batch = collate([groups[part.position] for part in planned.parts], 0, "padded")
            reward_N = _rewards(model, batch)
            weight = torch.tensor(total, dtype=reward_N.dtype)
            preference_loss(reward_N, batch.targets, LOSS, global_weight=weight).backward()
    return _gradient(model)


def _rewards(model: RewardModel, batch: MicroBatch) -> Tensor:
    return model(batch.input_ids_RT, batch.position_ids_RT, batch.attention_mask_RT, batch.segments, batch.last_N)


@pytest.fixture(scope="module")
def reference(load: Callable[..., RewardModel], groups: list[TokenGroup]) -> Callable[[str], Gradient]:
    return cache(lambda architecture: _reference_gradient(load(architecture), groups))


# Those whose norms do not go through float32.
@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "opt", "bert", "roberta", "deberta-v2"])
def test_gradient_equals_the_reference_to_rounding_in_float64(load, groups, architecture):
    model = load(architecture, dtype=torch.float64)
    expected = _reference_gradient(model, groups)
    found = _split_gradient(model, groups, world_size=2, budget=256)
    assert _relative_difference(found, expected) < 1e-12


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("budget", [220, 400, 100_000])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_gradient_does_not_depend_on_how_the_batch_is_split(load, reference, groups, architecture, budget, world_size):
    found = _split_gradient(load(architecture), groups, world_size=world_size, budget=budget)
    assert _relative_difference(found, reference(architecture)) < 2e-6


def test_a_mean_of_micro_batch_means_would_be_another_gradient(load, groups):
    """What the test above would see if each micro-batch were divided by its own weight (pitfall 6)."""
    model = load("llama")
    expected = _split_gradient(model, groups, world_size=1, budget=100_000)
    parts = [_split_gradient(model, part, world_size=1, budget=100_000) for part in (groups[:1], groups[1:])]
    mean = {name: torch.stack([part[name] for part in parts]).mean(0) for name in expected}
    assert _relative_difference(mean, expected) > 0.05


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_gradient_checkpointing_gives_the_same_gradient(load, groups, architecture):
    plain = load(architecture).train()
    expected = _split_gradient(plain, groups, world_size=1, budget=400)
    found = _split_gradient(load(architecture, gradient_checkpointing=True).train(), groups, world_size=1, budget=400)
    assert _relative_difference(found, expected) < 1e-6


def test_the_empty_micro_batch_runs_forward_and_backward_and_adds_nothing(load, groups):
    model = load("llama")
    model.zero_grad()
    batch = collate([], 0, "padded")
    reward_N = _rewards(model, batch)
    preference_loss(reward_N, batch.targets, LOSS, global_weight=torch.tensor(1.0)).backward()
    gradient = _gradient(model)
    assert gradient.keys() == dict(model.named_parameters()).keys()
    assert all(not grad.any() for grad in gradient.values())
