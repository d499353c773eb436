"""One flat row's queries, keys and values -> attention inside its segments, through transformers' attention interface.

Every layer of a model calls ``attend``, which finds the row's cut in the keyword ``segments``; without it, attention is
plain scaled_dot_product_attention, so one model takes padded rows as well. No model is patched and no mask of T x T is
built. What computes it is chosen by device (``KERNELS``).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pairwright.errors import PairwrightError
from pairwright.model.attention.cpu import attend_on_cpu
from pairwright.model.attention.gpu import attend_on_gpu
from pairwright.model.attention.last_token import attend_at_last_tokens
from pairwright.model.attention.sdpa import Kernel, Rule, attend_by_segment
from pairwright.model.collate import Segments

IMPLEMENTATION = "pairwright_segments"
"""Name of ``attend`` in transformers' attention interface."""

KERNELS: dict[str, Kernel] = {"cpu": attend_on_cpu, "cuda": attend_on_gpu}
"""By type of device; ``attend_by_segment`` on all others."""

# Keywords of attention layers that do not change what is computed here.
_IGNORED = frozenset(
    {"position_ids", "position_embeddings", "cache_position", "past_key_values", "use_cache", "deterministic"}
    | {"output_attentions", "output_hidden_states", "return_dict", "token_type_ids"}
)


class UnsupportedAttentionError(PairwrightError):
    """A model asks for attention of another kind than is computed here; the layout check falls back."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """Return one layer's attention, shape (R, T, H, D), as transformers' attention interface wants it.

    Args:
        module: the layer; ``is_causal`` is its own if not given.
        query: shape (R, H, T, D).
        key: shape (R, H', T, D).
        value: shape (R, H', T, D).
        attention_mask: of padded rows; a flat row has none.
        segments: how the flat row is cut; None for padded rows.
        scaling: of query times key.
        dropout: of attention weights.
        is_causal: whether a token attends to what comes before it only.
        sliding_window: whether only to tokens less than this far away.
        keywords: must not ask for anything else.

    Raises:
        UnsupportedAttentionError: if a keyword asks for what is not computed here.
    """
    if segments is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **keywords,
        )
    for name, setting in keywords.items():
        if name not in _IGNORED and setting is not None and setting is not False:
            raise UnsupportedAttentionError(f"{type(module).__name__} asks for attention with {name}")
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    if not is_causal and any(segments.prompt_tokens_G):
        raise UnsupportedAttentionError(
            f"{type(module).__name__} attends in both directions, so no prompt can be shared"
        )
    query, key, value = _of_one_dtype(query, key, value)
    rule = Rule(is_causal=is_causal, window=sliding_window, scaling=scaling, dropout=dropout)
    if segments.reads_last_tokens and not dropout and query.device.type == "cpu":
        return attend_at_last_tokens(query, key, value, segments, sliding_window, scaling), None
    return KERNELS.get(query.device.type, attend_by_segment)(query, key, value, segments, rule), None


def _of_one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return them in autocast's dtype, or the value's: some models leave queries and keys in their norm's float32."""
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)


AttentionInterface.register(IMPLEMENTATION, attend)
# Padded rows on the same model: the masks of scaled_dot_product_attention.
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
