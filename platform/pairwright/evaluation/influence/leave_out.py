"""What leaving out an annotator or an author changes: a small judge is trained again without its pairs.

Two changes are told apart. On the held-out pairs of all *others*: a log loss that falls means that the source did harm,
as an annotator of random answers does (noise makes a judge unsure before it makes it wrong, so log loss shows it sooner
than accuracy). Accuracy on the source's *own* pairs that falls means that what is known of them is known from this
source alone, as of a text that was only ever ranked first (the memorization of Feldman and Zhang 2020,
arXiv:2008.03703, section 2). The judge is linear over tokens and length: what it shows of the data holds for any model
that can do as much, and what it cannot express it cannot show.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pairwright.evaluation.influence.linear_head import FeaturePairs, FittedHead, fit_head
from pairwright.evaluation.statistics.ceiling import Judgements
from pairwright.evaluation.statistics.intervals import Estimate, Resamples, holm
from pairwright.evaluation.statistics.pair_arrays import Floats, Ints, PairArrays, sums_by
from pairwright.evaluation.statistics.pair_metrics import correct
from pairwright.evaluation.statistics.paired_comparison import sign_flip_p
from pairwright.evaluation.statistics.slices import SIGNIFICANCE

MAX_SOURCES = 60
"""Of a kind: those with most training pairs are tried."""
MIN_PROMPTS = 10
"""Prompts with held-out pairs of a kind below which its change is not tested."""
MEMORIZED = 0.1
"""Accuracy lost on a source's own pairs."""


@dataclass(frozen=True, slots=True)
class SourceInfluence:
    """What the judge gains or loses without one source's training pairs: a metric without them less that with them."""

    source: str
    train_pairs: int
    others_prompts: int
    others_log_loss: Estimate
    """Change on the held-out pairs of others: below 0 where the source did harm."""
    others_accuracy: Estimate
    others_p: float | None
    """Of the change of log loss, by a sign-flip test over prompts; adjusted for the number of sources."""
    own_prompts: int
    own_accuracy_with: Estimate
    """Accuracy on the source's own held-out pairs, with its training pairs."""
    own_accuracy: Estimate
    """Change of it: far below 0 where the judge knows these pairs from the source alone."""
    own_p: float | None


@dataclass(frozen=True, slots=True)
class InfluenceOf:
    """The influence of every source of a kind."""

    train_pairs: int
    held_out_pairs: int
    accuracy: Estimate
    """Of the judge on all held-out pairs, to be compared with the model's own."""
    rows: list[SourceInfluence]

    def most_harmful_first(self) -> "InfluenceOf":
        """Return it in order of what leaving a source out gains in log loss on the pairs of others."""
        return replace(self, rows=sorted(self.rows, key=lambda row: (row.others_log_loss.value or 0.0, row.source)))

    def most_memorized_first(self) -> "InfluenceOf":
        """Return it in order of what leaving a source out loses on its own pairs."""
        return replace(self, rows=sorted(self.rows, key=lambda row: (row.own_accuracy.value or 0.0, row.source)))

    def harmful(self) -> list[SourceInfluence]:
        """Return the sources without which the judge is surely better on the pairs of others."""
        return [row for row in self.rows if _is_sure(row.others_p) and (row.others_log_loss.value or 0.0) < 0]

    def memorized(self) -> list[SourceInfluence]:
        """Return the sources whose own pairs the judge surely knows from them alone."""
        return [row for row in self.rows if _is_sure(row.own_p) and (row.own_accuracy.value or 0.0) < -MEMORIZED]


def _is_sure(p_value: float | None) -> bool:
    return p_value is not None and p_value < SIGNIFICANCE


def influence_of(train: FeaturePairs, held_out: FeaturePairs, names: Sequence[str], *, num_prompts: int) -> InfluenceOf:
    """Return the influence of the sources with most training pairs.

    Args:
        train: the pairs that the judge is fitted to.
        held_out: the pairs that it is measured on.
        names: of the sources.
        num_prompts: of the held-out pairs.
    """
    scale_D = train.difference_PD.std(axis=0)
    scale_D = np.where(scale_D > 0, scale_D, 1.0)
    train, held_out = train.scaled(scale_D), held_out.scaled(scale_D)
    resamples = Resamples.of(num_prompts)
    whole = fit_head(train.difference_PD, train.weight_P)
    rows = [
        _without(source, names[source], train, held_out, whole, resamples) for source in _largest(train, len(names))
    ]
    right_P = correct(held_out.difference_PD @ whole.head_D)
    return InfluenceOf(
        train_pairs=len(train.weight_P),
        held_out_pairs=len(held_out.weight_P),
        accuracy=resamples.ratio(held_out.weight_P * right_P, held_out.weight_P, held_out.prompt_P, is_share=True),
        rows=_adjusted(rows),
    )


def author_pairs(arrays: PairArrays, features_ND: NDArray[np.floating[Any]]) -> FeaturePairs:
    """Return the pairs of a table, each from the authors of both of its completions."""
    authors_PS = np.stack([arrays.author_N[arrays.chosen_P], arrays.author_N[arrays.rejected_P]], axis=1)
    return FeaturePairs(
        difference_PD=(features_ND[arrays.chosen_P] - features_ND[arrays.rejected_P]).astype(np.float64),
        weight_P=arrays.weight_P,
        prompt_P=arrays.prompt_P,
        sources_PS=authors_PS,
    )


def annotator_pairs(arrays: PairArrays, judgements: Judgements, features_ND: NDArray[np.floating[Any]]) -> FeaturePairs:
    """Return every decisive pair of every annotation; the pairs of an annotation weigh 1 together."""
    found = list(_decisive(arrays, judgements))
    columns = zip(*found, strict=True)
    chosen, rejected, weight, annotation = (np.concatenate([np.empty(0), *column]) for column in columns)
    better, worse, row = chosen.astype(np.int64), rejected.astype(np.int64), annotation.astype(np.int64)
    return FeaturePairs(
        difference_PD=(features_ND[better] - features_ND[worse]).astype(np.float64),
        weight_P=weight,
        prompt_P=arrays.prompt_N[better],
        sources_PS=judgements.annotator_A[row][:, None],
    )


def _decisive(arrays: PairArrays, judgements: Judgements) -> Iterator[tuple[Ints, Ints, Floats, Ints]]:
    for row, (group, ranks_K) in enumerate(zip(judgements.group_A.tolist(), judgements.ranks_A, strict=True)):
        better, worse = np.nonzero(ranks_K[:, None] < ranks_K[None, :])
        start = arrays.starts_G[group]
        number = len(better)
        yield better + start, worse + start, np.full(number, 1.0 / max(1, number)), np.full(number, row)


def _largest(train: FeaturePairs, num_sources: int) -> list[int]:
    """Return the sources with most training pairs that are not all pairs, in order of their names."""
    number_S = np.array([int(train.comes_from(source).sum()) for source in range(num_sources)], np.int64)
    order = [source for source in np.argsort(-number_S, kind="stable").tolist() if number_S[source]]
    return sorted(source for source in order[:MAX_SOURCES] if number_S[source] < len(train.weight_P))


def _without(
    source: int, name: str, train: FeaturePairs, held_out: FeaturePairs, whole: FittedHead, resamples: Resamples
) -> SourceInfluence:
    left_out_P = train.comes_from(source)
    head = fit_head(train.difference_PD[~left_out_P], train.weight_P[~left_out_P], whole)
    before_P, after_P = held_out.difference_PD @ whole.head_D, held_out.difference_PD @ head.head_D
    log_loss_P = np.logaddexp(0.0, -after_P) - np.logaddexp(0.0, -before_P)
    right_P = correct(before_P)
    changed_P = correct(after_P) - right_P
    own, others = (np.flatnonzero(held_out.comes_from(source) == is_own) for is_own in (True, False))

    def mean(values_P: Floats, rows: Ints, *, is_share: bool = False) -> Estimate:
        weight = held_out.weight_P[rows]
        return resamples.ratio(weight * values_P[rows], weight, held_out.prompt_P[rows], is_share=is_share)

    return SourceInfluence(
        source=name,
        train_pairs=int(left_out_P.sum()),
        others_prompts=len(np.unique(held_out.prompt_P[others])),
        others_log_loss=mean(log_loss_P, others),
        others_accuracy=mean(changed_P, others),
        others_p=_p_value(log_loss_P, others, held_out),
        own_prompts=len(np.unique(held_out.prompt_P[own])),
        own_accuracy_with=mean(right_P, own, is_share=True),
        own_accuracy=mean(changed_P, own),
        own_p=_p_value(changed_P, own, held_out),
    )


def _p_value(change_P: Floats, rows: Ints, held_out: FeaturePairs) -> float | None:
    """Return the p-value of a change; None where there are too few prompts."""
    prompt = held_out.prompt_P[rows]
    if len(np.unique(prompt)) < MIN_PROMPTS:
        return None
    return sign_flip_p(sums_by(prompt, held_out.weight_P[rows] * change_P[rows], 0))


def _adjusted(rows: Sequence[SourceInfluence]) -> list[SourceInfluence]:
    """Return the rows with p-values adjusted for the number of them."""
    others, own = _holm([row.others_p for row in rows]), _holm([row.own_p for row in rows])
    return [
        replace(row, others_p=others_p, own_p=own_p) for row, others_p, own_p in zip(rows, others, own, strict=True)
    ]


def _holm(p_values: Sequence[float | None]) -> list[float | None]:
    known = [value for value in p_values if value is not None]
    adjusted = iter(holm(np.array(known, np.float64)).tolist())
    return [None if value is None else next(adjusted) for value in p_values]
