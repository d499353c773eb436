"""Sums of a report -> the rows on annotators and models: shares of what each did, strengths as probabilities. Pure."""

# ruff: noqa: N815 - shape suffixes: M models

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pairwright.data.profile.aggregates import Sums
from pairwright.data.profile.agreement import alpha
from pairwright.data.profile.bradley_terry import Z_95, Fit
from pairwright.data.profile.profile_schema import MAX_LISTED, Agreement, Annotator, Model, Models

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Strengths:
    """Bradley-Terry strengths of the models with their standard errors, NaN where there is none."""

    fit: Fit
    standard_error_M: NDArray[np.float64]
    prompts_M: NDArray[np.int64]


def largest(table: pa.Table, column: str) -> list[Row]:
    """Return the MAX_LISTED rows with the most in a column."""
    return (
        table.sort_by([(column, "descending"), (table.column_names[0], "ascending")]).slice(0, MAX_LISTED).to_pylist()
    )


def share(part: float, whole: float) -> float | None:
    """Return part / whole, None where there is no whole."""
    return part / whole if whole else None


def agreement(sums: Sums, totals: dict[str, int]) -> Agreement:
    """Return how far annotators agree."""
    overall, by_size = alpha(sums["coincidences"]) if "coincidences" in sums else (None, {})
    return Agreement(
        shared_groups=sum(row["groups"] for row in sums["depth"].to_pylist() if row["num_annotations"] > 1),
        alpha=overall,
        alpha_by_num_completions={str(size): value for size, value in by_size.items()},
        same=share(totals["same"], totals["shared"]),
        same_direction=share(totals["untied_by_both"] - totals["opposite"], totals["untied_by_both"]),
    )


def annotator(row: Row) -> Annotator:
    """Return the shares of one row of the sum ``annotators``."""
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


def models_by_strength(table: pa.Table, strengths: Strengths | None) -> Models:
    """Return the models, the strongest first, then those without a strength."""
    written = {row["model"]: row for row in table.to_pylist()}
    fitted = [] if strengths is None else [_fitted(strengths, place, written) for place in _by_strength(strengths)]
    known = set() if strengths is None else set(strengths.fit.names)
    others = [row for row in largest(table, "completions") if row["model"] not in known]
    parts = [] if strengths is None else np.bincount(strengths.fit.part_M).tolist()
    listed = [*fitted, *(_unfitted(row) for row in others)][:MAX_LISTED]
    return Models(number=len(written), parts=parts, not_fitted=len(written) - len(known), listed=listed)


def _by_strength(strengths: Strengths) -> list[int]:
    return np.lexsort((-strengths.fit.strength_M, strengths.fit.part_M)).tolist()


def _fitted(strengths: Strengths, place: int, written: dict[str, Row]) -> Model:
    found = strengths.fit
    strength, error = float(found.strength_M[place]), float(strengths.standard_error_M[place])
    row = written[found.names[place]]
    known = bool(np.isfinite(error))
    return Model(
        name=row["model"],
        completions=row["completions"],
        mean_characters=row["characters"] / row["completions"],
        comparisons=int(found.games_M[place]),
        prompts=int(strengths.prompts_M[place]),
        points=float(found.points_M[place] / found.games_M[place]),
        part=int(found.part_M[place]),
        strength=strength,
        standard_error=error if known else None,
        beats_average=_probability(strength),
        low=_probability(strength - Z_95 * error) if known else None,
        high=_probability(strength + Z_95 * error) if known else None,
    )


def _unfitted(row: Row) -> Model:
    return Model(
        name=row["model"],
        completions=row["completions"],
        mean_characters=row["characters"] / row["completions"],
        comparisons=0,
        prompts=0,
        points=None,
        part=None,
        strength=None,
        standard_error=None,
        beats_average=None,
        low=None,
        high=None,
    )


def _probability(strength: float) -> float:
    return float(np.exp(-np.logaddexp(0, -strength)))
