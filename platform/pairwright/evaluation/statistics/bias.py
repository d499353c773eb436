"""Bias: what the model prefers beyond what the annotators do: length, form, refusals, flattery, an author's style.

Every row is a difference of the model's preference and the annotators' on the same pairs, so a feature that annotators
like as much as the model does is no bias.
"""

from dataclasses import dataclass

import numpy as np

from pairwright.evaluation.statistics.intervals import NOTHING, Estimate, Resamples, interval_of, on_a_grid
from pairwright.evaluation.statistics.pair_arrays import Bools, Floats, Ints, PairArrays, sums_by
from pairwright.evaluation.statistics.pair_metrics import PairTerms

MIN_PROMPTS_OF_AUTHOR = 10
MAX_AUTHORS = 200


@dataclass(frozen=True, slots=True)
class LengthBias:
    """Correlations within groups: each value less its group's mean, over all completions."""

    completions: int
    reward_and_length: Estimate
    annotation_and_length: Estimate
    reward_and_annotation: Estimate
    partial: Estimate
    """Reward and length, at equal annotation: 0 where length has no influence beyond what annotators give it."""


@dataclass(frozen=True, slots=True)
class FeaturePreference:
    """Pairs of which exactly one completion has the feature: how often it wins."""

    feature: str
    completions: int
    """With the feature, in all pairs."""
    prompts: int
    pairs: int
    model_prefers: Estimate
    """Share of the weight where the model prefers the completion with the feature."""
    annotators_prefer: Estimate
    excess: Estimate
    """The difference of the two: above 0 where the model likes the feature more than annotators do."""
    accuracy_where_rejected: Estimate
    """The model's accuracy where annotators rejected the completion with the feature."""


@dataclass(frozen=True, slots=True)
class AuthorRating:
    """How the model rates one author's completions, against what annotators say."""

    author: str
    prompts: int
    pairs: int
    model_wins: Estimate
    annotator_wins: Estimate
    excess: Estimate
    """Above 0: over-rated."""


def length_bias(arrays: PairArrays, resamples: Resamples) -> LengthBias:
    """Return correlations of reward, length (log characters) and annotation within groups, and the partial one."""
    values = [
        _within_groups(values_N, arrays)
        for values_N in (arrays.reward_N, np.log1p(arrays.characters_N), arrays.worth_N)
    ]
    reward, length, worth = values
    products = np.stack([reward**2, length**2, worth**2, reward * length, worth * length, reward * worth], axis=1)
    cluster_N = resamples.cluster_Q[arrays.prompt_N]
    num_clusters = resamples.counts_BC.shape[1]
    sums_CM = np.stack([sums_by(cluster_N, column, num_clusters) for column in products.T], axis=1)
    drawn_B = _correlations(resamples.counts_BC @ on_a_grid(sums_CM, num_clusters))
    found = _correlations(products.sum(axis=0)[None])
    num_prompts = len(np.unique(arrays.prompt_N))

    def estimate(name: str) -> Estimate:
        value = float(found[name][0])
        if np.isnan(value):
            return NOTHING
        return Estimate(value, interval_of(value, drawn_B[name], num_prompts, is_share=False))

    return LengthBias(
        completions=len(arrays.reward_N),
        reward_and_length=estimate("reward_and_length"),
        annotation_and_length=estimate("annotation_and_length"),
        reward_and_annotation=estimate("reward_and_annotation"),
        partial=estimate("partial"),
    )


def feature_preferences(terms: PairTerms) -> list[FeaturePreference]:
    """Return one row for each feature that some pair differs in."""
    arrays = terms.arrays
    rows = []
    for number, feature in enumerate(arrays.features):
        has_N = arrays.features_NF[:, number]
        chosen_P, rejected_P = has_N[arrays.chosen_P], has_N[arrays.rejected_P]
        kept = np.flatnonzero(chosen_P != rejected_P)
        if not len(kept):
            continue
        model, annotators, excess = _preferences(terms, kept, chosen_P[kept])
        rows.append(
            FeaturePreference(
                feature=feature,
                completions=int(has_N.sum()),
                prompts=len(np.unique(arrays.prompt_P[kept])),
                pairs=len(kept),
                model_prefers=model,
                annotators_prefer=annotators,
                excess=excess,
                accuracy_where_rejected=terms.metrics(rejected_P & ~chosen_P, once=True).accuracy,
            )
        )
    return rows


def author_ratings(terms: PairTerms) -> list[AuthorRating]:
    """Return one row for each author of enough prompts, the most over-rated first."""
    arrays = terms.arrays
    chosen_P, rejected_P = arrays.author_N[arrays.chosen_P], arrays.author_N[arrays.rejected_P]
    prompts_of = _prompts_of_authors(arrays)
    largest = np.argsort(-prompts_of, kind="stable")[:MAX_AUTHORS]
    rows = []
    for author in largest[prompts_of[largest] >= MIN_PROMPTS_OF_AUTHOR].tolist():
        kept = np.flatnonzero((chosen_P == author) != (rejected_P == author))
        if not len(kept):
            continue
        model, annotators, excess = _preferences(terms, kept, chosen_P[kept] == author)
        rows.append(
            AuthorRating(
                author=arrays.authors[author],
                prompts=len(np.unique(arrays.prompt_P[kept])),
                pairs=len(kept),
                model_wins=model,
                annotator_wins=annotators,
                excess=excess,
            )
        )
    return sorted(rows, key=lambda row: (-(row.excess.value or 0.0), row.author))


def _preferences(terms: PairTerms, kept: Ints, is_chosen: Bools) -> tuple[Estimate, Estimate, Estimate]:
    """Return how often the model, and the annotators, prefer the marked side of each pair, and the difference."""
    arrays = terms.arrays
    weight, prompt = arrays.weight_P[kept], arrays.prompt_P[kept]
    model = np.where(is_chosen, terms.correct_P[kept], 1.0 - terms.correct_P[kept])
    annotators = is_chosen.astype(np.float64)
    ratio = terms.resamples.ratio
    return (
        ratio(weight * model, weight, prompt, is_share=True),
        ratio(weight * annotators, weight, prompt, is_share=True),
        ratio(weight * (model - annotators), weight, prompt),
    )


def _prompts_of_authors(arrays: PairArrays) -> Ints:
    known = arrays.author_N >= 0
    pairs = np.unique(np.stack([arrays.author_N[known], arrays.prompt_N[known]]), axis=1)
    return np.bincount(pairs[0], minlength=len(arrays.authors))


def _within_groups(values_N: Floats, arrays: PairArrays) -> Floats:
    sizes_G = np.maximum(arrays.num_completions_G, 1)
    mean_G = np.bincount(arrays.group_N, values_N, arrays.num_groups) / sizes_G
    return values_N - mean_G[arrays.group_N]


def _correlations(sums_BM: Floats) -> dict[str, Floats]:
    reward, length, worth, reward_length, worth_length, reward_worth = sums_BM.T
    with np.errstate(invalid="ignore", divide="ignore"):
        rl = reward_length / np.sqrt(reward * length)
        wl = worth_length / np.sqrt(worth * length)
        rw = reward_worth / np.sqrt(reward * worth)
        partial = (rl - rw * wl) / np.sqrt((1 - rw**2) * (1 - wl**2))
    return {
        "reward_and_length": rl,
        "annotation_and_length": wl,
        "reward_and_annotation": rw,
        "partial": np.where(np.isfinite(partial), partial, np.nan),
    }
