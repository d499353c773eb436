"""Counts the annotations of whole prompts for a report: sizes, ties, lengths, scores, growth, matchups of models.

One loop over blocks of matrices. What each block counts is added up by key at once, so that a task returns a few small
tables however many annotations it counts.
"""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pairwright.data.identity import drop_duplicates
from pairwright.data.profile.aggregates import Aggregates, add_up
from pairwright.data.profile.agreement import AGREEMENT, agreement_counts, coincidences, examples
from pairwright.data.profile.compact_rows import compact_rows
from pairwright.data.profile.comparison_blocks import (
    AnnotationArrays,
    Block,
    Ints,
    annotation_arrays,
    comparison_blocks,
)
from pairwright.data.profile.suspicious import score_counts, suspicion_counts, wins_and_losses

STEPS_PER_OCTAVE = 8
"""Lengths are counted in steps of a factor 2^(1/8): quantiles within 5 %."""
RATIO_STEPS_PER_OCTAVE = 2
MAX_RATIO_STEP = 8
"""Lengths that differ by a factor of 16 or more are one class."""
NUM_TOP_PROMPTS = 20
SCORE_DIGITS = 3

COUNTS = (
    "comparisons",
    "decisive",
    "ties",
    "longer",
    "shorter",
    "identical",
    "identical_ties",
)
"""Counted for each annotation: its decisive comparisons, and those that the longer or the shorter completion won."""

_Tables = dict[str, list[pa.Table]]


def count(annotations: pa.Table, versions: Mapping[str, int]) -> Aggregates:
    """Return the aggregates of annotations.

    Args:
        annotations: rows in ANNOTATIONS_SCHEMA, in any order; every prompt has all of its annotations here.
        versions: URI of a source -> first version of the table that had it; 0 for one that is not there.

    Raises:
        DataError: if annotations of one group list different texts.
    """
    annotations, num_repeated = drop_duplicates(annotations)
    arrays = annotation_arrays(compact_rows(annotations, versions))
    tables: _Tables = defaultdict(list)
    names = (*COUNTS, *AGREEMENT, "scored", "against_scores")
    per_annotation = {name: np.zeros(arrays.rows.num_rows, np.int64) for name in names}
    wins_N, losses_N = np.zeros_like(arrays.ranks_N), np.zeros_like(arrays.ranks_N)
    conflicting = 0
    for block in comparison_blocks(arrays):
        for name, values_A in (_block_counts(block) | agreement_counts(block) | score_counts(block)).items():
            per_annotation[name][block.rows_A] = values_A
        wins_N[block.index_AK], losses_N[block.index_AK] = wins_and_losses(block)
        conflicting += _num_conflicting(block)
        tables["lengths"].append(_lengths(block))
        tables["ratios"].append(_ratios(block))
        tables["matchups"].append(_matchups(block, arrays.model_names))
        tables["coincidences"].append(coincidences(block))
    facts = _facts(arrays, per_annotation)
    tables |= {
        "totals": [_totals(arrays, per_annotation, conflicting, num_repeated)],
        "sizes": [facts.select(["subset", "num_completions", "annotations", "groups", "groups_of_subset", *COUNTS])],
        "tied_shares": [_tied_shares(per_annotation)],
        "depth": [_depth(arrays)],
        "annotators": [facts.select(["annotator", "annotations", *COUNTS, *AGREEMENT])],
        "models": [_models(arrays)],
        "scores": [_scores(arrays)],
        "growth": [_growth(arrays)],
        "prompts": [_prompts(arrays)],
        **{name: [table] for name, table in examples(annotations, arrays, per_annotation).items()},
        **{name: [table] for name, table in suspicion_counts(arrays, per_annotation, wins_N, losses_N).items()},
    }
    return {name: add_up(name, pa.concat_tables(held)) for name, held in tables.items() if held}


# --------------------------------------------------------------------------------------------- one block


def _block_counts(block: Block) -> dict[str, Ints]:
    decisive_AP = block.outcome_AP != 0
    return {
        "comparisons": np.full(len(block.rows_A), len(block.first_P)),
        "decisive": decisive_AP.sum(axis=1),
        "ties": (~decisive_AP).sum(axis=1),
        "longer": (block.outcome_AP * block.longer_AP > 0).sum(axis=1),
        "shorter": (block.outcome_AP * block.longer_AP < 0).sum(axis=1),
        "identical": (decisive_AP & block.identical_AP).sum(axis=1),
        "identical_ties": (~decisive_AP & block.identical_AP).sum(axis=1),
    }


def _num_conflicting(block: Block) -> int:
    """Return how many pairs of completions were ranked both ways round, the number that `expand` reports too."""
    first_GP = block.sum_by_group(block.outcome_AP > 0)
    second_GP = block.sum_by_group(block.outcome_AP < 0)
    return int(((first_GP > 0) & (second_GP > 0) & ~block.identical_AP[block.starts_G]).sum())


def _lengths(block: Block) -> pa.Table:
    """Count completions by rank and length, of the annotations that prefer something."""
    prefers_A = block.ranks_AK.max(axis=1) > 1
    lengths = block.lengths_AK[prefers_A].ravel()
    return pa.table(
        {
            "rank": block.ranks_AK[prefers_A].ravel(),
            "step": _steps(np.maximum(lengths, 1), STEPS_PER_OCTAVE),
            "completions": np.ones_like(lengths),
            "characters": lengths,
        }
    )


def _ratios(block: Block) -> pa.Table:
    """Count decisive comparisons by how many times longer the longer one is, and those that it won."""
    rows, columns = np.nonzero((block.outcome_AP != 0) & (block.longer_AP != 0))
    one = block.lengths_AK[rows, block.first_P[columns]]
    other = block.lengths_AK[rows, block.second_P[columns]]
    ratio = np.maximum(one, other) / np.maximum(np.minimum(one, other), 1)
    won = block.outcome_AP[rows, columns] == block.longer_AP[rows, columns]
    step = np.minimum(_steps(ratio, RATIO_STEPS_PER_OCTAVE), MAX_RATIO_STEP)
    return pa.table({"step": step, "decisive": np.ones_like(step), "longer": won.astype(np.int64)})


def _matchups(block: Block, model_names: pa.Array) -> pa.Table:
    """Return the comparisons between two models, of which ``one`` is the first by name.

    ``points`` are those of ``one``: 2 for a win and 1 for a tie, so that they are integers.
    """
    first_AP, second_AP = block.models_AK[:, block.first_P], block.models_AK[:, block.second_P]
    rows, columns = np.nonzero((first_AP >= 0) & (second_AP >= 0) & (first_AP != second_AP) & ~block.identical_AP)
    one, other = first_AP[rows, columns], second_AP[rows, columns]
    points = 1 + block.outcome_AP[rows, columns].astype(np.int64)
    by_name = np.argsort(np.array(model_names.to_pylist(), dtype=object), kind="stable").argsort()
    is_swapped = by_name[one] > by_name[other]
    table = pa.table(
        {
            "one": np.where(is_swapped, other, one),
            "other": np.where(is_swapped, one, other),
            "comparisons": np.ones_like(points),
            "points": np.where(is_swapped, 2 - points, points),
        }
    )
    added = add_up("matchups", table)
    names = [model_names.take(added[side].combine_chunks()).cast(pa.string()) for side in ("one", "other")]
    return pa.table([*names, added["comparisons"], added["points"]], names=added.column_names)


def _steps(values: NDArray, per_octave: int) -> Ints:
    """Return the step of each value on a scale of factors: step s holds 2^(s / per_octave) up to the next."""
    return np.floor(np.log2(values) * per_octave + 1e-9).astype(np.int64)


def _codes(column: pa.ChunkedArray) -> Ints:
    """Return an integer for each name: equal names, equal integers; -1 where there is none."""
    codes = column.combine_chunks().dictionary_encode().indices.fill_null(-1)
    return codes.to_numpy(zero_copy_only=False).astype(np.int64)


# -------------------------------------------------------------------------------------- all annotations


def _facts(arrays: AnnotationArrays, per_annotation: dict[str, Ints]) -> pa.Table:
    """Return one row an annotation: who, where, and what was counted; a group counts once in each of its subsets."""
    ones = np.ones(arrays.rows.num_rows, np.int64)
    is_first_A = np.diff(arrays.group_A, prepend=-1) != 0
    subset_A = _codes(arrays.rows["subset"])
    is_first_of_subset_A = np.zeros(len(ones), dtype=bool)
    is_first_of_subset_A[np.unique(np.stack([arrays.group_A, subset_A]), axis=1, return_index=True)[1]] = True
    return pa.table(
        {
            "annotator": arrays.rows["annotator"],
            "subset": arrays.rows["subset"],
            "num_completions": np.diff(arrays.starts_A),
            "annotations": ones,
            "groups": is_first_A.astype(np.int64),
            "groups_of_subset": is_first_of_subset_A.astype(np.int64),
            **per_annotation,
        }
    )


def _totals(arrays: AnnotationArrays, per_annotation: dict[str, Ints], conflicting: int, num_repeated: int) -> pa.Table:
    totals = {
        "annotations": arrays.rows.num_rows,
        "duplicates": num_repeated,
        "groups": len(np.unique(arrays.group_A)),
        "prompts": len(np.unique(arrays.prompt_A)),
        "completions": len(arrays.ranks_N),
        "characters": int(arrays.lengths_N.sum()),
        "conflicting": conflicting,
        "annotations_of_one_again": int((~arrays.is_rater_A).sum()),
        **{name: int(values.sum()) for name, values in per_annotation.items()},
    }
    return pa.table({"name": list(totals), "count": pa.array(totals.values(), pa.int64())})


def _tied_shares(per_annotation: dict[str, Ints]) -> pa.Table:
    """Count annotations by the share of their comparisons that are ties: none, tenths, all."""
    ties, comparisons = per_annotation["ties"], per_annotation["comparisons"]
    tenth = np.where(ties == 0, -1, np.where(ties == comparisons, 10, 10 * ties // np.maximum(comparisons, 1)))
    return pa.table({"tenth": tenth, "annotations": np.ones_like(tenth)})


def _depth(arrays: AnnotationArrays) -> pa.Table:
    """Count groups by how many annotations they have."""
    num_G = np.bincount(arrays.group_A).astype(np.int64)
    return pa.table({"num_annotations": num_G, "groups": np.ones_like(num_G)})


def _models(arrays: AnnotationArrays) -> pa.Table:
    named = arrays.models_N >= 0
    codes, lengths = arrays.models_N[named], arrays.lengths_N[named]
    table = pa.table({"model": codes, "completions": np.ones_like(codes), "characters": lengths})
    added = table.group_by("model", use_threads=False).aggregate([("completions", "sum"), ("characters", "sum")])
    return pa.table(
        {
            "model": arrays.model_names.take(added["model"].combine_chunks()),
            "completions": added["completions_sum"],
            "characters": added["characters_sum"],
        }
    )


def _scores(arrays: AnnotationArrays) -> pa.Table:
    """Count scores by model and value (three significant digits)."""
    scored = np.flatnonzero(np.isfinite(arrays.scores_N))
    codes = arrays.models_N[scored]
    return pa.table(
        {
            "model": arrays.model_names.take(pa.array(codes, mask=codes < 0)).cast(pa.string()),
            "value": _rounded(arrays.scores_N[scored]),
            "completions": np.ones(len(scored), np.int64),
        }
    )


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    distinct, index = np.unique(values, return_inverse=True)
    rounded = [float(f"{value:.{SCORE_DIGITS}g}") + 0.0 for value in distinct.tolist()]  # + 0.0: no -0
    return np.array(rounded, np.float64)[index]


def _growth(arrays: AnnotationArrays) -> pa.Table:
    """Count annotations by the version that brought them, and groups and prompts by the first that had one of them."""
    version_A = arrays.rows["version"].to_numpy()
    num_prompts = arrays.prompt_A[-1] + 1 if len(arrays.prompt_A) else 0
    num_groups = arrays.group_A[-1] + 1 if len(arrays.group_A) else 0
    first_G, first_R = np.full(num_groups, np.iinfo(np.int64).max), np.full(num_prompts, np.iinfo(np.int64).max)
    np.minimum.at(first_G, arrays.group_A, version_A)
    np.minimum.at(first_R, arrays.prompt_A, version_A)
    versions = np.unique(version_A)
    return pa.table(
        {
            "version": versions,
            "annotations": _matches(version_A, versions),
            "groups": _matches(first_G, versions),
            "prompts": _matches(first_R, versions),
        }
    )


def _matches(values: Ints, versions: Ints) -> Ints:
    return np.bincount(np.searchsorted(versions, values), minlength=len(versions)).astype(np.int64)


def _prompts(arrays: AnnotationArrays) -> pa.Table:
    """Return the prompts with the most annotations; a prompt is whole here, so the tops of all parts hold the top."""
    num_R = np.bincount(arrays.prompt_A).astype(np.int64)
    first_R = np.flatnonzero(np.diff(arrays.prompt_A, prepend=-1))
    groups_R = np.bincount(arrays.prompt_A[np.flatnonzero(np.diff(arrays.group_A, prepend=-1))], minlength=len(num_R))
    top = np.argsort(-num_R, kind="stable")[:NUM_TOP_PROMPTS]
    heads = arrays.rows.select(["prompt_id", "prompt"]).take(pa.array(first_R[top], pa.int64()))
    return heads.append_column("annotations", pa.array(num_R[top])).append_column(
        "groups", pa.array(groups_R[top].astype(np.int64))
    )
