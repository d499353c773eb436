"""A linear reward head: the Bradley-Terry model over differences of features, fitted by Newton's method. Pure.

The loss is convex, so the head does not depend on where the fit starts: a fit without some pairs begins at the head of
all pairs with its curvature, and takes a few steps that cost no more than two products each.
"""

# ruff: noqa: N815 - shape suffixes: P pairs, D features

from dataclasses import dataclass, replace

import numpy as np

from pairwright.evaluation.statistics.pair_arrays import Bools, Floats, Ints

RIDGE = 1e-2
"""Weight of the squared norm in the loss, a mean over pairs; features have unit variance."""
MAX_STEPS = 100
TOLERANCE = 1e-9


@dataclass(frozen=True)
class FeaturePairs:
    """Pairs as a linear head sees them.

    Attributes:
        difference_PD: features of the chosen completion less those of the rejected one.
        weight_P: how much each pair counts.
        prompt_P: index of each pair's prompt.
        sources_PS: indices of those whom each pair comes from, such as its annotator or both authors; -1 for none.
    """

    difference_PD: Floats
    weight_P: Floats
    prompt_P: Ints
    sources_PS: Ints

    def comes_from(self, source: int) -> Bools:
        """Return which pairs come from a source."""
        return (self.sources_PS == source).any(axis=1)

    def renumbered(self, number_S: Ints) -> "FeaturePairs":
        """Return the pairs with other indices of the sources: source s becomes ``number_S[s]``."""
        number_S = np.append(number_S, -1)  # for sources that are -1
        return replace(self, sources_PS=number_S[self.sources_PS])

    def scaled(self, scale_D: Floats) -> "FeaturePairs":
        """Return the pairs with each feature divided by a scale."""
        return replace(self, difference_PD=self.difference_PD / scale_D)


@dataclass(frozen=True)
class FittedHead:
    """A head, and the inverse curvature of its loss, by which a fit to nearly the same pairs takes cheap steps."""

    head_D: Floats
    inverse_DD: Floats


def fit_head(difference_PD: Floats, weight_P: Floats, near: FittedHead | None = None) -> FittedHead:
    """Return the head of least weighted mean log loss and ridge.

    Args:
        difference_PD: features of the chosen completion less those of the rejected one.
        weight_P: of each pair, some above 0.
        near: a head of nearly the same pairs, where the fit begins; at 0 if None.
    """
    share_P = weight_P / weight_P.sum()
    head_D = np.zeros(difference_PD.shape[1]) if near is None else near.head_D
    inverse_DD = None if near is None else near.inverse_DD
    loss = _loss(head_D, difference_PD, share_P)
    for _ in range(MAX_STEPS):
        wrong_P = _sigmoid(-(difference_PD @ head_D))
        gradient_D = RIDGE * head_D - difference_PD.T @ (share_P * wrong_P)
        if near is None or inverse_DD is None:
            curvature_P = share_P * wrong_P * (1 - wrong_P)
            hessian_DD = (difference_PD.T * curvature_P) @ difference_PD + RIDGE * np.eye(len(head_D))
            inverse_DD = np.linalg.inv(hessian_DD)
        step_D = inverse_DD @ gradient_D
        # Half steps until the loss falls: far from the minimum a whole one may overshoot.
        size = 1.0
        while (lower := _loss(head_D - size * step_D, difference_PD, share_P)) > loss and size > 1e-4:
            size /= 2
        if lower > loss:
            break
        head_D, gained, loss = head_D - size * step_D, loss - lower, lower
        if gained <= TOLERANCE * max(loss, 1e-12):
            break
    assert inverse_DD is not None
    return FittedHead(head_D, inverse_DD)


def _loss(head_D: Floats, difference_PD: Floats, share_P: Floats) -> float:
    return float(share_P @ np.logaddexp(0.0, -(difference_PD @ head_D)) + RIDGE / 2 * head_D @ head_D)


def _sigmoid(values: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(values / 2))
