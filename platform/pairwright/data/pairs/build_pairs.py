"""Builds weighted pairs from the annotations of whole groups: one row a group (PAIRS_SCHEMA). Pure.

Several annotators list the same completions in different orders; the group takes the order of its first annotation
(by id) and matches the others by text. So neither the order of the rows nor the layout of the files shows in the
result, at the price of one sort of the texts.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from pairwright.config import ExpandConfig
from pairwright.data.identity import drop_duplicates
from pairwright.data.pairs.comparisons import Floats, Ints, PairRows, RankingBatch, pairs_of
from pairwright.data.preference_strength import MARGINS
from pairwright.data.table.arrow_io import list_lengths, one_array
from pairwright.errors import DataError
from pairwright.records import ANNOTATIONS_SCHEMA, PAIR, PAIRS_SCHEMA
from pairwright.terminal import counted

_SORT = [(name, "ascending") for name in ("group_id", "id", "source", "line")]
MAX_COMPLETIONS = 32_767
"""Most completions of a group: pairs hold int16 indices."""


def expand_groups(annotations: pa.Table, config: ExpandConfig) -> tuple[pa.Table, dict[str, int | float]]:
    """Return one row for each group, sorted by group_id, and totals that add over calls.

    A group all of whose comparisons are ties keeps its row, with no pairs. ``comparisons = decisive + ties``, counted
    once an annotation.

    Args:
        annotations: rows in ANNOTATIONS_SCHEMA, in any order; every group has all of its annotations here.
        config: weights, ties, margins and split.

    Raises:
        DataError: if annotations of one group list different texts, or more completions than int16 can count.
    """
    rows = annotations.select(ANNOTATIONS_SCHEMA.names).combine_chunks()
    rows, num_repeated = drop_duplicates(rows.sort_by(_SORT))
    rankings = _ranking_batch(rows, MARGINS[config.margin_table])
    pairs, vote_totals = pairs_of(rankings, config)
    first_G = np.flatnonzero(np.diff(rankings.group_A, prepend=-1))
    table = _group_rows(rows, rankings.group_A, first_G, pairs, config)
    totals = {
        "annotations": rows.num_rows,
        "duplicates": num_repeated,
        "repeat_annotations": _num_repeat_annotations(rows, table),
        **_group_totals(table),
        **vote_totals,
        **_margin_totals(rows, pairs, config),
    }
    return table, totals


def split_of(prompt_id: str, validation_fraction: float) -> str:
    """Return the side that a prompt is on: validation where its hash, as a fraction of 1, is below the fraction.

    A function of the prompt alone: it stays on its side when annotations, groups or other prompts come and go, and
    a larger fraction only moves prompts from train to validation.
    """
    return "validation" if int(prompt_id[:13], 16) / 16**13 < validation_fraction else "train"


def _ranking_batch(rows: pa.Table, margins: Mapping[str, float]) -> RankingBatch:
    """Return sorted rows as arrays, each annotation in the completion order of its group's first one."""
    completions = one_array(rows["completions"])
    size_A = list_lengths(completions)
    if len(size_A) and size_A.max() > MAX_COMPLETIONS:
        found = rows["id"][int(size_A.argmax())].as_py()
        raise DataError(
            f"annotation {found}: {counted(size_A.max(), 'completion')}, expected at most {MAX_COMPLETIONS}; split "
            "the group"
        )
    starts_A = np.concatenate([[0], np.cumsum(size_A)])
    texts_N = _text_codes(completions.flatten())
    group_A = np.cumsum(np.diff(_codes(rows["group_id"]), prepend=-1) != 0) - 1
    slot_N = _completion_slots(rows, texts_N, size_A, starts_A, group_A)
    ranks_N, scores_N, ordered_N = np.empty_like(texts_N), np.empty(len(texts_N)), np.empty_like(texts_N)
    ranks_N[slot_N] = _numpy(one_array(rows["ranks"]).flatten())
    scores_N[slot_N] = flat_scores(rows, size_A)
    ordered_N[slot_N] = texts_N
    margin_A = np.array([margins.get(grade, np.nan) for grade in rows["grade"].to_pylist()], dtype=np.float64)
    return RankingBatch(group_A, starts_A, ranks_N, scores_N, margin_A, ordered_N)


def _completion_slots(rows: pa.Table, texts_N: Ints, size_A: Ints, starts_A: Ints, group_A: Ints) -> Ints:
    """Return the position in N of each completion when its annotation takes the order of the group's first one.

    Sorted by text, stable, both hold the same texts in the same order: that is the match, and completions of equal
    text are matched in order of appearance.
    """
    first_A = np.flatnonzero(np.diff(group_A, prepend=-1))[group_A]
    shift_N = np.repeat(starts_A[:-1] - starts_A[first_A], size_A)
    annotation_N = np.repeat(np.arange(len(size_A)), size_A)
    by_text_N = np.lexsort((texts_N, annotation_N))
    first_N = np.arange(len(texts_N)) - shift_N
    sorted_N = texts_N[by_text_N]
    different = (size_A != size_A[first_A])[annotation_N] | (sorted_N != sorted_N[first_N])
    if different.any():
        found = int(annotation_N[different.argmax()])
        one, other = rows["id"][int(first_A[found])].as_py(), rows["id"][found].as_py()
        raise DataError(
            f"group {rows['group_id'][found].as_py()}: annotations {one} and {other} list different completions, "
            "expected the same texts in any order; ingest the sources again into a new table"
        )
    slot_N = np.empty_like(texts_N)
    slot_N[by_text_N] = by_text_N[first_N] + shift_N
    return slot_N


def flat_scores(rows: pa.Table, size_A: Ints) -> Floats:
    """Return the scores of all completions one after the other, NaN for an annotation without scores."""
    scores = one_array(rows["scores"])
    scores_N = np.full(int(size_A.sum()), np.nan)
    scores_N[np.repeat(scores.is_valid().to_numpy(zero_copy_only=False), size_A)] = scores.flatten().to_numpy()
    return scores_N


def _group_rows(rows: pa.Table, group_A: Ints, first_G: Ints, pairs: PairRows, config: ExpandConfig) -> pa.Table:
    first = rows if len(first_G) == len(rows) else rows.take(pa.array(first_G))
    num_G = np.bincount(group_A, minlength=len(first_G))
    several = np.flatnonzero(num_G > 1)
    prompt_ids = first["prompt_id"].to_pylist()
    subset, more_subsets = _subsets(rows, first, first_G, num_G, several)
    side = {prompt_id: split_of(prompt_id, config.validation_fraction) for prompt_id in set(prompt_ids)}
    columns = {
        "pairs": _pairs_column(pairs, len(first_G)),
        "num_annotations": pa.array(num_G, pa.int32()),
        "annotators": _annotators(rows, group_A, len(first_G)),
        "split": pa.array([side[prompt_id] for prompt_id in prompt_ids], pa.string()),
        "subset": subset,
        "more_subsets": more_subsets,
        "metadata": _metadata(rows, first, first_G, num_G, several),
    }
    arrays = [columns[field.name] if field.name in columns else one_array(first[field.name]) for field in PAIRS_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=PAIRS_SCHEMA)


def _pairs_column(pairs: PairRows, num_groups: int) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(np.bincount(pairs.group_P, minlength=num_groups))]).astype(np.int32)
    margin = pa.array(pairs.margin_P, mask=np.isnan(pairs.margin_P))
    values = [pa.array(pairs.chosen_P), pa.array(pairs.rejected_P), pa.array(pairs.weight_P), margin]
    structs = pa.StructArray.from_arrays(values, fields=list(PAIR))
    return pa.ListArray.from_arrays(pa.array(offsets), structs, type=pa.list_(PAIR))


def _annotators(rows: pa.Table, group_A: Ints, num_groups: int) -> pa.ListArray:
    named = pa.table({"group": pa.array(group_A), "annotator": one_array(rows["annotator"])}).drop_null()
    distinct = (
        named.group_by(["group", "annotator"])
        .aggregate([])
        .sort_by([("group", "ascending"), ("annotator", "ascending")])
    )
    counts = np.bincount(distinct["group"].to_numpy(), minlength=num_groups)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), one_array(distinct["annotator"]))


def _subsets(rows: pa.Table, first: pa.Table, first_G: Ints, num_G: Ints, several: Ints) -> tuple[pa.Array, pa.Array]:
    """Return each group's subset, that of the first annotation (by id) that names one, and the others, sorted."""
    subsets = first["subset"].to_pylist()
    more: list[list[str] | None] = [None] * len(subsets)
    for group in several.tolist():
        named = rows["subset"].slice(first_G[group], num_G[group]).drop_null().to_pylist()
        subsets[group] = named[0] if named else None
        more[group] = sorted(set(named) - {subsets[group]}) or None
    return pa.array(subsets, pa.string()), pa.array(more, pa.list_(pa.string()))


def _metadata(rows: pa.Table, first: pa.Table, first_G: Ints, num_G: Ints, several: Ints) -> pa.Array:
    """Return each group's metadata: every key of its annotations, with the value of the first (by id) that has it."""
    if first["metadata"].null_count == len(first) and rows["metadata"].null_count == len(rows):
        return one_array(first["metadata"])
    metadata = first["metadata"].to_pylist()
    for group in several.tolist():
        merged: dict[str, str] = {}
        for given in rows["metadata"].slice(first_G[group], num_G[group]).to_pylist():
            merged = dict(given or []) | merged
        metadata[group] = sorted(merged.items()) or None
    return pa.array(metadata, first["metadata"].type)


def _group_totals(table: pa.Table) -> dict[str, int]:
    num_pairs = list_lengths(one_array(table["pairs"]))
    validation = np.array([split == "validation" for split in table["split"].to_pylist()], dtype=bool)
    return {
        "groups": table.num_rows,
        "groups_without_pairs": int((num_pairs == 0).sum()),
        "groups_more_subsets": len(table) - table["more_subsets"].null_count,
        "groups_validation": int(validation.sum()),
        "pairs_validation": int(num_pairs[validation].sum()),
    }


def _margin_totals(rows: pa.Table, pairs: PairRows, config: ExpandConfig) -> dict[str, int]:
    if config.margin == "none":
        return {}
    num_without = int(np.isnan(pairs.margin_P).sum())
    given = rows["scores" if config.margin == "score_difference" else "grade"]
    return {
        "annotations_scored" if config.margin == "score_difference" else "annotations_graded": len(given)
        - given.null_count,
        "pairs_with_margin": len(pairs.margin_P) - num_without,
        "pairs_without_margin": num_without,
    }


def _num_repeat_annotations(rows: pa.Table, table: pa.Table) -> int:
    """Return how many annotations come from an annotator who had judged the same group already."""
    return rows.num_rows - rows["annotator"].null_count - int(list_lengths(one_array(table["annotators"])).sum())


def _numpy(array: pa.Array | pa.ChunkedArray) -> Ints:
    return array.to_numpy().astype(np.int64)


def _text_codes(completions: pa.StructArray) -> Ints:
    """Return an integer for each completion: equal text and nothing different beside it, equal integers."""
    texts, extras = completions.field("text"), completions.field("extra")
    if extras.null_count == len(extras):
        return _codes(texts)
    both = np.stack([_codes(texts), _codes(extras.fill_null(""))])
    return np.unique(both, axis=1, return_inverse=True)[1]


def _codes(strings: pa.Array | pa.ChunkedArray) -> Ints:
    """Return an integer for each string: equal strings, equal integers."""
    array = one_array(strings) if isinstance(strings, pa.ChunkedArray) else strings
    return _numpy(array.dictionary_encode().indices)
