"""A tokenised group, and the sizes of many: arrays alone, so that the compute core needs neither Arrow nor a table.

A step's plan reads the sizes of a global batch's groups, a few rows of columns, so that it costs the same at 1e6 groups
and at 1e8. The columns of a large table are memory-mapped (data/tokens/column_files.py).
"""

# ruff: noqa: N815 - shape suffixes: G groups, K completions, T tokens, P pairs

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """One group, tokenised. Arrays may be read-only views into a memory-mapped file.

    Attributes:
        group_id: of the pairs table.
        subset: part of the data that is reported on its own, if any.
        prompt_ids: tokens that all completions begin with, int32, shape (T,); may be empty.
        completion_ids: what follows them, one int32 array of at least one token for each of the K kept completions.
        num_characters: length of each completion's text, int32, shape (K,).
        completion_index: index of each kept completion in the pairs table's group, int16, shape (K,).
        chosen_P: index into ``completion_ids`` of each pair's preferred completion, int64, shape (P,).
        rejected_P: index of the other one, int64, shape (P,).
        weight_P: how much each pair counts, float32, shape (P,).
        margin_P: wanted reward difference, float32, shape (P,); NaN where the pair has none.
        more_subsets: further parts that the group belongs to.
    """

    group_id: str
    subset: str | None
    prompt_ids: Int32s
    completion_ids: list[Int32s]
    num_characters: Int32s
    completion_index: NDArray[np.int16]
    chosen_P: Int64s
    rejected_P: Int64s
    weight_P: NDArray[np.float32]
    margin_P: NDArray[np.float32]
    more_subsets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupSizes:
    """What planning knows of groups (model/batching/plan.py). All int64, shape (G,).

    Attributes:
        num_completions_G: kept completions.
        prompt_tokens_G: tokens of the prompt.
        completion_tokens_G: tokens of all completions together, without the prompt.
        longest_row_tokens_G: tokens of the prompt and the longest completion.
    """

    num_completions_G: Int64s
    prompt_tokens_G: Int64s
    completion_tokens_G: Int64s
    longest_row_tokens_G: Int64s


class GroupColumns(NamedTuple):
    """One number a group, as narrow as it can be: 26 bytes in all."""

    num_completions_G: NDArray[np.int16]
    num_pairs_G: Int32s
    prompt_tokens_G: Int32s
    completion_tokens_G: Int32s
    longest_row_tokens_G: Int32s
    weight_G: NDArray[np.float64]

    @classmethod
    def empty(cls, num_groups: int) -> "GroupColumns":
        """Return columns to be filled in."""
        return cls(
            num_completions_G=np.empty(num_groups, np.int16),
            num_pairs_G=np.empty(num_groups, np.int32),
            prompt_tokens_G=np.empty(num_groups, np.int32),
            completion_tokens_G=np.empty(num_groups, np.int32),
            longest_row_tokens_G=np.empty(num_groups, np.int32),
            weight_G=np.empty(num_groups, np.float64),
        )

    def sizes_of(self, rows: Int64s) -> GroupSizes:
        """Return the sizes of some groups, such as a global batch's, by row number."""
        return GroupSizes(
            num_completions_G=self.num_completions_G[rows].astype(np.int64),
            prompt_tokens_G=self.prompt_tokens_G[rows].astype(np.int64),
            completion_tokens_G=self.completion_tokens_G[rows].astype(np.int64),
            longest_row_tokens_G=self.longest_row_tokens_G[rows].astype(np.int64),
        )
