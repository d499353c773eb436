"""The backward pass by matrix products, cut into pieces of any size, is that of attention as it is defined."""

import pytest
import torch

from pairwright.model.attention import cpu as attention_cpu
from pairwright.model.attention import cpu_backward as attention_gradient
from pairwright.model.attention.cpu import attend_on_cpu
from pairwright.model.attention.sdpa import Rule, attend_by_segment
from pairwright.model.collate import Segments

# Segments of one length side by side, alone, and longer than a piece.
ROW = Segments((6, 0, 40, 5), ((6, 6, 6, 2), (4, 4), (30, 30, 7), (5, 1)))
TEXTS = Segments((0, 0), ((8, 8, 5), (33,)))


@pytest.mark.parametrize(("most_numbers", "fewest_queries"), [(2**19, 64), (2000, 4), (1, 3)])
@pytest.mark.parametrize("num_key_heads", [4, 2])
@pytest.mark.parametrize(("segments", "window"), [(ROW, None), (ROW, 9), (TEXTS, None), (TEXTS, 6)])
def test_pieces_of_any_size_add_up_to_the_gradient(
    segments, window, num_key_heads, most_numbers, fewest_queries, monkeypatch
):
    monkeypatch.setattr(attention_cpu, "OWN_BACKWARD", frozenset({torch.float64}))
    monkeypatch.setattr(attention_gradient, "MOST_NUMBERS", most_numbers)
    monkeypatch.setattr(attention_gradient, "FEWEST_QUERIES", fewest_queries)
    num_tokens = sum(segments.prompt_tokens_G) + sum(map(sum, segments.completion_tokens_G))
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, h, num_tokens, 8, generator=generator, dtype=torch.float64) for h in (4, 2, 2)]
    drawn[1:] = [tensor[:, :num_key_heads].repeat(1, num_key_heads // 2, 1, 1) for tensor in drawn[1:]]
    query, key, value = (tensor.requires_grad_() for tensor in drawn)
    rule = Rule(is_causal=segments is ROW, window=window, scaling=0.4, dropout=0.0)
    weight = torch.randn(1, num_tokens, 4, 8, generator=generator, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((kernel(query, key, value, segments, rule) * weight).sum(), (query, key, value))
        for kernel in (attend_on_cpu, attend_by_segment)
    ]
    for found, right in zip(*gradients, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_in_bfloat16_large_scores_lose_no_more_than_small_ones(size):
    """Rounding scores of a hundred before the largest is taken off would leave weights off by a third."""
    segments = Segments((200,), ((64, 64),))
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, 2, 328, 64, generator=generator).mul(size if i else 1).bfloat16() for i in range(2)]
    drawn.append(torch.randn(1, 2, 328, 64, generator=generator).bfloat16())
    weight = torch.randn(1, 328, 2, 64, generator=generator).bfloat16()
    rule = Rule(is_causal=True, window=None, scaling=None, dropout=0.0)
    found, right = (
        torch.autograd.grad(kernel(leaves[0], leaves[1], leaves[2], segments, rule), leaves, weight.to(leaves[0].dtype))
        for kernel, leaves in (
            (attend_on_cpu, [tensor.requires_grad_() for tensor in drawn]),
            (attend_by_segment, [tensor.detach().double().requires_grad_() for tensor in drawn]),
        )
    )
    for narrow, exact in zip(found, right, strict=True):
        assert float((narrow.double() - exact).norm() / exact.norm()) < 0.015
