"""Expansion of rankings into pairs by plain loops over pairs, with exact fractions: the oracle of the vectorised one.

Written from docs/data.md (weights, ties, margins), not from the code under test.
"""

from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any

LLAMA_2 = {
    "small": {
        "significantly better": Fraction(1),
        "better": Fraction(2, 3),
        "slightly better": Fraction(1, 3),
        "negligibly better": Fraction(0),
    },
    "large": {
        "significantly better": Fraction(3),
        "better": Fraction(2),
        "slightly better": Fraction(1),
        "negligibly better": Fraction(0),
    },
}
"""Touvron et al. 2023, table 27."""

Pairs = dict[tuple[int, int], tuple[Fraction, float | None]]
"""(chosen, rejected) -> weight, margin."""


def expand_by_hand(
    rows: Sequence[dict[str, Any]],
    *,
    pair_weight: str,
    ties: str,
    margin: str,
    margin_table: str,
    margin_scale: float,
) -> tuple[dict[str, Pairs], dict[str, int]]:
    """Return each group's pairs, and the counts of comparisons."""
    groups = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["id"], row["source"], row["line"])):
        if not any(_same(row, other) for other in groups[row["group_id"]]):
            groups[row["group_id"]].append(row)
    counts: dict[str, int] = defaultdict(int)
    pairs = {}
    for group_id, annotations in groups.items():
        votes = _votes(annotations, ties, counts, LLAMA_2[margin_table] if margin == "strength" else None)
        pairs[group_id] = _weigh(votes, annotations, pair_weight, 0.0 if margin == "none" else margin_scale)
    return pairs, counts


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[name] == other[name] for name in ("id", "annotator", "completions", "ranks", "scores", "grade"))


def _votes(
    annotations: list[dict[str, Any]], ties: str, counts: dict[str, int], grades: dict[str, Fraction] | None
) -> dict[tuple[int, int], list]:
    """Return for each direction the votes for it, each as (share, gap or None, is a tie)."""
    texts = [completion["text"] for completion in annotations[0]["completions"]]
    votes = defaultdict(list)
    for annotation in annotations:
        places = _match(texts, [completion["text"] for completion in annotation["completions"]])
        for i, j in combinations(range(len(texts)), 2):
            rank_i, rank_j = annotation["ranks"][places[i]], annotation["ranks"][places[j]]
            gap = None
            if grades is not None:
                gap = None if annotation["grade"] is None else grades[annotation["grade"]]
            elif annotation["scores"] is not None:
                gap = abs(annotation["scores"][places[i]] - annotation["scores"][places[j]])
            counts["comparisons"] += 1
            counts["ties" if rank_i == rank_j else "decisive"] += 1
            if texts[i] == texts[j]:
                counts["identical_ties" if rank_i == rank_j else "identical"] += 1
            elif rank_i != rank_j:
                votes[(i, j) if rank_i < rank_j else (j, i)].append((Fraction(1), gap, False))
            elif ties == "half":
                votes[i, j].append((Fraction(1, 2), gap, True))
                votes[j, i].append((Fraction(1, 2), gap, True))
    return votes


def _match(texts: list[str], others: list[str]) -> list[int]:
    """Return where each text of the group stands in an annotation; equal texts in order of appearance."""
    free = list(range(len(others)))
    places = []
    for text in texts:
        place = next(index for index in free if others[index] == text)
        free.remove(place)
        places.append(place)
    return places


def _weigh(votes: dict[tuple[int, int], list], annotations: list, pair_weight: str, margin_scale: float) -> Pairs:
    num_completions = len(annotations[0]["completions"])
    all_votes = sum((share for cast in votes.values() for share, _, _ in cast), Fraction(0))
    pairs = {}
    for direction, cast in votes.items():
        weight = sum((share for share, _, _ in cast), Fraction(0))
        if pair_weight == "comparisons":
            weight /= len(list(combinations(range(num_completions), 2))) * len(annotations)
        elif pair_weight == "uniform":
            weight /= len(annotations)
        else:
            weight /= all_votes
        agreeing = [gap for _, gap, tied in cast if not tied]
        scored = [gap for gap in (agreeing or [gap for _, gap, _ in cast]) if gap is not None]
        wanted = margin_scale * float(sum(scored)) / len(scored) if margin_scale and scored else None
        pairs[direction] = (weight, wanted)
    return pairs
