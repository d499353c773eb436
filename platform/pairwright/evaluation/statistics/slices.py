"""Slices of the pairs, and the worst of them: those whose accuracy is lower than that of all other pairs, surely.

Many slices are looked at, so some are low by chance. A slice is named worst only where its difference from the rest
stays significant at 5 % after Holm's correction for the number of slices tested, and where it has 20 prompts or more.
"""

# ruff: noqa: N815 - shape suffixes, as in pair_arrays.py

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pairwright.evaluation.statistics.intervals import (
    Estimate,
    holm,
    interval_of,
    standard_error,
    two_sided_p,
)
from pairwright.evaluation.statistics.pair_arrays import Bools, Floats, PairArrays
from pairwright.evaluation.statistics.pair_metrics import PairTerms, PartMetrics

MIN_PROMPTS = 20
SIGNIFICANCE = 0.05
MAX_SLICES = 100
"""Of one kind: those of most pairs."""
_MINORITY, _SPLIT, _AGAINST = "minority", "split evenly", "0 or less"
_CONFLICTING = (_MINORITY, _SPLIT, _AGAINST)


@dataclass(frozen=True, slots=True)
class Slice:
    """Some pairs that have something in common."""

    kind: str
    name: str
    is_in_P: Bools
    once: bool = False
    """A group counts once in it, however many subsets it is in."""
    is_tested: bool = True
    """False where annotations contradict each other: no model could do better there."""


@dataclass(frozen=True, slots=True)
class WorstSlice:
    """A slice that is surely worse than the rest."""

    kind: str
    name: str
    prompts: int
    pairs: int
    accuracy: float
    accuracy_of_rest: float
    difference: Estimate
    p_value: float
    """Adjusted for the number of slices tested."""


def slices_of(arrays: PairArrays) -> Iterator[Slice]:
    """Yield every slice with a pair in it: by subset, completions, rank gap, margin, agreement, lengths, annotator."""
    yield from _by_name("subset", arrays.subsets_G, arrays, once=True)
    sizes = arrays.num_completions_G[arrays.group_P]
    for size in np.unique(sizes).tolist():
        yield Slice("num_completions", str(size), sizes == size)
    yield from _by_bounds("rank_gap", *_rank_gaps(arrays))
    yield from _by_bounds("margin", *_margins(arrays))
    yield from _by_bounds("agreement", *_agreement(arrays))
    yield from _by_bounds("length_difference", *_length_differences(arrays))
    yield from _by_bounds("prompt_length", *_prompt_lengths(arrays))
    yield from _by_name("annotator", arrays.annotators_G, arrays, once=False)


def worst_slices(terms: PairTerms, measured: list[tuple[Slice, PartMetrics]]) -> tuple[list[WorstSlice], int]:
    """Return the slices that are surely worse than the rest, the worst first, and how many were tested."""
    tested: list[tuple[Slice, PartMetrics, Estimate, float]] = []
    for one, metrics in measured:
        found = _difference_from_rest(terms, one) if one.is_tested and metrics.prompts >= MIN_PROMPTS else None
        if found is not None:
            tested.append((one, metrics, *found))
    adjusted = holm(np.array([p_value for *_, p_value in tested]))
    worst = [
        WorstSlice(
            kind=one.kind,
            name=one.name,
            prompts=metrics.prompts,
            pairs=metrics.pairs,
            accuracy=metrics.accuracy.value,
            accuracy_of_rest=metrics.accuracy.value - difference.value,
            difference=difference,
            p_value=float(p_value),
        )
        for (one, metrics, difference, _), p_value in zip(tested, adjusted, strict=True)
        if p_value < SIGNIFICANCE
        and metrics.accuracy.value is not None
        and difference.value is not None
        and difference.value < 0
    ]
    return sorted(worst, key=lambda row: (row.accuracy - row.accuracy_of_rest, row.kind, row.name)), len(tested)


def _difference_from_rest(terms: PairTerms, one: Slice) -> tuple[Estimate, float] | None:
    """Return accuracy in a slice minus accuracy in the rest, with its p-value; None where that cannot be said."""
    parts = []
    for is_in_P in (one.is_in_P, ~one.is_in_P):
        kept = np.flatnonzero(is_in_P)
        repeats = 1 if one.once else terms.arrays.repeats_P[kept]
        weight = terms.arrays.weight_P[kept] * repeats
        if not weight.sum() > 0:
            return None
        right = weight * terms.correct_P[kept]
        drawn_B, num_prompts = terms.resamples.ratios_of_resamples(right, weight, terms.arrays.prompt_P[kept])
        parts.append((float(right.sum() / weight.sum()), drawn_B, num_prompts))
    (inside, inside_B, num_prompts), (outside, outside_B, _) = parts
    value, drawn_B = inside - outside, inside_B - outside_B
    error = standard_error(drawn_B, num_prompts)
    if not error:
        return None
    interval = interval_of(value, drawn_B, num_prompts, is_share=False)
    return Estimate(value, interval), two_sided_p(value / error)


def _by_name(kind: str, names_G: Sequence[tuple[str, ...]], arrays: PairArrays, *, once: bool) -> Iterator[Slice]:
    groups: dict[str, list[int]] = {}
    for group, names in enumerate(names_G):
        for name in names:
            groups.setdefault(name, []).append(group)
    num_pairs_G = np.bincount(arrays.group_P, minlength=arrays.num_groups)
    largest = sorted(groups, key=lambda name: (-int(num_pairs_G[groups[name]].sum()), name))[:MAX_SLICES]
    for name in sorted(largest):
        is_in_G = np.zeros(arrays.num_groups, dtype=bool)
        is_in_G[groups[name]] = True
        is_in_P = is_in_G[arrays.group_P]
        if is_in_P.any():
            yield Slice(kind, name, is_in_P, once)


def _by_bounds(kind: str, values_P: Floats, bounds: list[tuple[float, float, str]]) -> Iterator[Slice]:
    """Yield a slice for each [low, high) with a pair in it; NaN is in none."""
    for low, high, name in bounds:
        is_in_P = (values_P >= low) & (values_P < high)
        if is_in_P.any():
            yield Slice(kind, name, is_in_P, is_tested=name not in _CONFLICTING)


def _rank_gaps(arrays: PairArrays) -> tuple[Floats, list[tuple[float, float, str]]]:
    gap_P = (arrays.rank_N[arrays.rejected_P] - arrays.rank_N[arrays.chosen_P]).astype(np.float64)
    bounds = [
        (-np.inf, 1, _AGAINST),
        (1, 2, "1"),
        (2, 3, "2"),
        (3, 4, "3"),
        (4, 6, "4 to 5"),
        (6, np.inf, "6 or more"),
    ]
    return gap_P, bounds


def _margins(arrays: PairArrays) -> tuple[Floats, list[tuple[float, float, str]]]:
    """Quarters of the margins that there are."""
    known = arrays.margin_P[~np.isnan(arrays.margin_P)]
    if not known.size:
        return arrays.margin_P, []
    edges = np.unique(np.quantile(known, [0.25, 0.5, 0.75]))
    lows, highs = [-np.inf, *edges.tolist()], [*edges.tolist(), np.inf]
    return arrays.margin_P, [(low, high, _between(low, high)) for low, high in zip(lows, highs, strict=True)]


def _agreement(arrays: PairArrays) -> tuple[Floats, list[tuple[float, float, str]]]:
    """Share of the weight of both directions of a pair that is on this one; groups of one annotator are in none."""
    width = len(arrays.group_N) + 1
    low_P, high_P = np.minimum(arrays.chosen_P, arrays.rejected_P), np.maximum(arrays.chosen_P, arrays.rejected_P)
    _, pair_P = np.unique(low_P * width + high_P, return_inverse=True)
    share_P = arrays.weight_P / np.bincount(pair_P, arrays.weight_P)[pair_P]
    several_G = np.array([len(names) > 1 for names in arrays.annotators_G], dtype=bool)
    share_P = np.where(several_G[arrays.group_P], share_P, np.nan)
    bounds = [(0, 0.5 - 1e-6, _MINORITY), (0.5 - 1e-6, 0.5 + 1e-6, _SPLIT)]
    return share_P, [*bounds, (0.5 + 1e-6, 1 - 1e-6, "majority"), (1 - 1e-6, np.inf, "all agree")]


def _length_differences(arrays: PairArrays) -> tuple[Floats, list[tuple[float, float, str]]]:
    """Length of the chosen text over that of the rejected one."""
    ratio_P = (arrays.characters_N[arrays.chosen_P] + 1.0) / (arrays.characters_N[arrays.rejected_P] + 1.0)
    ratio_P = np.where(arrays.longer_by_P == 0, 1.0, ratio_P)
    return ratio_P, [
        (0, 0.5, "chosen less than half as long"),
        (0.5, 1 / 1.1, "chosen shorter"),
        (1 / 1.1, 1.1, "within 10 %"),
        (1.1, 2, "chosen longer"),
        (2, np.inf, "chosen at least twice as long"),
    ]


def _prompt_lengths(arrays: PairArrays) -> tuple[Floats, list[tuple[float, float, str]]]:
    length_P = arrays.prompt_characters_G[arrays.group_P].astype(np.float64)
    edges = [0, 50, 100, 200, 500, 1000, 5000, np.inf]
    return length_P, [(low, high, f"{_between(low, high)} characters") for low, high in itertools.pairwise(edges)]


def _between(low: float, high: float) -> str:
    if low in (0, -np.inf):
        return f"below {high:,.4g}"
    return f"{low:,.4g} or more" if high == np.inf else f"{low:,.4g} to {high:,.4g}"
