"""Shared and packed rows: the rewards and the gradient of each completion alone, for every architecture."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.model.collate import Layout, collate
from pairwright.model.reward_model import RewardModel
from short_windows import load_small, with_short_windows

DECODERS = ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi3", "gpt2", "gpt_neox", "opt"]
FLAT: tuple[Layout, ...] = ("shared", "packed")
CASES: list[tuple[str, Layout]] = [
    *itertools.product(DECODERS, FLAT),
    *((name, "packed") for name in ("bert", "roberta", "modernbert")),
]
# The others take norms or rotary angles in float32 whatever their weights are.
IN_FLOAT64 = ["gpt2", "gpt_neox", "opt", "bert", "roberta", "modernbert"]

Gradient = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors on many threads wait more than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def load_layout(
    small_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., RewardModel]:
    """Return a function that loads a small model, its windows short, ready for flat rows."""

    @cache
    def directory(architecture: str) -> Path:
        return with_short_windows(small_model(architecture), tmp_path_factory.mktemp("windows") / architecture)

    def load(architecture: str, **keywords: Any) -> RewardModel:
        model = load_small(directory(architecture), **keywords)
        model.accept_packed_sequences(enabled=True)
        return model.eval()

    return load


def _groups(random_group: Callable[..., TokenGroup], seed: int) -> list[TokenGroup]:
    """Return groups of 2 to 9 completions of uneven length, one of them without a shared prompt."""
    rng = np.random.default_rng(seed)
    sizes = {"vocab": (5, 260), "prompt_tokens": (1, 30), "completion_tokens": (1, 30)}
    groups = [random_group(rng, num_completions=k, **sizes) for k in (2, int(rng.integers(3, 9)), 9, 4)]
    return [*groups[:3], dataclasses.replace(groups[3], prompt_ids=groups[3].prompt_ids[:0])]


def _outcome(model: RewardModel, groups: list[TokenGroup], layout: Layout) -> tuple[Tensor, Gradient]:
    """Return rewards, and the gradient of their sum with fixed weights."""
    model.zero_grad()
    reward_N = model.rewards(collate(groups, 0, layout))
    (reward_N * _weights(reward_N)).sum().backward()
    return reward_N.detach(), _gradient(model)


def _alone(model: RewardModel, groups: list[TokenGroup]) -> tuple[Tensor, Gradient]:
    """Return the same of each completion by itself, through transformers' own model."""
    plain = (
        AutoModelForSequenceClassification.from_config(model.export_config, trust_remote_code=False)
        .to(model.model.dtype)
        .eval()
    )
    plain.load_state_dict({name.removeprefix("model."): value for name, value in model.state_dict().items()})
    texts = [[*g.prompt_ids.tolist(), *ids.tolist()] for g in groups for ids in g.completion_ids]
    reward_N = torch.stack([plain(torch.tensor([text])).logits[0, 0] for text in texts])
    (reward_N * _weights(reward_N)).sum().backward()
    return reward_N.detach(), {f"model.{name}": gradient for name, gradient in _gradient(plain).items()}


def _weights(reward_N: Tensor) -> Tensor:
    return torch.from_numpy(np.random.default_rng(5).standard_normal(len(reward_N))).to(reward_N)


def _gradient(model: torch.nn.Module) -> Gradient:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def _apart(found: Gradient, expected: Gradient) -> float:
    assert found.keys() == expected.keys()
    squares = [
        ((found[n].double() - g.double()).square().sum(), g.double().square().sum()) for n, g in expected.items()
    ]
    return float((sum(apart for apart, _ in squares) / sum(norm for _, norm in squares)) ** 0.5)


def _assert_equal(found: tuple[Tensor, Gradient], expected: tuple[Tensor, Gradient], tolerance: float) -> None:
    """Rewards are of the order of 1 and differ by as much."""
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=tolerance)
    assert _apart(found[1], expected[1]) < tolerance


@pytest.mark.parametrize(("architecture", "layout"), CASES)
@pytest.mark.parametrize("seed", [1, 2])
def test_rewards_and_gradient_are_those_of_padded_rows_and_of_each_completion_alone(
    load_layout, random_group, architecture, layout, seed
):
    model, groups = load_layout(architecture), _groups(random_group, seed)
    found = _outcome(model, groups, layout)
    assert found[0].std() > 0.02
    _assert_equal(found, _alone(model, groups), 2e-6)
    _assert_equal(found, _outcome(model, groups, "padded"), 2e-6)


@pytest.mark.parametrize(("architecture", "layout"), [case for case in CASES if case[0] in IN_FLOAT64])
def test_in_float64_they_are_equal_to_rounding(load_layout, random_group, architecture, layout):
    model, groups = load_layout(architecture, dtype=torch.float64), _groups(random_group, 3)
    found = _outcome(model, groups, layout)
    _assert_equal(found, _alone(model, groups), 1e-12)
    _assert_equal(found, _outcome(model, groups, "padded"), 1e-12)


@pytest.mark.parametrize(("architecture", "layout"), CASES)
@torch.no_grad()
def test_a_reward_does_not_depend_on_what_else_is_in_the_row(load_layout, random_group, architecture, layout):
    model, groups = load_layout(architecture), _groups(random_group, 4)
    together = model.rewards(collate(groups, 0, layout))
    reversed_N = model.rewards(collate(groups[::-1], 0, layout))
    one_by_one = [model.rewards(collate([group], 0, layout)) for group in groups]
    one_completion = [
        model.rewards(collate([dataclasses.replace(group, completion_ids=[ids])], 0, layout))
        for group in [_unjudged(group) for group in groups]
        for ids in group.completion_ids
    ]
    sizes = [len(group.completion_ids) for group in groups]
    in_order = torch.cat(reversed_N.split(sizes[::-1])[::-1])
    for other in (in_order, torch.cat(one_by_one), torch.cat(one_completion)):
        torch.testing.assert_close(other, together, rtol=2e-6, atol=2e-6)


def _unjudged(group: TokenGroup) -> TokenGroup:
    none = np.zeros(0, np.int64)
    no_weight = np.zeros(0, np.float32)
    return dataclasses.replace(group, chosen_P=none, rejected_P=none, weight_P=no_weight, margin_P=no_weight)


@pytest.mark.parametrize(("architecture", "layout"), CASES)
def test_gradient_checkpointing_changes_no_bit(load_layout, random_group, architecture, layout):
    groups = _groups(random_group, 5)
    plain = _outcome(load_layout(architecture).train(), groups, layout)
    model = load_layout(architecture, gradient_checkpointing=True).train()
    again = _outcome(model, groups, layout)
    assert model.model.is_gradient_checkpointing
    assert torch.equal(again[0], plain[0])
    assert all(torch.equal(again[1][name], gradient) for name, gradient in plain[1].items())


@pytest.mark.parametrize("layout", ["shared", "packed"])
def test_the_empty_micro_batch_adds_nothing(load_layout, layout):
    model = load_layout("llama")
    reward_N, gradient = _outcome(model, [], layout)
    assert reward_N.shape == (1,)
    assert gradient.keys() == dict(model.named_parameters()).keys()


def test_a_pad_token_inside_a_text_shifts_positions_as_the_model_counts_them(load_layout, random_group):
    """RoBERTa tells padding by its token, and does not count it."""
    model, groups = load_layout("roberta"), _groups(random_group, 6)
    groups[0].completion_ids[0] = np.array([7, 1, 1, 8, 9], np.int32)
    pad = model.export_config.pad_token_id
    assert pad == 1
    found = model.rewards(collate(groups, pad, "packed"))
    torch.testing.assert_close(found, model.rewards(collate(groups, pad, "padded")), rtol=2e-6, atol=2e-6)
