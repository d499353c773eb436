"""Counts of score values -> values that stand out: what a mistake of somebody's export looks like in a histogram.

Two tests, since one defect can escape one of them (UltraFeedback had 2,628 completions with score 10 that should have
been 1):

- A *second peak*: going from the value that is most frequent to this one, scores become rare, and then frequent again.
  Scores that a person or a model gives fall off from one peak; a default, a clipped or a misread value does not.
- *Out of order*: completions with this score come from models whose other scores are lower than those of the models
  behind the next lower value (or higher than those behind the next higher). A better score should come from better
  models on average; one that means something else does not.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MIN_COMPLETIONS = 20
"""A value that fewer completions have is no bulge, whatever it looks like."""
MIN_SHARE = 0.002
"""Nor is one that less of the scores have."""
PEAK_RATIO = 3.0
"""A second peak is at least this many times as frequent as what lies between it and the first."""
VALLEY_WIDTH = 1 / 8
"""Of the range of the scores: as wide as that is what has to be rare. So whole numbers among halves are no peaks."""
MIN_STANDARD_ERRORS = 5.0
MIN_DEVIATION = 0.25
"""Out of order: by at least so many standard errors, and this share of the standard deviation between models."""


class Bulge(msgspec.Struct, frozen=True, kw_only=True):
    """A value of the scores that stands out."""

    kind: Literal["second_peak", "out_of_order"]
    party: str
    """all, annotator, model or source: whose scores."""
    name: str | None
    value: float
    completions: int
    share: float
    """Of the party's scores."""
    expected: float
    """second_peak: the most that a value in the valley before it has; out_of_order: the mean that its neighbour has."""
    found: float
    """second_peak: the completions; out_of_order: the mean of the other scores of the models behind the value."""


def second_peaks(values: Floats, counts: NDArray[np.int64]) -> list[tuple[float, int, int]]:
    """Return (value, completions, most frequent value of the valley) of each second peak.

    Args:
        values: distinct values, ascending.
        counts: completions with each.
    """
    if len(values) < 3:
        return []
    width = VALLEY_WIDTH * (values[-1] - values[0])
    top = int(np.argmax(counts))
    found = []
    for index in np.flatnonzero((counts >= MIN_COMPLETIONS) & (counts >= MIN_SHARE * counts.sum())).tolist():
        low, high = min(index, top), max(index, top)
        valley = _lowest_window(values[low : high + 1], counts[low : high + 1], width)
        if valley is None or counts[index] < PEAK_RATIO * max(valley, 1):
            continue
        if _is_highest_nearby(index, values, counts, width):
            found.append((float(values[index]), int(counts[index]), valley))
    return found


def _lowest_window(values: Floats, counts: NDArray[np.int64], width: float) -> int | None:
    """Return the lowest maximum over windows strictly between the first and last value; None if none fits."""
    first, last = values[0], values[-1]
    # A window can start right after any value; what it holds up to its width is compared by its largest count.
    lowest = None
    for start in range(len(values) - 1):
        if values[start] + width >= last:
            break
        inside = (values > values[start]) & (values <= values[start] + width) & (values > first) & (values < last)
        largest = int(counts[inside].max(initial=0))
        lowest = largest if lowest is None else min(lowest, largest)
    return lowest


def _is_highest_nearby(index: int, values: Floats, counts: NDArray[np.int64], width: float) -> bool:
    near = np.abs(values - values[index]) <= width
    return counts[index] == counts[near].max()


def out_of_order(models: pa.Table) -> list[tuple[float, int, float, float]]:
    """Return (value, completions, mean score of the models behind it, the mean it should at least or at most have).

    Each value is held against an isotonic fit of the others, so that a wrong value does not make its neighbours wrong.

    Args:
        models: ``name``, ``value`` and ``completions`` of the scores by model.
    """
    codes = models["name"].combine_chunks().dictionary_encode().indices.to_numpy()
    value, count = models["value"].to_numpy(), models["completions"].to_numpy().astype(float)
    total_M, number_M = np.bincount(codes, value * count), np.bincount(codes, count)
    if len(number_M) < 2:
        return []
    # Of the other scores of the model: with its own score among them, a high one would look as it should by itself.
    others = (total_M[codes] - value) / np.maximum(number_M[codes] - 1, 1)
    values, index = np.unique(value, return_inverse=True)
    number_V = np.bincount(index, count)
    mean_V = np.bincount(index, count * others) / number_V
    deviation = float(np.sqrt(np.cov(total_M / number_M, fweights=number_M.astype(int))))
    enough = np.flatnonzero(number_V >= MIN_COMPLETIONS)
    found = []
    for place in enough.tolist():
        without = enough[enough != place]
        error = deviation / np.sqrt(number_V[place])
        slack = max(MIN_STANDARD_ERRORS * error, MIN_DEVIATION * deviation)
        expected = _violated(values, mean_V, number_V, place, without, slack)
        if expected is not None and number_V[place] >= MIN_SHARE * number_V.sum():
            found.append((float(values[place]), int(number_V[place]), float(mean_V[place]), expected))
    return found


def _violated(
    values: Floats,
    means: Floats,
    weights: Floats | NDArray[np.intp],
    place: int,
    others: NDArray[np.int64],
    slack: float,
) -> float | None:
    """Return the mean of the neighbour that a value is on the wrong side of, by more than the slack."""
    if not len(others) or slack == 0:
        return None
    fitted = isotonic(means[others].tolist(), weights[others].tolist())
    below, above = fitted[others < place], fitted[others > place]
    if len(below) and means[place] < below[-1] - slack:
        return float(below[-1])
    if len(above) and means[place] > above[0] + slack:
        return float(above[0])
    return None


def isotonic(means: Sequence[float], weights: Sequence[float]) -> Floats:
    """Return the not decreasing sequence nearest to ``means`` in weighted squares (pool adjacent violators)."""
    pools: list[list[float]] = []
    for mean, weight in zip(means, weights, strict=True):
        pools.append([mean, weight, 1])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (one, weight_one, size_one), (other, weight_other, size_other) = pools[-2:]
            joined = weight_one + weight_other
            pools[-2:] = [[(one * weight_one + other * weight_other) / joined, joined, size_one + size_other]]
    return np.concatenate([np.empty(0), *(np.full(int(size), mean) for mean, _, size in pools)])


def bulges(scores: pa.Table) -> list[Bulge]:
    """Return every bulge, those of all scores first, then those with the most completions.

    Args:
        scores: the sum ``scores``.
    """
    found = []
    for party, name, values, counts in _histograms(scores):
        for value, number, valley in second_peaks(values, counts):
            found.append(_bulge("second_peak", party, name, value, number, int(counts.sum()), valley, number))
    models = scores.filter(pc.field("party") == "model").drop_null()
    total = int(np.sum(models["completions"].to_numpy()))
    for value, number, mean, expected in out_of_order(models) if models.num_rows else []:
        found.append(_bulge("out_of_order", "all", None, value, number, total, expected, mean))
    return sorted(found, key=lambda bulge: (bulge.party != "all", -bulge.completions, bulge.name or ""))


def _histograms(scores: pa.Table) -> Iterator[tuple[str, str | None, Floats, NDArray[np.int64]]]:
    """Yield each party's name, its values, ascending, and how many completions have each; the unnamed are nobody."""
    ordered = scores.sort_by([("party", "ascending"), ("name", "ascending"), ("value", "ascending")])
    labels = list(zip(ordered["party"].to_pylist(), ordered["name"].to_pylist(), strict=True))
    values, counts = ordered["value"].to_numpy(), ordered["completions"].to_numpy()
    starts = [row for row, label in enumerate(labels) if row == 0 or label != labels[row - 1]]
    for start, end in pairwise([*starts, len(labels)]):
        party, name = labels[start]
        if party == "all" or name is not None:
            yield party, name, values[start:end], counts[start:end]


def _bulge(
    kind: Literal["second_peak", "out_of_order"],
    party: str,
    name: str | None,
    value: float,
    completions: int,
    total: int,
    expected: float,
    found: float,
) -> Bulge:
    return Bulge(
        kind=kind,
        party=party,
        name=name,
        value=value,
        completions=completions,
        share=completions / total,
        expected=expected,
        found=found,
    )
