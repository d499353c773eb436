"""Preference targets: the pairs and rankings of a micro-batch as tensors, the loss's input beside the rewards.

The pairs are those of the table. The rankings that follow from them are computed on the host once, so that the listwise
loss needs no sort, no loop over groups and no synchronisation on the device.
"""

# ruff: noqa: N815 - shape suffixes: N completions, P pairs, G groups, K completions of a group, S stages

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pairwright.data.tokens.token_group import TokenGroup

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# As a share of the group's weight. Net wins are whole votes, and with fewer than a million votes one vote is more than
# this; weights are float32, whose rounding makes up to a tenth of it.
SAME_NET_WINS = 1e-6


@dataclass(frozen=True, slots=True)
class RankingStages:
    """Each group's ranking as stages: at each, one completion is chosen over those that remain (Plackett 1975).

    ``reach_S`` indexes the flattened ``worst_first_GK``, whose rows are padded at the end with values that are never
    read.
    """

    worst_first_GK: Tensor
    """Indices into N of each group's completions, the worst first; int64."""
    chosen_S: Tensor
    """Index into N of the completion that is chosen; int64."""
    reach_S: Tensor
    """Index into the flattened ``worst_first_GK`` of the best completion that it is chosen over; int64.

    The completions that it is chosen over are those from the start of that row to this index.
    """
    tied_S: Tensor
    """Whether they include itself and its equals, because the pairs hold the tie; bool."""
    weight_S: Tensor
    """The group's weight divided by its number of stages; float64."""

    def to(self, device: torch.device | str) -> Self:
        """Return them on a device."""
        return dataclasses.replace(
            self,
            worst_first_GK=self.worst_first_GK.to(device),
            chosen_S=self.chosen_S.to(device),
            reach_S=self.reach_S.to(device),
            tied_S=self.tied_S.to(device),
            weight_S=self.weight_S.to(device),
        )


@dataclass(frozen=True, slots=True)
class PreferenceTargets:
    """Pairs and rankings of the groups of a micro-batch, whose N completions are in the order of their groups."""

    chosen_P: Tensor
    """Index into N of each pair's preferred completion; int64."""
    rejected_P: Tensor
    """Index into N of each pair's other completion; int64."""
    weight_P: Tensor
    """Weight of each pair in the loss; float32."""
    margin_P: Tensor
    """Wanted reward difference, 0 if the pair has none; float32."""
    has_margin_P: Tensor
    """Whether the pair has a margin; bool."""
    stages: RankingStages
    """The groups' rankings, for the listwise loss."""

    @classmethod
    def of(cls, groups: Sequence[TokenGroup]) -> Self:
        """Return the targets of groups; tensors of length 0 without groups."""
        none = np.zeros(0, np.int64)
        num_completions_G = np.array([len(group.completion_ids) for group in groups], np.int64)
        num_pairs_G = np.array([group.chosen_P.size for group in groups], np.int64)
        group_P = np.repeat(np.arange(len(groups)), num_pairs_G)
        first_P = (np.cumsum(num_completions_G) - num_completions_G)[group_P]
        chosen_P = np.concatenate([none, *(group.chosen_P for group in groups)]) + first_P
        rejected_P = np.concatenate([none, *(group.rejected_P for group in groups)]) + first_P
        weight_P = np.concatenate([np.zeros(0, np.float32), *(group.weight_P for group in groups)], dtype=np.float32)
        margin_P = np.concatenate([np.zeros(0, np.float32), *(group.margin_P for group in groups)], dtype=np.float32)
        # A pair without a margin has NaN here, independently of the other pairs of its group.
        has_margin_P = ~np.isnan(margin_P)
        return cls(
            chosen_P=torch.from_numpy(chosen_P),
            rejected_P=torch.from_numpy(rejected_P),
            weight_P=torch.from_numpy(weight_P),
            margin_P=torch.from_numpy(np.where(has_margin_P, margin_P, np.float32(0))),
            has_margin_P=torch.from_numpy(has_margin_P),
            stages=_ranking_stages(num_completions_G, chosen_P, rejected_P, weight_P.astype(np.float64)),
        )

    def to(self, device: torch.device | str) -> Self:
        """Return the targets on a device."""
        return dataclasses.replace(
            self,
            chosen_P=self.chosen_P.to(device),
            rejected_P=self.rejected_P.to(device),
            weight_P=self.weight_P.to(device),
            margin_P=self.margin_P.to(device),
            has_margin_P=self.has_margin_P.to(device),
            stages=self.stages.to(device),
        )


@dataclass(frozen=True, slots=True)
class _Levels:
    """Completions of all groups, sorted by group and then from the worst to the best, in levels of equals."""

    order_N: Ints
    level_N: Ints
    """Index of each completion's level, in sorted order."""
    first_L: Ints
    last_L: Ints
    """First and last index of each level, in sorted order."""
    tied_L: NDArray[np.bool_]
    """Whether pairs compare the level's completions with each other."""


def _levels(group_N: Ints, chosen_P: Ints, rejected_P: Ints, weight_P: Floats) -> _Levels:
    """Return levels of equal net wins by weight.

    Of one annotation they are its ranks: a completion of a better rank wins more comparisons and loses fewer. Of
    several annotations they are the consensus by Borda count, in which disagreements cancel out.
    """
    num = group_N.size
    net_N = np.bincount(chosen_P, weight_P, num) - np.bincount(rejected_P, weight_P, num)
    weight_N = np.bincount(group_N[chosen_P], weight_P, num)[group_N]
    order_N = np.lexsort((net_N, group_N))
    new_group_N = np.diff(group_N[order_N], prepend=-1) > 0
    is_first_N = new_group_N | (np.diff(net_N[order_N], prepend=0.0) > SAME_NET_WINS * weight_N[order_N])
    first_L = np.flatnonzero(is_first_N)
    level_N = np.cumsum(is_first_N) - 1
    level_of_N = np.empty(num, np.int64)
    level_of_N[order_N] = level_N
    tied_L = np.zeros(first_L.size, np.bool_)
    tied_L[level_of_N[chosen_P[level_of_N[chosen_P] == level_of_N[rejected_P]]]] = True
    return _Levels(order_N, level_N, first_L, np.append(first_L[1:], num) - 1, tied_L)


def _ranking_stages(num_completions_G: Ints, chosen_P: Ints, rejected_P: Ints, weight_P: Floats) -> RankingStages:
    """Return the stages of all groups; tests/model/test_targets.py finds the same by loops."""
    num_groups, most = num_completions_G.size, int(num_completions_G.max(initial=0))
    group_N = np.repeat(np.arange(num_groups), num_completions_G)
    start_N = (np.cumsum(num_completions_G) - num_completions_G)[group_N]
    levels = _levels(group_N, chosen_P, rejected_P, weight_P)
    tied_N = levels.tied_L[levels.level_N]
    reach_N = np.where(tied_N, levels.last_L[levels.level_N], levels.first_L[levels.level_N] - 1)
    # The worst level is chosen over nothing, unless the pairs compare its completions with each other.
    stage_S = np.flatnonzero(reach_N >= start_N)
    group_S = group_N[stage_S]
    weight_G = np.bincount(group_N[chosen_P], weight_P, num_groups)
    worst_first_GK = np.zeros((num_groups, most), np.int64)
    worst_first_GK[group_N, np.arange(group_N.size) - start_N] = levels.order_N
    weight_S = (weight_G / np.maximum(np.bincount(group_S, minlength=num_groups), 1))[group_S]
    return RankingStages(
        worst_first_GK=torch.from_numpy(worst_first_GK),
        chosen_S=torch.from_numpy(levels.order_N[stage_S]),
        reach_S=torch.from_numpy(group_S * most + (reach_N - start_N)[stage_S]),
        tied_S=torch.from_numpy(tied_N[stage_S]),
        weight_S=torch.from_numpy(weight_S),
    )
