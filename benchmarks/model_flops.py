"""Tokens a second and model FLOPs utilisation on one GPU, with and without the shared prompt; no Ray, no DeepSpeed.

    python benchmarks/model_flops.py                       # all shapes, one GPU
    python benchmarks/model_flops.py --shapes tiny         # on a CPU, to see that it runs

Llama-like models with random weights in bfloat16, groups of K=4 512/256 and K=9 512/128 in micro-batches of
``--micro-batch-tokens``: forward, backward and, where the memory is enough for its states, a step of AdamW; the table
says which. 8B recomputes activations (gradient checkpointing). FLOPs are the model's alone: 6 a weight of a layer or
the head and token, 12 a number of a query and key that meet; recomputing counts as time, not as work. The shared layout
does less work for the same groups, so compare utilisation within a line and groups a second between lines.

Not run on a GPU so far: none was at hand when this was written (November 2026).
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from reward_groups import PAD_ID, random_groups, row_lengths
from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedModel

from pairwright.config import LossConfig
from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.model.collate import Layout, MicroBatch, collate
from pairwright.model.loss import preference_loss
from pairwright.model.reward_model import RewardModel

LAYOUTS: tuple[Layout, ...] = ("shared", "packed", "padded")
# Dense bfloat16, from the makers' data sheets.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "A10G": 70.0}


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a Llama-like model."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_heads: int
    feed_forward: int
    vocab_size: int
    recomputes: bool = False
    """Gradient checkpointing."""


SHAPES = {
    "tiny": Shape(64, 2, 4, 2, 128, 1000),
    "0.5B": Shape(896, 24, 14, 2, 4864, 151_936),
    "1B": Shape(2048, 16, 32, 8, 8192, 128_256),
    "8B": Shape(4096, 32, 32, 8, 14_336, 128_256, recomputes=True),
}
CASES = ((4, 512, 256), (9, 512, 128))


@dataclass(frozen=True, slots=True)
class Measured:
    """One shape, case and layout."""

    seconds: list[float]
    num_groups: int
    num_tokens: int
    flops: float
    """Of a step."""
    peak_memory: int
    """Bytes."""
    has_optimizer: bool


def build(shape: Shape, device: torch.device) -> RewardModel:
    """Return the model with random weights in bfloat16."""
    model = plain(shape, device, torch.bfloat16)
    if shape.recomputes:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return RewardModel(model, model.config, cpu_kernels=True).train()


def plain(shape: Shape, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Return transformers' own model with random weights."""
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_heads,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=8192,
        pad_token_id=PAD_ID,
    )
    config.num_labels = 1
    with torch.device(device):
        return AutoModelForSequenceClassification.from_config(config, dtype=dtype, trust_remote_code=False)


def step_flops(shape: Shape, groups: list[TokenGroup], layout: Layout) -> float:
    """Return the FLOPs of forward and backward in a layout, padding left out: the work that a layout asks for."""
    head_dim = shape.hidden_size // shape.num_heads
    attention_weights = shape.hidden_size * head_dim * (2 * shape.num_heads + 2 * shape.num_key_heads)
    weights = shape.num_layers * (attention_weights + 3 * shape.hidden_size * shape.feed_forward)
    num_tokens, num_meetings = 0, 0
    for group in groups:
        prompt = group.prompt_ids.size
        completions = [ids.size for ids in group.completion_ids]
        times_prompt = 1 if layout == "shared" else len(completions)
        num_tokens += times_prompt * prompt + sum(completions)
        num_meetings += times_prompt * prompt * (prompt + 1) // 2
        num_meetings += sum(prompt * size + size * (size + 1) // 2 for size in completions)
    return 6.0 * weights * num_tokens + 12.0 * shape.num_layers * shape.num_heads * head_dim * num_meetings


def measure(shape: Shape, groups: list[TokenGroup], layout: Layout, options: argparse.Namespace) -> Measured:
    """Return the seconds of steps on the same groups."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = build(shape, device)
    model.accept_packed_sequences(enabled=layout != "padded")
    optimizer = _optimizer(model, device)
    batches = [collate(part, PAD_ID, layout).to(device) for part in _parts(groups, layout, options.micro_batch_tokens)]
    global_weight = torch.tensor(float(len(groups)), device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = [
        _seconds(device, lambda: _step(model, batches, optimizer, global_weight))
        for _ in range(options.warm_ups + options.steps)
    ]
    return Measured(
        seconds=seconds[options.warm_ups :],
        num_groups=len(groups),
        num_tokens=sum(batch.num_tokens for batch in batches),
        flops=step_flops(shape, groups, layout),
        peak_memory=torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
        has_optimizer=optimizer is not None,
    )


def _optimizer(model: RewardModel, device: torch.device) -> torch.optim.Optimizer | None:
    """Return AdamW where weights, gradients and its two states take no more than 60 % of the GPU's memory."""
    num_bytes = 4 * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if device.type == "cuda" and num_bytes > 0.6 * torch.cuda.get_device_properties(device).total_memory:
        return None
    return torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)


def _parts(groups: list[TokenGroup], layout: Layout, micro_batch_tokens: int) -> list[list[TokenGroup]]:
    """Return equal groups in micro-batches of as many as fit."""
    one = collate(groups[:1], PAD_ID, layout).input_ids_RT.numel()
    size = max(1, micro_batch_tokens // one)
    return [groups[start : start + size] for start in range(0, len(groups), size)]


def _step(
    model: RewardModel,
    batches: list[MicroBatch],
    optimizer: torch.optim.Optimizer | None,
    global_weight: torch.Tensor,
) -> None:
    for batch in batches:
        rewards = model(
            batch.input_ids_RT, batch.position_ids_RT, batch.attention_mask_RT, batch.segments, batch.last_N
        )
        preference_loss(rewards, batch.targets, LossConfig(), global_weight=global_weight).backward()
    if optimizer is not None:
        optimizer.step()
    model.zero_grad()


def _seconds(device: torch.device, work: Callable[[], None]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


# ------------------------------------------------------------------------------------------------ report


def peak_tflops(device: str) -> float | None:
    """Return a device's dense bfloat16 TFLOP/s by its name, if it is known here."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in device.split()), None)


def _row(name: str, layout: str, measured: Measured, peak_tflops: float | None) -> str:
    seconds = statistics.median(measured.seconds)
    tflops = measured.flops / seconds / 1e12
    cells = [
        name,
        layout,
        f"{seconds:.3f} ({min(measured.seconds):.3f}-{max(measured.seconds):.3f})",
        f"{measured.num_groups / seconds:.2f}",
        f"{measured.num_tokens / seconds:,.0f}",
        f"{tflops:.3f}",
        "unknown" if peak_tflops is None else f"{tflops / peak_tflops:.1%}",
        f"{measured.peak_memory / 2**30:.1f}",
        "yes" if measured.has_optimizer else "no",
    ]
    return f"| {' | '.join(cells)} |"


HEADER = (
    "| model, case | layout | step s | groups/s | tokens/s | model TFLOP/s | utilisation | GiB | with AdamW |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokens a second and model FLOPs utilisation.")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5B", "1B", "8B"])
    parser.add_argument("--groups", type=int, default=8, help="a step")
    parser.add_argument("--micro-batch-tokens", type=int, default=16384)
    parser.add_argument("--steps", type=int, default=5, help="timed ones")
    parser.add_argument("--warm-ups", type=int, default=2, help="steps before them")
    parser.add_argument("--peak-tflops", type=float, help="of the device in dense bfloat16, where it is not known here")
    parser.add_argument("--write", action="store_true", help="also write below benchmarks/results")
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, no GPU"
    peak = options.peak_tflops or peak_tflops(device)
    lines = [
        "# Tokens a second and model FLOPs utilisation",
        "",
        f"`python benchmarks/model_flops.py --shapes {' '.join(options.shapes)} --groups {options.groups} "
        f"--micro-batch-tokens {options.micro_batch_tokens} --steps {options.steps} "
        f"--warm-ups {options.warm_ups}`, {datetime.now(UTC):%Y-%m-%d}, {device}, "
        f"Python {platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}.",
        "",
        HEADER,
    ]
    print("\n".join(lines))
    for name in options.shapes:
        for num_completions, prompt, completion in CASES:
            groups = random_groups(
                options.groups,
                num_completions=num_completions,
                prompt_tokens=prompt,
                completion_tokens=completion,
                vocab_size=SHAPES[name].vocab_size,
                rng=np.random.default_rng(0),
            )
            assert {length for group in groups for length in row_lengths(group)} == {prompt + completion}
            for layout in LAYOUTS:
                measured = measure(SHAPES[name], groups, layout, options)
                lines.append(_row(f"{name}, K={num_completions} {prompt}/{completion}", layout, measured, peak))
                print(lines[-1], flush=True)
    if options.write:
        kind = "cpu" if device.startswith("CPU") else device.replace(" ", "-").lower()
        path = Path(__file__).parent / "results" / f"model_flops_{kind}_{datetime.now(UTC):%Y-%m-%d}.md"
        path.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
