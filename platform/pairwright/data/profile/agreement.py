"""Agreement of annotators: counts of equal and opposite outcomes, and Krippendorff's alpha.

Agreement is between people: of an annotator's several annotations of one group only the first (by id) counts. The cost
is linear in annotations, since each is compared with the votes of its group and never with every other annotation.

Alpha follows Krippendorff (Content Analysis, 2004, chapter 11). The unit is one completion of one group. The value is
its place in the ranking, the mean of the places that its tie covers (1, 2.5, 2.5, 4). The metric is the ordinal one.
Alpha is computed for each number of completions K by itself, since place 4 of 4 is not place 4 of 9.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pairwright.data.profile.comparison_blocks import Block, Ints

AGREEMENT = ("shared", "same", "decisive_by_both", "opposite", "with_consensus", "against_consensus")
"""Counted for each annotation, over its comparisons (of different texts) that others judged too.

shared: how often another annotator judged the same two completions; same: with the same outcome (a tie being one);
decisive_by_both: both have a preference; opposite: these differ; with_consensus: this annotator has a preference, and
the others have a majority; against_consensus: that majority is for the other completion.
"""


def agreement_counts(block: Block) -> dict[str, Ints]:
    """Return AGREEMENT for each annotation of a block."""
    votes = (block.is_rater_A[:, None] & ~block.identical_AP).astype(np.int8)
    outcome_AP = block.outcome_AP
    first_GP, second_GP, tied_GP = (block.sum_by_group(votes * (outcome_AP == side)) for side in (1, -1, 0))
    first_AP, second_AP, tied_AP = (votes_GP[block.group_A] for votes_GP in (first_GP, second_GP, tied_GP))
    prefers_AP = (outcome_AP != 0) & (votes > 0)
    ties_AP = (outcome_AP == 0) & (votes > 0)
    own_AP = np.where(outcome_AP > 0, first_AP, second_AP) - 1
    other_AP = np.where(outcome_AP > 0, second_AP, first_AP)
    counts = {
        "shared": votes * (first_AP + second_AP + tied_AP - 1),
        "same": prefers_AP * own_AP + ties_AP * (tied_AP - 1),
        "decisive_by_both": prefers_AP * (own_AP + other_AP),
        "opposite": prefers_AP * other_AP,
        "with_consensus": prefers_AP & (own_AP != other_AP),
        "against_consensus": prefers_AP & (own_AP < other_AP),
    }
    return {name: values_AP.sum(axis=1) for name, values_AP in counts.items()}


def coincidences(block: Block) -> pa.Table:
    """Count the ordered pairs of values that two annotators of a group gave one completion, by K and annotators.

    Values are twice the rank, so that they are integers. ``alpha`` divides by ``num_raters - 1``, so that sums stay
    exact.
    """
    size = block.num_completions
    ranks_AK = _doubled_ranks(block)[block.is_rater_A]
    group_A = block.group_A[block.is_rater_A]
    num_G = np.bincount(group_A, minlength=len(block.starts_G))
    columns: dict[str, list[NDArray]] = {name: [] for name in ("num_raters", "one", "other", "pairs")}
    for num_raters in np.unique(num_G[num_G > 1]).tolist():
        kept_A = num_G[group_A] == num_raters
        values_GMK = ranks_AK[kept_A].reshape(-1, num_raters, size)
        matrix = _pairs_of_values(values_GMK, num_values=2 * size + 1)
        one, other = np.nonzero(matrix)
        columns["num_raters"].append(np.full(len(one), num_raters))
        columns["one"].append(one)
        columns["other"].append(other)
        columns["pairs"].append(matrix[one, other])
    flat = {name: np.concatenate([np.empty(0, np.int64), *held]).astype(np.int64) for name, held in columns.items()}
    return pa.table({"num_completions": np.full(len(flat["one"]), size), **flat})


def _doubled_ranks(block: Block) -> Ints:
    """Return twice the rank of each completion, from 2: 1 + how many are better + how many are no worse."""
    size = block.num_completions
    ranks_AK = np.full_like(block.ranks_AK, size + 1)
    for completion in range(size):  # K passes over (A, P) / K entries each: no (A, K, K) in memory
        ranks_AK[:, completion] += np.sign(block.ranks_AK[:, [completion]] - block.ranks_AK).sum(axis=1)
    return ranks_AK


def _pairs_of_values(values_GMK: Ints, num_values: int) -> Ints:
    """Return how often two annotators gave one completion the values (one, other), ordered, int64."""
    num_groups, _, size = values_GMK.shape
    matrix = np.zeros((num_values, num_values), np.int64)
    step = max(1, (1 << 20) // (size * num_values))
    for start in range(0, num_groups, step):
        part = values_GMK[start : start + step]
        unit = np.broadcast_to(np.arange(len(part) * size).reshape(len(part), 1, size), part.shape)
        counts_UV = np.zeros((len(part) * size, num_values))
        np.add.at(counts_UV, (unit.ravel(), part.ravel()), 1.0)
        matrix += np.rint(counts_UV.T @ counts_UV).astype(np.int64)
        matrix[np.diag_indices(num_values)] -= counts_UV.sum(axis=0).astype(np.int64)
    return matrix


def alpha(table: pa.Table) -> tuple[float | None, dict[int, float | None]]:
    """Return Krippendorff's alpha over all K, and of each K; None if all values are equal or no group is shared.

    Over all K: 1 - observed / expected disagreement, each the mean over the values of all K. Differences are shares of
    the number of values of their own K, so that a long ranking counts by its completions and not by their square.

    Args:
        table: the aggregate ``coincidences``.
    """
    sizes = table["num_completions"].to_numpy()
    by_size: dict[int, float | None] = {}
    observed = expected = 0.0
    for size in np.unique(sizes).tolist():
        columns = {name: table[name].to_numpy()[sizes == size] for name in ("num_raters", "one", "other", "pairs")}
        matrix = _coincidence_matrix(columns)
        disagreement = _disagreement(matrix)
        by_size[size] = None if disagreement[1] == 0 else 1 - disagreement[0] / disagreement[1]
        total = float(matrix.sum())
        observed += disagreement[0] / total**2
        expected += disagreement[1] / total**2
    return (1 - observed / expected if expected else None), by_size


def _coincidence_matrix(columns: Mapping[str, NDArray]) -> NDArray[np.float64]:
    values = np.unique(columns["one"])
    matrix = np.zeros((len(values), len(values)))
    where = np.searchsorted(values, columns["one"]), np.searchsorted(values, columns["other"])
    np.add.at(matrix, where, columns["pairs"] / (columns["num_raters"] - 1))
    return matrix


def _disagreement(matrix: NDArray[np.float64]) -> tuple[float, float]:
    """Return the observed and the expected sum of squared ordinal differences."""
    margin = matrix.sum(axis=0)
    total = float(margin.sum())
    centre = np.cumsum(margin) - margin / 2
    squared = np.square(centre[:, None] - centre[None, :])
    expected = float((np.outer(margin, margin) * squared).sum()) / (total - 1)
    return float((matrix * squared).sum()), expected
