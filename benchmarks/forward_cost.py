"""Measures the costs that model/batching/cost_model.py reckons with: of a micro-batch, and of a FLOP of attention.

    python benchmarks/forward_cost.py [--device cuda]

Times forward and backward of micro-batches of many sizes and fits ``overhead + linear FLOPs + attention FLOPs``, each
with its own speed. On a CPU one thread's CPU time counts, on a GPU wall-clock; medians, sizes interleaved.
"""

import argparse
import itertools
import os
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.model.batching.cost_model import ATTENTION_FLOP_COST, ModelShape, PartSizes
from pairwright.model.collate import Layout, collate
from pairwright.model.load_model import load_reward_model
from pairwright.model.reward_model import RewardModel
from pairwright.model.tiny_models import new_tiny_model
from pairwright.training.global_batch import shape_of

LAYOUTS = get_args(Layout)
# Layers and hidden size.
SHAPES = {"cpu": [(4, 256), (4, 512)], "cuda": [(24, 896), (16, 2048)]}
# Groups, completions, tokens of the prompt and of a completion.
SIZES = {
    "cpu": [(1, 2, 16, 16), (1, 4, 128, 128), (2, 4, 128, 128), (1, 4, 512, 256), (1, 9, 512, 128), (2, 2, 900, 60)],
    "cuda": [(1, 2, 16, 16), (1, 4, 128, 128), (8, 4, 128, 128), (4, 4, 512, 256), (4, 9, 512, 128), (2, 2, 3000, 500)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the constants of model/batching/cost_model.py.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for (layers, hidden), dtype in itertools.product(SHAPES[options.device], (torch.float32, torch.bfloat16)):
        model = _model(layers, hidden, dtype).to(options.device).train()
        for layout in LAYOUTS:
            model.accept_packed_sequences(enabled=layout != "padded")
            lines.append(_fit(model, layout, options.device, options.repeats, f"{layers} x {hidden} {dtype}"))
            print(lines[-1], flush=True)
    hardware = torch.cuda.get_device_name().replace(" ", "-") if options.device == "cuda" else f"{os.cpu_count()}cpu"
    name = f"forward_cost_{hardware}_{datetime.now(UTC):%Y-%m-%d}.md"
    results = Path(__file__).parent / "results"
    (results / name).write_text(_report(lines, options))


def _model(layers: int, hidden: int, dtype: torch.dtype) -> RewardModel:
    with tempfile.TemporaryDirectory() as folder:
        directory = new_tiny_model(
            Path(folder) / "model",
            architecture="llama",
            texts=["some words to learn from"],
            vocab_size=300,
            hidden_size=hidden,
            num_layers=layers,
            num_heads=hidden // 64,
            max_positions=4096,
            seed=0,
        )
        return load_reward_model(
            str(directory),
            dtype=dtype,
            seed=0,
            dropout=False,
            gradient_checkpointing=False,
            pad_token_id=None,
            vocab_size=None,
            cpu_kernels=True,
        )


def _fit(model: RewardModel, layout: Layout, device: str, repeats: int, name: str) -> str:
    shape = shape_of(model)
    seconds = _seconds(model, layout, device, repeats)
    alone = ModelShape(linear_parameters=shape.linear_parameters, attention_width=0)
    features = []
    for groups, completions, prompt, completion in SIZES[device]:
        sizes = PartSizes(
            *(np.array([n]) for n in (completions, prompt, completions * completion, prompt + completion))
        )
        linear = float(sizes.costs_I(layout, alone)[0])
        attention = float(sizes.costs_I(layout, ModelShape(0, shape.attention_width))[0])
        features.append([1.0, groups * linear, groups * attention / ATTENTION_FLOP_COST])
    rows = np.array(features) / np.array(seconds)[:, None]
    (overhead, per_linear, per_attention), *_ = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)
    errors = np.abs(rows @ np.array([overhead, per_linear, per_attention]) - 1)
    tokens = overhead / (per_linear * 2 * shape.linear_parameters)
    return (
        f"| {name} | {layout} | {tokens:.0f} | {per_attention / per_linear:.2f} | {1e-9 / per_linear * 3:.1f} "
        f"| {errors.max():.0%} |"
    )


def _seconds(model: RewardModel, layout: Layout, device: str, repeats: int) -> list[float]:
    draw = np.random.default_rng(0)
    batches = [
        collate([_group(draw, *size) for _ in range(groups)], 0, layout).to(device) for groups, *size in SIZES[device]
    ]
    clock = time.process_time if device == "cpu" else time.perf_counter
    taken: list[list[float]] = [[] for _ in batches]
    for repeat in range(repeats + 1):
        for batch, times in zip(batches, taken, strict=True):
            started = clock()
            model(
                batch.input_ids_RT, batch.position_ids_RT, batch.attention_mask_RT, batch.segments, batch.last_N
            ).sum().backward()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first warms up
                times.append(clock() - started)
            model.zero_grad()
    return [statistics.median(times) for times in taken]


def _group(draw: np.random.Generator, completions: int, prompt: int, completion: int) -> TokenGroup:
    none = np.zeros(0, np.int64)
    return TokenGroup(
        group_id="g",
        subset=None,
        prompt_ids=draw.integers(5, 200, prompt).astype(np.int32),
        completion_ids=[draw.integers(5, 200, completion).astype(np.int32) for _ in range(completions)],
        num_characters=np.ones(completions, np.int32),
        completion_index=np.arange(completions, dtype=np.int16),
        chosen_P=none,
        rejected_P=none,
        weight_P=none.astype(np.float32),
        margin_P=none.astype(np.float32),
    )


def _report(lines: list[str], options: argparse.Namespace) -> str:
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()} CPUs, one thread"
    return "\n".join(
        [
            "# What a micro-batch costs beyond its tokens",
            "",
            f"`python benchmarks/forward_cost.py --device {options.device} --repeats {options.repeats}`, "
            f"{datetime.now(UTC):%Y-%m-%d}, {device}, Python {platform.python_version()}, torch {torch.__version__}, "
            f"transformers {version('transformers')}. Llama layers, forward and backward; medians; the fit's largest "
            "error over all sizes.",
            "",
            "| layers x hidden | layout | overhead, tokens | attention FLOP / linear FLOP | linear GFLOP/s | error |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    main()
