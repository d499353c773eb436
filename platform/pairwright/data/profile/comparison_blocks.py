"""Comparisons of two completions of one group, as matrices: one row an annotation, one column a comparison. Pure numpy.

All metrics of a report come from these. A block holds groups of one size, and no more of them than make about a million
entries of a matrix.

Shapes: A annotations, G groups, K completions of a group, P comparisons of a group (K * (K - 1) / 2), N completions
of all annotations one after the other.
"""

# ruff: noqa: N815 - shape suffixes, as above

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pairwright.data.pairs.comparisons import group_blocks
from pairwright.data.table.arrow_io import list_lengths, one_array
from pairwright.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_SORT = [(name, "ascending") for name in ("prompt_id", "group_id", "id", "source")]


@dataclass(frozen=True, slots=True)
class AnnotationArrays:
    """Annotations of whole groups, sorted by prompt and group, without repeats.

    Attributes:
        rows: COMPACT_ROWS.
        group_A: index of each annotation's group, from 0 without gaps, not decreasing.
        prompt_A: the same for its prompt.
        is_rater_A: whether it is its annotator's first (by id) of the group: agreement is between people.
        starts_A: where each annotation's completions start in N, and N at the end.
        models_N: index of each completion's model into ``model_names``, -1 where it has none.
    """

    rows: pa.Table
    group_A: Ints
    prompt_A: Ints
    is_rater_A: Bools
    starts_A: Ints
    ranks_N: Ints
    scores_N: Floats
    lengths_N: Ints
    texts_N: NDArray[np.uint64]
    models_N: Ints
    model_names: pa.Array


@dataclass(frozen=True, slots=True)
class Block:
    """Some groups of one size, with all of their annotations.

    Attributes:
        rows_A: index of each annotation in AnnotationArrays.
        starts_G: where each group's annotations start in A.
        group_A: index of each annotation's group in G.
        outcome_AP: 1 where the first of the two is better, -1 the second, 0 a tie; int8.
        longer_AP: 1 where the first of the two is longer, -1 the second, 0 equal; int8.
        identical_AP: whether the two have the same text.
        scores_AK: as in AnnotationArrays.
        texts_AK: as in AnnotationArrays.
        is_rater_A: as in AnnotationArrays.
        models_AK: as in AnnotationArrays.
        index_AK: where each completion is in N.
        first_P: index of a comparison's first completion; its second is ``second_P``.
    """

    rows_A: Ints
    starts_G: Ints
    group_A: Ints
    ranks_AK: Ints
    lengths_AK: Ints
    models_AK: Ints
    scores_AK: Floats
    texts_AK: NDArray[np.uint64]
    index_AK: Ints
    is_rater_A: Bools
    outcome_AP: NDArray[np.int8]
    longer_AP: NDArray[np.int8]
    identical_AP: Bools
    first_P: Ints
    second_P: Ints

    @property
    def num_completions(self) -> int:
        """K."""
        return self.ranks_AK.shape[1]

    def sum_by_group(self, values_AP: NDArray) -> Ints:
        """Return the sums over each group's annotations, int64, shape (G, P)."""
        return np.add.reduceat(values_AP.astype(np.int64), self.starts_G, axis=0)


def annotation_arrays(rows: pa.Table) -> AnnotationArrays:
    """Return COMPACT_ROWS as arrays.

    Args:
        rows: in any order; every group has all of its annotations here.

    Raises:
        DataError: if annotations of one group list different texts.
    """
    rows = rows.sort_by(_SORT).combine_chunks()
    size_A = list_lengths(one_array(rows["ranks"]))
    models = one_array(rows["models"]).flatten().dictionary_encode()
    group_A, prompt_A = _runs(rows["group_id"]), _runs(rows["prompt_id"])
    arrays = AnnotationArrays(
        rows=rows,
        group_A=group_A,
        prompt_A=prompt_A,
        is_rater_A=_first_of_annotator(rows, group_A),
        starts_A=np.concatenate([[0], np.cumsum(size_A)]),
        ranks_N=_flat(rows, "ranks").astype(np.int64),
        scores_N=_flat(rows, "scores"),
        lengths_N=_flat(rows, "lengths").astype(np.int64),
        texts_N=_flat(rows, "texts"),
        models_N=models.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64),
        model_names=models.dictionary,
    )
    _check_texts(arrays, size_A)
    return arrays


def comparison_blocks(arrays: AnnotationArrays) -> Iterator[Block]:
    """Yield all groups, as many of one size at a time as make about a million matrix entries."""
    for _, rows_A, index_AK in group_blocks(arrays.group_A, arrays.starts_A):
        is_first_A = np.diff(arrays.group_A[rows_A], prepend=-1) != 0
        first_P, second_P = np.triu_indices(index_AK.shape[1], k=1)
        ranks_AK, lengths_AK = arrays.ranks_N[index_AK], arrays.lengths_N[index_AK]
        texts_AK = arrays.texts_N[index_AK]
        yield Block(
            rows_A=rows_A,
            starts_G=np.flatnonzero(is_first_A),
            group_A=np.cumsum(is_first_A) - 1,
            ranks_AK=ranks_AK,
            lengths_AK=lengths_AK,
            models_AK=arrays.models_N[index_AK],
            scores_AK=arrays.scores_N[index_AK],
            texts_AK=texts_AK,
            index_AK=index_AK,
            is_rater_A=arrays.is_rater_A[rows_A],
            outcome_AP=np.sign(ranks_AK[:, second_P] - ranks_AK[:, first_P]).astype(np.int8),
            longer_AP=np.sign(lengths_AK[:, first_P] - lengths_AK[:, second_P]).astype(np.int8),
            identical_AP=texts_AK[:, first_P] == texts_AK[:, second_P],
            first_P=first_P,
            second_P=second_P,
        )


def _first_of_annotator(rows: pa.Table, group_A: Ints) -> Bools:
    """Return which annotations are their annotator's first of the group; all unnamed annotators count as different."""
    annotator = one_array(rows["annotator"]).dictionary_encode().indices
    code_A = annotator.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    is_first_A = code_A < 0
    is_first_A[np.unique(np.stack([group_A, code_A]), axis=1, return_index=True)[1]] = True
    return is_first_A


def _check_texts(arrays: AnnotationArrays, size_A: Ints) -> None:
    """Raise DataError for a group whose annotations rank different texts: they cannot be compared."""
    first_A = np.flatnonzero(np.diff(arrays.group_A, prepend=-1))[arrays.group_A]
    different_A = size_A != size_A[first_A]
    if not different_A.any():
        shift_N = np.repeat(arrays.starts_A[:-1] - arrays.starts_A[first_A], size_A)
        different_N = arrays.texts_N != arrays.texts_N[np.arange(len(arrays.texts_N)) - shift_N]
        different_A[np.repeat(np.arange(len(size_A)), size_A)[different_N]] = True
    if different_A.any():
        row = int(different_A.argmax())
        one, other = arrays.rows["id"][int(first_A[row])].as_py(), arrays.rows["id"][row].as_py()
        raise DataError(
            f"group {arrays.rows['group_id'][row].as_py()}: annotations {one} and {other} list different completions, "
            "expected the same texts in any order; ingest the sources again into a new table"
        )


def _runs(column: pa.ChunkedArray) -> Ints:
    """Return the number of each row's run of equal values, from 0."""
    codes = one_array(column).dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return np.cumsum(np.diff(codes, prepend=-1) != 0) - 1


def _flat(rows: pa.Table, name: str) -> NDArray:
    return one_array(rows[name]).flatten().to_numpy(zero_copy_only=False)
