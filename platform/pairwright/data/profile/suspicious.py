"""What looks wrong in annotations, counted: texts under many prompts, marks in texts, judgements that are all alike.

Which of it is said, and how loudly, is decided in figures.py and findings.py.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pairwright.data.profile.comparison_blocks import Block, Ints, Judgements

MIN_PROMPTS_OF_PART = 2
MAX_TEXTS_OF_PART = 1000
"""Of the texts under several prompts of one part, those under the most: sums stay small. A text under one prompt in a
thousand of the table is among them, since a part holds thousands."""


# ------------------------------------------------------------------------------------------------ one block


def score_counts(block: Block) -> dict[str, Ints]:
    """Return for each annotation its untied comparisons whose scores differ, and those that prefer the lower score."""
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


# -------------------------------------------------------------------------------------------- whole prompts


def suspicious_sums(
    found: Judgements, per_annotation: Mapping[str, Ints], wins_N: Ints, losses_N: Ints
) -> dict[str, pa.Table]:
    """Return the sums of texts under many prompts, of kinds of judgements, of marks, and of each source.

    Args:
        found: annotations that hold every annotation of each of their prompts.
        per_annotation: counts of each annotation.
        wins_N: completions of other text that each completion is better than.
        losses_N: those that it is worse than.
    """
    sizes = np.diff(found.starts_A)
    texts_N, prompt_N = found.texts_N, np.repeat(found.prompt_A, sizes)
    kept_N = np.isin(texts_N, _repeated(texts_N, prompt_N))
    beginnings = found.rows["beginnings"].combine_chunks().flatten()
    ones = np.ones(int(kept_N.sum()), np.int64)
    texts = {"text": pa.array(texts_N[kept_N])}
    models = found.model_names.take(pa.array(found.models_N, mask=found.models_N < 0))
    counts = {
        "completions": ones,
        "characters": found.lengths_N[kept_N],
        "won": wins_N[kept_N],
        "untied": wins_N[kept_N] + losses_N[kept_N],
    }
    first_N = np.zeros(len(texts_N), dtype=bool)
    first_N[np.unique(np.stack([texts_N, prompt_N.astype(np.uint64)]), axis=1, return_index=True)[1]] = True
    mask = pa.array(kept_N)
    return {
        "texts": pa.table(texts | {"prompts": first_N[kept_N].astype(np.int64), **counts}),
        "text_models": pa.table(texts | {"model": models.filter(mask), "completions": ones}),
        "text_beginnings": pa.table(texts | {"beginning": beginnings.filter(mask), "completions": ones}),
        "annotator_kinds": _annotator_kinds(found, per_annotation),
        "model_kinds": _model_kinds(found, wins_N, losses_N),
        "marks": _marks(found),
        "by_source": _by_source(found, per_annotation),
    }


def _repeated(texts_N: NDArray[np.uint64], prompt_N: Ints) -> NDArray[np.uint64]:
    distinct = np.unique(np.stack([texts_N, prompt_N.astype(np.uint64)]), axis=1)
    texts, num_prompts = np.unique(distinct[0], return_counts=True)
    several = np.flatnonzero(num_prompts >= MIN_PROMPTS_OF_PART)
    return texts[several[np.argsort(-num_prompts[several], kind="stable")[:MAX_TEXTS_OF_PART]]]


def _annotator_kinds(found: Judgements, counts: Mapping[str, Ints]) -> pa.Table:
    """Count each annotator's judgements in each source that could be of a kind (``of_``), and those that are."""
    best_A, last_A = found.rows["best"].to_numpy(), np.diff(found.starts_A) - 1
    could_be_A = {"compared": counts["comparisons"] > 0, "untied": counts["untied"] > 0, "decided": best_A >= 0}
    kinds_A = {
        "tied": could_be_A["compared"] & (counts["ties"] == counts["comparisons"]),
        "longer": could_be_A["untied"] & (counts["longer"] == counts["untied"]),
        "first": could_be_A["decided"] & (best_A == 0),
        "last": could_be_A["decided"] & (best_A == last_A),
    }
    values = {name: values_A.astype(np.int64) for name, values_A in (could_be_A | kinds_A).items()}
    return pa.table({"annotator": found.rows["annotator"], "source": found.rows["source"], **values})


def _model_kinds(found: Judgements, wins_N: Ints, losses_N: Ints) -> pa.Table:
    """Count each model's completions with an untied comparison, and those that won, or lost, all of these."""
    judged_N = (found.models_N >= 0) & (wins_N + losses_N > 0)
    return pa.table(
        {
            "model": found.model_names.take(pa.array(found.models_N[judged_N])).cast(pa.string()),
            "judged": np.ones(int(judged_N.sum()), np.int64),
            "won": (losses_N[judged_N] == 0).astype(np.int64),
            "lost": (wins_N[judged_N] == 0).astype(np.int64),
        }
    )


def _marks(found: Judgements) -> pa.Table:
    """Count the annotations that hold each mark, of each source; those that hold any under no mark."""
    lists = found.rows["marks"].combine_chunks()
    number_A = np.diff(lists.offsets.to_numpy())
    sources = found.rows["source"].combine_chunks()
    marked = sources.filter(pa.array(number_A > 0))
    each = sources.take(pa.array(np.repeat(np.arange(len(number_A)), number_A)))
    return pa.table(
        {
            "mark": pa.concat_arrays([pa.nulls(len(marked), pa.string()), lists.flatten()]),
            "source": pa.concat_arrays([marked, each]),
            "annotations": np.ones(len(marked) + len(each), np.int64),
        }
    )


def _by_source(found: Judgements, counts: Mapping[str, Ints]) -> pa.Table:
    names = ("with_consensus", "against_consensus", "scored", "against_scores")
    return pa.table({"source": found.rows["source"], **{name: counts[name] for name in names}})
