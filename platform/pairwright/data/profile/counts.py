"""Judgements of whole groups -> the sums of a report: sizes, ties, lengths, scores, growth, who compared with whom.

One pass over blocks of matrices; what each block counts is added up by key at once, so a partition of any size ends as
a few small tables.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pairwright.data.profile.aggregates import Sums, counted
from pairwright.data.profile.agreement import AGREEMENT, agreement_counts, coincidences
from pairwright.data.profile.comparison_blocks import Block, Ints, Judgements, blocks, judgements
from pairwright.data.profile.suspicious import score_counts, suspicious_sums, wins_and_losses

STEPS_PER_OCTAVE = 8
"""Lengths are counted in steps of a factor 2^(1/8): quantiles within 5 %."""
RATIO_STEPS_PER_OCTAVE = 2
MAX_RATIO_STEP = 8
"""Lengths that differ by a factor of 16 or more are one class."""
NUM_TOP_PROMPTS = 20
SCORE_DIGITS = 3

COUNTS = (
    "comparisons",
    "untied",
    "ties",
    "longer",
    "shorter",
    "identical",
    "identical_ties",
)
"""Counted for each annotation: of its comparisons, the untied, those that the longer or the shorter completion won."""

_Tables = dict[str, list[pa.Table]]


@dataclass(frozen=True, slots=True)
class Counted:
    """What a report counts of some groups.

    Attributes:
        sums: additive.
        games: comparisons between models, one row for each prompt and two models; see ``games_of``.
    """

    sums: Sums
    games: pa.Table


def count(rows: pa.Table) -> Counted:
    """Return the sums of REPORT_ROWS that hold every annotation of each of their prompts.

    Raises:
        DataError: if annotations of one group list different texts.
    """
    found = judgements(rows)
    tables: _Tables = defaultdict(list)
    names = (*COUNTS, *AGREEMENT, "scored", "against_scores")
    per_annotation = {name: np.zeros(found.rows.num_rows, np.int64) for name in names}
    wins_N, losses_N = np.zeros_like(found.ranks_N), np.zeros_like(found.ranks_N)
    contradicted = 0
    for block in blocks(found):
        for name, values_A in (_block_counts(block) | agreement_counts(block) | score_counts(block)).items():
            per_annotation[name][block.rows_A] = values_A
        wins_N[block.index_AK], losses_N[block.index_AK] = wins_and_losses(block)
        contradicted += _contradicted(block)
        tables["lengths"].append(_lengths(block))
        tables["ratios"].append(_ratios(block))
        tables["games"].append(_games(block, found))
        tables["coincidences"].append(coincidences(block))
    facts = _facts(found, per_annotation)
    tables |= {
        "totals": [_totals(found, per_annotation, contradicted)],
        "sizes": [_sizes(facts)],
        "tied_shares": [_tied_shares(per_annotation)],
        "depth": [_depth(found)],
        "annotators": [_annotators(facts)],
        "models": [_models(found)],
        "scores": [_scores(found)],
        "growth": [_growth(found)],
        "prompts": [_prompts(found)],
        **{name: [table] for name, table in suspicious_sums(found, per_annotation, wins_N, losses_N).items()},
    }
    games = tables.pop("games", [])
    sums = {name: counted(name, pa.concat_tables(held)) for name, held in tables.items() if held}
    return Counted(sums=sums, games=pa.concat_tables(games) if games else _no_games())


# --------------------------------------------------------------------------------------------- one block


def _block_counts(block: Block) -> dict[str, Ints]:
    untied_AP = block.outcome_AP != 0
    return {
        "comparisons": np.full(len(block.rows_A), len(block.first_P)),
        "untied": untied_AP.sum(axis=1),
        "ties": (~untied_AP).sum(axis=1),
        "longer": (block.outcome_AP * block.longer_AP > 0).sum(axis=1),
        "shorter": (block.outcome_AP * block.longer_AP < 0).sum(axis=1),
        "identical": (untied_AP & block.identical_AP).sum(axis=1),
        "identical_ties": (~untied_AP & block.identical_AP).sum(axis=1),
    }


def _contradicted(block: Block) -> int:
    """Return how many pairs of completions were put both ways round, the same number that `expand` reports."""
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
    """Count untied comparisons by how many times longer the longer one is, and those that it won."""
    rows, columns = np.nonzero((block.outcome_AP != 0) & (block.longer_AP != 0))
    one = block.lengths_AK[rows, block.first_P[columns]]
    other = block.lengths_AK[rows, block.second_P[columns]]
    ratio = np.maximum(one, other) / np.maximum(np.minimum(one, other), 1)
    won = block.outcome_AP[rows, columns] == block.longer_AP[rows, columns]
    step = np.minimum(_steps(ratio, RATIO_STEPS_PER_OCTAVE), MAX_RATIO_STEP)
    return pa.table({"step": step, "untied": np.ones_like(step), "longer": won.astype(np.int64)})


def _games(block: Block, found: Judgements) -> pa.Table:
    """Return the comparisons between two models, the one that comes first by name first, added up by prompt.

    ``points`` are those of the first: 2 for a win and 1 for a tie, so that they stay whole; it wins ``points / 2`` of
    ``games``.
    """
    first_AP, second_AP = block.models_AK[:, block.first_P], block.models_AK[:, block.second_P]
    rows, columns = np.nonzero((first_AP >= 0) & (second_AP >= 0) & (first_AP != second_AP) & ~block.identical_AP)
    one, other = first_AP[rows, columns], second_AP[rows, columns]
    points = 1 + block.outcome_AP[rows, columns].astype(np.int64)
    by_name = np.argsort(np.array(found.model_names.to_pylist(), dtype=object), kind="stable").argsort()
    swapped = by_name[one] > by_name[other]
    prompt = found.prompt_A[block.rows_A[rows]]
    table = pa.table(
        {
            "prompt": prompt,
            "one": np.where(swapped, other, one),
            "other": np.where(swapped, one, other),
            "games": np.ones_like(points),
            "points": np.where(swapped, 2 - points, points),
        }
    )
    added = table.group_by(["prompt", "one", "other"], use_threads=False).aggregate(
        [("games", "sum"), ("points", "sum")]
    )
    names = found.model_names
    return pa.table(
        {
            "prompt": added["prompt"].cast(pa.int64()),
            "one": names.take(added["one"].combine_chunks()),
            "other": names.take(added["other"].combine_chunks()),
            "games": added["games_sum"],
            "points": added["points_sum"],
        }
    )


def _no_games() -> pa.Table:
    fields = [("prompt", pa.int64()), ("one", pa.string()), ("other", pa.string())]
    return pa.schema([*fields, ("games", pa.int64()), ("points", pa.int64())]).empty_table()


def _steps(values: NDArray, per_octave: int) -> Ints:
    """Return the step of each value on a scale of factors: step s holds 2^(s / per_octave) up to the next."""
    return np.floor(np.log2(values) * per_octave + 1e-9).astype(np.int64)


def _codes(column: pa.ChunkedArray) -> Ints:
    """Return an integer for each name: equal names, equal integers; -1 where there is none."""
    codes = column.combine_chunks().dictionary_encode().indices.fill_null(-1)
    return codes.to_numpy(zero_copy_only=False).astype(np.int64)


# -------------------------------------------------------------------------------------- all annotations


def _facts(found: Judgements, per_annotation: dict[str, Ints]) -> pa.Table:
    """Return one row an annotation: who, where, and what was counted; a group counts once in each of its subsets."""
    ones = np.ones(found.rows.num_rows, np.int64)
    is_first_A = np.diff(found.group_A, prepend=-1) != 0
    subset_A = _codes(found.rows["subset"])
    is_first_of_subset_A = np.zeros(len(ones), dtype=bool)
    is_first_of_subset_A[np.unique(np.stack([found.group_A, subset_A]), axis=1, return_index=True)[1]] = True
    return pa.table(
        {
            "annotator": found.rows["annotator"],
            "subset": found.rows["subset"],
            "num_completions": np.diff(found.starts_A),
            "annotations": ones,
            "groups": is_first_A.astype(np.int64),
            "groups_of_subset": is_first_of_subset_A.astype(np.int64),
            **per_annotation,
        }
    )


def _totals(found: Judgements, per_annotation: dict[str, Ints], contradicted: int) -> pa.Table:
    totals = {
        "annotations": found.rows.num_rows,
        "annotations_repeated": found.num_repeated,
        "groups": len(np.unique(found.group_A)),
        "prompts": len(np.unique(found.prompt_A)),
        "completions": len(found.ranks_N),
        "characters": int(found.lengths_N.sum()),
        "contradicted": contradicted,
        "annotations_of_one_again": int((~found.is_rater_A).sum()),
        **{name: int(values.sum()) for name, values in per_annotation.items()},
    }
    return pa.table({"name": list(totals), "count": pa.array(totals.values(), pa.int64())})


def _sizes(facts: pa.Table) -> pa.Table:
    return facts.select(["subset", "num_completions", "annotations", "groups", "groups_of_subset", *COUNTS])


def _annotators(facts: pa.Table) -> pa.Table:
    return facts.select(["annotator", "annotations", *COUNTS, *AGREEMENT])


def _tied_shares(per_annotation: dict[str, Ints]) -> pa.Table:
    """Count annotations by the share of their comparisons that are ties: none, tenths, all."""
    ties, comparisons = per_annotation["ties"], per_annotation["comparisons"]
    tenth = np.where(ties == 0, -1, np.where(ties == comparisons, 10, 10 * ties // np.maximum(comparisons, 1)))
    return pa.table({"tenth": tenth, "annotations": np.ones_like(tenth)})


def _depth(found: Judgements) -> pa.Table:
    """Count groups by how many annotations they have."""
    num_G = np.bincount(found.group_A).astype(np.int64)
    return pa.table({"num_annotations": num_G, "groups": np.ones_like(num_G)})


def _models(found: Judgements) -> pa.Table:
    named = found.models_N >= 0
    codes, lengths = found.models_N[named], found.lengths_N[named]
    table = pa.table({"model": codes, "completions": np.ones_like(codes), "characters": lengths})
    added = table.group_by("model", use_threads=False).aggregate([("completions", "sum"), ("characters", "sum")])
    return pa.table(
        {
            "model": found.model_names.take(added["model"].combine_chunks()),
            "completions": added["completions_sum"],
            "characters": added["characters_sum"],
        }
    )


def _scores(found: Judgements) -> pa.Table:
    """Count scores by value (three significant digits): of all, of each annotator, of each model, of each source."""
    scored = np.flatnonzero(np.isfinite(found.scores_N))
    row_N = np.repeat(np.arange(found.rows.num_rows), np.diff(found.starts_A))[scored]
    values = pa.array(_rounded(found.scores_N[scored]))
    in_rows = pa.array(row_N)
    codes = found.models_N[scored]
    parties = {
        "all": pa.nulls(len(scored), pa.string()),
        "annotator": found.rows["annotator"].take(in_rows),
        "model": found.model_names.take(pa.array(codes, mask=codes < 0)),
        "source": found.rows["source"].take(in_rows),
    }
    ones = np.ones(len(scored), np.int64)
    tables = []
    for party, names in parties.items():
        table = pa.table({"name": names, "value": values, "completions": ones})
        added = table.group_by(["name", "value"], use_threads=False).aggregate([("completions", "sum")])
        party_column = pa.array([party] * added.num_rows, pa.string())
        columns = [party_column, added["name"].cast(pa.string()), added["value"], added["completions_sum"]]
        tables.append(pa.table(columns, names=["party", "name", "value", "completions"]))
    return pa.concat_tables(tables)


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    distinct, index = np.unique(values, return_inverse=True)
    rounded = [float(f"{value:.{SCORE_DIGITS}g}") + 0.0 for value in distinct.tolist()]  # + 0.0: no -0
    return np.array(rounded, np.float64)[index]


def _growth(found: Judgements) -> pa.Table:
    """Count annotations by the version that brought them, and groups and prompts by the first that had one of them."""
    version_A = found.rows["version"].to_numpy()
    num_prompts = found.prompt_A[-1] + 1 if len(found.prompt_A) else 0
    num_groups = found.group_A[-1] + 1 if len(found.group_A) else 0
    first_G, first_R = np.full(num_groups, np.iinfo(np.int64).max), np.full(num_prompts, np.iinfo(np.int64).max)
    np.minimum.at(first_G, found.group_A, version_A)
    np.minimum.at(first_R, found.prompt_A, version_A)
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


def _prompts(found: Judgements) -> pa.Table:
    """Return the prompts with the most annotations; a prompt is whole here, so the tops of all parts hold the top."""
    num_R = np.bincount(found.prompt_A).astype(np.int64)
    first_R = np.flatnonzero(np.diff(found.prompt_A, prepend=-1))
    groups_R = np.bincount(found.prompt_A[np.flatnonzero(np.diff(found.group_A, prepend=-1))], minlength=len(num_R))
    top = np.argsort(-num_R, kind="stable")[:NUM_TOP_PROMPTS]
    heads = found.rows.select(["prompt_id", "prompt"]).take(pa.array(first_R[top], pa.int64()))
    return heads.append_column("annotations", pa.array(num_R[top])).append_column(
        "groups", pa.array(groups_R[top].astype(np.int64))
    )
