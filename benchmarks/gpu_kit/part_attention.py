"""Part c: the time of one layer's attention by kernel, forward and with backward, at the heads of three models.

- ``varlen``: what the package does (model/attention/gpu.py);
- ``varlen, own heads``: the same with the key heads as they are, which PyTorch 2.11 does not document;
- ``flex``: flex_attention, compiled once per length of the packed sequence, which is rounded up to a bucket;
- ``segments``: scaled_dot_product_attention segment by segment, the reference of the errors;
- ``padded``: scaled_dot_product_attention on one row for each completion: what the shared prefix saves.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from kit import Kit, free, in_words, milliseconds, spread, start
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from pairwright.model.attention import gpu
from pairwright.model.attention.interface import KERNELS
from pairwright.model.attention.sdpa import Rule, attend_by_segment
from pairwright.model.collate import Segments

BUCKET = 1024
"""Packed sequences are padded to a multiple of so many tokens for flex_attention."""
RULE = Rule(is_causal=True, window=None, scaling=None, dropout=0.0)
TINY_HEADS = {"tiny": (4, 2, 16)}
HEADS = {"1B": (32, 8, 64), "8B": (32, 8, 128), "0.5B": (14, 2, 64)}
CASES = ((9, 512, 128, 8), (4, 512, 256, 8))
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
Case = tuple[int, int, int, int]
"""Completions of a group, tokens of its prompt and of each completion, groups."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Tensors of one layer, and the texts' boundaries."""

    query: Tensor
    key: Tensor
    value: Tensor
    weight: Tensor
    segments: Segments


def setting(kit: Kit, heads: tuple[int, int, int], case: Case, seed: int) -> Setting:
    """Return random tensors of groups whose completions differ in length, half as long to the whole."""
    num_completions, prompt, completion, num_groups = case
    rng = np.random.default_rng(seed)
    lengths = [
        tuple(rng.integers(completion // 2, completion + 1, num_completions).tolist()) for _ in range(num_groups)
    ]
    segments = Segments((prompt,) * num_groups, tuple(lengths))
    num_tokens = sum(segments.prompt_tokens_G) + sum(map(sum, lengths))
    num_heads, num_key_heads, head_dim = heads
    dtype = torch.bfloat16 if kit.device.type == "cuda" else torch.float32
    generator = torch.Generator(kit.device).manual_seed(seed)
    query, key, value, weight = (
        torch.randn(1, num_tokens, count, head_dim, generator=generator, device=kit.device).to(dtype).transpose(1, 2)
        for count in (num_heads, num_key_heads, num_key_heads, num_heads)
    )
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    return Setting(leaves[0], leaves[1], leaves[2], weight.transpose(1, 2), segments)


# --------------------------------------------------------------------------------------------------- kernels


def own_heads(kit: Kit, given: Setting) -> Attention:
    """Return varlen attention that keeps the key heads although PyTorch 2.11 documents as many as query heads."""
    if kit.device.type == "cpu":
        raise RuntimeError("needs a GPU")

    # Without the keyword in its signature heads are repeated; this one has it and does not pass it on.
    def undocumented(*tensors: Any, enable_gqa: bool, **options: Any) -> Any:
        passes = {"enable_gqa": enable_gqa} if gpu.takes_grouped_queries(varlen_attn) else {}
        return varlen_attn(*tensors, **options, **passes)

    return lambda q, k, v: gpu.attend_by_sequence(q, k, v, given.segments, RULE, varlen=undocumented)


class Flex:
    """flex_attention over packed sequences padded to buckets; compiled on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        is_gpu = device.type == "cuda"
        self._attend: Any = torch.compile(flex_attention, dynamic=False) if is_gpu else flex_attention

    def of(self, segments: Segments) -> Attention:
        """Return the attention of one packed sequence; its mask is made once, for all layers."""
        group_T, completion_T = (self._padded(ids) for ids in _ids(segments))

        def seen(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            in_text = (completion_T[k] < 0) | (completion_T[k] == completion_T[q])
            return (group_T[q] == group_T[k]) & in_text & (q >= k)

        size = group_T.numel()
        mask = create_block_mask(seen, None, None, size, size, device=str(self._device))

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            num_tokens = query.shape[2]
            padded = [torch.nn.functional.pad(t, (0, 0, 0, size - num_tokens)) for t in (query, key, value)]
            out = self._attend(*padded, block_mask=mask, enable_gqa=query.shape[1] != key.shape[1])
            return out[:, :, :num_tokens].transpose(1, 2)

        return attend

    def _padded(self, ids: Tensor) -> Tensor:
        """Return ids up to a whole bucket; the padding is a group of its own."""
        size = -(-ids.numel() // BUCKET) * BUCKET
        return torch.nn.functional.pad(ids, (0, size - ids.numel()), value=-2).to(self._device)


def _ids(segments: Segments) -> tuple[Tensor, Tensor]:
    """Return the group of each token, and its completion: -1 in a prompt."""
    groups, completions = [], []
    for group, (prompt, lengths) in enumerate(zip(segments.prompt_tokens_G, segments.completion_tokens_G, strict=True)):
        groups += [group] * (prompt + sum(lengths))
        completions += [-1] * prompt
        for number, length in enumerate(lengths):
            completions += [number] * length
    return torch.tensor(groups), torch.tensor(completions)


def padded(kit: Kit, heads: tuple[int, int, int], case: Case) -> tuple[Attention, list[Tensor]]:
    """Return attention of one row for each completion, causal, and its tensors."""
    num_completions, prompt, completion, num_groups = case
    num_heads, num_key_heads, head_dim = heads
    dtype = torch.bfloat16 if kit.device.type == "cuda" else torch.float32
    shape = (num_groups * num_completions, prompt + completion)
    tensors = [
        torch.randn(shape[0], count, shape[1], head_dim, device=kit.device, dtype=dtype).requires_grad_()
        for count in (num_heads, num_key_heads, num_key_heads)
    ]
    gqa = num_heads != num_key_heads
    return lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa), tensors


# ------------------------------------------------------------------------------------------------- measurement


def _relative(found: Tensor, right: Tensor) -> float:
    return float((found.detach().float() - right.detach().float()).norm() / right.detach().float().norm())


def measure(kit: Kit, name: str, attend: Attention, tensors: list[Tensor], weight: Tensor | None, **more: Any) -> None:
    """Record the times of an attention, without and with its backward pass."""
    repeats = 2 if kit.is_tiny else 10

    def forward() -> Tensor:
        return attend(tensors[0].detach(), tensors[1].detach(), tensors[2].detach())

    begin = time.perf_counter()
    forward()
    first = time.perf_counter() - begin
    figures = {
        f"forward_{key}": value for key, value in spread(milliseconds(forward, kit.device, repeats=repeats)).items()
    }
    if name == "flex" and kit.device.type == "cpu":
        kit.record(name, **more, first_call_s=first, **figures, note="flex_attention has no backward pass on a CPU")
        return

    def both() -> Any:
        out = attend(tensors[0], tensors[1], tensors[2])
        return torch.autograd.grad(out, tensors, torch.ones_like(out) if weight is None else weight)

    begin = time.perf_counter()
    both()
    first += time.perf_counter() - begin
    both_times = spread(milliseconds(both, kit.device, repeats=repeats))
    figures |= {f"with_backward_{key}": value for key, value in both_times.items()}
    kit.record(name, **more, first_call_s=first, **figures)


def errors(attend: Attention, given: Setting, *, has_backward: bool) -> dict[str, float]:
    """Return how far results and gradients are from those segment by segment in float32."""
    tensors = [given.query, given.key, given.value]
    exact = [tensor.detach().float().requires_grad_() for tensor in tensors]
    right = attend_by_segment(exact[0], exact[1], exact[2], given.segments, RULE)
    if not has_backward:
        return {"off": _relative(attend(given.query.detach(), given.key.detach(), given.value.detach()), right)}
    found = attend(given.query, given.key, given.value)
    gradients = torch.autograd.grad(found, tensors, given.weight)
    right_gradients = torch.autograd.grad(right, exact, given.weight.float())
    off = max(_relative(a, b) for a, b in zip(gradients, right_gradients, strict=True))
    return {"off": _relative(found, right), "gradient_off": off}


def makers(kit: Kit, flex: Flex) -> dict[str, Callable[[Setting], Attention]]:
    """Return what makes each kernel for the boundaries of a setting."""
    return {
        "varlen": lambda given: partial(KERNELS[kit.device.type], segments=given.segments, rule=RULE),
        "varlen, own heads": lambda given: own_heads(kit, given),
        "segments": lambda given: partial(attend_by_segment, segments=given.segments, rule=RULE),
        "flex": lambda given: flex.of(given.segments),
    }


def compare(kit: Kit, name: str, make: Callable[[Setting], Attention], model: str, case: Case) -> None:
    """Record one kernel on one model's heads and one kind of groups."""
    heads = (TINY_HEADS | HEADS)[model]
    more = described(model, heads, case)
    try:
        first, second = (setting(kit, heads, case, seed) for seed in (0, 1))
        begin = time.perf_counter()
        attend = make(first)
        found = errors(attend, first, has_backward=name != "flex" or kit.device.type == "cuda")
        prepared = time.perf_counter() - begin
        begin = time.perf_counter()
        make(second)(second.query.detach(), second.key.detach(), second.value.detach())
        found |= {"prepare_s": prepared, "other_cuts_s": time.perf_counter() - begin}
        measure(kit, name, attend, [first.query, first.key, first.value], first.weight, **more, **found)
    except Exception as error:
        # Whatever one kernel cannot do, the others are measured.
        kit.record(name, **more, error=in_words(error))
    free()


def compare_padded(kit: Kit, model: str, case: Case) -> None:
    """Record the attention of padded rows."""
    heads = (TINY_HEADS | HEADS)[model]
    attend, tensors = padded(kit, heads, case)
    measure(kit, "padded", attend, tensors, None, **described(model, heads, case))
    free()


def described(model: str, heads: tuple[int, int, int], case: Case) -> dict[str, str]:
    """Return heads and groups in words."""
    return {
        "heads": f"{model} {heads[0]}/{heads[1]}x{heads[2]}",
        "groups": f"{case[3]} of K={case[0]} {case[1]}/{case[2]}",
    }


def main() -> None:
    kit = start("c")
    models = TINY_HEADS if kit.is_tiny else HEADS
    settings = [(model, case) for case in (((3, 24, 12, 2),) if kit.is_tiny else CASES) for model in models]
    kernels = makers(kit, Flex(kit.device))
    # flex_attention last: it is compiled for each, which takes longer than all others together.
    compiled = {"flex": kernels.pop("flex")}
    for model, case in settings:
        for name, make in kernels.items():
            compare(kit, name, make, model, case)
        compare_padded(kit, model, case)
    for model, case in settings:
        if not kit.is_tiny and kit.deadline.is_near(needs_seconds=15):
            return
        compare(kit, "flex", compiled["flex"], model, case)


if __name__ == "__main__":
    main()
