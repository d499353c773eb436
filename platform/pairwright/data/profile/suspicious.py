"""Suspicious data: texts that complete many prompts, uniform judgements, chat-template marks, and score outliers.

The first half counts them in tasks, over whole prompts; the second half decides on the driver which of the merged
counts are reported. How loudly each is said is decided in highlights.py.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pairwright.data.profile.aggregates import Aggregates
from pairwright.data.profile.annotators_and_models import Row, share
from pairwright.data.profile.comparison_blocks import AnnotationArrays, Block, Ints
from pairwright.data.profile.profile_schema import (
    Kind,
    Marks,
    ModelCompletions,
    RepeatedText,
    ScoreOutlier,
    UniformJudgements,
)

MAX_TEXTS_PER_PART = 1000
"""Texts that one task reports, those that complete the most prompts: aggregates stay small. A text that completes one
prompt in a thousand of the table is among them, since a task counts thousands of prompts."""
MIN_PROMPTS = 20
"""A text that completes fewer prompts is a refusal or a greeting that a model repeats."""
MIN_SHARE_OF_PROMPTS = 0.001
"""Of a large table's prompts; a text below that could also be missed, since each task counts texts by itself."""
MIN_JUDGEMENTS = 20
"""Twenty throws of a fair coin are all alike once in a million."""
CHANCE = 1e-6
"""Uniform judgements are reported if their number makes them rarer than that at the others' rate."""
MAX_MODELS = 3
MIN_COMPLETIONS = 20
MIN_SHARE_OF_SCORES = 0.002
"""Of all scores that have a model: a rarer value is no outlier."""
MIN_STANDARD_ERRORS = 5.0
MIN_DEVIATIONS = 0.25
"""A score outlier is off by at least so many standard errors, and standard deviations between models."""


# ------------------------------------------------------------------------------------- counting: one block


def score_counts(block: Block) -> dict[str, Ints]:
    """Return for each annotation its decisive comparisons with two scores, and those that prefer the lower score."""
    gap_AP = block.scores_AK[:, block.first_P] - block.scores_AK[:, block.second_P]
    scored_AP = (block.outcome_AP != 0) & np.isfinite(gap_AP) & (gap_AP != 0)
    against_AP = scored_AP & (np.sign(gap_AP) != block.outcome_AP)
    return {"scored": scored_AP.sum(axis=1), "against_scores": against_AP.sum(axis=1)}


def wins_and_losses(block: Block) -> tuple[Ints, Ints]:
    """Return how many completions of other text each completion is better and worse than, shape (A, K) each."""
    wins_AK, losses_AK = np.zeros_like(block.ranks_AK), np.zeros_like(block.ranks_AK)
    for k in range(block.num_completions):  # K passes over (A, K) entries each: no (A, K, K) in memory
        other_AK = block.texts_AK != block.texts_AK[:, [k]]
        wins_AK[:, k] = (other_AK & (block.ranks_AK > block.ranks_AK[:, [k]])).sum(axis=1)
        losses_AK[:, k] = (other_AK & (block.ranks_AK < block.ranks_AK[:, [k]])).sum(axis=1)
    return wins_AK, losses_AK


# ---------------------------------------------------------------------------------- counting: whole prompts


def suspicion_counts(
    arrays: AnnotationArrays, per_annotation: Mapping[str, Ints], wins_N: Ints, losses_N: Ints
) -> dict[str, pa.Table]:
    """Return the aggregates of repeated texts, of kinds of judgements, of marks, and of sources.

    Args:
        arrays: annotations that hold every annotation of each of their prompts.
        per_annotation: counts of each annotation.
        wins_N: completions of other text that each completion is better than.
        losses_N: those that it is worse than.
    """
    sizes = np.diff(arrays.starts_A)
    texts_N, prompt_N = arrays.texts_N, np.repeat(arrays.prompt_A, sizes)
    kept_N = np.isin(texts_N, _repeated(texts_N, prompt_N))
    beginnings = arrays.rows["beginnings"].combine_chunks().flatten()
    ones = np.ones(int(kept_N.sum()), np.int64)
    texts = {"text": pa.array(texts_N[kept_N])}
    models = arrays.model_names.take(pa.array(arrays.models_N, mask=arrays.models_N < 0))
    counts = {
        "completions": ones,
        "characters": arrays.lengths_N[kept_N],
        "won": wins_N[kept_N],
        "decisive": wins_N[kept_N] + losses_N[kept_N],
    }
    first_N = np.zeros(len(texts_N), dtype=bool)
    first_N[np.unique(np.stack([texts_N, prompt_N.astype(np.uint64)]), axis=1, return_index=True)[1]] = True
    mask = pa.array(kept_N)
    return {
        "texts": pa.table(texts | {"prompts": first_N[kept_N].astype(np.int64), **counts}),
        "text_models": pa.table(texts | {"model": models.filter(mask), "completions": ones}),
        "text_beginnings": pa.table(texts | {"beginning": beginnings.filter(mask), "completions": ones}),
        "annotator_kinds": _annotator_kinds(arrays, per_annotation),
        "model_kinds": _model_kinds(arrays, wins_N, losses_N),
        "marks": _marks(arrays),
        "by_source": _by_source(arrays, per_annotation),
    }


def _repeated(texts_N: NDArray[np.uint64], prompt_N: Ints) -> NDArray[np.uint64]:
    distinct = np.unique(np.stack([texts_N, prompt_N.astype(np.uint64)]), axis=1)
    texts, num_prompts = np.unique(distinct[0], return_counts=True)
    several = np.flatnonzero(num_prompts > 1)
    return texts[several[np.argsort(-num_prompts[several], kind="stable")[:MAX_TEXTS_PER_PART]]]


def _annotator_kinds(arrays: AnnotationArrays, counts: Mapping[str, Ints]) -> pa.Table:
    """Count each annotator's judgements in each source that could be of a kind, and those that are."""
    best_A, last_A = arrays.rows["best"].to_numpy(), np.diff(arrays.starts_A) - 1
    could_be_A = {"compared": counts["comparisons"] > 0, "decisive": counts["decisive"] > 0, "decided": best_A >= 0}
    kinds_A = {
        "tied": could_be_A["compared"] & (counts["ties"] == counts["comparisons"]),
        "longer": could_be_A["decisive"] & (counts["longer"] == counts["decisive"]),
        "first": could_be_A["decided"] & (best_A == 0),
        "last": could_be_A["decided"] & (best_A == last_A),
    }
    values = {name: values_A.astype(np.int64) for name, values_A in (could_be_A | kinds_A).items()}
    return pa.table({"annotator": arrays.rows["annotator"], "source": arrays.rows["source"], **values})


def _model_kinds(arrays: AnnotationArrays, wins_N: Ints, losses_N: Ints) -> pa.Table:
    """Count each model's completions with a decisive comparison, and those that won, or lost, all of these."""
    judged_N = (arrays.models_N >= 0) & (wins_N + losses_N > 0)
    return pa.table(
        {
            "model": arrays.model_names.take(pa.array(arrays.models_N[judged_N])).cast(pa.string()),
            "judged": np.ones(int(judged_N.sum()), np.int64),
            "won": (losses_N[judged_N] == 0).astype(np.int64),
            "lost": (wins_N[judged_N] == 0).astype(np.int64),
        }
    )


def _marks(arrays: AnnotationArrays) -> pa.Table:
    """Count the annotations that hold each mark, of each source; those that hold any under no mark."""
    lists = arrays.rows["marks"].combine_chunks()
    number_A = np.diff(lists.offsets.to_numpy())
    sources = arrays.rows["source"].combine_chunks()
    marked = sources.filter(pa.array(number_A > 0))
    each = sources.take(pa.array(np.repeat(np.arange(len(number_A)), number_A)))
    return pa.table(
        {
            "mark": pa.concat_arrays([pa.nulls(len(marked), pa.string()), lists.flatten()]),
            "source": pa.concat_arrays([marked, each]),
            "annotations": np.ones(len(marked) + len(each), np.int64),
        }
    )


def _by_source(arrays: AnnotationArrays, counts: Mapping[str, Ints]) -> pa.Table:
    names = ("with_consensus", "against_consensus", "scored", "against_scores")
    return pa.table({"source": arrays.rows["source"], **{name: counts[name] for name in names}})


# --------------------------------------------------------------------------- deciding, on the driver


def repeated_texts(aggregates: Aggregates, num_prompts: int) -> list[RepeatedText]:
    """Return the texts that complete many prompts, those with the most prompts first."""
    least = max(MIN_PROMPTS, MIN_SHARE_OF_PROMPTS * num_prompts)
    texts = aggregates["texts"].filter(pc.field("prompts") >= least)
    texts = texts.sort_by([("prompts", "descending"), ("text", "ascending")])
    models: dict[int, list[ModelCompletions]] = defaultdict(list)
    by_number = [("completions", "descending"), ("model", "ascending")]
    for row in _of(aggregates["text_models"].sort_by(by_number), texts):
        if row["model"] is not None:
            models[row["text"]].append(ModelCompletions(name=row["model"], completions=row["completions"]))
    beginnings = {
        row["text"]: row["beginning"] for row in _of(aggregates["text_beginnings"], texts) if row["beginning"]
    }
    return [
        RepeatedText(
            beginning=beginnings.get(row["text"]),
            characters=row["characters"] // row["completions"],
            prompts=row["prompts"],
            completions=row["completions"],
            decisive=row["decisive"],
            wins=share(row["won"], row["decisive"]),
            num_models=len(models[row["text"]]),
            models=models[row["text"]][:MAX_MODELS],
        )
        for row in texts.to_pylist()
    ]


def _of(table: pa.Table, texts: pa.Table) -> list[Row]:
    return table.filter(pc.field("text").isin(texts["text"])).to_pylist()


def uniform_judgements(aggregates: Aggregates) -> list[UniformJudgements]:
    """Return the annotators and models all of whose judgements are of one kind, if that is unlikely to be chance.

    Which completion is listed first or last depends on the source's layout too (in pairs of chosen and rejected the
    best is first), so these kinds are compared with the others of the same sources, of which there must be as many.
    """
    annotators, models = aggregates["annotator_kinds"], aggregates["model_kinds"]
    everywhere = annotators.drop_columns("source")
    found = [
        *_uniform(everywhere, "annotator", "tied", "compared"),
        *_uniform(everywhere, "annotator", "longer", "decisive"),
        *_uniform(annotators, "annotator", "first", "decided"),
        *_uniform(annotators, "annotator", "last", "decided"),
        *_uniform(models, "model", "won", "judged"),
        *_uniform(models, "model", "lost", "judged"),
    ]
    return sorted(found, key=lambda one: (-one.judgements, one.entity, one.name, one.kind))


def _uniform(
    table: pa.Table, entity: Literal["annotator", "model"], kind: Kind, judged: str
) -> Iterator[UniformJudgements]:
    """Yield who has ``kind`` in all that was ``judged``, compared with all others or those of the same sources."""
    table = table.filter((pc.field(judged) > 0) & pc.field(entity).is_valid())
    is_by_source = "source" in table.column_names
    source = table["source"].combine_chunks() if is_by_source else pa.array([""] * table.num_rows, pa.string())
    source_R = source.dictionary_encode().indices.to_numpy()
    every = {"every_judged": table[judged].to_numpy(), "every_kind": table[kind].to_numpy()}
    for name, values_R in every.items():
        table = table.append_column(name, pa.array(np.bincount(source_R, values_R)[source_R].astype(np.int64)))
    # By source there is one row a source to add up; else all rows of an entity hold the same totals of the table.
    how = "sum" if is_by_source else "max"
    added = table.group_by(entity, use_threads=False).aggregate(
        [(judged, "sum"), (kind, "sum"), ("every_judged", how), ("every_kind", how)]
    )
    columns = [added.column(column).to_numpy() for column in range(1, 5)]
    number, uniform, others, others_uniform = columns[0], columns[1], columns[2] - columns[0], columns[3] - columns[1]
    chance = ((others_uniform + 1) / (others + 2)) ** number
    least = MIN_JUDGEMENTS if is_by_source else 0
    is_reported = (uniform == number) & (number >= MIN_JUDGEMENTS) & (chance < CHANCE) & (others >= least)
    for row in np.flatnonzero(is_reported).tolist():
        yield UniformJudgements(
            entity=entity,
            name=added[entity][row].as_py(),
            kind=kind,
            judgements=int(number[row]),
            others=float(others_uniform[row] / max(others[row], 1)),
        )


def num_marked(table: pa.Table) -> int:
    """Return how many annotations have any mark."""
    return sum(row["annotations"] for row in table.to_pylist() if row["mark"] is None)


def marks(table: pa.Table) -> list[Marks]:
    """Return the marks in texts, the most frequent first."""
    by_mark: dict[str, list[Row]] = defaultdict(list)
    for row in table.to_pylist():
        if row["mark"] is not None:
            by_mark[row["mark"]].append(row)
    found = [
        Marks(
            mark=mark,
            annotations=sum(row["annotations"] for row in rows),
            num_sources=len(rows),
            main_source=min(rows, key=lambda row: (-row["annotations"], row["source"]))["source"],
        )
        for mark, rows in by_mark.items()
    ]
    return sorted(found, key=lambda one: (-one.annotations, one.mark))


def score_outliers(scores: pa.Table) -> list[ScoreOutlier]:
    """Return the score values that come from the wrong models, the most frequent first.

    Models that get a higher score should on average get higher scores elsewhere too. So each value's models, by their
    other scores, are compared with the models of all lower values, or of all higher ones if these are more.

    Args:
        scores: the aggregate ``scores``.
    """
    named = scores.drop_null()
    if len(named["model"].unique()) < 2:
        return []
    model = named["model"].combine_chunks().dictionary_encode().indices.to_numpy()
    value, count = named["value"].to_numpy(), named["completions"].to_numpy().astype(float)
    total_M, num_M = np.bincount(model, value * count), np.bincount(model, count)
    deviation = float(np.sqrt(np.cov(total_M / num_M, fweights=num_M.astype(int))))
    # Of a model's other scores: with the value itself among them, a high one would look right by itself.
    elsewhere = (total_M[model] - value) / np.maximum(num_M[model] - 1, 1)
    values, index = np.unique(value, return_inverse=True)
    num_V, total_V = np.bincount(index, count), np.bincount(index, count * elsewhere)
    lower_V, lower_total_V = np.cumsum(num_V) - num_V, np.cumsum(total_V) - total_V
    higher_V, higher_total_V = num_V.sum() - lower_V - num_V, total_V.sum() - lower_total_V - total_V
    is_high_V = lower_V > higher_V
    with np.errstate(invalid="ignore"):
        expected_V = np.where(is_high_V, lower_total_V, higher_total_V) / np.where(is_high_V, lower_V, higher_V)
    mean_V = total_V / num_V
    off_V = np.where(is_high_V, expected_V - mean_V, mean_V - expected_V)
    least_V = deviation * np.maximum(MIN_STANDARD_ERRORS / np.sqrt(num_V), MIN_DEVIATIONS)
    is_frequent_V = num_V >= max(MIN_COMPLETIONS, MIN_SHARE_OF_SCORES * num_V.sum())
    found = np.flatnonzero(is_frequent_V & (off_V > least_V) & (deviation > 0))
    return [
        ScoreOutlier(
            value=float(values[at]),
            completions=int(num_V[at]),
            share=float(num_V[at] / num_V.sum()),
            mean_elsewhere=float(mean_V[at]),
            expected=float(expected_V[at]),
            is_high=bool(is_high_V[at]),
        )
        for at in found[np.argsort(-num_V[found], kind="stable")].tolist()
    ]
