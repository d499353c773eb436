"""The attention of packed sequences, registered in transformers' attention interface, and the choice of its kernel.

Every layer of a model calls ``attend``, which finds the texts' boundaries in the keyword ``segments``; without it,
attention is plain scaled_dot_product_attention, so one model takes padded rows as well. No model is patched, and no
mask of T x T is built.

``prepare`` is the only place that chooses between two implementations, which give the same rewards and gradients up to
rounding: with our kernels for CPUs (cpu.py, cpu_backward.py) and the narrowed last layer (last_token.py), or without.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pairwright.errors import PairwrightError
from pairwright.model.attention.cpu import attend_on_cpu
from pairwright.model.attention.gpu import attend_on_gpu
from pairwright.model.attention.last_token import LastLayer
from pairwright.model.attention.sdpa import Kernel, Rule, attend_by_segment
from pairwright.model.collate import Segments

IMPLEMENTATION = "pairwright_segments"
"""Name of ``attend`` in transformers' attention interface."""
PLAIN_IMPLEMENTATION = "pairwright_segments_plain"
"""Name of ``attend_plainly``."""

KERNELS: dict[str, Kernel] = {"cpu": attend_on_cpu, "cuda": attend_on_gpu}
"""By type of device; ``attend_by_segment`` on all others."""
PLAIN_KERNELS: dict[str, Kernel] = {"cuda": attend_on_gpu}
"""The same without our kernels for CPUs."""

# Keywords of attention layers that do not change the result here.
_IGNORED = frozenset(
    {"position_ids", "position_embeddings", "cache_position", "past_key_values", "use_cache", "deterministic"}
    | {"output_attentions", "output_hidden_states", "return_dict", "token_type_ids"}
)


class UnsupportedAttentionError(PairwrightError):
    """A model asks for a kind of attention that is not implemented here; the layout check falls back."""


def prepare(model: PreTrainedModel, *, cpu_kernels: bool, is_decoder: bool) -> str:
    """Set a model up for packed sequences; return the name of the attention implementation to switch to.

    Args:
        model: whose last layer is narrowed, if it is a decoder.
        cpu_kernels: whether to use our kernels for CPUs and the narrowed last layer.
        is_decoder: whether the model is pooled at the last token.
    """
    if not cpu_kernels:
        return PLAIN_IMPLEMENTATION
    if is_decoder:
        LastLayer(model)
    return IMPLEMENTATION


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
    kernels: Mapping[str, Kernel] = KERNELS,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """Return one layer's attention, shape (R, T, H, D), as transformers' attention interface expects it.

    Args:
        module: the layer; its own ``is_causal`` holds if none is given.
        query: shape (R, H, T, D).
        key: shape (R, H', T, D).
        value: shape (R, H', T, D).
        attention_mask: of padded rows; a packed sequence has none.
        segments: boundaries of the texts in a packed sequence; None for padded rows.
        scaling: of query times key.
        dropout: of attention weights.
        is_causal: whether a token attends only to itself and earlier tokens.
        sliding_window: distance from which on a token does not attend to another; None for no limit.
        kernels: by type of device.
        keywords: other settings of the layer; none may change the result.

    Raises:
        UnsupportedAttentionError: if a keyword asks for something that is not implemented here.
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
    return kernels.get(query.device.type, attend_by_segment)(query, key, value, segments, rule), None


def attend_plainly(*tensors: Any, **keywords: Any) -> tuple[Tensor, None]:
    """Return one layer's attention without our kernels for CPUs; arguments as of ``attend``."""
    return attend(*tensors, kernels=PLAIN_KERNELS, **keywords)


def _of_one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return all three in autocast's dtype, else in the values': some models leave queries and keys in float32."""
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)


for _name, _attention in ((IMPLEMENTATION, attend), (PLAIN_IMPLEMENTATION, attend_plainly)):
    AttentionInterface.register(_name, _attention)
    # Padded rows on the same model use the masks of scaled_dot_product_attention.
    AttentionMaskInterface.register(_name, sdpa_mask)
