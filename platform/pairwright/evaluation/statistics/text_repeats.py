"""Completions that stand under many prompts word for word, and what the model and the annotators think of them.

One text cannot be the best answer to many prompts. Where a model says so, it was taught by a judge that was fooled:
the adversarial string "NullModel" of AlpacaEval is one.
"""

from dataclasses import dataclass

import numpy as np

from pairwright.evaluation.statistics.intervals import Estimate
from pairwright.evaluation.statistics.pair_arrays import Floats, PairArrays
from pairwright.evaluation.statistics.pair_metrics import PairTerms, correct
from pairwright.evaluation.statistics.rank_correlation import groups_by_size

MIN_PROMPTS = 3
MAX_TEXTS = 50
SUSPECT_PROMPTS = 5
SUSPECT_WORTH = 0.75


@dataclass(frozen=True, slots=True)
class RepeatedText:
    """One text under several prompts."""

    completion: int
    """Index into N of its first completion."""
    prompts: int
    groups: int
    authors: list[str]
    model_worth: Estimate
    """Share of the group's other completions with a lower reward; equal is half."""
    annotated_worth: Estimate
    """Share of them that the annotations put below it."""
    model_best: Estimate
    """Share of the groups where no other completion has a higher reward."""
    accuracy_without: Estimate
    """The model's accuracy on the pairs that do not hold the text."""
    longer_wins_without: Estimate
    """The same of the rule that the longer text wins."""
    is_suspect: bool
    """Under 5 prompts or more, and above three quarters of the other completions by the model."""


def repeated_texts(terms: PairTerms) -> list[RepeatedText]:
    """Return the texts under most prompts, those that the model likes best first."""
    arrays = terms.arrays
    distinct = np.unique(np.stack([arrays.text_N, arrays.prompt_N]), axis=1)
    prompts_of = np.bincount(distinct[0]) if distinct.size else np.empty(0, np.int64)
    texts = np.flatnonzero(prompts_of >= MIN_PROMPTS)
    texts = texts[np.argsort(-prompts_of[texts], kind="stable")][:MAX_TEXTS]
    model_N = reward_worth(arrays)
    top_N = _is_top(arrays)
    rows = [_row(terms, text, int(prompts_of[text]), model_N, top_N) for text in texts.tolist()]
    return sorted(rows, key=lambda row: (not row.is_suspect, -(row.model_worth.value or 0.0), row.completion))


def reward_worth(arrays: PairArrays) -> Floats:
    """Return for each completion the share of its group's other completions with a lower reward; equal is half."""
    worth_N = np.full(len(arrays.reward_N), 0.5)
    for _, index_GK in groups_by_size(arrays):
        reward = arrays.reward_N[index_GK]
        size = reward.shape[1]
        if size > 1:
            wins = correct(reward[:, :, None] - reward[:, None, :]).sum(axis=2) - 0.5
            worth_N[index_GK] = wins / (size - 1)
    return worth_N


def _is_top(arrays: PairArrays) -> Floats:
    top_G = np.full(arrays.num_groups, -np.inf)
    np.maximum.at(top_G, arrays.group_N, arrays.reward_N)
    return (arrays.reward_N >= top_G[arrays.group_N]).astype(np.float64)


def _row(terms: PairTerms, text: int, num_prompts: int, model_N: Floats, top_N: Floats) -> RepeatedText:
    arrays, mean = terms.arrays, terms.resamples.mean
    rows = np.flatnonzero(arrays.text_N == text)
    prompt = arrays.prompt_N[rows]
    worth = mean(model_N[rows], prompt, is_share=True)
    holds_P = (arrays.text_N[arrays.chosen_P] == text) | (arrays.text_N[arrays.rejected_P] == text)
    rest = terms.metrics(~holds_P)
    authors = sorted({arrays.authors[author] for author in arrays.author_N[rows].tolist() if author >= 0})
    return RepeatedText(
        completion=int(rows[0]),
        prompts=num_prompts,
        groups=len(np.unique(arrays.group_N[rows])),
        authors=authors,
        model_worth=worth,
        annotated_worth=mean(arrays.worth_N[rows], prompt, is_share=True),
        model_best=mean(top_N[rows], prompt, is_share=True),
        accuracy_without=rest.accuracy,
        longer_wins_without=rest.longer_wins,
        is_suspect=num_prompts >= SUSPECT_PROMPTS and (worth.value or 0.0) >= SUSPECT_WORTH,
    )
