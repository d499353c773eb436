"""Small models with sliding windows shorter than the texts of the tests, on all layers or on every other."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from pairwright.model.load_model import load_reward_model
from pairwright.model.reward_model import RewardModel

WINDOWS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 7},
    "phi3": {"sliding_window": 5},
    "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen2": {"sliding_window": 9, "use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]},
}


def with_short_windows(directory: Path, target: Path) -> Path:
    """Return a copy of a model directory, with short windows where its architecture has any."""
    shutil.copytree(directory, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | WINDOWS.get(config["model_type"], {})))
    return target


def load_small(
    directory: Path,
    *,
    dtype: torch.dtype = torch.float32,
    dropout: bool = False,
    gradient_checkpointing: bool = False,
) -> RewardModel:
    """Return the model as training loads it."""
    return load_reward_model(
        str(directory),
        dtype=dtype,
        seed=0,
        dropout=dropout,
        gradient_checkpointing=gradient_checkpointing,
        pad_token_id=None,
        vocab_size=None,
        cpu_kernels=True,
    )
