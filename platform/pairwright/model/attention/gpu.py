"""The GPU kernel for packed sequences: one call of PyTorch's variable-length flash attention on CUDA.

``torch.nn.attention.varlen`` takes any numbers of queries and keys for each sequence, and aligns their ends under the
causal mask. So each segment is a sequence: a prompt attends to itself, a completion to the keys of its prompt and its
own, which are gathered first. That copies a prompt's keys once for each completion (kept for the backward pass), and
needs no kernel of our own. Under grouped queries the copies have the H' heads of the keys where ``varlen_attn`` has the
keyword ``enable_gqa`` (PyTorch 2.13), and all H heads where it has not (2.11). flex_attention needs no copy, but is
compiled again for every length of the packed sequence.

A small self-check decides once for each kind of call whether the kernel computes correctly on this device
(``_is_correct``). If it does not, and for float32, dropout and wide heads, ``attend_by_segment`` computes. Written on a
machine without a GPU: neither its speed nor its results have been measured there (docs/gpu.md says how to). Everything
but the kernel itself is tested on CPUs (tests/model/test_gpu_path.py).
"""

# ruff: noqa: N815 - shape suffixes: S sequences, Tk gathered keys

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from pairwright.model.attention.sdpa import Rule, attend_by_segment
from pairwright.model.collate import Segments

logger = logging.getLogger(__name__)

DTYPES = frozenset({torch.bfloat16, torch.float16})
MOST_HEAD_DIM = 256
# Relative difference of norms, of results and gradients: two kernels in bfloat16 differ by about 0.004, a wrong mask
# makes 0.1 or more.
TOLERANCE = 0.02
CHECKED_SEGMENTS = Segments((70, 0, 3), ((5, 90), (40,), (130, 1, 2)))


@dataclass(frozen=True, slots=True)
class Sequences:
    """A packed sequence as S sequences of queries and Tk gathered keys."""

    key_Tk: Tensor
    """Index of each gathered key in the packed sequence, int64."""
    first_query_S: Tensor
    """Start of each sequence's queries, and the end of the last, int32, shape (S + 1,)."""
    first_key_S: Tensor
    """Start of each sequence's keys among those gathered, and the end of the last, int32, shape (S + 1,)."""
    most_queries: int
    most_keys: int


def attend_on_gpu(query: Tensor, key: Tensor, value: Tensor, segments: Segments, rule: Rule) -> Tensor:
    """Return the attention of a packed sequence; a ``Kernel``."""
    head_dim = query.shape[-1]
    fits = query.dtype in DTYPES and head_dim <= MOST_HEAD_DIM and head_dim == value.shape[-1] and not rule.dropout
    if fits and _is_correct(query.device, query.dtype, head_dim, query.shape[1] // key.shape[1], rule):
        return attend_by_sequence(query, key, value, segments, rule)
    return attend_by_segment(query, key, value, segments, rule)


def attend_by_sequence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    rule: Rule,
    *,
    varlen: Callable[..., Any] = varlen_attn,
) -> Tensor:
    """Return the attention of a packed sequence in one call, without the self-check; a ``Kernel``.

    Args:
        query: shape (1, H, T, D).
        key: shape (1, H', T, D), H a multiple of H'.
        value: shape (1, H', T, D).
        segments: boundaries of the texts.
        rule: of the layer.
        varlen: PyTorch's ``varlen_attn`` of any version, or what computes the same.
    """
    sequences = sequences_of(segments, query.device)
    num_shared = query.shape[1] // key.shape[1]
    groups_queries = takes_grouped_queries(varlen)
    options = {"enable_gqa": num_shared > 1} if groups_queries else {}
    num_copies = 1 if groups_queries else num_shared
    out = varlen(
        query[0].transpose(0, 1).contiguous(),
        gathered(key[0].transpose(0, 1), sequences.key_Tk, num_copies=num_copies),
        gathered(value[0].transpose(0, 1), sequences.key_Tk, num_copies=num_copies),
        sequences.first_query_S,
        sequences.first_key_S,
        sequences.most_queries,
        sequences.most_keys,
        scale=rule.scaling,
        window_size=_window_size(rule),
        **options,
    )
    assert isinstance(out, Tensor)
    return out[None]


@cache
def takes_grouped_queries(varlen: Callable[..., Any]) -> bool:
    """Return whether ``varlen_attn`` takes fewer key heads than query heads: PyTorch 2.13 does, 2.11 does not."""
    return "enable_gqa" in inspect.signature(varlen).parameters


# All layers of a model need the same sequences in turn.
@lru_cache(maxsize=4)
def sequences_of(segments: Segments, device: torch.device) -> Sequences:
    """Return each segment as a sequence: its tokens as queries, its prompt's tokens and its own as keys."""
    keys: list[Tensor] = []
    num_queries: list[int] = []
    start = 0
    for prompt, completions in zip(segments.prompt_tokens_G, segments.completion_tokens_G, strict=True):
        prompt_keys = torch.arange(start, start + prompt)
        for shared, num_tokens in [(prompt_keys[:0], prompt), *((prompt_keys, size) for size in completions)]:
            if num_tokens:
                keys.append(torch.cat([shared, torch.arange(start, start + num_tokens)]))
                num_queries.append(num_tokens)
            start += num_tokens
    num_keys = [part.numel() for part in keys]
    return Sequences(
        key_Tk=torch.cat(keys).to(device),
        first_query_S=torch.tensor([0, *num_queries]).cumsum(0, dtype=torch.int32).to(device),
        first_key_S=torch.tensor([0, *num_keys]).cumsum(0, dtype=torch.int32).to(device),
        most_queries=max(num_queries),
        most_keys=max(num_keys),
    )


def gathered(tensor: Tensor, index_Tk: Tensor, *, num_copies: int = 1) -> Tensor:
    """Return rows of a tensor by index, each of its heads several times; gradients of copies are summed in float32.

    Args:
        tensor: shape (T, H', D).
        index_Tk: of the rows, int64; a row may occur several times.
        num_copies: of each head, one after the other; the result has shape (Tk, H' * num_copies, D).
    """
    out: Tensor = _Gathered.apply(tensor, index_Tk, num_copies)
    return out


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, index_Tk: Tensor, num_copies: int) -> Tensor:
        ctx.save_for_backward(index_Tk)
        ctx.shape, ctx.num_copies = tensor.shape, num_copies
        if num_copies > 1:
            tensor = tensor.repeat_interleave(num_copies, dim=1)
        return tensor.index_select(0, index_Tk)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (index_Tk,) = ctx.saved_tensors
        (grad,) = grads
        wide = torch.promote_types(grad.dtype, torch.float32)
        of_heads = grad.to(wide) if ctx.num_copies == 1 else grad.unflatten(1, (-1, ctx.num_copies)).sum(2, dtype=wide)
        total = torch.zeros(ctx.shape, dtype=wide, device=grad.device)
        return total.index_add_(0, index_Tk, of_heads).to(grad.dtype), None, None


def _window_size(rule: Rule) -> tuple[int, int]:
    """Return the numbers of keys that a query sees to its left and right; -1 for all."""
    reach = -1 if rule.window is None else rule.window - 1
    return reach, 0 if rule.is_causal else reach


# ---------------------------------------------------------------------------------------------- the check


@lru_cache(maxsize=64)
def _is_correct(device: torch.device, dtype: torch.dtype, head_dim: int, num_shared: int, rule: Rule) -> bool:
    """Return whether one call gives the result and gradients of ``attend_by_segment`` on a small random sequence."""
    try:
        differences = _differences(device, dtype, head_dim, num_shared, rule)
    except Exception as error:
        # Versions of PyTorch differ in what they refuse, and how; segment by segment all of them compute.
        logger.warning("attention segment by segment: varlen_attn cannot run here (%s)", str(error).partition("\n")[0])
        return False
    # Written so that NaN fails.
    is_correct = all(difference < TOLERANCE for difference in differences)
    if not is_correct:
        named = ", ".join(f"{difference:.1e}" for difference in differences)
        logger.warning("attention segment by segment: varlen_attn differs here (by %s)", named)
    return is_correct


@torch.enable_grad()
def _differences(
    device: torch.device, dtype: torch.dtype, head_dim: int, num_shared: int, rule: Rule
) -> tuple[float, ...]:
    """Return the relative differences of the results and the three gradients."""
    segments = CHECKED_SEGMENTS if rule.is_causal else Segments((0, 0), ((5, 90), (40,)))
    num_tokens = sum(segments.prompt_tokens_G) + sum(map(sum, segments.completion_tokens_G))
    generator = torch.Generator(device).manual_seed(0)
    query, key, value, weight = (
        torch.randn(1, heads, num_tokens, head_dim, generator=generator, device=device).to(dtype)
        for heads in (2 * num_shared, 2, 2, 2 * num_shared)
    )
    found = []
    with torch.autocast(device.type, enabled=False):
        for kernel in (attend_by_sequence, attend_by_segment):
            leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
            out = kernel(leaves[0], leaves[1], leaves[2], segments, rule)
            found.append([out, *torch.autograd.grad(out, leaves, weight.transpose(1, 2))])
    return tuple(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(*found, strict=True))
