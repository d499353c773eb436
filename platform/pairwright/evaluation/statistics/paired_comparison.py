"""Two models on the same pairs: the difference of their accuracies, its interval, its p-value, and where they differ.

The comparison is paired: both models answer every prompt, so the difference is far surer than either accuracy. The
p-value is of a sign-flip test over prompts: if the models were equally good, each prompt's difference could as well
have had the other sign.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pairwright.evaluation.statistics.intervals import MAX_CLUSTERS, SEED, Estimate, Resamples, on_a_grid
from pairwright.evaluation.statistics.pair_arrays import Floats, Ints, PairArrays, sums_by
from pairwright.evaluation.statistics.pair_metrics import correct

NUM_FLIPS = 10_000
_FLIPS_AT_ONCE = 500
_MOST = 1 << 15
"""Completions of a group: pairs hold int16 indices."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Accuracy of the second model minus that of the first."""

    pairs: int
    prompts: int
    first: Estimate
    second: Estimate
    difference: Estimate
    p_value: float | None
    disagreement: float | None
    """Share of the weight where exactly one of the two is right."""


def accuracy_of_runs(difference_RP: Floats) -> Floats:
    """Return how right each pair is, 0 to 1, the mean over the runs (seeds) of one model."""
    return correct(difference_RP).mean(axis=0)


def common_pairs(arrays: Sequence[PairArrays]) -> list[Ints]:
    """Return for each evaluation which of its pairs all of them have, in the same order.

    Models with other limits or tokenizers keep other completions of the same groups.
    """
    ids = sorted(set.intersection(*(set(one.group_ids) for one in arrays)))
    position = {name: index for index, name in enumerate(ids)}
    keys = []
    for one in arrays:
        group_G = np.array([position.get(name, -1) for name in one.group_ids], np.int64)
        group_P = group_G[one.group_P]
        key_P = (group_P * _MOST + one.index_N[one.chosen_P]) * _MOST + one.index_N[one.rejected_P]
        keys.append(np.where(group_P >= 0, key_P, -1))
    shared = keys[0]
    for key_P in keys[1:]:
        shared = np.intersect1d(shared, key_P)
    shared = np.unique(shared[shared >= 0])
    orders = [np.argsort(key_P, kind="stable") for key_P in keys]
    return [order[np.searchsorted(key_P[order], shared)] for key_P, order in zip(keys, orders, strict=True)]


def paired_difference(
    first_P: Floats, second_P: Floats, weight_P: Floats, prompt_P: Ints, resamples: Resamples
) -> PairedDifference:
    """Return the comparison of two models.

    Args:
        first_P: how right the first model is on each pair, 0 to 1.
        second_P: the same of the second.
        weight_P: of each pair.
        prompt_P: index of each pair's prompt.
        resamples: of these prompts.
    """
    total = float(weight_P.sum())
    apart_P = np.abs(first_P - second_P)
    return PairedDifference(
        pairs=len(weight_P),
        prompts=len(np.unique(prompt_P)),
        first=resamples.ratio(weight_P * first_P, weight_P, prompt_P, is_share=True),
        second=resamples.ratio(weight_P * second_P, weight_P, prompt_P, is_share=True),
        difference=resamples.ratio(weight_P * (second_P - first_P), weight_P, prompt_P),
        p_value=sign_flip_p(sums_by(prompt_P, weight_P * (first_P - second_P), 0)) if total else None,
        disagreement=float((weight_P * apart_P).sum() / total) if total else None,
    )


def sign_flip_p(difference_Q: Floats, *, num_flips: int = NUM_FLIPS, seed: int = SEED) -> float:
    """Return the two-sided p-value of a sum of differences, one a prompt; 1 where all are 0.

    The observed sum counts as one of the flips, so p is never 0 and the test keeps its level.
    """
    known = difference_Q[difference_Q != 0]
    if not known.size:
        return 1.0
    if known.size > MAX_CLUSTERS:
        known = sums_by(np.arange(known.size) % MAX_CLUSTERS, known, MAX_CLUSTERS)
    exact = on_a_grid(known[:, None], known.size)[:, 0]
    observed = abs(exact.sum())
    rng = np.random.Generator(np.random.PCG64(seed))
    as_far = 0
    for start in range(0, num_flips, _FLIPS_AT_ONCE):
        signs = rng.integers(0, 2, size=(min(_FLIPS_AT_ONCE, num_flips - start), exact.size)) * 2.0 - 1.0
        as_far += int((np.abs(signs @ exact) >= observed).sum())
    return (as_far + 1) / (num_flips + 1)
