"""The listwise loss equals Plackett and Luce's probabilities, multiplied out stage by stage from the rankings."""

import itertools
import math
from collections.abc import Sequence
from decimal import Decimal, localcontext

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

PLACKETT_LUCE = LossConfig(kind="plackett_luce", use_margin=False)


def _loss(
    rewards: Sequence[float], groups: list[TokenGroup], config: LossConfig = PLACKETT_LUCE, total: float = 1.0
) -> tuple[float, list[float]]:
    reward_N = torch.tensor(rewards, dtype=torch.float64, requires_grad=True)
    loss = preference_loss(
        reward_N, PreferenceTargets.of(groups), config, global_weight=torch.tensor(total, dtype=reward_N.dtype)
    )
    loss.backward()
    assert reward_N.grad is not None
    return loss.item(), reward_N.grad.tolist()


def _minus_log_probability(rewards: Sequence[float], ranks: Sequence[float], ties: str) -> tuple[float, int]:
    """Return -log of the probability of a ranking, and of how many choices it is the product; in 60 digits.

    Each completion is chosen over all of lower rank that there are; tied ones that count as ties over each other too
    (Breslow), those that do not (dropped) over the lower ones alone.
    """
    with localcontext() as context:
        context.prec = 60
        strength = [Decimal(reward).exp() for reward in rewards]
        probability, num_choices = Decimal(1), 0
        for i, rank in enumerate(ranks):
            over = [j for j, other in enumerate(ranks) if other > rank or (ties == "half" and other == rank and j != i)]
            if over:
                probability *= strength[i] / (strength[i] + sum(strength[j] for j in over))
                num_choices += 1
        return float(-probability.ln()), num_choices


def _weight(group: TokenGroup) -> float:
    return float(group.weight_P.astype(np.float64).sum())


@settings(deadline=None, max_examples=80)
@given(
    sizes=st.lists(st.integers(2, 9), min_size=1, max_size=5),
    ties=st.sampled_from(["drop", "half"]),
    seed=st.integers(0, 2**32),
)
def test_loss_is_the_mean_minus_log_probability_of_a_groups_choices(sizes, ties, seed):
    rng = np.random.default_rng(seed)
    rankings = [rng.integers(1, k + 1, k).tolist() for k in sizes]
    for ranks in rankings:
        ranks[0], ranks[1] = 1, 2  # at least one pair is no tie
    rewards = [rng.normal(0, 3, k).tolist() for k in sizes]
    groups = [ranked_group([ranks], ties=ties) for ranks in rankings]
    total = 7.0  # of a global batch of which this is a part
    expected = 0.0
    for group, ranks, r in zip(groups, rankings, rewards, strict=True):
        minus_log, num_choices = _minus_log_probability(r, ranks, ties)
        expected += _weight(group) * minus_log / num_choices / total

    found, _ = _loss([r for rs in rewards for r in rs], groups, total=total)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_completions", [2, 3, 4, 5])
def test_probabilities_of_all_orders_add_up_to_one(num_completions):
    rewards = np.random.default_rng(1).normal(0, 2, num_completions).tolist()
    total = 0.0
    for order in itertools.permutations(range(num_completions)):
        ranks = [order.index(i) + 1 for i in range(num_completions)]
        loss, _ = _loss(rewards, [ranked_group([ranks])])
        total += math.exp(-loss * (num_completions - 1))
    assert total == pytest.approx(1.0, rel=1e-6)  # weights are float32


@pytest.mark.parametrize("rankings", [[[1, 2]], [[2, 1]]])
@pytest.mark.parametrize("difference", [-1e4, -30.0, -0.7, 0.0, 1e-9, 3.0, 21.0, 1e4])
def test_two_completions_are_bradley_terry_to_the_last_bit(rankings, difference):
    rewards, groups = [difference, 0.0], [ranked_group(rankings)]
    expected, gradient = _loss(rewards, groups, LossConfig())
    loss, found = _loss(rewards, groups)
    assert loss == expected
    assert found == pytest.approx(gradient, rel=1e-14)


@pytest.mark.parametrize("rankings", [[[1, 1]], [[1, 2], [2, 1]]], ids=["a tie", "two annotators who contradict"])
@pytest.mark.parametrize("difference", [-30.0, -0.7, 0.0, 3.0, 21.0])
def test_two_completions_that_are_equals_are_bradley_terry_in_both_directions(rankings, difference):
    rewards, groups = [difference, 0.0], [ranked_group(rankings, ties="half")]
    expected, gradient = _loss(rewards, groups, LossConfig())
    loss, found = _loss(rewards, groups)
    assert loss == pytest.approx(expected, rel=1e-14)
    assert found == pytest.approx(gradient, abs=1e-14)


def test_one_right_completion_among_many_is_the_softmax_cross_entropy():
    """With ties dropped the wrong ones say nothing of each other, and nothing pulls them together."""
    rewards = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.1], dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(rewards, torch.tensor(2))
    group = ranked_group([[2, 2, 1, 2, 2]])
    loss, _ = _loss(rewards.tolist(), [group])
    assert loss / _weight(group) == pytest.approx(expected.item(), rel=1e-12)


def test_a_prompt_counts_alike_however_many_completions_were_ranked():
    """At equal rewards a choice among m costs ln m; 63 groups of four and one of nine, which has 1/64 of the weight."""
    groups = [ranked_group([list(range(1, 5))]) for _ in range(63)] + [ranked_group([list(range(1, 10))])]
    loss, _ = _loss([0.0] * (63 * 4 + 9), groups, total=64.0)
    four, nine = (sum(math.log(m) for m in range(2, k + 1)) / (k - 1) for k in (4, 9))
    assert loss == pytest.approx((63 * four + nine) / 64, rel=1e-6)


@pytest.mark.parametrize(
    ("rewards", "ranks", "ties", "loss", "gradient"),
    [
        # Best first, and the last is rewarded most: chosen over 1e4 twice, 2e4 and 1e4 behind.
        ([-1e4, 0.0, 1e4], [1, 2, 3], "drop", 1.5e4, [-0.5, -0.5, 1.0]),
        ([1e4, 0.0, -1e4], [1, 2, 3], "drop", 0.0, [0.0, 0.0, 0.0]),
        ([1e4, -1e4], [1, 1], "half", 1e4, [0.5, -0.5]),
        ([1e4, -1e4, 0.0], [1, 1, 2], "drop", 0.5e4, [0.0, -0.5, 0.5]),
        ([3e4, 3e4, 3e4], [1, 2, 3], "drop", (math.log(3) + math.log(2)) / 2, [-1 / 3, -1 / 12, 5 / 12]),
    ],
)
def test_huge_differences_have_a_finite_loss_and_the_right_gradient(rewards, ranks, ties, loss, gradient):
    group = ranked_group([ranks], ties=ties)
    found, slopes = _loss(rewards, [group], total=_weight(group))
    assert found == pytest.approx(loss, rel=1e-12, abs=1e-12)
    assert slopes == pytest.approx(gradient, abs=1e-12)


def test_float32_rewards_have_the_loss_and_gradient_of_float64_ones():
    """At a level of 1000 a float32 sum of exponentials would be off by 6e-5."""
    rng = np.random.default_rng(5)
    groups = [ranked_group([rng.permutation(9).tolist()]) for _ in range(8)]
    narrow = torch.from_numpy(rng.normal(1000, 3, 72)).float().requires_grad_()
    loss = preference_loss(narrow, PreferenceTargets.of(groups), PLACKETT_LUCE, global_weight=torch.tensor(8.0))
    loss.backward()
    assert narrow.grad is not None
    assert loss.dtype == torch.float32
    expected, gradient = _loss(narrow.detach().double().tolist(), groups, total=8.0)
    assert loss.item() == pytest.approx(expected, rel=2e-7)
    assert narrow.grad.tolist() == pytest.approx(gradient, rel=2e-6, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    num_completions=st.integers(2, 9),
    num_annotators=st.integers(1, 4),
    ties=st.sampled_from(["drop", "half"]),
    seed=st.integers(0, 2**32),
)
def test_several_annotators_are_their_bordas_count(num_completions, num_annotators, ties, seed):
    rng = np.random.default_rng(seed)
    rankings = [rng.permutation(num_completions).tolist() for _ in range(num_annotators)]
    net_wins = [
        sum(sum((ranks[i] < other) - (ranks[i] > other) for other in ranks) for ranks in rankings)
        for i in range(num_completions)
    ]
    rewards = rng.normal(0, 2, num_completions).tolist()
    group = ranked_group(rankings, ties=ties)
    # Strict rankings: equals of the count were compared, so they are a tie that counts.
    minus_log, num_choices = _minus_log_probability(rewards, [-wins for wins in net_wins], "half")
    loss, _ = _loss(rewards, [group])
    assert loss == pytest.approx(_weight(group) * minus_log / num_choices, rel=1e-12)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), ties=st.sampled_from(["drop", "half"]), seed=st.integers(0, 2**32))
def test_completions_that_were_dropped_leave_the_order_of_the_others(data, ties, seed):
    ranks = data.draw(st.lists(st.integers(1, 5), min_size=3, max_size=9))
    kept = data.draw(st.sets(st.integers(0, len(ranks) - 1), min_size=1).map(sorted))
    rewards = np.random.default_rng(seed).normal(0, 2, len(kept)).tolist()
    group = ranked_group([ranks], ties=ties, kept=kept)
    minus_log, num_choices = _minus_log_probability(rewards, [ranks[i] for i in kept], ties)
    loss, _ = _loss(rewards, [group])
    assert loss == pytest.approx(_weight(group) * minus_log / max(num_choices, 1), rel=1e-12)


def test_a_hundred_completions_by_ten_annotators_keep_their_levels():
    """Weights are float32 and a vote is 2e-5 of the group: rounding must neither part equals nor join unequals."""
    rng = np.random.default_rng(3)
    rankings = [rng.integers(1, 30, 100).tolist() for _ in range(10)]
    rewards = rng.normal(0, 2, 100).tolist()
    group = ranked_group(rankings, ties="half")
    net_wins = [
        sum(sum((ranks[i] < other) - (ranks[i] > other) for other in ranks) for ranks in rankings) for i in range(100)
    ]
    assert len(set(net_wins)) < 100
    minus_log, num_choices = _minus_log_probability(rewards, [-wins for wins in net_wins], "half")
    loss, _ = _loss(rewards, [group])
    assert loss == pytest.approx(_weight(group) * minus_log / num_choices, rel=1e-12)


def test_what_is_kept_for_the_backward_pass_grows_with_the_completions_and_not_with_their_pairs():
    sizes: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    targets = PreferenceTargets.of([ranked_group([list(range(200))])])
    reward_N = torch.randn(200, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        preference_loss(reward_N, targets, PLACKETT_LUCE, global_weight=torch.tensor(1.0)).backward()
    assert targets.chosen_P.numel() == 200 * 199 / 2
    assert max(sizes) <= 200


def test_a_group_without_pairs_and_an_odd_one_beside_it_do_not_meet():
    alone = ranked_group([[1, 3, 2, 4]])
    silent = group_of_pairs(7, [])
    rewards = [0.4, -1.0, 2.0, 0.1]
    expected, gradient = _loss(rewards, [alone])
    loss, found = _loss([5.0] * 7 + rewards + [9.0] * 7, [silent, alone, silent])
    assert loss == expected
    assert found == [0.0] * 7 + gradient + [0.0] * 7
