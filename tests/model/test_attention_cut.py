"""The GPU's cut of a flat row, tried without one: sequences of queries and keys, attended to by their definition."""

import pytest
import torch
from torch import Tensor

from pairwright.model.attention.gpu import Sequences, gathered, sequences_of
from pairwright.model.attention.sdpa import Rule, attend_by_segment
from pairwright.model.collate import Segments

CPU = torch.device("cpu")
ROW = Segments((5, 0, 1, 7), ((3, 1, 9), (4, 2), (6,), (2, 2)))


def _attend_sequence_by_sequence(query: Tensor, key: Tensor, value: Tensor, cut: Sequences) -> Tensor:
    """As varlen_attn promises: queries and keys of a sequence end together, and a query sees what is not behind it."""
    keys, values = (gathered(tensor[0].transpose(0, 1), cut.key_Tk) for tensor in (key, value))
    out = []
    bounds = zip(cut.first_query_S.tolist(), cut.first_key_S.tolist(), strict=True)
    first = next(bounds)
    for last in bounds:
        q = query[0, :, first[0] : last[0]]
        k, v = (tensor[first[1] : last[1]].transpose(0, 1) for tensor in (keys, values))
        seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, float("-inf"))
        out.append((scores.softmax(-1) @ v).transpose(0, 1))
        assert q.shape[1] <= cut.most_queries
        assert k.shape[1] <= cut.most_keys
        first = last
    return torch.cat(out)[None]


@pytest.mark.parametrize("segments", [ROW, Segments((0,), ((1,),)), Segments((3,), ((1, 1),))])
def test_each_segment_is_a_sequence_of_its_own_that_ends_with_its_own_keys(segments):
    num_tokens = sum(segments.prompt_tokens_G) + sum(map(sum, segments.completion_tokens_G))
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, 2, num_tokens, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    query, key, value = (tensor.requires_grad_() for tensor in drawn)
    expected = attend_by_segment(
        query, key, value, segments, Rule(is_causal=True, window=None, scaling=None, dropout=0.0)
    )
    found = _attend_sequence_by_sequence(query, key, value, sequences_of(segments, CPU))
    torch.testing.assert_close(found, expected)
    weight = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((out * weight).sum(), (query, key, value)) for out in (found, expected)]
    for ours, right in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, right)


def test_a_row_gathered_often_has_its_gradient_summed_in_float32():
    """A thousand gradients of 1.004 in bfloat16 would be stuck at 256."""
    tensor = torch.zeros(2, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    gathered(tensor, torch.zeros(1000, dtype=torch.int64)).sum().backward()
    assert tensor.grad is not None
    assert tensor.grad.flatten().tolist() == [1000.0, 0.0]
