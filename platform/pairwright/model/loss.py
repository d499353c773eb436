"""The preference losses: Bradley-Terry, hinge and Plackett-Luce, as a micro-batch's share of the global batch's loss.

They are pure functions of rewards, so every way of computing rewards (padded, packed, shared-prefix, in parts) has the
same loss. Rewards are float32; the listwise loss sums in float64, which is cheap: one number for each completion.
"""

from typing import assert_never

import torch
from torch import Tensor
from torch.nn import functional

from pairwright.config import LossConfig
from pairwright.model.targets import PreferenceTargets, RankingStages


def preference_loss(
    reward_N: Tensor, targets: PreferenceTargets, config: LossConfig, *, global_weight: Tensor
) -> Tensor:
    """Return this micro-batch's share of the global batch's loss.

    The divisor belongs to the global batch, so shares add up: their sum over micro-batches and ranks does not
    depend on how the batch was split (tests/model/test_split.py). A micro-batch without pairs has the share 0 and a
    gradient of 0: its backward pass can run, and under ZeRO it has to.

    Args:
        reward_N: reward of each completion, float32 or wider, shape (N,).
        targets: on the same device, of the groups with these completions, all completions of each group.
        config: which loss, and its settings.
        global_weight: sum of the pairs' weights over the whole global batch, a positive scalar.

    Returns:
        A scalar of ``reward_N``'s dtype.

    Raises:
        ValueError: if ``reward_N`` is narrower than float32; in bfloat16 8 and 8.03 are the same number.
    """
    if reward_N.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"rewards are {reward_N.dtype}, expected float32 or float64: nearby rewards would become ties; "
            "compute the head in float32 (RewardModel does)"
        )
    weighted = _weighted_sum(reward_N, targets, config)
    if config.center_coefficient > 0:
        weighted = weighted + config.center_coefficient * _squared_pair_sums(reward_N, targets)
    return weighted / global_weight


def _weighted_sum(reward_N: Tensor, targets: PreferenceTargets, config: LossConfig) -> Tensor:
    match config.kind:
        case "bradley_terry":
            return _bradley_terry(reward_N, targets, config)
        case "hinge":
            return _hinge(reward_N, targets, config)
        case "plackett_luce":
            return _plackett_luce(reward_N, targets.stages)
        case _:
            assert_never(config.kind)


def _bradley_terry(reward_N: Tensor, targets: PreferenceTargets, config: LossConfig) -> Tensor:
    """Return the weighted sum over pairs of -log of the probability that the chosen completion wins.

    With z = difference - margin and s the smoothing it is ``(1 - s) * -log sigmoid(z) + s * -log sigmoid(-z)``.

    Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 1; margin: Touvron et al. 2023, arXiv:2307.09288, eq. 2; label
    smoothing: Mitchell 2023, "A note on DPO with noisy preferences", eq. 3.
    """
    difference_P = reward_N[targets.chosen_P] - reward_N[targets.rejected_P]
    if config.use_margin:
        difference_P = difference_P - targets.margin_P
    # logsigmoid(-z) = logsigmoid(z) - z, so the flipped label costs smoothing * z more; both finite at any z.
    loss_P = -functional.logsigmoid(difference_P) + config.label_smoothing * difference_P
    return (targets.weight_P * loss_P).sum()


def _hinge(reward_N: Tensor, targets: PreferenceTargets, config: LossConfig) -> Tensor:
    """Return the weighted sum over pairs of max(0, margin - difference).

    The pair's own margin replaces ``hinge_margin``, even if it is 0, as that of a tie.

    Source: Joachims 2002, "Optimizing search engines using clickthrough data", optimization problem 1 (margin 1).
    """
    difference_P = reward_N[targets.chosen_P] - reward_N[targets.rejected_P]
    has_margin_P = targets.has_margin_P & config.use_margin
    margin_P = torch.where(has_margin_P, targets.margin_P.to(reward_N.dtype), config.hinge_margin)
    return (targets.weight_P * functional.relu(margin_P - difference_P)).sum()


def _plackett_luce(reward_N: Tensor, stages: RankingStages) -> Tensor:
    """Return the weighted sum over the stages of -log of the chosen completion's probability.

    A stage's probability is exp(reward of chosen) over the sum of exp(reward) of all that remain. For two completions
    that is Bradley-Terry's. The cost is linear in the completions, not in their pairs.

    Source: Plackett 1975, "The analysis of permutations"; as a loss: Xia et al. 2008, "Listwise approach to learning to
    rank" (ListMLE); ties: Breslow 1974, "Covariance analysis of censored survival data".
    """
    wide_N = reward_N.double()
    remaining_GK = torch.logcumsumexp(wide_N[stages.worst_first_GK], dim=1)
    excess_S = remaining_GK.flatten()[stages.reach_S] - wide_N[stages.chosen_S]
    # log(exp(chosen) + exp(rest)) - chosen = -log sigmoid(chosen - rest); a tie's sum includes the chosen already.
    loss_S = torch.where(stages.tied_S, excess_S, -functional.logsigmoid(-excess_S))
    return (stages.weight_S * loss_S).sum().to(reward_N.dtype)


def _squared_pair_sums(reward_N: Tensor, targets: PreferenceTargets) -> Tensor:
    """Return the weighted sum over pairs of the squared sum of the two rewards.

    The other losses depend on differences alone, so the level of all rewards may drift without this one.

    Source: Eisenstein et al. 2023, arXiv:2312.09244, eq. 2; TRL's ``center_rewards_coefficient``.
    """
    sum_P = reward_N[targets.chosen_P] + reward_N[targets.rejected_P]
    return (targets.weight_P * sum_P.square()).sum()
