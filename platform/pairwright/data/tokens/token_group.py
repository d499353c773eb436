"""A tokenised group, the input of the compute core: arrays alone, so that the core needs neither Arrow nor a table."""

# ruff: noqa: N815 - shape suffixes: K completions, T tokens, P pairs

from dataclasses import dataclass

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
