"""What the parts of the GPU kit share: their arguments, the device, models of many shapes, timing.

On a CPU there is no kernel for variable-length attention; there its documented mathematics takes its place, so that all
else of the GPU's path runs (tests/support/oracles/varlen_reference.py).
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from model_flops import Shape, build
from results import Deadline, Recorder
from torch.nn.attention.varlen import varlen_attn
from transformers import AutoConfig, AutoModelForSequenceClassification

from pairwright.config import LossConfig
from pairwright.model.attention.gpu import attend_by_sequence, takes_grouped_queries
from pairwright.model.attention.interface import KERNELS
from pairwright.model.collate import MicroBatch
from pairwright.model.loss import preference_loss
from pairwright.model.reward_model import RewardModel
from varlen_reference import varlen_attn_of_2_11, varlen_attn_of_2_13

TINY = Shape(64, 2, 4, 2, 128, 1000)
TINY_CASE = (3, 24, 12)

__all__ = ["TINY", "TINY_CASE", "Kit", "Shape", "build", "free", "loss_of", "milliseconds", "start"]


@dataclass(frozen=True, slots=True)
class Kit:
    """One part's surroundings."""

    record: Recorder
    deadline: Deadline
    device: torch.device
    is_tiny: bool


def start(letter: str) -> Kit:
    """Return the surroundings that the command line of a part describes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    has_gpu = torch.cuda.is_available()
    if not has_gpu:
        like_installed = varlen_attn_of_2_13 if takes_grouped_queries(varlen_attn) else varlen_attn_of_2_11
        KERNELS["cpu"] = partial(attend_by_sequence, varlen=like_installed)
    return Kit(
        record=Recorder(letter, options.results),
        deadline=Deadline(options.seconds),
        device=torch.device("cuda" if has_gpu else "cpu"),
        is_tiny=options.tiny,
    )


def architectures(*, is_tiny: bool) -> dict[str, dict[str, Any]]:
    """Return configurations with the heads, widths and windows of four families, of few layers."""
    llama: dict[str, Any] = {
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
    }
    qwen: dict[str, Any] = {
        "hidden_size": 896,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
    }
    mistral: dict[str, Any] = {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14_336,
    }
    gemma: dict[str, Any] = {
        "hidden_size": 1152,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "intermediate_size": 6912,
    }
    gemma |= {"head_dim": 256, "query_pre_attn_scalar": 256}
    windows = {"mistral": 256, "gemma3_text": 128}
    families = {"llama": llama, "qwen2": qwen, "mistral": mistral, "gemma3_text": gemma}
    if is_tiny:
        for name, sizes in families.items():
            sizes |= {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
            sizes["num_key_value_heads"] = 1 if name == "gemma3_text" else 2
            if "head_dim" in sizes:
                sizes |= {"head_dim": 16, "query_pre_attn_scalar": 16}
        windows = {"mistral": 9, "gemma3_text": 7}
    for name, sizes in families.items():
        sizes |= {"num_hidden_layers": 2, "vocab_size": 1000 if is_tiny else 32_000, "max_position_embeddings": 4096}
        sizes |= {"pad_token_id": 0}
        if name in windows:
            sizes["sliding_window"] = windows[name]
    families["gemma3_text"]["layer_types"] = ["sliding_attention", "full_attention"]
    return families


def small_model(architecture: str, sizes: dict[str, Any], dtype: torch.dtype, device: torch.device) -> RewardModel:
    """Return a model with the same random weights for every dtype."""
    config = AutoConfig.for_model(architecture, **sizes)
    config.num_labels = 1
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return RewardModel(model.to(dtype), config, cpu_kernels=True).train()


def loss_of(model: RewardModel, batch: MicroBatch, num_groups: int) -> torch.Tensor:
    """Return the loss of a micro-batch in a global batch of so many groups."""
    reward_N = model(batch.input_ids_RT, batch.position_ids_RT, batch.attention_mask_RT, batch.segments, batch.last_N)
    weight = torch.tensor(float(num_groups), device=reward_N.device)
    return preference_loss(reward_N, batch.targets, LossConfig(), global_weight=weight)


def milliseconds(work: Callable[[], object], device: torch.device, *, repeats: int, warm_ups: int = 2) -> list[float]:
    """Return the times of calls, each waited for."""
    times = []
    for _ in range(warm_ups + repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - begin))
    return times[warm_ups:]


def spread(times: list[float]) -> dict[str, float]:
    """Return the median, least and most of some times, by name."""
    return {"median_ms": statistics.median(times), "least_ms": min(times), "most_ms": max(times)}


def free() -> None:
    """Give the memory of what nobody holds any more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_gib(device: torch.device) -> float | None:
    """Return the most memory that tensors took since the last reset, GiB; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None


def in_words(error: BaseException) -> str:
    """Return the first line of an error, for a table."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200]
