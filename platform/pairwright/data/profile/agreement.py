"""Agreement of annotators: counts of equal and opposite outcomes, Krippendorff's alpha, and what they disagree about.

Agreement is between people: of an annotator's several annotations of one group only the first (by id) counts. The cost
is linear in annotations, since each is compared with the votes of its group and never with every other annotation.

Alpha follows Krippendorff (Content Analysis, 2004, chapter 11). The unit is one completion of one group. The value is
its place in the ranking, the mean of the places that its tie covers (1, 2.5, 2.5, 4). The metric is the ordinal one.
Alpha is computed for each number of completions K by itself, since place 4 of 4 is not place 4 of 9.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pairwright.data.profile.comparison_blocks import AnnotationArrays, Block, Ints

Row: TypeAlias = dict[str, Any]
MAX_CONTESTED = 20
"""Groups that are shown: each task reports as many, and holds all annotations of its groups."""
ROWS_PER_ANNOTATOR = 5
MAX_ANNOTATOR_ROWS = 300
"""Annotations of annotators that are shown, those with the most preferences against the majority first."""
COMPLETIONS_SHOWN = 9
JUDGEMENTS_SHOWN = 12
TEXT_CHARACTERS = 300

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


# ------------------------------------------------------------------------------- examples, with their texts


def examples(
    annotations: pa.Table, arrays: AnnotationArrays, per_annotation: Mapping[str, Ints]
) -> dict[str, pa.Table]:
    """Return the aggregates of what annotators disagree about, each entry with its texts, shortened, as JSON.

    ``contested`` are the groups with the largest share of opposite preferences; ``annotator_rows`` the annotations of
    each annotator with the most preferences against the majority of the others.

    Args:
        annotations: rows in ANNOTATIONS_SCHEMA that ``arrays`` were made from.
        arrays: annotations of whole groups.
        per_annotation: AGREEMENT of each annotation.
    """
    first_G = np.flatnonzero(np.diff(arrays.group_A, prepend=-1))
    names_G = arrays.rows["group_id"].take(pa.array(first_G, pa.int64())).to_pylist()
    chosen_G = _most_contested(arrays, per_annotation, names_G)
    chosen_A = _most_against(arrays, per_annotation)
    wanted = np.union1d(chosen_G, arrays.group_A[chosen_A]).tolist()
    names = [names_G[group] for group in wanted]
    groups = _texts_of(annotations, names)
    contested = {
        "group_id": [names_G[group] for group in chosen_G.tolist()],
        "detail": [_group_detail(groups[names_G[group]]) for group in chosen_G.tolist()],
        **{
            name: np.bincount(arrays.group_A, per_annotation[name], minlength=len(first_G))[chosen_G].astype(np.int64)
            for name in ("opposite", "decisive_by_both")
        },
    }
    rows = arrays.rows.select(["id", "annotator"]).take(pa.array(chosen_A, pa.int64())).to_pylist()
    shown = {
        **{name: pa.array([row[name] for row in rows], pa.string()) for name in ("annotator", "id")},
        "detail": pa.array(
            [
                _row_detail(groups[names_G[group]], row["id"])
                for row, group in zip(rows, arrays.group_A[chosen_A].tolist(), strict=True)
            ],
            pa.string(),
        ),
        **{name: per_annotation[name][chosen_A].astype(np.int64) for name in ("against_consensus", "with_consensus")},
    }
    strings = {name: pa.array(contested[name], pa.string()) for name in ("group_id", "detail")}
    return {"contested": pa.table(contested | strings), "annotator_rows": pa.table(shown)}


def _most_contested(arrays: AnnotationArrays, per_annotation: Mapping[str, Ints], names_G: Sequence[str]) -> Ints:
    """Return the groups with the largest share of opposite preferences, of equals those with more of them."""
    opposite_G = np.bincount(arrays.group_A, per_annotation["opposite"], minlength=len(names_G))
    decisive_G = np.bincount(arrays.group_A, per_annotation["decisive_by_both"], minlength=len(names_G))
    some = np.flatnonzero(opposite_G)
    share = opposite_G[some] / decisive_G[some]
    names = np.array([names_G[group] for group in some.tolist()], dtype=np.str_)
    order = np.lexsort((names, -opposite_G[some], -share))
    return some[order][:MAX_CONTESTED].astype(np.int64)


def _most_against(arrays: AnnotationArrays, per_annotation: Mapping[str, Ints]) -> Ints:
    """Return the annotations that went most against the majority of the others, a few of each named annotator."""
    names, ids = (arrays.rows[name].to_pylist() for name in ("annotator", "id"))
    order = np.lexsort((ids, -per_annotation["against_consensus"])) if ids else np.empty(0, np.int64)
    return np.array(first_of_each([names[index] for index in order.tolist()], order.tolist()), np.int64)


def first_of_each(names: Sequence[str | None], items: Sequence[int]) -> list[int]:
    """Return the first items, a few of each name: of all parts together those of the parts are enough.

    An item that is kept of all is also kept of its part: whatever comes before it there is kept, or is beyond its
    name's share, which others of that name fill among all.
    """
    kept: list[int] = []
    num_of: Counter[str] = Counter()
    for name, item in zip(names, items, strict=True):
        if name is not None and num_of[name] < ROWS_PER_ANNOTATOR:
            num_of[name] += 1
            kept.append(item)
            if len(kept) == MAX_ANNOTATOR_ROWS:
                break
    return kept


def _texts_of(annotations: pa.Table, group_ids: Sequence[str]) -> dict[str, list[Row]]:
    """Return the annotations of some groups, in order of ids."""
    options = pc.SetLookupOptions(value_set=pa.array(group_ids, pa.string()))
    columns = ["group_id", "id", "prompt", "completions", "ranks", "annotator", "source", "line"]
    some = annotations.select(columns).filter(pc.call_function("is_in", [annotations["group_id"]], options))
    groups: dict[str, list[Row]] = {name: [] for name in group_ids}
    for row in some.sort_by([("id", "ascending"), ("source", "ascending")]).to_pylist():
        groups[row["group_id"]].append(row)
    return groups


def _ranks_in_order(rows: Sequence[Row]) -> list[list[int]]:
    """Return the ranks of each annotation of a group, in the order in which the first one lists the completions."""
    keys = [(one["text"], one["extra"]) for one in rows[0]["completions"]]
    found = []
    for row in rows:
        ranks: dict[tuple[str, str | None], list[int]] = {}
        for one, rank in zip(row["completions"], row["ranks"], strict=True):
            ranks.setdefault((one["text"], one["extra"]), []).append(rank)
        found.append([ranks[key].pop(0) for key in keys])
    return found


def _group_detail(rows: Sequence[Row]) -> str:
    """Return a group as JSON: its prompt, its completions, and who ranked them how."""
    ranks = _ranks_in_order(rows)
    completions = rows[0]["completions"]
    detail = {
        "prompt": clipped(rows[0]["prompt"][-1]["content"] if rows[0]["prompt"] else ""),
        "num_completions": len(completions),
        "completions": [
            {"text": clipped(one["text"]), "model": clipped(one["model"])} for one in completions[:COMPLETIONS_SHOWN]
        ],
        "num_judgements": len(rows),
        "judgements": [
            {"annotator": clipped(row["annotator"]), "ranks": ranked[:COMPLETIONS_SHOWN]}
            for row, ranked in zip(rows[:JUDGEMENTS_SHOWN], ranks, strict=False)
        ],
    }
    return msgspec.json.encode(detail).decode()


def _row_detail(rows: Sequence[Row], name: str) -> str:
    """Return an annotation as JSON: the prompt, what its annotator ranked best, and what the others did."""
    index = next(index for index, row in enumerate(rows) if row["id"] == name)
    row, ranks = rows[index], _ranks_in_order(rows)
    texts = [one["text"] for one in rows[0]["completions"]]
    others = [sum(column) for column in zip(*(ranked for k, ranked in enumerate(ranks) if k != index), strict=True)]
    best_of_others = texts[others.index(min(others))] if others else None
    detail = {
        "source": row["source"],
        "line": row["line"],
        "prompt": clipped(row["prompt"][-1]["content"] if row["prompt"] else ""),
        "preferred": clipped(texts[ranks[index].index(min(ranks[index]))]),
        "preferred_by_others": clipped(best_of_others),
    }
    return msgspec.json.encode(detail).decode()


def clipped(text: str | None) -> str | None:
    """Return the beginning of a text, which says that it is one."""
    if text is None or len(text) <= TEXT_CHARACTERS:
        return text
    return f"{text[:TEXT_CHARACTERS]}..."
