"""The documented mathematics of ``torch.nn.attention.varlen.varlen_attn``, sequence by sequence, on any device.

Under the signatures of two versions of PyTorch: 2.11 wants as many key heads as query heads, 2.13 takes fewer under
``enable_gqa``. The last key of a sequence stands at the position of its last query.
"""

import itertools

import torch
from torch import Tensor


def varlen_attn_of_2_11(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """Return attention, shape (queries, heads, D), of tensors of shape (tokens, heads, D)."""
    if query.shape[1] != key.shape[1]:
        raise ValueError(f"query has {query.shape[1]} heads and key {key.shape[1]}, expected as many")
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert query.is_contiguous()
    out = []
    for (q_start, q_stop), (k_start, k_stop) in zip(_spans(cu_seq_q), _spans(cu_seq_k), strict=True):
        num_queries, num_keys = q_stop - q_start, k_stop - k_start
        assert 0 < num_queries <= max_q
        assert num_queries <= num_keys <= max_k
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        score = torch.einsum("qhd,khd->hqk", query[q_start:q_stop], key[k_start:k_stop]) * factor
        hidden = ~_visible(num_queries, num_keys, window_size).to(query.device)
        weight = score.masked_fill(hidden, float("-inf")).softmax(-1)
        out.append(torch.einsum("hqk,khd->qhd", weight, value[k_start:k_stop]))
    return torch.cat(out)


def varlen_attn_of_2_13(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """Return the same, of fewer key heads under ``enable_gqa``."""
    if enable_gqa:
        num_shared = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(num_shared, dim=1), value.repeat_interleave(num_shared, dim=1)
    return varlen_attn_of_2_11(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size
    )


def _spans(first_S: Tensor) -> list[tuple[int, int]]:
    return list(itertools.pairwise(first_S.tolist()))


def _visible(num_queries: int, num_keys: int, window_size: tuple[int, int]) -> Tensor:
    """Return which keys each query sees, shape (queries, keys)."""
    left, right = window_size
    distance = torch.arange(num_keys - num_queries, num_keys)[:, None] - torch.arange(num_keys)
    seen = torch.ones_like(distance, dtype=torch.bool)
    if left >= 0:
        seen &= distance <= left
    if right >= 0:
        seen &= distance >= -right
    return seen
