"""The rows of a report on annotators and models: each one's shares, agreement, and strength as a probability. Pure."""

from typing import Any, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa

from pairwright.data.profile.aggregates import Aggregates
from pairwright.data.profile.agreement import alpha
from pairwright.data.profile.bradley_terry import Fit, fit
from pairwright.data.profile.profile_schema import MAX_LISTED, Agreement, Annotator, Model, Models

Row: TypeAlias = dict[str, Any]


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
        same_direction=share(totals["untied_by_both"] - totals["opposite"], totals["untied_by_both"]),
    )


def annotator(row: Row) -> Annotator:
    """Return the shares of one row of the aggregate ``annotators``."""
    return Annotator(
        name=row["annotator"],
        annotations=row["annotations"],
        comparisons=row["comparisons"],
        ties=row["ties"],
        longer_wins=share(row["longer"], row["untied"]),
        shared=row["shared"],
        same=share(row["same"], row["shared"]),
        same_direction=share(row["untied_by_both"] - row["opposite"], row["untied_by_both"]),
        with_consensus=row["with_consensus"],
        against_consensus=share(row["against_consensus"], row["with_consensus"]),
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
