"""Sizes of tokenised groups as columns: what planning reads of a global batch.

A step's plan reads a few rows of the columns, so that it costs the same at 1e6 groups and at 1e8. The columns of a
large table are memory-mapped (data/tokens/column_files.py).
"""

# ruff: noqa: N815 - shape suffix: G groups

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]


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
