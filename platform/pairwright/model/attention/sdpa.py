"""The reference kernel: the attention of a packed sequence on any device, by scaled_dot_product_attention.

It copies a prompt's keys to each of its completions and makes one call for each segment. CPUs and CUDA GPUs have faster
kernels (cpu.py, gpu.py), which fall back to this one for what they do not implement, such as dropout.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pairwright.model.collate import Segments


@dataclass(frozen=True, slots=True)
class Rule:
    """How a layer attends: which keys a token sees, their scaling, and dropout."""

    is_causal: bool
    """Whether a token sees only itself and earlier tokens."""
    window: int | None
    """Distance from which on a token does not see another; None for no limit."""
    scaling: float | None
    """Factor of query times key; 1/sqrt(head dimension) if None."""
    dropout: float
    """Probability that an attention weight is dropped."""


class Kernel(Protocol):
    """Computes the attention of a packed sequence.

    ``query`` has shape (1, H, T, D), ``key`` and ``value`` (1, H', T, D) with H a multiple of H'; all of one dtype. The
    result has shape (1, T, H, D).
    """

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, segments: Segments, rule: Rule) -> Tensor: ...


def attend_by_segment(query: Tensor, key: Tensor, value: Tensor, segments: Segments, rule: Rule) -> Tensor:
    """Return the attention of a packed sequence, segment by segment; a ``Kernel``."""
    # Split and not sliced: the backward pass of a slice writes a gradient of the whole sequence's size.
    sizes = [size for sizes in _sizes(segments) for size in sizes]
    queries, keys, values = (iter(tensor.split(sizes, dim=2)) for tensor in (query, key, value))
    masks = iter(_masks(segments, rule, query.dtype, query.device))
    out = []
    for prompt, *completions in _sizes(segments):
        prompt_query, prompt_key, prompt_value = next(queries), next(keys), next(values)
        if prompt:
            out.append(_attend(prompt_query, prompt_key, prompt_value, next(masks), rule))
        for _ in completions:
            own_key, own_value = next(keys), next(values)
            if prompt:
                own_key = torch.cat([prompt_key, own_key], dim=2)
                own_value = torch.cat([prompt_value, own_value], dim=2)
            out.append(_attend(next(queries), own_key, own_value, next(masks), rule))
    return torch.cat(out, dim=2).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: Rule) -> Tensor:
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=rule.dropout,
        is_causal=rule.is_causal and mask is None,
        scale=rule.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _sizes(segments: Segments) -> Iterator[tuple[int, ...]]:
    """Yield the lengths of each group's segments in tokens, the prompt first."""
    for prompt, completions in zip(segments.prompt_tokens_G, segments.completion_tokens_G, strict=True):
        yield prompt, *completions


# All layers of a model need the same masks in turn; models with sliding windows need two kinds.
@lru_cache(maxsize=4)
def _masks(segments: Segments, rule: Rule, dtype: torch.dtype, device: torch.device) -> tuple[Tensor | None, ...]:
    """Return the mask of each call, whose keys end with its queries; None where SDPA needs no mask."""
    made: dict[tuple[int, int], Tensor | None] = {}

    def mask(num_queries: int, num_keys: int) -> Tensor | None:
        if (num_queries, num_keys) not in made:
            made[num_queries, num_keys] = visible(num_queries, num_keys, rule, dtype, device)
        return made[num_queries, num_keys]

    masks = []
    for prompt, *completions in _sizes(segments):
        masks += [mask(prompt, prompt)] if prompt else []
        masks += [mask(num_tokens, prompt + num_tokens) for num_tokens in completions]
    return tuple(masks)


def visible(
    num_queries: int,
    num_keys: int,
    rule: Rule,
    dtype: torch.dtype,
    device: torch.device,
    *,
    keys_behind: int = 0,
) -> Tensor | None:
    """Return an additive mask: 0 where a query may attend to a key, -inf elsewhere, shape (queries, keys).

    None if a call without a mask does the same: no key is hidden, or only later ones of as many keys as queries.

    Args:
        num_queries: number of consecutive query tokens.
        num_keys: number of consecutive key tokens, the last at the position of the last query.
        rule: of the layer.
        dtype: of the mask.
        device: of the mask.
        keys_behind: distance of the last key before the last query, if they differ.
    """
    farthest = num_keys + keys_behind
    in_window = rule.window is None or farthest <= rule.window
    if in_window and (
        not rule.is_causal or keys_behind >= num_queries or (num_queries == num_keys and not keys_behind)
    ):
        return None
    query_position = torch.arange(farthest - num_queries, farthest, device=device)[:, None]
    distance = query_position - torch.arange(num_keys, device=device)
    hidden = distance < 0 if rule.is_causal else torch.zeros_like(distance, dtype=torch.bool)
    if rule.window is not None:
        hidden = hidden | (distance.abs() >= rule.window)
    return torch.zeros(num_queries, num_keys, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
