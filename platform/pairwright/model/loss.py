"""Rewards and judgements -> this micro-batch's share of the global batch's loss.

Pure functions of rewards, so that every way of computing rewards (padded, packed, shared, in parts) has the same loss.
Rewards are float32; the listwise loss sums in float64, which costs nothing at one number a completion.
"""

from typing import assert_never

import torch
from torch import Tensor
from torch.nn import functional

from pairwright.config import LossConfig
from pairwright.model.targets import Judgements, Stages


def preference_loss(reward_N: Tensor, judgements: Judgements, config: LossConfig, *, global_weight: Tensor) -> Tensor:
    """Return this micro-batch's share of the global batch's loss.

    The divisor belongs to the global batch, so shares add up: their sum over micro-batches and ranks does not
    depend on how the batch was split (tests/numerics/test_split.py). A micro-batch without pairs has the share 0 and a
    gradient of 0: its backward pass can run, and under ZeRO it must.

    Args:
        reward_N: reward of each completion, float32 or wider, shape (N,).
        judgements: on the same device, of the groups with these completions, each group whole.
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
    weighted = _weighted_sum(reward_N, judgements, config)
    if config.centre > 0:
        weighted = weighted + config.centre * _off_centre(reward_N, judgements)
    return weighted / global_weight


def _weighted_sum(reward_N: Tensor, judgements: Judgements, config: LossConfig) -> Tensor:
    match config.kind:
        case "bradley_terry":
            return _bradley_terry(reward_N, judgements, config)
        case "hinge":
            return _hinge(reward_N, judgements, config)
        case "plackett_luce":
            return _plackett_luce(reward_N, judgements.stages)
        case _:
            assert_never(config.kind)


def _bradley_terry(reward_N: Tensor, judgements: Judgements, config: LossConfig) -> Tensor:
    """Return the weighted sum over pairs of -log of the probability that the chosen completion wins.

    With z = difference - margin and s the smoothing it is ``(1 - s) * -log sigmoid(z) + s * -log sigmoid(-z)``.

    Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 1; margin: Touvron et al. 2023, arXiv:2307.09288, eq. 2; label
    smoothing: Mitchell 2023, "A note on DPO with noisy preferences", eq. 3.
    """
    difference_P = reward_N[judgements.chosen_P] - reward_N[judgements.rejected_P]
    if config.use_margin:
        difference_P = difference_P - judgements.margin_P
    # logsigmoid(-z) = logsigmoid(z) - z, so the flipped label costs smoothing * z more; both finite at any z.
    loss_P = -functional.logsigmoid(difference_P) + config.label_smoothing * difference_P
    return (judgements.weight_P * loss_P).sum()


def _hinge(reward_N: Tensor, judgements: Judgements, config: LossConfig) -> Tensor:
    """Return the weighted sum over pairs of what the difference lacks of the pair's margin.

    The pair's own margin takes the place of ``hinge_margin``, also where it is 0, as of a tie.

    Source: Joachims 2002, "Optimizing search engines using clickthrough data", optimization problem 1 (margin 1).
    """
    difference_P = reward_N[judgements.chosen_P] - reward_N[judgements.rejected_P]
    has_margin_P = judgements.has_margin_P & config.use_margin
    margin_P = torch.where(has_margin_P, judgements.margin_P.to(reward_N.dtype), config.hinge_margin)
    return (judgements.weight_P * functional.relu(margin_P - difference_P)).sum()


def _plackett_luce(reward_N: Tensor, stages: Stages) -> Tensor:
    """Return the weighted sum over the stages of -log of the probability that the chosen completion is.

    A stage's probability is exp(reward of chosen) over the sum of exp(reward) of all that are left. Of two
    completions that is Bradley-Terry's. Linear in the completions, not in their pairs.

    Source: Plackett 1975, "The analysis of permutations"; as a loss: Xia et al. 2008, "Listwise approach to learning to
    rank" (ListMLE); ties: Breslow 1974, "Covariance analysis of censored survival data".
    """
    wide_N = reward_N.double()
    left_GK = torch.logcumsumexp(wide_N[stages.worst_first_GK], dim=1)
    behind_S = left_GK.flatten()[stages.reach_S] - wide_N[stages.chosen_S]
    # log(exp(chosen) + exp(rest)) - chosen = -log sigmoid(chosen - rest); a tie's sum has the chosen in it already.
    loss_S = torch.where(stages.tied_S, behind_S, -functional.logsigmoid(-behind_S))
    return (stages.weight_S * loss_S).sum().to(reward_N.dtype)


def _off_centre(reward_N: Tensor, judgements: Judgements) -> Tensor:
    """Return the weighted sum over pairs of the squared sum of the two rewards.

    The other losses see differences alone, so that the level of all rewards together may drift without it.

    Source: Eisenstein et al. 2023, arXiv:2312.09244, eq. 2; TRL's ``center_rewards_coefficient``.
    """
    sum_P = reward_N[judgements.chosen_P] + reward_N[judgements.rejected_P]
    return (judgements.weight_P * sum_P.square()).sum()
