"""The CPU kernel for packed sequences: flash attention without copies of a prompt's keys, as one autograd function.

It calls PyTorch's own flash attention for CPUs on views. A completion's attention to its prompt and to itself are two
calls, merged by the log-sums of exponentials that both return (Dao et al. 2022, arXiv:2205.14135, section 3.1). So a
prompt's keys are not copied to its completions, all completions of a group attend to their prompt in one call, and only
queries, keys, values and the result are kept for the backward pass. In half precision the backward pass is our own
(cpu_backward.py); in float32 and float64 PyTorch's, called tile by tile, is faster.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pairwright.model.attention.cpu_backward import Operands, Tile, tiled_gradients
from pairwright.model.attention.last_token import attend_at_last_tokens
from pairwright.model.attention.sdpa import Rule, attend_by_segment, visible
from pairwright.model.collate import Segments

CPU = torch.device("cpu")
# Dtypes whose backward pass is that of cpu_backward.py.
OWN_BACKWARD = frozenset({torch.bfloat16, torch.float16})

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_on_cpu(query: Tensor, key: Tensor, value: Tensor, segments: Segments, rule: Rule) -> Tensor:
    """Return the attention of a packed sequence; a ``Kernel``."""
    if segments.reads_last_tokens and not rule.dropout:
        return attend_at_last_tokens(query, key, value, segments, rule.window, rule.scaling)
    if rule.dropout or query.shape[-1] != value.shape[-1]:
        return attend_by_segment(query, key, value, segments, rule)
    scaling = query.shape[-1] ** -0.5 if rule.scaling is None else rule.scaling
    tiles = _tiles(segments, rule, query.dtype)
    out: Tensor = _Attention.apply(query, key, value, tiles, scaling)
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tiles: tuple[Tile, ...], scaling: float) -> Tensor:
        _, num_heads, num_tokens, head_dim = query.shape
        out = query.new_empty(num_tokens, num_heads, head_dim)
        # Key heads take the place of the batch dimension, so that several query heads share one without copies.
        query_, key_, value_, out_ = _by_key_head(query, key, value, out.transpose(0, 1)[None])
        log_sum = out.new_empty(out_.shape[:-1], dtype=torch.promote_types(out.dtype, torch.float32))
        for tile in tiles:
            rows, keys = tile.queries, tile.keys
            found, found_log_sum = _flash(
                query_[:, :, rows],
                key_[:, :, keys],
                value_[:, :, keys],
                0.0,
                tile.is_causal,
                attn_mask=tile.mask,
                scale=scaling,
            )
            if tile.is_own:
                out_[:, :, rows], log_sum[:, :, rows] = found, found_log_sum
            else:
                _merge(out_[:, :, rows], log_sum[:, :, rows], found, found_log_sum)
        ctx.save_for_backward(query, key, value, out, log_sum)
        ctx.tiles, ctx.scaling = tiles, scaling
        return out[None]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, log_sum = ctx.saved_tensors
        query_, key_, value_, out_, grad_ = _by_key_head(
            query, key, value, out.transpose(0, 1)[None], grads[0].transpose(1, 2)
        )
        into = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        into_heads = _by_key_head(*into)[0], into[1][0], into[2][0]
        if query.dtype in OWN_BACKWARD:
            operands = Operands.of(query_, key_, value_, out_, grad_, log_sum, ctx.scaling)
            tiled_gradients(operands, ctx.tiles, ctx.scaling, into_heads)
        else:
            _flash_gradients((query_, key_, value_, out_, grad_), log_sum, ctx.tiles, ctx.scaling, into_heads)
        return *into, None, None


def _flash_gradients(
    given: tuple[Tensor, ...],
    log_sum: Tensor,
    tiles: tuple[Tile, ...],
    scaling: float,
    into: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Write the gradients as ``tiled_gradients`` does; faster in float32 and float64."""
    query, key, value, out, grad = given
    into_query, into_key, into_value = into
    for tile in tiles:
        rows, keys = tile.queries, tile.keys
        # Given the log-sums over all of a query's keys, each call returns its part of the gradient.
        grad_query, grad_key, grad_value = _flash_backward(
            grad[:, :, rows],
            query[:, :, rows],
            key[:, :, keys],
            value[:, :, keys],
            out[:, :, rows],
            log_sum[:, :, rows],
            0.0,
            tile.is_causal,
            attn_mask=tile.mask,
            scale=scaling,
        )
        put = Tensor.copy_ if tile.is_own else Tensor.add_
        put(into_query[:, :, rows], grad_query)
        put(into_key[:, keys], grad_key.sum(1))
        put(into_value[:, keys], grad_value.sum(1))


def _by_key_head(query: Tensor, key: Tensor, value: Tensor, *like_query: Tensor) -> tuple[Tensor, ...]:
    """Return views of shape (H', H / H', T, D) of tensors of shape (1, H, T, D) and (1, H', T, D)."""
    num_key_heads, num_shared = key.shape[1], query.shape[1] // key.shape[1]
    by_key_head = [tensor[0].unflatten(0, (num_key_heads, num_shared)) for tensor in (query, *like_query)]
    shared = [tensor[0, :, None].expand(-1, num_shared, -1, -1) for tensor in (key, value)]
    return by_key_head[0], *shared, *by_key_head[1:]


def _merge(out: Tensor, log_sum: Tensor, other: Tensor, other_log_sum: Tensor) -> None:
    """Merge, in place, the attention of the same queries to other keys."""
    share = torch.sigmoid(other_log_sum - log_sum)[..., None]
    out.copy_(torch.lerp(out.to(share.dtype), other.to(share.dtype), share))
    log_sum.copy_(torch.logaddexp(log_sum, other_log_sum))


# ----------------------------------------------------------------------------------------------------------- tiles


# All layers of a model need the same tiles in turn; models with sliding windows need two kinds.
@lru_cache(maxsize=4)
def _tiles(segments: Segments, rule: Rule, dtype: torch.dtype) -> tuple[Tile, ...]:
    """Return the calls that make up the attention of a packed sequence, those inside a segment first."""
    own: list[Tile] = []
    to_prompt: list[Tile] = []
    start = 0
    for prompt, completions in zip(segments.prompt_tokens_G, segments.completion_tokens_G, strict=True):
        prompt_keys, first = slice(start, start + prompt), start + prompt
        if prompt:
            own.append(_own_tile(start, prompt, rule, dtype))
        start = first
        for num_tokens in completions:
            own.append(_own_tile(start, num_tokens, rule, dtype))
            if prompt and rule.window is not None:
                to_prompt += _window_tile(prompt_keys, start, num_tokens, rule.window, rule, dtype)
            start += num_tokens
        if prompt and rule.window is None:
            to_prompt.append(Tile(slice(first, start), prompt_keys, is_own=False, is_causal=False, mask=None))
    return (*own, *to_prompt)


def _own_tile(start: int, num_tokens: int, rule: Rule, dtype: torch.dtype) -> Tile:
    span = slice(start, start + num_tokens)
    mask = visible(num_tokens, num_tokens, rule, dtype, CPU)
    return Tile(span, span, is_own=True, is_causal=rule.is_causal and mask is None, mask=mask)


def _window_tile(prompt: slice, start: int, num_tokens: int, window: int, rule: Rule, dtype: torch.dtype) -> list[Tile]:
    """Return the call for the completion tokens whose window reaches into the prompt; none if no token's does."""
    num_queries, first_key = min(num_tokens, window - 1), max(prompt.start, prompt.stop - window + 1)
    if not num_queries:
        return []
    mask = visible(num_queries, prompt.stop - first_key, rule, dtype, CPU, keys_behind=num_queries)
    queries = slice(start, start + num_queries)
    return [Tile(queries, slice(first_key, prompt.stop), is_own=False, is_causal=False, mask=mask)]
