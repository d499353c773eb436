"""Groups -> a micro-batch: what one forward on one rank takes, in one of three layouts (which groups: planning.py).

``shared`` computes a group's prompt once, ``packed`` once a completion but without padding, ``padded`` with it: less to
compute, against more that the model has to allow (layouts.py).
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

from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.model.targets import Judgements

Layout = Literal["shared", "packed", "padded"]
"""``shared``: one row of [prompt][completion 1]...[completion K], group after group; ``packed``: one row of texts, each
whole; ``padded``: one row a text."""


@dataclass(frozen=True, slots=True)
class Segments:
    """How one flat row is cut: group after group, each its shared prompt and then its completions.

    A completion attends to its group's prompt and to itself, a prompt to itself. Where nothing is shared the prompt has
    0 tokens and stands at the front of each completion instead.
    """

    prompt_tokens_G: tuple[int, ...]
    """Tokens of each group's prompt; 0 where it is not shared."""
    completion_tokens_G: tuple[tuple[int, ...], ...]
    """Tokens of each of its completions."""
    reads_last_tokens: bool = False
    """Whether only the last token of each completion is asked for: in a decoder's last layer (last_layer.py)."""

    def completion_spans(self) -> list[tuple[int, int]]:
        """Return where each completion starts and ends in the row, in order, in tokens."""
        spans, start = [], 0
        for prompt, completions in zip(self.prompt_tokens_G, self.completion_tokens_G, strict=True):
            start += prompt
            for num_tokens in completions:
                spans.append((start, start + num_tokens))
                start += num_tokens
        return spans


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Whole groups, or parts of one, for one forward on one rank; completions in the groups' order and their own."""

    input_ids_RT: Tensor
    """Token ids, int64: R rows of T tokens; one row unless ``padded``."""
    position_ids_RT: Tensor
    """Position of each token in its own text, int64."""
    attention_mask_RT: Tensor | None
    """1 at tokens, 0 at padding, int64; only ``padded`` has one."""
    segments: Segments | None
    """How the flat row of ``shared`` and ``packed`` is cut."""
    last_N: Tensor
    """Index of each completion's last token into the R * T tokens, int64."""
    judgements: Judgements
    """What is known of the completions: the loss's input."""
    group_ids: tuple[str, ...]
    """Of the groups inside; empty for the micro-batch that only keeps a rank in step."""
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
            judgements=self.judgements.to(device),
        )


def collate(groups: Sequence[TokenGroup], pad_token_id: int, layout: Layout) -> MicroBatch:
    """Return groups as one micro-batch; the layout changes what is computed twice, never a reward.

    Without groups: one row of one token and no pairs, so that forward and backward run and add nothing.

    Args:
        groups: each whole, or some of the completions of one.
        pad_token_id: fills up ``padded`` rows, on the right; and the row of the empty micro-batch.
        layout: as the model allows (model/layout_check.py).
    """
    if layout == "padded":
        return _padded(groups, pad_token_id)
    return _flat(groups, pad_token_id, share_prompts=layout == "shared")


def _flat(groups: Sequence[TokenGroup], pad_token_id: int, *, share_prompts: bool) -> MicroBatch:
    """Return one row without padding; a completion's positions start behind its prompt's."""
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
        behind = 0 if share_prompts else num_prompt
        completion_tokens_G.append(tuple(behind + completion.size for completion in group.completion_ids))
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
        judgements=Judgements.of(groups),
        group_ids=tuple(group.group_id for group in groups),
        num_tokens=input_ids_RT.numel() if groups else 0,
    )


def _padded(groups: Sequence[TokenGroup], pad_token_id: int) -> MicroBatch:
    """Return one row a completion, its prompt before it, padded on the right to the longest."""
    if groups:
        input_ids_RT, length_N = _padded_rows(groups, pad_token_id)
    else:
        input_ids_RT, length_N = np.full((1, 1), pad_token_id, np.int64), np.ones(1, np.int64)
    num_rows, width = input_ids_RT.shape
    position_T = np.arange(width)
    return MicroBatch(
        input_ids_RT=torch.from_numpy(input_ids_RT),
        # Padding repeats the last position, which the model has; what stands there is never read.
        position_ids_RT=torch.from_numpy(np.minimum(position_T, length_N[:, None] - 1)),
        attention_mask_RT=torch.from_numpy((position_T < length_N[:, None]).astype(np.int64)),
        segments=None,
        last_N=torch.from_numpy(np.arange(num_rows) * width + length_N - 1),
        judgements=Judgements.of(groups),
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
