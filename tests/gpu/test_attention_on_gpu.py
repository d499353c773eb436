"""On a GPU a flat row's attention in one call is that of its segments one by one; its cut is tested without one too."""

import pytest
import torch
from torch import Tensor

from pairwright.model.attention.gpu import attend_by_sequence, attend_on_gpu
from pairwright.model.attention.interface import KERNELS
from pairwright.model.attention.sdpa import Rule, attend_by_segment
from pairwright.model.collate import Segments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and torch sees none"),
]

ROW = Segments((200, 0, 64), ((31, 150), (90, 5), (64, 64, 64)))
TEXTS = Segments((0, 0), ((200, 31), (64,)))


def _drawn(segments: Segments, num_key_heads: int, head_dim: int, dtype: torch.dtype) -> list[Tensor]:
    num_tokens = sum(segments.prompt_tokens_G) + sum(map(sum, segments.completion_tokens_G))
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(1, num_tokens, heads, head_dim) for heads in (4, num_key_heads, num_key_heads)]
    drawn = [torch.randn(shape, generator=generator, device="cuda").to(dtype).transpose(1, 2) for shape in shapes]
    return [tensor.requires_grad_() for tensor in drawn]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("num_key_heads", [4, 1])
@pytest.mark.parametrize("window", [None, 1, 50, 1000])
@pytest.mark.parametrize("is_causal", [True, False])
def test_one_call_is_what_the_segments_are_one_by_one(is_causal, window, num_key_heads, head_dim, dtype):
    segments = ROW if is_causal else TEXTS
    rule = Rule(is_causal=is_causal, window=window, scaling=None, dropout=0.0)
    drawn = _drawn(segments, num_key_heads, head_dim, dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in drawn]
    found = attend_by_sequence(drawn[0], drawn[1], drawn[2], segments, rule)
    expected = attend_by_segment(exact[0], exact[1], exact[2], segments, rule)
    weight = torch.randn_like(expected)
    gradients = zip(
        torch.autograd.grad(found, drawn, weight.to(dtype)),
        torch.autograd.grad(expected, exact, weight.to(dtype).double()),
        strict=True,
    )
    for narrow, right in [(found, expected), *gradients]:
        assert float((narrow.double() - right).norm() / right.norm()) < 0.01


def test_the_gpus_kernel_passes_its_own_check_in_bfloat16(caplog):
    query, key, value = _drawn(ROW, 2, 64, torch.bfloat16)
    attend_on_gpu(query, key, value, ROW, Rule(is_causal=True, window=None, scaling=None, dropout=0.0))
    assert not caplog.records
    assert KERNELS["cuda"] is attend_on_gpu


def test_what_flash_attention_cannot_do_is_computed_segment_by_segment():
    query, key, value = _drawn(ROW, 2, 64, torch.float32)
    rule = Rule(is_causal=True, window=None, scaling=None, dropout=0.0)
    expected = attend_by_segment(query, key, value, ROW, rule)
    torch.testing.assert_close(attend_on_gpu(query, key, value, ROW, rule), expected)
