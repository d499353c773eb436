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
"""Of the range of the scores: as wide as that is what has to be rare."""
MIN_CELLS = 2
"""And so many values of the scale: whole numbers among halves are no peaks."""
MAX_CELLS = 1000
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
    """Return (value, completions, most frequent cell of the valley) of each second peak.

    Values are put into cells as wide as the usual gap between two of them, so that a gap that nobody scored in counts
    as one.

    Args:
        values: distinct values of the whole table, ascending; also those that nobody of a party gave.
        counts: completions with each.
    """
    if len(values) < 3:
        return []
    span = values[-1] - values[0]
    step = max(float(np.median(np.diff(values))), span / MAX_CELLS)
    cell_V = np.rint((values - values[0]) / step).astype(np.int64)
    cells = np.bincount(cell_V, counts).astype(np.int64)
    width = max(MIN_CELLS, int(VALLEY_WIDTH * span / step))
    if len(cells) < width:
        return []
    largest = np.lib.stride_tricks.sliding_window_view(cells, width).max(axis=1)
    top = int(np.argmax(cells))
    found = []
    for cell in np.flatnonzero((cells >= MIN_COMPLETIONS) & (cells >= MIN_SHARE * cells.sum())).tolist():
        low, high = min(cell, top), max(cell, top)
        between = largest[low + 1 : max(high - width + 1, 0)]
        is_highest_nearby = cells[cell] == cells[max(cell - width, 0) : cell + width + 1].max()
        if len(between) and is_highest_nearby and cells[cell] >= PEAK_RATIO * max(int(between.min()), 1):
            value = values[cell_V == cell][np.argmax(counts[cell_V == cell])]
            found.append((float(value), int(cells[cell]), int(between.min())))
    return found


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
    """Yield each party's name, and how many completions have each value of the whole table; the unnamed are nobody."""
    ordered = scores.sort_by([("party", "ascending"), ("name", "ascending"), ("value", "ascending")])
    labels = list(zip(ordered["party"].to_pylist(), ordered["name"].to_pylist(), strict=True))
    grid, places = np.unique(ordered["value"].to_numpy(), return_inverse=True)
    numbers = ordered["completions"].to_numpy()
    starts = [row for row, label in enumerate(labels) if row == 0 or label != labels[row - 1]]
    for start, end in pairwise([*starts, len(labels)]):
        party, name = labels[start]
        if (party == "all" or name is not None) and numbers[start:end].max() >= MIN_COMPLETIONS:
            counts = np.zeros(len(grid), np.int64)
            counts[places[start:end]] = numbers[start:end]
            yield party, name, grid, counts


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
