"""Comparisons between models -> a strength for each with an interval: Bradley-Terry, ties as half a win. Pure numpy.

The fit needs only how often each two models met, and Newton's method ends in a handful of steps. Intervals need more:
the comparisons of one prompt share completions and often the annotator (nine completions give 36 comparisons, but nine
texts), so they come from how the strengths would move with each whole prompt (a sandwich estimate clustered by prompt:
Liang and Zeger 1986). That adds up over prompts and needs no refit, and is
what a bootstrap over prompts gives (real rankings, 200 refits: ratio of errors 0.91 to 1.09, median 1.00).

Models that nobody compared, even through others, have no common scale: each connected part is centred by itself.

Shapes: M models, D pairs of models that met.
"""

# ruff: noqa: N815 - shape suffixes, as above

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pairwright.data.profile.aggregates import counted

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PRIOR_GAMES = 1.0
"""Ties against a model of average strength that each model is given: one that won or lost everything stays finite."""
MAX_MODELS = 2000
"""Models with the most comparisons that are fitted: the fit holds a matrix of models x models."""
MIN_PROMPTS = 5
"""A model seen on fewer prompts gets no interval: too few to tell how far it varies between prompts."""
FEW_PROMPTS = 30
Z_95 = 1.959963984540054
_MAX_STEPS = 200
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Fit:
    """Bradley-Terry strengths: model i beats j with probability sigmoid(strength_i - strength_j).

    Attributes:
        names: the models, sorted.
        strength_M: log-odds, with mean 0 in each connected part.
        part_M: number of each model's connected part; 0 is the one with the most models.
        games_M: comparisons with other models.
        points_M: of these won, a tie being half.
        influence_MM: how much each centred strength moves with the score (the gradient) of each model.
    """

    names: list[str]
    strength_M: Floats
    part_M: Ints
    games_M: Floats
    points_M: Floats
    influence_MM: Floats


@dataclass(frozen=True, slots=True)
class Spread:
    """How much strengths vary with the prompts; adds over disjoint sets of prompts.

    Attributes:
        squared_M: sum over prompts of the squared move of each strength.
        prompts_M: prompts on which each model met another.
    """

    squared_M: Floats
    prompts_M: Ints

    def __add__(self, other: "Spread") -> "Spread":
        return Spread(self.squared_M + other.squared_M, self.prompts_M + other.prompts_M)


def most_compared(games: pa.Table) -> list[str]:
    """Return the MAX_MODELS models with the most comparisons, sorted by name.

    Args:
        games: the sum ``games``: ``one``, ``other``, ``games``, ``points``.
    """
    both = pa.concat_tables(
        [games.select([side, "games"]).rename_columns(["model", "games"]) for side in ("one", "other")]
    )
    added = both.group_by("model", use_threads=False).aggregate([("games", "sum")])
    top = added.sort_by([("games_sum", "descending"), ("model", "ascending")]).slice(0, MAX_MODELS)
    return sorted(top["model"].to_pylist())


def fit(games: pa.Table, names: list[str]) -> Fit:
    """Return the strengths that make the comparisons most likely, given PRIOR_GAMES ties with an average model each.

    Args:
        games: ``one``, ``other``, ``games``, ``points`` (2 for each win of ``one``, 1 for each tie), in any order.
        names: the models to fit, sorted; comparisons with others are left out.
    """
    one_D, other_D, games_D, points_D = _indexed(games, names)
    part_M = _connected_parts(one_D, other_D, len(names))
    theta_M = np.zeros(len(names))
    for _ in range(_MAX_STEPS):
        gradient_M, hessian_MM = _derivatives(theta_M, one_D, other_D, games_D, points_D)
        if np.abs(gradient_M).max(initial=0.0) < _TOLERANCE:
            break
        step_M: Floats = np.linalg.solve(hessian_MM, gradient_M).astype(np.float64)
        theta_M = _improved(theta_M, step_M, one_D, other_D, games_D, points_D)
    _, hessian_MM = _derivatives(theta_M, one_D, other_D, games_D, points_D)
    centring_MM = np.eye(len(names)) - (part_M[:, None] == part_M[None, :]) / np.bincount(part_M)[part_M][:, None]
    won_M, lost_M = np.zeros(len(names)), np.zeros(len(names))
    for index_D, points in ((one_D, points_D), (other_D, games_D - points_D)):
        np.add.at(won_M, index_D, points)
        np.add.at(lost_M, index_D, games_D - points)
    return Fit(
        names=names,
        strength_M=centring_MM @ theta_M,
        part_M=part_M,
        games_M=won_M + lost_M,
        points_M=won_M,
        influence_MM=centring_MM @ np.linalg.inv(hessian_MM) if len(names) else np.zeros((0, 0)),
    )


def spread_over_prompts(games: pa.Table, found: Fit) -> Spread:
    """Return how much each strength moves with each prompt, summed over prompts.

    Args:
        games: as for ``fit``, with ``prompt``: any number that tells prompts apart.
        found: the fit.
    """
    num_models = len(found.names)
    squared_M, prompts_M = np.zeros(num_models), np.zeros(num_models, np.int64)
    one_D, other_D, games_D, points_D = _indexed(games, found.names)
    if not len(one_D):
        return Spread(squared_M, prompts_M)
    kept = _known(games, found.names)
    prompt_D = games["prompt"].to_numpy()[kept]
    score_D = points_D - games_D * _sigmoid(found.strength_M[one_D] - found.strength_M[other_D])
    order = np.argsort(prompt_D, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(prompt_D[order])) + 1):
        models, index = np.unique(np.concatenate([one_D[rows], other_D[rows]]), return_inverse=True)
        score_m = np.bincount(index, np.concatenate([score_D[rows], -score_D[rows]]))
        squared_M += np.square(found.influence_MM[:, models] @ score_m)
        prompts_M[models] += 1
    return Spread(squared_M, prompts_M)


def standard_errors(found: Fit, spread: Spread) -> Floats:
    """Return the standard error of each strength, NaN for a model on fewer than MIN_PROMPTS prompts.

    Where a model was on few prompts (FEW_PROMPTS), at least what independent comparisons without ties would have: the
    error between prompts is too small where a handful of them decides, while ties make that other one too large.
    """
    num_M = np.maximum(spread.prompts_M, 2)
    between_M = spread.squared_M * num_M / (num_M - 1)
    same_part_MM = found.part_M[:, None] == found.part_M[None, :]
    mean_M = (found.influence_MM * same_part_MM).sum(axis=1) / np.maximum(np.bincount(found.part_M)[found.part_M], 1)
    independent_M = np.diag(found.influence_MM) - mean_M
    floor_M = np.where(spread.prompts_M < FEW_PROMPTS, independent_M, 0.0)
    error_M = np.sqrt(np.maximum(between_M, floor_M))
    return np.where(spread.prompts_M >= MIN_PROMPTS, error_M, np.nan)


def between_models(games: pa.Table) -> pa.Table:
    """Return games without their prompts: the sum ``games``, one row for each two models."""
    return counted("games", games.drop_columns(["prompt"]))


def _known(games: pa.Table, names: list[str]) -> NDArray[np.bool_]:
    known = pa.array(names, pa.string())
    one, other = (_index_in(games[side], known).is_valid().to_numpy() for side in ("one", "other"))
    return one & other


def _indexed(games: pa.Table, names: list[str]) -> tuple[Ints, Ints, Floats, Floats]:
    kept = games.filter(pa.array(_known(games, names)))
    known = pa.array(names, pa.string())
    one_D, other_D = (_index_in(kept[side], known).to_numpy().astype(np.int64) for side in ("one", "other"))
    return one_D, other_D, kept["games"].to_numpy().astype(float), kept["points"].to_numpy() / 2


def _index_in(column: pa.ChunkedArray, known: pa.Array) -> pa.ChunkedArray:
    return pc.call_function("index_in", [column], pc.SetLookupOptions(known))


def _connected_parts(one_D: Ints, other_D: Ints, num_models: int) -> Ints:
    """Return each model's part of the graph of who met whom, numbered from the largest."""
    label_M = np.arange(num_models)
    while True:
        before_M = label_M.copy()
        least_D = np.minimum(label_M[one_D], label_M[other_D])
        np.minimum.at(label_M, one_D, least_D)
        np.minimum.at(label_M, other_D, least_D)
        label_M = label_M[label_M]
        if np.array_equal(before_M, label_M):
            break
    labels, index_M, sizes = np.unique(label_M, return_inverse=True, return_counts=True)
    place = np.empty(len(labels), np.int64)
    place[np.argsort(-sizes, kind="stable")] = np.arange(len(labels))
    return place[index_M]


def _derivatives(
    theta_M: Floats, one_D: Ints, other_D: Ints, games_D: Floats, points_D: Floats
) -> tuple[Floats, Floats]:
    """Return the gradient of the log-likelihood, and minus its Hessian."""
    wins_D = _sigmoid(theta_M[one_D] - theta_M[other_D])
    prior_M = _sigmoid(theta_M)
    gradient_M = PRIOR_GAMES * (0.5 - prior_M)
    np.add.at(gradient_M, one_D, points_D - games_D * wins_D)
    np.add.at(gradient_M, other_D, games_D * wins_D - points_D)
    weight_D = games_D * wins_D * (1 - wins_D)
    hessian_MM = np.diag(PRIOR_GAMES * prior_M * (1 - prior_M))
    for rows, columns, sign in ((one_D, one_D, 1), (other_D, other_D, 1), (one_D, other_D, -1), (other_D, one_D, -1)):
        np.add.at(hessian_MM, (rows, columns), sign * weight_D)
    return gradient_M, hessian_MM


def _improved(theta_M: Floats, step_M: Floats, one_D: Ints, other_D: Ints, games_D: Floats, points_D: Floats) -> Floats:
    """Return theta a step further, halved until the likelihood does not fall."""
    before = _log_likelihood(theta_M, one_D, other_D, games_D, points_D)
    for _ in range(40):
        if _log_likelihood(theta_M + step_M, one_D, other_D, games_D, points_D) >= before:
            break
        step_M = step_M / 2
    return theta_M + step_M


def _log_likelihood(theta_M: Floats, one_D: Ints, other_D: Ints, games_D: Floats, points_D: Floats) -> float:
    difference_D = theta_M[one_D] - theta_M[other_D]
    comparisons = points_D * difference_D - games_D * np.logaddexp(0, difference_D)
    prior = PRIOR_GAMES * (0.5 * theta_M - np.logaddexp(0, theta_M))
    return float(comparisons.sum() + prior.sum())


def _sigmoid(values: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -values))
