"""Attention inside the segments of a flat row: token by token from its definition, for every kernel of this machine."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from pairwright.model.attention.interface import KERNELS, UnsupportedAttentionError, attend
from pairwright.model.attention.sdpa import Kernel, Rule, attend_by_segment
from pairwright.model.collate import Segments

ANY_AND_CPU = pytest.mark.parametrize("kernel", [attend_by_segment, KERNELS["cpu"]], ids=["any device", "cpu"])
ROW = Segments((5, 0, 1, 7), ((3, 1, 9), (4, 2), (6,), (2, 2)))
TEXTS = Segments((0, 0), ((8, 1, 5), (11,)))


def _distances(segments: Segments) -> Tensor:
    """Return how far before each token each other one stands in its text; NaN where it is in another text."""
    place: list[tuple[int, int | None, int]] = []
    for group, (prompt, completions) in enumerate(
        zip(segments.prompt_tokens_G, segments.completion_tokens_G, strict=True)
    ):
        place += [(group, None, position) for position in range(prompt)]
        place += [(group, c, prompt + i) for c, num_tokens in enumerate(completions) for i in range(num_tokens)]
    distance = torch.full((len(place), len(place)), float("nan"))
    for (q, (group, own, at)), (k, (other, of, position)) in itertools.product(enumerate(place), repeat=2):
        if group == other and of in (own, None):
            distance[q, k] = at - position
    return distance


def _definition(query: Tensor, key: Tensor, value: Tensor, segments: Segments, rule: Rule) -> Tensor:
    distance = _distances(segments)
    seen = distance >= 0 if rule.is_causal else distance.isfinite()
    if rule.window is not None:
        seen &= distance.abs() < rule.window
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    scaling = query.shape[-1] ** -0.5 if rule.scaling is None else rule.scaling
    weight = (query @ key.transpose(2, 3) * scaling).masked_fill(~seen, float("-inf")).softmax(dim=-1)
    return (weight @ value).transpose(1, 2)


def _drawn(segments: Segments, dtype: torch.dtype, num_heads: int = 4, num_key_heads: int = 2) -> list[Tensor]:
    num_tokens = sum(segments.prompt_tokens_G) + sum(map(sum, segments.completion_tokens_G))
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, num_tokens, heads, 8) for heads in (num_heads, num_key_heads, num_key_heads)]
    # As layers have them: heads behind tokens in memory.
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2) for shape in shapes]
    return [tensor.requires_grad_() for tensor in drawn]


def _with_gradient(kernel: Kernel, tensors: list[Tensor], segments: Segments, rule: Rule) -> list[Tensor]:
    out = kernel(tensors[0], tensors[1], tensors[2], segments, rule)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad((out.double() * weight).sum(), tensors)]


@ANY_AND_CPU
@pytest.mark.parametrize("num_key_heads", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 1, 2, 4, 7, 11, 100])
def test_a_token_sees_its_prompt_and_what_precedes_it_in_its_completion(kernel, window, num_key_heads):
    rule = Rule(is_causal=True, window=window, scaling=0.3, dropout=0.0)
    drawn = _drawn(ROW, torch.float64, num_key_heads=num_key_heads)
    expected = _with_gradient(_definition, drawn, ROW, rule)
    for found, right in zip(_with_gradient(kernel, drawn, ROW, rule), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


@ANY_AND_CPU
@pytest.mark.parametrize("window", [None, 1, 3, 8])
def test_without_causality_a_token_sees_its_whole_text(kernel, window):
    rule = Rule(is_causal=False, window=window, scaling=None, dropout=0.0)
    drawn = _drawn(TEXTS, torch.float64)
    expected = _with_gradient(_definition, drawn, TEXTS, rule)
    for found, right in zip(_with_gradient(kernel, drawn, TEXTS, rule), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


@ANY_AND_CPU
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("window", [None, 4])
def test_narrow_dtypes_are_as_near_as_their_rounding(kernel, dtype, tolerance, window):
    rule = Rule(is_causal=True, window=window, scaling=None, dropout=0.0)
    drawn = _drawn(ROW, dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in drawn]
    expected = _with_gradient(_definition, exact, ROW, rule)
    for found, right in zip(_with_gradient(kernel, drawn, ROW, rule), expected, strict=True):
        assert found.dtype == dtype
        assert float((found.double() - right).norm() / right.norm()) < tolerance


@ANY_AND_CPU
def test_dropped_attention_weights_leave_the_mean_as_it_is(kernel):
    rule = Rule(is_causal=True, window=None, scaling=None, dropout=0.5)
    query, key, value = _drawn(ROW, torch.float64)
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([kernel(query, key, torch.ones_like(value), ROW, rule) for _ in range(400)])
    assert draws.std(dim=0).min() > 0.1  # a token alone sees itself or nothing
    assert (draws.mean(dim=0) - 1).abs().max() < 0.3


class _Layer(torch.nn.Module):
    is_causal = True


@pytest.mark.parametrize("keyword", ["softcap", "s_aux", "position_bias", "head_mask", "something_new"])
def test_a_keyword_that_changes_attention_is_declined(keyword):
    query, key, value = _drawn(ROW, torch.float32)
    asked: dict[str, Any] = {keyword: 30.0}
    with pytest.raises(UnsupportedAttentionError, match=keyword):
        attend(_Layer(), query, key, value, None, segments=ROW, **asked)


def test_the_layers_own_dtype_does_not_matter_under_autocast():
    """Norms of queries and keys leave float32 behind under autocast, values are bfloat16."""
    query, key, value = _drawn(ROW, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = attend(_Layer(), query, key, value.bfloat16(), None, segments=ROW)
    assert out.dtype == torch.bfloat16
    rule = Rule(is_causal=True, window=None, scaling=None, dropout=0.0)
    torch.testing.assert_close(out.float(), _definition(query, key, value, ROW, rule), rtol=0.05, atol=0.05)
