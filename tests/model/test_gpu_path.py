"""The GPU's attention on a CPU: all of it but the kernel, whose place its documented mathematics takes."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.model.attention.gpu import attend_by_sequence, attend_on_gpu, gathered, takes_grouped_queries
from pairwright.model.attention.interface import attend
from pairwright.model.attention.sdpa import Rule, attend_by_segment
from pairwright.model.collate import Layout, Segments, collate
from pairwright.model.reward_model import RewardModel
from short_windows import load_small, with_short_windows
from varlen_reference import varlen_attn_of_2_11, varlen_attn_of_2_13

VERSIONS = {"2.11": varlen_attn_of_2_11, "2.13": varlen_attn_of_2_13}
VERSION = pytest.mark.parametrize("version", VERSIONS)
ROW = Segments((5, 0, 1, 7), ((3, 1, 9), (4, 2), (6,), (2, 2)))
TEXTS = Segments((0, 0), ((8, 1, 5), (11,)))

for _version, _varlen in VERSIONS.items():
    _kernel = partial(attend_by_sequence, varlen=_varlen)
    AttentionInterface.register(f"gpu_path_{_version}", partial(attend, kernels={"cpu": _kernel}))
    AttentionMaskInterface.register(f"gpu_path_{_version}", sdpa_mask)


def _drawn(segments: Segments, num_key_heads: int) -> list[Tensor]:
    num_tokens = sum(segments.prompt_tokens_G) + sum(map(sum, segments.completion_tokens_G))
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, num_tokens, heads, 8) for heads in (4, num_key_heads, num_key_heads)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).transpose(1, 2).requires_grad_()
        for shape in shapes
    ]


@VERSION
@pytest.mark.parametrize("num_key_heads", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 1, 2, 4, 7, 11, 100])
@pytest.mark.parametrize("is_causal", [True, False])
def test_one_call_is_what_the_segments_are_one_by_one(version, num_key_heads, window, is_causal):
    _assert_one_call_does(ROW if is_causal else TEXTS, version, num_key_heads, window, is_causal=is_causal)


@pytest.mark.parametrize("segments", [Segments((0,), ((1,),)), Segments((3,), ((1, 1),))])
def test_the_smallest_rows_too(segments):
    _assert_one_call_does(segments, "2.11", 2, None, is_causal=True)


def _assert_one_call_does(
    segments: Segments, version: str, num_key_heads: int, window: int | None, *, is_causal: bool
) -> None:
    rule = Rule(is_causal=is_causal, window=window, scaling=0.3, dropout=0.0)
    drawn = _drawn(segments, num_key_heads)
    found = attend_by_sequence(drawn[0], drawn[1], drawn[2], segments, rule, varlen=VERSIONS[version])
    expected = attend_by_segment(drawn[0], drawn[1], drawn[2], segments, rule)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = zip(torch.autograd.grad(found, drawn, weight), torch.autograd.grad(expected, drawn, weight), strict=True)
    for ours, right in [(found, expected), *pairs]:
        torch.testing.assert_close(ours, right, rtol=1e-12, atol=1e-12)


def test_what_the_installed_torch_takes_is_read_off_its_signature():
    """The keywords that are passed are keywords of the installed ``varlen_attn``, whichever version it is."""
    assert takes_grouped_queries(varlen_attn_of_2_13)
    assert not takes_grouped_queries(varlen_attn_of_2_11)
    of_the_installed = inspect.signature(varlen_attn).parameters
    like = varlen_attn_of_2_13 if takes_grouped_queries(varlen_attn) else varlen_attn_of_2_11
    assert inspect.signature(like).parameters.keys() <= of_the_installed.keys()


def test_without_the_kernel_segments_are_computed_one_by_one(caplog):
    """No CPU has it: the self-check finds that out, whatever the version of PyTorch, and says so once."""
    rule = Rule(is_causal=True, window=None, scaling=None, dropout=0.0)
    query, key, value = (tensor.detach().bfloat16() for tensor in _drawn(ROW, 2))
    found = attend_on_gpu(query, key, value, ROW, rule)
    torch.testing.assert_close(found, attend_by_segment(query, key, value, ROW, rule), rtol=0, atol=0)
    attend_on_gpu(query, key, value, ROW, rule)
    assert len([record for record in caplog.records if "cannot run here" in record.message]) <= 1


def test_gradients_of_copied_heads_are_summed_in_float32():
    """A thousand gradients of 1 in bfloat16 would be stuck at 256."""
    tensor = torch.zeros(2, 2, 1, dtype=torch.bfloat16, requires_grad=True)
    index = torch.zeros(10, dtype=torch.int64)
    out = gathered(tensor, index, num_copies=100)
    assert out.shape == (10, 200, 1)
    out.sum().backward()
    assert tensor.grad is not None
    assert tensor.grad[:, :, 0].tolist() == [[1000.0, 1000.0], [0.0, 0.0]]


# --------------------------------------------------------------------------------------------------- whole models


@pytest.fixture(scope="module")
def directory(small_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from an architecture to a small model of it, with short windows where it has any."""

    def make(architecture: str) -> Path:
        target = tmp_path_factory.mktemp("windows") / architecture
        return with_short_windows(small_model(architecture), target)

    return make


def _outcome(model: RewardModel, groups: list[TokenGroup], layout: Layout) -> tuple[Tensor, Tensor]:
    """Return the rewards, and the gradient of their sum with fixed weights as one row of numbers."""
    model.zero_grad()
    reward_N = model.rewards(collate(groups, 0, layout))
    weight_N = torch.from_numpy(np.random.default_rng(5).standard_normal(len(reward_N))).to(reward_N)
    (reward_N * weight_N).sum().backward()
    gradient = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return reward_N.detach(), torch.cat(gradient)


@VERSION
@pytest.mark.parametrize("layout", ["shared", "packed"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma3_text"])
def test_a_models_rewards_and_gradient_are_those_of_padded_rows(
    directory: Callable[[str], Path], random_group: Callable[..., Any], architecture: str, layout: Layout, version: str
):
    model = load_small(directory(architecture))
    rng = np.random.default_rng(1)
    sizes = {"vocab": (5, 260), "prompt_tokens": (12, 30), "completion_tokens": (1, 30)}
    groups = [random_group(rng, num_completions=k, **sizes) for k in (2, 9, 4)]
    expected = _outcome(model, groups, "padded")
    model.accept_packed_sequences(enabled=True)
    model.model.set_attn_implementation(f"gpu_path_{version}")
    found = _outcome(model, groups, layout)
    assert expected[0].std() > 0.02
    # The last layer runs on the last tokens alone, as on a GPU, so its other queries are zeros.
    torch.testing.assert_close(found[0], expected[0], rtol=2e-6, atol=2e-6)
    assert float((found[1].double() - expected[1].double()).norm() / expected[1].double().norm()) < 2e-6
