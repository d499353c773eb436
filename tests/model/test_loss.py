"""The losses over pairs and their gradient equal a reference that is written pair by pair in float64."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pairwright.config import LossConfig
from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.model.loss import preference_loss
from pairwright.model.targets import PreferenceTargets
from ranked_groups import group_of_pairs, ranked_group

MakeGroup = Callable[..., TokenGroup]
Pair = tuple[int, int, float, float | None]

EVERY_KIND = [
    LossConfig(),
    LossConfig(label_smoothing=0.1, center_coefficient=0.02),
    LossConfig(kind="hinge", hinge_margin=0.7, center_coefficient=0.02),
    LossConfig(kind="plackett_luce", use_margin=False),
    LossConfig(kind="plackett_luce", use_margin=False, center_coefficient=0.02),
]
every_kind = pytest.mark.parametrize(
    "config", EVERY_KIND, ids=lambda config: f"{config.kind}-{config.center_coefficient}"
)


def _reference(rewards: list[float], pairs: list[Pair], config: LossConfig, total: float) -> tuple[float, list[float]]:
    """Return the loss and its derivative by each reward, from the formulas of the papers, one pair after the other."""
    loss, gradient = 0.0, [0.0] * len(rewards)
    for chosen, rejected, weight, margin in pairs:
        difference = rewards[chosen] - rewards[rejected]
        if config.kind == "hinge":
            wanted = config.hinge_margin if margin is None else margin
            term, slope = max(0.0, wanted - difference), -1.0 if difference < wanted else 0.0
        else:
            s = config.label_smoothing
            z = difference - (margin or 0.0)
            # -log of 1 / (1 + exp(-z)) as log1p: written out it has lost four digits at z = 9, and 1 - that as many.
            term = (1 - s) * math.log1p(math.exp(-z)) + s * math.log1p(math.exp(z))
            right, wrong = 1 / (1 + math.exp(-z)), 1 / (1 + math.exp(z))
            slope = -(1 - s) * wrong + s * right
        both = rewards[chosen] + rewards[rejected]
        loss += weight * (term + config.center_coefficient * both**2) / total
        gradient[chosen] += weight * (slope + 2 * config.center_coefficient * both) / total
        gradient[rejected] += weight * (-slope + 2 * config.center_coefficient * both) / total
    return loss, gradient


def _pairs(groups: list[TokenGroup], *, use_margin: bool) -> list[Pair]:
    pairs: list[Pair] = []
    first = 0
    for group in groups:
        columns = (group.chosen_P.tolist(), group.rejected_P.tolist(), group.weight_P.tolist(), group.margin_P.tolist())
        for c, r, weight, margin in zip(*columns, strict=True):
            pairs.append((first + c, first + r, weight, None if math.isnan(margin) or not use_margin else margin))
        first += len(group.completion_ids)
    return pairs


def _loss_and_gradient(
    rewards: torch.Tensor, groups: list[TokenGroup], config: LossConfig, total: float = 1.0
) -> tuple[float, list[float]]:
    reward_N = rewards.clone().requires_grad_()
    weight = torch.tensor(total, dtype=reward_N.dtype)
    loss = preference_loss(reward_N, PreferenceTargets.of(groups), config, global_weight=weight)
    loss.backward()
    assert reward_N.grad is not None
    assert loss.dtype == reward_N.dtype
    return loss.item(), reward_N.grad.tolist()


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(2, 9), min_size=1, max_size=5),
    num_annotators=st.integers(1, 4),
    kind=st.sampled_from(["bradley_terry", "hinge"]),
    smoothing=st.sampled_from([0.0, 0.1, 0.3]),
    centre=st.sampled_from([0.0, 0.01, 0.5]),
    use_margin=st.booleans(),
    seed=st.integers(0, 2**32),
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_loss_and_gradient_equal_the_reference_pair_by_pair(
    random_group: MakeGroup, dtype, tolerance, sizes, num_annotators, kind, smoothing, centre, use_margin, seed
):
    rng = np.random.default_rng(seed)
    groups = [random_group(rng, num_completions=k, num_annotators=num_annotators) for k in sizes]
    rewards = torch.from_numpy(rng.normal(0, 3, sum(sizes))).to(dtype)
    of_kind = {"hinge_margin": 0.7} if kind == "hinge" else {"label_smoothing": smoothing}
    config = LossConfig(kind=kind, center_coefficient=centre, use_margin=use_margin, **of_kind)
    total = 7.0  # of a global batch of which this is a part

    loss, gradient = _loss_and_gradient(rewards, groups, config, total)
    expected_loss, expected = _reference(rewards.tolist(), _pairs(groups, use_margin=use_margin), config, total)
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    size = max(map(abs, expected))
    assert gradient == pytest.approx(expected, rel=tolerance, abs=tolerance * size)


@every_kind
@pytest.mark.parametrize("ties", ["drop", "half"])
def test_gradient_is_the_derivative_of_the_loss(config: LossConfig, ties):
    rng = np.random.default_rng(7)
    groups = [ranked_group([rng.integers(1, 5, k).tolist()], ties=ties) for k in range(2, 10)]
    groups += [ranked_group([rng.permutation(k).tolist() for _ in range(3)], ties=ties) for k in (2, 5)]
    targets, total = PreferenceTargets.of(groups), torch.tensor(10.0, dtype=torch.float64)
    reward_N = torch.from_numpy(rng.normal(0, 1, 51)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda reward_N: preference_loss(reward_N, targets, config, global_weight=total), reward_N
    )


@every_kind
@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(0, 8), max_size=4).map(sorted), seed=st.integers(0, 2**32))
def test_shares_add_up_however_groups_are_split_with_empty_micro_batches_too(
    random_group: MakeGroup, config: LossConfig, cuts, seed
):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 10, 8)
    groups = [random_group(rng, num_completions=int(k), num_annotators=2) for k in sizes]
    rewards = torch.from_numpy(rng.normal(0, 3, sizes.sum()))
    whole, whole_gradient = _loss_and_gradient(rewards, groups, config, total=8.0)
    loss, gradient = 0.0, []
    for start, end in zip([0, *cuts], [*cuts, 8], strict=True):
        first, last = int(sizes[:start].sum()), int(sizes[:end].sum())
        part = rewards[first:last] if end > start else torch.ones(1).double()
        share, slopes = _loss_and_gradient(part, groups[start:end], config, total=8.0)
        loss += share
        gradient += slopes if end > start else []
    assert loss == pytest.approx(whole, rel=1e-13)
    assert gradient == pytest.approx(whole_gradient, rel=1e-12, abs=1e-13)


@every_kind
def test_a_micro_batch_without_pairs_adds_nothing_and_still_has_a_backward_pass(config: LossConfig):
    assert _loss_and_gradient(torch.tensor([3.0]), [], config, total=4.0) == (0.0, [0.0])
    assert _loss_and_gradient(torch.tensor([3.0, 1.0]), [group_of_pairs(2, [])], config) == (0.0, [0.0, 0.0])


def _of_two(
    rewards: Sequence[float], config: LossConfig, pairs: Sequence[tuple[float, ...]] = ((0, 1, 1.0),)
) -> tuple[float, list[float]]:
    return _loss_and_gradient(torch.tensor(rewards), [group_of_pairs(2, pairs)], config)


@pytest.mark.parametrize(
    ("rewards", "config", "loss", "slopes"),
    [
        ([0.0, 1e4], LossConfig(), 1e4, [-1.0, 1.0]),
        ([1e4, 0.0], LossConfig(), 0.0, [0.0, 0.0]),
        ([0.0, 100.0], LossConfig(), 100.0, [-1.0, 1.0]),
        ([1e4, 0.0], LossConfig(label_smoothing=0.1), 1e3, [0.1, -0.1]),
        ([0.0, 1e4], LossConfig(label_smoothing=0.1), 9e3, [-0.9, 0.9]),
        ([0.0, 1e4], LossConfig(kind="hinge"), 10001.0, [-1.0, 1.0]),
        ([1e4, 0.0], LossConfig(kind="hinge"), 0.0, [0.0, 0.0]),
        ([0.0, 1e4], LossConfig(center_coefficient=0.01), 1e4 + 1e6, [199.0, 201.0]),
        ([1e4, 0.0], LossConfig(center_coefficient=0.01), 1e6, [200.0, 200.0]),
        ([1e4, 0.0], LossConfig(kind="plackett_luce", use_margin=False), 0.0, [0.0, 0.0]),
        ([0.0, 1e4], LossConfig(kind="plackett_luce", use_margin=False), 1e4, [-1.0, 1.0]),
    ],
)
def test_huge_differences_have_a_finite_loss_and_the_right_gradient(rewards, config, loss, slopes):
    found, gradient = _of_two(rewards, config)
    assert found == pytest.approx(loss, rel=1e-6)
    assert gradient == pytest.approx(slopes, rel=1e-6)


def test_equal_rewards_cost_ln_2_and_are_pushed_apart():
    loss, gradient = _of_two([3.0, 3.0], LossConfig())
    assert loss == pytest.approx(math.log(2), rel=1e-6)
    assert gradient == [-0.5, 0.5]


@every_kind
def test_both_directions_at_half_weight_do_not_part_equal_rewards(config: LossConfig):
    _, gradient = _of_two([1.0, 1.0], config, [(0, 1, 0.5), (1, 0, 0.5)])
    assert gradient == pytest.approx([4 * config.center_coefficient] * 2, abs=1e-7)


def test_votes_of_annotators_are_the_cross_entropy_with_their_share():
    rewards, share = [0.3, -0.4], 0.75
    right = 1 / (1 + math.exp(-(rewards[0] - rewards[1])))
    expected = -share * math.log(right) - (1 - share) * math.log(1 - right)
    loss, _ = _of_two(rewards, LossConfig(), [(0, 1, share), (1, 0, 1 - share)])
    assert loss == pytest.approx(expected, rel=1e-6)


def test_a_hinge_wants_the_pairs_own_margin_and_the_configured_one_where_there_is_none():
    config = LossConfig(kind="hinge", hinge_margin=0.5)
    rewards = [0.2, 0.0]
    assert _of_two(rewards, config)[0] == pytest.approx(0.3)
    assert _of_two(rewards, config, [(0, 1, 1.0, 2.0)])[0] == pytest.approx(1.8)
    assert _of_two(rewards, config, [(0, 1, 1.0, 0.0)])[0] == 0.0
    assert _of_two(rewards, config, [(1, 0, 1.0, 0.0)])[0] == pytest.approx(0.2)
    ignored = LossConfig(kind="hinge", hinge_margin=0.5, use_margin=False)
    assert _of_two(rewards, ignored, [(0, 1, 1.0, 2.0)])[0] == pytest.approx(0.3)


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rewards_narrower_than_float32_are_refused(config: LossConfig, dtype):
    targets = PreferenceTargets.of([group_of_pairs(2, [(0, 1, 1.0)])])
    with pytest.raises(ValueError, match="expected float32"):
        preference_loss(torch.tensor([8.0, 8.03], dtype=dtype), targets, config, global_weight=torch.tensor(1.0))


def test_a_prompt_counts_alike_however_many_completions_were_ranked(random_group: MakeGroup):
    """63 groups of four and one of nine: that one has 1/64 of the loss, and would have 8.7 % per pair (pitfall 7)."""
    rng = np.random.default_rng(0)
    groups = [random_group(rng, num_completions=4) for _ in range(63)] + [random_group(rng, num_completions=9)]
    total = sum(float(group.weight_P.sum()) for group in groups)
    loss, _ = _loss_and_gradient(torch.zeros(9), groups[-1:], LossConfig(use_margin=False), total)
    assert loss / math.log(2) == pytest.approx(1 / 64, rel=1e-5)
