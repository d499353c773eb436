"""Groups -> a micro-batch of padded rows: what one forward on one rank takes (which groups: planning.py)."""

# ruff: noqa: N815 - shape suffixes: N completions, T tokens, P pairs, G groups

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pairwright.data.tokens import TokenGroup

Layout = Literal["shared", "packed", "padded"]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Whole groups as padded rows, one row a completion, for one forward on one rank.

    ``chosen_P`` and ``rejected_P`` index the rows; rows stand in the order of the groups and of their completions.
    """

    input_ids_NT: Tensor
    """Prompt and completion, then padding; int64."""
    attention_mask_NT: Tensor
    """1 at tokens, 0 at padding; int64."""
    last_N: Tensor
    """Position of each row's last token; int64."""
    chosen_P: Tensor
    """Row of each pair's preferred completion; int64."""
    rejected_P: Tensor
    """Row of each pair's other completion; int64."""
    weight_P: Tensor
    """How much each pair counts; float32."""
    margin_P: Tensor
    """Wanted reward difference, 0 where a pair has none; float32."""
    group_ids: tuple[str, ...]
    """Of the groups inside; empty for the micro-batch that only keeps a rank in step."""

    def to(self, device: torch.device | str) -> "MicroBatch":
        """Return the micro-batch on a device."""
        return MicroBatch(
            input_ids_NT=self.input_ids_NT.to(device),
            attention_mask_NT=self.attention_mask_NT.to(device),
            last_N=self.last_N.to(device),
            chosen_P=self.chosen_P.to(device),
            rejected_P=self.rejected_P.to(device),
            weight_P=self.weight_P.to(device),
            margin_P=self.margin_P.to(device),
            group_ids=self.group_ids,
        )


def collate(groups: Sequence[TokenGroup], pad_token_id: int) -> MicroBatch:
    """Return groups as one micro-batch, padded on the right.

    Without groups: one row of one token and no pairs, so that forward and backward run and add nothing.
    """
    if not groups:
        return _empty(pad_token_id)
    input_ids_NT, length_N = _padded_rows(groups, pad_token_id)
    num_completions_G = [len(group.completion_ids) for group in groups]
    first_row_P = np.repeat(np.cumsum([0, *num_completions_G[:-1]]), [group.chosen_P.size for group in groups])
    margin_P = np.concatenate([group.margin_P for group in groups]).astype(np.float32)
    return MicroBatch(
        input_ids_NT=torch.from_numpy(input_ids_NT),
        attention_mask_NT=torch.from_numpy((np.arange(input_ids_NT.shape[1]) < length_N[:, None]).astype(np.int64)),
        last_N=torch.from_numpy(length_N - 1),
        chosen_P=torch.from_numpy(np.concatenate([group.chosen_P for group in groups]) + first_row_P),
        rejected_P=torch.from_numpy(np.concatenate([group.rejected_P for group in groups]) + first_row_P),
        weight_P=torch.from_numpy(np.concatenate([group.weight_P for group in groups]).astype(np.float32)),
        # A pair without a margin has NaN there, whatever the pairs beside it have (TRAPS.md 10).
        margin_P=torch.from_numpy(np.where(np.isnan(margin_P), np.float32(0), margin_P)),
        group_ids=tuple(group.group_id for group in groups),
    )


def _padded_rows(groups: Sequence[TokenGroup], pad_token_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows, int64 (N, T), and the length of each, int64 (N,)."""
    length_N = np.array([group.prompt_ids.size + ids.size for group in groups for ids in group.completion_ids])
    input_ids_NT = np.full((length_N.size, length_N.max()), pad_token_id, np.int64)
    row = 0
    for group in groups:
        num_prompt = group.prompt_ids.size
        input_ids_NT[row : row + len(group.completion_ids), :num_prompt] = group.prompt_ids
        for ids in group.completion_ids:
            input_ids_NT[row, num_prompt : num_prompt + ids.size] = ids
            row += 1
    return input_ids_NT, length_N


def _empty(pad_token_id: int) -> MicroBatch:
    no_pairs = torch.zeros(0, dtype=torch.int64)
    return MicroBatch(
        input_ids_NT=torch.full((1, 1), pad_token_id),
        attention_mask_NT=torch.ones((1, 1), dtype=torch.int64),
        last_N=torch.zeros(1, dtype=torch.int64),
        chosen_P=no_pairs,
        rejected_P=no_pairs,
        weight_P=torch.zeros(0),
        margin_P=torch.zeros(0),
        group_ids=(),
    )
