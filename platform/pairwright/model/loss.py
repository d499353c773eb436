"""Rewards and pairs -> this micro-batch's share of the global batch's loss.

Pure functions of rewards, so that every way of computing rewards (padded, packed, in parts) has the same loss.
"""

import torch
from torch import Tensor
from torch.nn import functional


def pairwise_loss(
    reward_N: Tensor,
    chosen_P: Tensor,
    rejected_P: Tensor,
    weight_P: Tensor,
    *,
    margin_P: Tensor | None = None,
    label_smoothing: float = 0.0,
    global_weight: Tensor,
) -> Tensor:
    """Return this micro-batch's share of the global batch's Bradley-Terry loss.

    The divisor belongs to the global batch, so shares add up: their sum over micro-batches and ranks does not
    depend on how the batch was split (tests/numerics/test_split.py). A micro-batch without pairs has the share 0 and a
    gradient of 0: its backward pass can run, and under ZeRO it must.

    With z = reward of chosen - reward of rejected - margin, a pair's loss is
    ``(1 - label_smoothing) * -log sigmoid(z) + label_smoothing * -log sigmoid(-z)``.

    Args:
        reward_N: reward of each completion, float32 or wider, shape (N,).
        chosen_P: index into N of the preferred completion, int64, shape (P,).
        rejected_P: index into N of the other completion, int64, shape (P,).
        weight_P: how much each pair counts, float32, shape (P,).
        margin_P: wanted reward difference, float32, shape (P,); 0 where a pair has none.
        label_smoothing: probability that a label is wrong, at least 0 and under 0.5.
        global_weight: sum of ``weight_P`` over the whole global batch, a positive scalar.

    Returns:
        A scalar of ``reward_N``'s dtype.

    Raises:
        ValueError: if ``reward_N`` is narrower than float32; in bfloat16 8 and 8.03 are the same number. If the
            arguments over P differ in shape, since one of length 1 would be spread over all pairs.

    Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 1; margin: Touvron et al. 2023, arXiv:2307.09288, eq. 2; label
    smoothing: Mitchell 2023, "A note on DPO with noisy preferences", eq. 3.
    """
    _refuse_narrow(reward_N)
    over_pairs = [chosen_P, rejected_P, weight_P] + ([] if margin_P is None else [margin_P])
    if any(tensor.shape != chosen_P.shape for tensor in over_pairs):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in over_pairs)
        raise ValueError(f"chosen_P, rejected_P, weight_P and margin_P must be of one shape (P,), found {shapes}")
    difference_P = reward_N[chosen_P] - reward_N[rejected_P]
    if margin_P is not None:
        difference_P = difference_P - margin_P
    # logsigmoid(-z) = logsigmoid(z) - z, so the flipped label costs smoothing * z more; both finite at any z.
    loss_P = -functional.logsigmoid(difference_P) + label_smoothing * difference_P
    return (weight_P * loss_P).sum() / global_weight


def _refuse_narrow(reward_N: Tensor) -> None:
    if reward_N.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"rewards are {reward_N.dtype}, expected float32 or float64: nearby rewards would become ties; "
            "compute the head in float32 (RewardModel does)"
        )
