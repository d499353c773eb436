"""Collates groups into a micro-batch, the input of one forward pass on one rank, in one of three layouts.

- ``shared``, the shared-prefix layout: a packed (varlen) sequence, which is one row that holds many texts without
  padding. Each group's prompt occurs once, before its completions.
- ``packed``: a packed sequence in which each completion has its own copy of the prompt.
- ``padded``: one row for each completion, padded to the longest.

The first computes least and asks most of the model; layout_check.py finds out what a model supports. batching/plan.py
decides which groups share a micro-batch.
"""

# ruff: noqa: N815 - shape suffixes: R rows, T tokens, N completions, G groups

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pairwright.data.tokens.token_group import TokenGroup
from pairwright.model.targets import PreferenceTargets

Layout = Literal["shared", "packed", "padded"]
"""``shared``: one row of [prompt][completion 1]...[completion K] for each group; ``packed``: one row of prompts with a
completion each; ``padded``: one row for each completion."""


@dataclass(frozen=True, slots=True)
class Segments:
    """Boundaries of the texts in a packed sequence: for each group its shared prompt, then its completions.

    A completion attends to its group's prompt and to itself, a prompt to itself. In the ``packed`` layout the shared
    prompt has 0 tokens, and each completion starts with its own copy.
    """

    prompt_tokens_G: tuple[int, ...]
    """Number of tokens of each group's shared prompt; 0 if it is not shared."""
    completion_tokens_G: tuple[tuple[int, ...], ...]
    """Numbers of tokens of each group's completions."""
    reads_last_tokens: bool = False
    """Whether only each completion's last token is read: in a decoder's last layer (attention/last_token.py)."""

    def completion_spans(self) -> list[tuple[int, int]]:
        """Return the start and end of each completion in the sequence, in order, in tokens."""
        spans, start = [], 0
        for prompt, completions in zip(self.prompt_tokens_G, self.completion_tokens_G, strict=True):
            start += prompt
            for num_tokens in completions:
                spans.append((start, start + num_tokens))
                start += num_tokens
        return spans


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Groups, or parts of split groups, for one forward pass on one rank; completions in the order of their groups."""

    input_ids_RT: Tensor
    """Token ids, int64: R rows of T tokens; one row unless ``padded``."""
    position_ids_RT: Tensor
    """Position of each token in its own text, int64."""
    attention_mask_RT: Tensor | None
    """1 at tokens, 0 at padding, int64; None unless ``padded``."""
    segments: Segments | None
    """Boundaries of the texts in the packed sequence; None if ``padded``."""
    last_N: Tensor
    """Index of each completion's last token into the R * T tokens, int64."""
    targets: PreferenceTargets
    """The completions' pairs and rankings: the input of the loss."""
    group_ids: tuple[str, ...]
    """Of the groups inside; empty for a micro-batch that only keeps a rank in step with the others."""
    num_tokens: int
    """Tokens computed, without padding."""

    def to(self, device: torch.device | str) -> "MicroBatch":
        """Return the micro-batch on a device."""
        mask_RT = self.attention_mask_RT
        return dataclasses.replace(
            self,
            input_ids_RT=self.input_ids_RT.to(device),
            position_ids_RT=self.position_ids_RT.to(device),
            attention_mask_RT=None if mask_RT is None else mask_RT.to(device),
            last_N=self.last_N.to(device),
            targets=self.targets.to(device),
        )


def collate(groups: Sequence[TokenGroup], pad_token_id: int, layout: Layout) -> MicroBatch:
    """Return groups as one micro-batch; the layout changes the work done twice, never a reward.

    Without groups it is one row of one token and no pairs, so that forward and backward run and add nothing.

    Args:
        groups: all completions of each, or some completions of one.
        pad_token_id: fills ``padded`` rows on the right, and the row of the empty micro-batch.
        layout: one that the model supports (model/layout_check.py).
    """
    if layout == "padded":
        return _padded(groups, pad_token_id)
    return _packed_sequence(groups, pad_token_id, share_prompts=layout == "shared")


def _packed_sequence(groups: Sequence[TokenGroup], pad_token_id: int, *, share_prompts: bool) -> MicroBatch:
    """Return one row without padding; a completion's positions continue those of its prompt."""
    ids: list[NDArray[np.int32]] = []
    positions: list[NDArray[np.int64]] = []
    completion_tokens_G: list[tuple[int, ...]] = []
    for group in groups:
        num_prompt = group.prompt_ids.size
        if share_prompts:
            ids.append(group.prompt_ids)
            positions.append(np.arange(num_prompt))
        for completion in group.completion_ids:
            ids += [completion] if share_prompts else [group.prompt_ids, completion]
            positions.append(np.arange(num_prompt if share_prompts else 0, num_prompt + completion.size))
        num_copied = 0 if share_prompts else num_prompt
        completion_tokens_G.append(tuple(num_copied + completion.size for completion in group.completion_ids))
    prompt_tokens_G = tuple(group.prompt_ids.size if share_prompts else 0 for group in groups)
    if not groups:
        ids, positions = [np.array([pad_token_id], np.int32)], [np.zeros(1, np.int64)]
        prompt_tokens_G, completion_tokens_G = (0,), [(1,)]
    segments = Segments(prompt_tokens_G, tuple(completion_tokens_G))
    input_ids_RT = torch.from_numpy(np.concatenate(ids, dtype=np.int64))[None]
    return MicroBatch(
        input_ids_RT=input_ids_RT,
        position_ids_RT=torch.from_numpy(np.concatenate(positions))[None],
        attention_mask_RT=None,
        segments=segments,
        last_N=torch.tensor([end - 1 for _, end in segments.completion_spans()]),
        targets=PreferenceTargets.of(groups),
        group_ids=tuple(group.group_id for group in groups),
        num_tokens=input_ids_RT.numel() if groups else 0,
    )


def _padded(groups: Sequence[TokenGroup], pad_token_id: int) -> MicroBatch:
    """Return one row for each completion, with its prompt before it, padded on the right to the longest."""
    if groups:
        input_ids_RT, length_N = _padded_rows(groups, pad_token_id)
    else:
        input_ids_RT, length_N = np.full((1, 1), pad_token_id, np.int64), np.ones(1, np.int64)
    num_rows, width = input_ids_RT.shape
    position_T = np.arange(width)
    return MicroBatch(
        input_ids_RT=torch.from_numpy(input_ids_RT),
        # Padding repeats the last position, which the model has; its states are never read.
        position_ids_RT=torch.from_numpy(np.minimum(position_T, length_N[:, None] - 1)),
        attention_mask_RT=torch.from_numpy((position_T < length_N[:, None]).astype(np.int64)),
        segments=None,
        last_N=torch.from_numpy(np.arange(num_rows) * width + length_N - 1),
        targets=PreferenceTargets.of(groups),
        group_ids=tuple(group.group_id for group in groups),
        num_tokens=int(length_N.sum()) if groups else 0,
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
