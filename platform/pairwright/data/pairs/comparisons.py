"""Counts the pairwise comparisons of many rankings at once, and weights them into pairs. Pure numpy.

Groups of one size K go through together as (groups, K, K) matrices, entry [chosen, rejected]: 26 times as fast as a
Python loop over pairs, at the cost of computing both triangles.

Shapes: A annotations, G groups, N completions of all annotations one after the other, K completions of a group,
P pairs.
"""

# ruff: noqa: N815 - shape suffixes, as above

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pairwright.config import ExpandConfig

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ENTRIES_PER_BLOCK = 1 << 20
TOTALS = ("comparisons", "decisive", "ties", "identical", "identical_ties", "conflicting")


@dataclass(frozen=True, slots=True)
class RankingBatch:
    """Annotations of whole groups, sorted by group; each lists its group's completions in the group's own order.

    Attributes:
        group_A: index of each annotation's group, int64, from 0 without gaps, not decreasing.
        starts_A: where each annotation's completions start in N, and N at the end, int64, shape (A + 1,).
        ranks_N: 1 = best, equal = tie, int64.
        scores_N: higher is better, float64; NaN where the annotation has none.
        margin_A: what the better of two completions is wanted ahead by, float64; NaN where the annotation says nothing.
        texts_N: a code for each completion's text, int64: equal text, equal code.
    """

    group_A: Ints
    starts_A: Ints
    ranks_N: Ints
    scores_N: Floats
    margin_A: Floats
    texts_N: Ints


@dataclass(frozen=True, slots=True)
class PairRows:
    """Pairs, sorted by group, then chosen, then rejected.

    Attributes:
        group_P: index of the pair's group, int64.
        chosen_P: index into the group's completions, int16.
        rejected_P: index into the group's completions, int16.
        weight_P: float32, above 0.
        margin_P: wanted reward difference, float32; NaN where there is none.
    """

    group_P: Ints
    chosen_P: NDArray[np.int16]
    rejected_P: NDArray[np.int16]
    weight_P: NDArray[np.float32]
    margin_P: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Block:
    """Annotations of some groups of one size; ``equal_GKK``: which completions have equal texts."""

    groups: Ints
    num_annotations_G: Ints
    starts_G: Ints
    ranks_AK: Ints
    scores_AK: Floats
    margin_A: Floats
    equal_GKK: NDArray[np.bool_]

    def sum(self, values_AKK: NDArray) -> NDArray:
        """Return the sums over the annotations of each group, shape (G, K, K)."""
        if len(self.starts_G) == len(values_AKK):
            return values_AKK
        return np.add.reduceat(values_AKK, self.starts_G, axis=0)


@dataclass(frozen=True, slots=True)
class _Votes:
    """How many annotations say what; [g, i, j] is about i over j."""

    wins_GKK: Ints
    ties_GKK: Ints
    margin_GKK: Floats


def pairs_of(rankings: RankingBatch, config: ExpandConfig) -> tuple[PairRows, dict[str, int | float]]:
    """Return every pair that the rankings and the configuration make, and totals that add over calls.

    Completions of equal text make no pair: their difference is zero whatever the model says. So
    ``comparisons = decisive + ties``, of which ``identical`` and ``identical_ties`` compare equal texts.
    """
    blocks: list[PairRows] = []
    totals: dict[str, int | float] = dict.fromkeys(TOTALS, 0)
    for block in _blocks(rankings):
        votes = _votes(block, config)
        blocks.append(_rows(block, votes, config))
        for name, count in _counts(block, votes).items():
            totals[name] += count
    rows = _joined(blocks)
    return rows, {**totals, "pairs": len(rows.weight_P), "weight": float(rows.weight_P.sum(dtype=np.float64))}


def group_blocks(group_A: Ints, starts_A: Ints) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Yield all groups in blocks: of one size K each, and as many as make about a million matrix entries.

    Args:
        group_A: index of each annotation's group, from 0 without gaps, not decreasing.
        starts_A: where each annotation's completions start in N, and N at the end, shape (A + 1,).

    Yields:
        The groups of the block, shape (G,); the annotations of these, in order, shape (A,); where each of their
        completions is in N, shape (A, K).
    """
    num_G = np.bincount(group_A)
    first_G = np.cumsum(num_G) - num_G
    sizes_G = np.diff(starts_A)[first_G]
    for size in np.unique(sizes_G).tolist():
        groups_of_size = np.flatnonzero(sizes_G == size)
        block_G = np.cumsum(num_G[groups_of_size]) * size * size // ENTRIES_PER_BLOCK
        for groups in np.split(groups_of_size, np.flatnonzero(np.diff(block_G)) + 1):
            num_annotations_G = num_G[groups]
            starts_G = np.cumsum(num_annotations_G) - num_annotations_G
            annotations = np.repeat(first_G[groups] - starts_G, num_annotations_G) + np.arange(num_annotations_G.sum())
            yield groups, annotations, starts_A[annotations][:, None] + np.arange(size)


def _blocks(rankings: RankingBatch) -> Iterator[_Block]:
    for groups, annotations, index_AK in group_blocks(rankings.group_A, rankings.starts_A):
        starts_G = np.flatnonzero(np.diff(rankings.group_A[annotations], prepend=-1))
        texts_GK = rankings.texts_N[index_AK[starts_G]]
        yield _Block(
            groups=groups,
            num_annotations_G=np.diff(starts_G, append=len(annotations)),
            starts_G=starts_G,
            ranks_AK=rankings.ranks_N[index_AK],
            scores_AK=rankings.scores_N[index_AK],
            margin_A=rankings.margin_A[annotations],
            equal_GKK=texts_GK[:, :, None] == texts_GK[:, None, :],
        )


def _votes(block: _Block, config: ExpandConfig) -> _Votes:
    wins_AKK = block.ranks_AK[:, :, None] < block.ranks_AK[:, None, :]
    ties_AKK = block.ranks_AK[:, :, None] == block.ranks_AK[:, None, :]
    if config.margin == "strength":
        gap_AKK = np.broadcast_to(block.margin_A[:, None, None], wins_AKK.shape)
    else:
        gap_AKK = block.scores_AK[:, :, None] - block.scores_AK[:, None, :]
    scored_AKK = wins_AKK & np.isfinite(gap_AKK)
    gaps_GKK = block.sum(np.where(scored_AKK, gap_AKK, 0.0))
    num_scored_GKK = block.sum(scored_AKK.astype(np.int64))
    scored_tie_GKK = block.sum((ties_AKK & np.isfinite(gap_AKK)).astype(np.int64)) > 0
    with np.errstate(invalid="ignore"):
        margin_GKK = gaps_GKK / num_scored_GKK  # NaN where nobody who agrees said how much
    wins_GKK, ties_GKK = block.sum(wins_AKK.astype(np.int64)), block.sum(ties_AKK.astype(np.int64))
    margin_GKK[(wins_GKK == 0) & scored_tie_GKK] = 0.0
    return _Votes(wins_GKK, ties_GKK, margin_GKK)


def _counts(block: _Block, votes: _Votes) -> dict[str, int]:
    num_completions = block.ranks_AK.shape[1]
    upper = np.triu(np.ones((num_completions, num_completions), dtype=bool), k=1)
    decisive_GKK = votes.wins_GKK + votes.wins_GKK.swapaxes(1, 2)
    conflicting_GKK = (votes.wins_GKK > 0) & (votes.wins_GKK.swapaxes(1, 2) > 0) & ~block.equal_GKK
    return {
        "comparisons": len(block.ranks_AK) * _num_pairs(num_completions),
        "decisive": int(decisive_GKK[:, upper].sum()),
        "ties": int(votes.ties_GKK[:, upper].sum()),
        "identical": int((decisive_GKK * block.equal_GKK)[:, upper].sum()),
        "identical_ties": int((votes.ties_GKK * block.equal_GKK)[:, upper].sum()),
        "conflicting": int(conflicting_GKK[:, upper].sum()),
    }


def _rows(block: _Block, votes: _Votes, config: ExpandConfig) -> PairRows:
    tie_vote = 0.5 if config.ties == "half" else 0.0
    votes_GKK = (votes.wins_GKK + tie_vote * votes.ties_GKK) * ~block.equal_GKK
    group, chosen, rejected = np.nonzero(votes_GKK)
    weight_P = votes_GKK[group, chosen, rejected] * _vote_weight(votes_GKK, block.num_annotations_G, config)[group]
    if config.margin == "none":
        margin_P = np.full(len(group), np.nan)
    else:
        margin_P = votes.margin_GKK[group, chosen, rejected] * config.margin_scale
    return PairRows(
        group_P=block.groups[group],
        chosen_P=chosen.astype(np.int16),
        rejected_P=rejected.astype(np.int16),
        weight_P=weight_P.astype(np.float32),
        margin_P=margin_P.astype(np.float32),
    )


def _vote_weight(votes_GKK: Floats, num_annotations_G: Ints, config: ExpandConfig) -> Floats:
    """Return what one vote of each group weighs, float64, shape (G,)."""
    match config.pair_weight:
        case "comparisons":
            return 1.0 / (_num_pairs(votes_GKK.shape[1]) * num_annotations_G)
        case "uniform":
            return 1.0 / num_annotations_G
        case "group":
            # Over the group's votes together, so that weights stay the share of votes where annotators contradict.
            return 1.0 / np.maximum(votes_GKK.sum(axis=(1, 2)), 1.0)


def _joined(blocks: list[PairRows]) -> PairRows:
    if not blocks:
        none = np.zeros(0, dtype=np.float32)
        index = np.zeros(0, dtype=np.int16)
        return PairRows(np.zeros(0, dtype=np.int64), index, index, none, none)
    group_P = np.concatenate([block.group_P for block in blocks])
    order = np.argsort(group_P, kind="stable")
    return PairRows(
        group_P=group_P[order],
        chosen_P=np.concatenate([block.chosen_P for block in blocks])[order],
        rejected_P=np.concatenate([block.rejected_P for block in blocks])[order],
        weight_P=np.concatenate([block.weight_P for block in blocks])[order],
        margin_P=np.concatenate([block.margin_P for block in blocks])[order],
    )


def _num_pairs(num_completions: int) -> int:
    return num_completions * (num_completions - 1) // 2
