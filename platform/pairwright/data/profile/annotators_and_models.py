"""The rows of a report on annotators and models: each one's shares, agreement, and strength as a probability.

Strengths are Bradley-Terry's, fitted by Newton's method to the models' comparisons; a tie is half a win. Models that no
comparison connects, not even through others, have no common scale: each connected component is centred by itself.

Shapes: M models, D pairs of models that were compared.
"""

# ruff: noqa: N815 - shape suffixes, as above

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pairwright.data.profile.aggregates import Aggregates
from pairwright.data.profile.agreement import alpha
from pairwright.data.profile.profile_schema import (
    MAX_LISTED,
    Agreement,
    Annotator,
    AnnotatorRow,
    ContestedGroup,
    Model,
    Models,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PRIOR_TIES = 1.0
"""Ties with a model of average strength that each model is given, so that one that won everything stays finite."""
MAX_MODELS = 2000
"""Models with the most comparisons that are fitted: the fit holds a matrix of models x models."""
_MAX_STEPS = 200
_TOLERANCE = 1e-9
Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fit:
    """Bradley-Terry strengths: model i beats j with probability sigmoid(strength_i - strength_j).

    Attributes:
        names: the models, sorted.
        strength_M: log-odds, with mean 0 in each connected component.
        component_M: number of each model's connected component; 0 is the one with the most models.
        comparisons_M: comparisons with other models.
        points_M: of these won, a tie being half.
    """

    names: list[str]
    strength_M: Floats
    component_M: Ints
    comparisons_M: Floats
    points_M: Floats


def largest(table: pa.Table, column: str) -> list[Row]:
    """Return the MAX_LISTED rows with the most in a column."""
    return (
        table.sort_by([(column, "descending"), (table.column_names[0], "ascending")]).slice(0, MAX_LISTED).to_pylist()
    )


def share(part: float, whole: float) -> float | None:
    """Return part / whole, None where there is no whole."""
    return part / whole if whole else None


def agreement(aggregates: Aggregates, totals: dict[str, int]) -> Agreement:
    """Return how far annotators agree."""
    overall, by_size = alpha(aggregates["coincidences"]) if "coincidences" in aggregates else (None, {})
    return Agreement(
        shared_groups=sum(row["groups"] for row in aggregates["depth"].to_pylist() if row["num_annotations"] > 1),
        alpha=overall,
        alpha_by_num_completions={str(size): value for size, value in by_size.items()},
        same=share(totals["same"], totals["shared"]),
        same_direction=share(totals["decisive_by_both"] - totals["opposite"], totals["decisive_by_both"]),
    )


def contested(table: pa.Table) -> list[ContestedGroup]:
    """Return the groups of the aggregate ``contested``, the most opposed first; each pair of annotators counts once."""
    found = []
    for row in table.to_pylist():
        counts = {name: row[name] // 2 for name in ("opposite", "decisive_by_both")}
        facts = msgspec.json.decode(row["detail"]) | counts | {"group_id": row["group_id"]}
        found.append(msgspec.convert(facts, ContestedGroup))
    return sorted(found, key=lambda one: (-one.opposite / one.decisive_by_both, -one.opposite, one.group_id))


def rows_by_annotator(table: pa.Table) -> dict[str, list[AnnotatorRow]]:
    """Return the annotations in the aggregate ``annotator_rows`` by annotator, those most against the others first."""
    found: dict[str, list[AnnotatorRow]] = {}
    order = [("against_consensus", "descending"), ("id", "ascending")]
    for row in table.sort_by(order).to_pylist():
        counts = {name: row[name] for name in ("with_consensus", "against_consensus")}
        shown = msgspec.convert(msgspec.json.decode(row["detail"]) | counts, AnnotatorRow)
        found.setdefault(row["annotator"], []).append(shown)
    return found


def annotator(row: Row, rows: Sequence[AnnotatorRow] = ()) -> Annotator:
    """Return the shares of one row of the aggregate ``annotators``, with some annotations of theirs."""
    return Annotator(
        name=row["annotator"],
        annotations=row["annotations"],
        comparisons=row["comparisons"],
        ties=row["ties"],
        longer_wins=share(row["longer"], row["decisive"]),
        shared=row["shared"],
        same=share(row["same"], row["shared"]),
        same_direction=share(row["decisive_by_both"] - row["opposite"], row["decisive_by_both"]),
        with_consensus=row["with_consensus"],
        against_consensus=share(row["against_consensus"], row["with_consensus"]),
        rows=list(rows),
    )


def models_by_strength(models: pa.Table, matchups: pa.Table | None) -> Models:
    """Return the models, the strongest first, then those without a strength.

    Args:
        models: the aggregate ``models``.
        matchups: the aggregate ``matchups``; None where there is none.
    """
    written = {row["model"]: row for row in models.to_pylist()}
    found = fit(matchups) if matchups is not None and matchups.num_rows else None
    if found is None:
        listed = [_model(row) for row in largest(models, "completions")]
        return Models(number=len(written), components=[], not_fitted=len(written), listed=listed)
    by_strength = np.lexsort((-found.strength_M, found.component_M)).tolist()
    fitted = [_fitted(written[found.names[index]], found, index) for index in by_strength]
    others = [_model(row) for row in largest(models, "completions") if row["model"] not in set(found.names)]
    return Models(
        number=len(written),
        components=np.bincount(found.component_M).tolist(),
        not_fitted=len(written) - len(found.names),
        listed=[*fitted, *others][:MAX_LISTED],
    )


def _model(row: Row) -> Model:
    """Return a row of the aggregate ``models`` as a model without a strength."""
    return Model(
        name=row["model"],
        completions=row["completions"],
        mean_characters=row["characters"] / row["completions"],
        comparisons=0,
        points=None,
        component=None,
        strength=None,
        beats_average=None,
    )


def _fitted(row: Row, found: Fit, index: int) -> Model:
    strength = float(found.strength_M[index])
    return msgspec.structs.replace(
        _model(row),
        comparisons=int(found.comparisons_M[index]),
        points=float(found.points_M[index] / found.comparisons_M[index]),
        component=int(found.component_M[index]),
        strength=strength,
        beats_average=float(np.exp(-np.logaddexp(0, -strength))),
    )


def fit(matchups: pa.Table) -> Fit:
    """Return the strengths that make the comparisons most likely, given PRIOR_TIES with an average model each.

    Args:
        matchups: ``one``, ``other``, ``comparisons``, ``points`` (2 for each win of ``one``, 1 for each tie), in any
            order; comparisons with models beyond MAX_MODELS are left out.
    """
    matchups = matchups.sort_by([("one", "ascending"), ("other", "ascending")])  # sums are equal to the last bit
    names = _most_compared(matchups)
    one_D, other_D, num_D, points_D = _indexed(matchups, names)
    component_M = _connected_components(one_D, other_D, len(names))
    theta_M = np.zeros(len(names))
    for _ in range(_MAX_STEPS):
        gradient_M, hessian_MM = _derivatives(theta_M, one_D, other_D, num_D, points_D)
        if np.abs(gradient_M).max(initial=0.0) < _TOLERANCE:
            break
        step_M: Floats = np.linalg.solve(hessian_MM, gradient_M).astype(np.float64)
        theta_M = _improved(theta_M, step_M, one_D, other_D, num_D, points_D)
    centring_MM = (
        np.eye(len(names))
        - (component_M[:, None] == component_M[None, :]) / np.bincount(component_M)[component_M][:, None]
    )
    won_M, lost_M = np.zeros(len(names)), np.zeros(len(names))
    for index_D, points in ((one_D, points_D), (other_D, num_D - points_D)):
        np.add.at(won_M, index_D, points)
        np.add.at(lost_M, index_D, num_D - points)
    return Fit(
        names=names,
        strength_M=centring_MM @ theta_M,
        component_M=component_M,
        comparisons_M=won_M + lost_M,
        points_M=won_M,
    )


def _most_compared(matchups: pa.Table) -> list[str]:
    """Return the MAX_MODELS models with the most comparisons, sorted by name."""
    both = pa.concat_tables(
        [matchups.select([side, "comparisons"]).rename_columns(["model", "comparisons"]) for side in ("one", "other")]
    )
    added = both.group_by("model", use_threads=False).aggregate([("comparisons", "sum")])
    top = added.sort_by([("comparisons_sum", "descending"), ("model", "ascending")]).slice(0, MAX_MODELS)
    return sorted(top["model"].to_pylist())


def _indexed(matchups: pa.Table, names: list[str]) -> tuple[Ints, Ints, Floats, Floats]:
    known = pc.SetLookupOptions(pa.array(names, pa.string()))
    one, other = (pc.call_function("index_in", [matchups[side]], known) for side in ("one", "other"))
    kept = pc.call_function("and", [one.is_valid(), other.is_valid()])
    one_D, other_D = (side.filter(kept).to_numpy().astype(np.int64) for side in (one, other))
    rows = matchups.filter(kept)
    return one_D, other_D, rows["comparisons"].to_numpy().astype(float), rows["points"].to_numpy() / 2


def _connected_components(one_D: Ints, other_D: Ints, num_models: int) -> Ints:
    """Return each model's component of the graph of comparisons, numbered from the largest."""
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
    number = np.empty(len(labels), np.int64)
    number[np.argsort(-sizes, kind="stable")] = np.arange(len(labels))
    return number[index_M]


def _derivatives(theta_M: Floats, one_D: Ints, other_D: Ints, num_D: Floats, points_D: Floats) -> tuple[Floats, Floats]:
    """Return the gradient of the log-likelihood, and minus its Hessian."""
    wins_D = _sigmoid(theta_M[one_D] - theta_M[other_D])
    prior_M = _sigmoid(theta_M)
    gradient_M = PRIOR_TIES * (0.5 - prior_M)
    np.add.at(gradient_M, one_D, points_D - num_D * wins_D)
    np.add.at(gradient_M, other_D, num_D * wins_D - points_D)
    weight_D = num_D * wins_D * (1 - wins_D)
    hessian_MM = np.diag(PRIOR_TIES * prior_M * (1 - prior_M))
    for rows, columns, sign in ((one_D, one_D, 1), (other_D, other_D, 1), (one_D, other_D, -1), (other_D, one_D, -1)):
        np.add.at(hessian_MM, (rows, columns), sign * weight_D)
    return gradient_M, hessian_MM


def _improved(theta_M: Floats, step_M: Floats, one_D: Ints, other_D: Ints, num_D: Floats, points_D: Floats) -> Floats:
    """Return theta a step further, halved until the likelihood does not fall."""
    before = _log_likelihood(theta_M, one_D, other_D, num_D, points_D)
    for _ in range(40):
        if _log_likelihood(theta_M + step_M, one_D, other_D, num_D, points_D) >= before:
            break
        step_M = step_M / 2
    return theta_M + step_M


def _log_likelihood(theta_M: Floats, one_D: Ints, other_D: Ints, num_D: Floats, points_D: Floats) -> float:
    difference_D = theta_M[one_D] - theta_M[other_D]
    comparisons = points_D * difference_D - num_D * np.logaddexp(0, difference_D)
    prior = PRIOR_TIES * (0.5 * theta_M - np.logaddexp(0, theta_M))
    return float(comparisons.sum() + prior.sum())


def _sigmoid(values: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -values))
