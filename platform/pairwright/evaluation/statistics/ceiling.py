"""The ceiling of accuracy: how well annotators who ranked the same group predict each other.

Without it "72 %" cannot be read: where two annotators agree on 75 % of the pairs, 72 % is nearly all there is to learn.
"""

# ruff: noqa: N815 - shape suffixes, as in pair_arrays.py

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pairwright.evaluation.statistics.intervals import NOTHING, Estimate, Resamples
from pairwright.evaluation.statistics.pair_arrays import Floats, Ints, PairArrays
from pairwright.evaluation.statistics.pair_metrics import PairTerms, correct


@dataclass(frozen=True)
class Judgements:
    """Single annotations of the groups, each with a rank for each of its group's completions.

    Attributes:
        annotators: names, sorted.
        annotator_A: index into them; -1 where nobody is named.
        group_A: index of each annotation's group.
        ranks_A: of each annotation, a rank for each of the group's completions in ``PairArrays``: 1 = best.
        ids_A: the annotations' own ids.
    """

    annotators: Sequence[str]
    annotator_A: Ints
    group_A: Ints
    ranks_A: Sequence[Ints]
    ids_A: Sequence[str]


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Groups with two annotations or more: what predicts one annotator's decisive pairs, and how often."""

    groups: int
    prompts: int
    other_annotator: Estimate
    """Another annotator of the same group; a tie of that one is half."""
    majority: Estimate
    """The majority of all annotations, the one to be predicted included: no reward can do better on these pairs."""
    model: Estimate
    """The model, on the same pairs."""


@dataclass(frozen=True, slots=True)
class AnnotatorFit:
    """How well the model explains one annotator's decisive pairs."""

    annotator: str
    annotations: int
    prompts: int
    pairs: int
    accuracy: Estimate
    other_annotators: Estimate
    """How well other annotators of the same groups explain them; nothing where nobody else ranked these groups."""


@dataclass(frozen=True)
class _Terms:
    """Decisive pairs of single annotations, each weighted so that an annotation's pairs sum to 1."""

    annotation_D: Ints
    prompt_D: Ints
    weight_D: Floats
    model_D: Floats
    majority_D: Floats
    others_D: Floats
    """Mean over the other annotations of the group; NaN where there is none."""


def ceiling(terms: PairTerms, judgements: Judgements) -> tuple[Ceiling, list[AnnotatorFit]]:
    """Return the ceiling, and how well each annotator is explained, the least explained first."""
    found = _terms(terms.arrays, judgements)
    resamples = terms.resamples
    shared = np.flatnonzero(~np.isnan(found.others_D))
    groups = judgements.group_A[found.annotation_D[shared]]

    def share(values_D: Floats) -> Estimate:
        weight = found.weight_D[shared]
        return resamples.ratio(weight * values_D[shared], weight, found.prompt_D[shared], is_share=True)

    top = Ceiling(
        groups=len(np.unique(groups)),
        prompts=len(np.unique(found.prompt_D[shared])),
        other_annotator=share(found.others_D),
        majority=share(found.majority_D),
        model=share(found.model_D),
    )
    fits = [_fit(number, found, judgements, resamples) for number in range(len(judgements.annotators))]
    known = [fit for fit in fits if fit.accuracy.value is not None]
    return top, sorted(known, key=lambda fit: (fit.accuracy.value or 0.0, fit.annotator))


def _fit(number: int, found: _Terms, judgements: Judgements, resamples: Resamples) -> AnnotatorFit:
    rows = np.flatnonzero(judgements.annotator_A[found.annotation_D] == number)
    shared = rows[~np.isnan(found.others_D[rows])]

    def share(values_D: Floats, kept: Ints) -> Estimate:
        if not len(kept):
            return NOTHING
        weight = found.weight_D[kept]
        return resamples.ratio(weight * values_D[kept], weight, found.prompt_D[kept], is_share=True)

    return AnnotatorFit(
        annotator=judgements.annotators[number],
        annotations=int((judgements.annotator_A == number).sum()),
        prompts=len(np.unique(found.prompt_D[rows])),
        pairs=len(rows),
        accuracy=share(found.model_D, rows),
        other_annotators=share(found.others_D, shared),
    )


def _terms(arrays: PairArrays, judgements: Judgements) -> _Terms:
    columns: list[list[Floats]] = [[] for _ in range(6)]
    order = np.argsort(judgements.group_A, kind="stable")
    bounds = np.flatnonzero(np.diff(judgements.group_A[order], prepend=-1, append=-1))
    for start, end in itertools.pairwise(bounds.tolist()):
        rows = order[start:end]
        group = int(judgements.group_A[rows[0]])
        completions = slice(arrays.starts_G[group], arrays.starts_G[group + 1])
        votes_AKK = np.stack([_votes(judgements.ranks_A[row]) for row in rows])
        reward = arrays.reward_N[completions]
        model_KK = correct(reward[:, None] - reward[None, :])
        majority_KK = correct(np.sign(votes_AKK.sum(axis=0)))
        for position, row in enumerate(rows.tolist()):
            better, worse = np.nonzero(votes_AKK[position] > 0)
            others = np.delete(votes_AKK, position, axis=0)[:, better, worse]
            number = len(better)
            values = (
                np.full(number, row, np.float64),
                np.full(number, arrays.prompt_G[group], np.float64),
                np.full(number, 1.0 / max(1, number)),
                model_KK[better, worse],
                majority_KK[better, worse],
                correct(others).mean(axis=0) if len(others) else np.full(number, np.nan),
            )
            for column, value in zip(columns, values, strict=True):
                column.append(value)
    joined = [np.concatenate([np.empty(0), *column]) for column in columns]
    return _Terms(joined[0].astype(np.int64), joined[1].astype(np.int64), *joined[2:])


def _votes(ranks_K: Ints) -> Floats:
    """Return 1 where the row's completion is ranked above the column's, -1 below, 0 at a tie."""
    return np.sign(ranks_K[None, :] - ranks_K[:, None]).astype(np.float64)
