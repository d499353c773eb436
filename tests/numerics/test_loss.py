"""The loss and its gradient equal a reference that is written pair by pair in float64."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pairwright.data.tokens import TokenGroup
from pairwright.model.batches import collate
from pairwright.model.loss import pairwise_loss

MakeGroup = Callable[..., TokenGroup]


def _reference(
    rewards: list[float], pairs: list[tuple[int, int, float, float]], smoothing: float, total: float
) -> tuple[float, list[float]]:
    """Return the loss and its derivative by each reward, from the formulas of the papers, one pair after the other."""
    loss, gradient = 0.0, [0.0] * len(rewards)
    for chosen, rejected, weight, margin in pairs:
        z = rewards[chosen] - rewards[rejected] - margin
        right = 1 / (1 + math.exp(-z))
        loss += weight * (-(1 - smoothing) * math.log(right) - smoothing * math.log(1 - right)) / total
        slope = weight * (-(1 - smoothing) * (1 - right) + smoothing * right) / total
        gradient[chosen] += slope
        gradient[rejected] -= slope
    return loss, gradient


def _loss_and_gradient(
    rewards: torch.Tensor, groups: list[TokenGroup], smoothing: float, total: float, *, use_margin: bool = True
) -> tuple[float, list[float]]:
    batch = collate(groups, pad_token_id=0)
    reward_N = rewards.clone().requires_grad_()
    loss = pairwise_loss(
        reward_N,
        batch.chosen_P,
        batch.rejected_P,
        batch.weight_P,
        margin_P=batch.margin_P if use_margin else None,
        label_smoothing=smoothing,
        global_weight=torch.tensor(total, dtype=reward_N.dtype),
    )
    loss.backward()
    assert reward_N.grad is not None
    return loss.item(), reward_N.grad.tolist()


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(2, 9), min_size=1, max_size=5),
    num_annotators=st.integers(1, 4),
    smoothing=st.sampled_from([0.0, 0.1, 0.3]),
    use_margin=st.booleans(),
    seed=st.integers(0, 2**32),
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_loss_and_gradient_equal_the_reference_pair_by_pair(
    random_group: MakeGroup, dtype, tolerance, sizes, num_annotators, smoothing, use_margin, seed
):
    rng = np.random.default_rng(seed)
    groups = [random_group(rng, num_completions=k, num_annotators=num_annotators) for k in sizes]
    rewards = torch.from_numpy(rng.normal(0, 3, sum(sizes))).to(dtype)
    pairs, first = [], 0
    for group in groups:
        for c, r, w, m in zip(
            group.chosen_P, group.rejected_P, group.weight_P.tolist(), group.margin_P.tolist(), strict=True
        ):
            pairs.append((first + int(c), first + int(r), w, 0.0 if math.isnan(m) or not use_margin else m))
        first += len(group.completion_ids)
    total = 7.0  # of a global batch of which this is a part

    loss, gradient = _loss_and_gradient(rewards, groups, smoothing, total, use_margin=use_margin)
    expected_loss, expected_gradient = _reference(rewards.tolist(), pairs, smoothing, total)
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    size = max(map(abs, expected_gradient))
    assert gradient == pytest.approx(expected_gradient, rel=tolerance, abs=tolerance * size)


def _two(rewards: list[float], dtype: torch.dtype = torch.float32, **keywords: Any) -> tuple[float, list[float]]:
    reward_N = torch.tensor(rewards, dtype=dtype, requires_grad=True)
    arguments: dict[str, Any] = {"weight_P": torch.tensor([1.0]), "global_weight": torch.tensor(1.0)} | keywords
    loss = pairwise_loss(reward_N, torch.tensor([0]), torch.tensor([1]), **arguments)
    loss.backward()
    assert reward_N.grad is not None
    return loss.item(), reward_N.grad.tolist()


@pytest.mark.parametrize(
    ("rewards", "smoothing", "loss", "slope"),
    [
        ([0.0, 1e4], 0.0, 1e4, -1.0),
        ([1e4, 0.0], 0.0, 0.0, 0.0),
        ([0.0, 100.0], 0.0, 100.0, -1.0),
        ([1e4, 0.0], 0.1, 1e3, 0.1),
        ([0.0, 1e4], 0.1, 9e3, -0.9),
    ],
)
def test_huge_differences_have_a_finite_loss_and_the_right_gradient(rewards, smoothing, loss, slope):
    found, gradient = _two(rewards, label_smoothing=smoothing)
    assert found == pytest.approx(loss, rel=1e-6)
    assert gradient == pytest.approx([slope, -slope], rel=1e-6)


def test_equal_rewards_cost_ln_2_and_are_pushed_apart():
    loss, gradient = _two([3.0, 3.0])
    assert loss == pytest.approx(math.log(2), rel=1e-6)
    assert gradient == [-0.5, 0.5]


def test_both_directions_at_half_weight_leave_equal_rewards_where_they_are():
    reward_N = torch.tensor([1.0, 1.0], requires_grad=True)
    both = torch.tensor([0, 1])
    pairwise_loss(reward_N, both, both.flip(0), torch.tensor([0.5, 0.5]), global_weight=torch.tensor(1.0)).backward()
    assert reward_N.grad is not None
    assert reward_N.grad.tolist() == [0.0, 0.0]


def test_votes_of_annotators_are_the_cross_entropy_with_their_share():
    rewards, share = [0.3, -0.4], 0.75
    right = 1 / (1 + math.exp(-(rewards[0] - rewards[1])))
    expected = -share * math.log(right) - (1 - share) * math.log(1 - right)
    both = torch.tensor([0, 1])
    loss = pairwise_loss(
        torch.tensor(rewards), both, both.flip(0), torch.tensor([share, 1 - share]), global_weight=torch.tensor(1.0)
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rewards_narrower_than_float32_are_refused(dtype):
    with pytest.raises(ValueError, match="expected float32"):
        _two([8.0, 8.03], dtype)


def test_arguments_of_unlike_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        _two([1.0, 0.0], weight_P=torch.tensor([1.0, 1.0]))
    with pytest.raises(ValueError, match="one shape"):
        _two([1.0, 0.0], margin_P=torch.tensor([[1.0]]))


def test_a_micro_batch_without_pairs_adds_nothing_and_still_has_a_backward_pass():
    reward_N = torch.tensor([3.0], requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    loss = pairwise_loss(reward_N, none, none, torch.zeros(0), global_weight=torch.tensor(4.0))
    loss.backward()
    assert loss.item() == 0.0
    assert reward_N.grad is not None
    assert reward_N.grad.tolist() == [0.0]


def test_a_prompt_counts_alike_however_many_completions_were_ranked(random_group: MakeGroup):
    """63 groups of four and one of nine: that one has 1/64 of the loss, and would have 8.7 % per pair (TRAPS.md 7)."""
    rng = np.random.default_rng(0)
    groups = [random_group(rng, num_completions=4) for _ in range(63)] + [random_group(rng, num_completions=9)]
    total = sum(float(group.weight_P.sum()) for group in groups)
    rewards = torch.zeros(9)
    loss, _ = _loss_and_gradient(rewards, groups[-1:], 0.0, total, use_margin=False)
    assert loss / math.log(2) == pytest.approx(1 / 64, rel=1e-5)
