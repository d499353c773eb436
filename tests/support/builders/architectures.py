"""Small models of every supported architecture, in their real code, with random weights."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

import zero_runs
import zero_world
from pairwright.model.load_model import load_reward_model
from pairwright.model.reward_model import RewardModel
from pairwright.model.tiny_models import new_tiny_model

TEXTS = ["the quick brown fox jumps over the lazy dog", "to be or not to be that is the question"] * 4


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from an architecture to the directory of a small model of it, made once."""

    @cache
    def make(architecture: str) -> Path:
        directory = tmp_path_factory.mktemp(architecture)
        if architecture == "modernbert":
            _modernbert(directory, make("bert"))
        else:
            new_tiny_model(
                directory,
                architecture=architecture,
                texts=TEXTS,
                vocab_size=300,
                hidden_size=32,
                num_layers=2,
                num_heads=4,
                max_positions=96,
                seed=0,
            )
        _spread_rewards(directory)
        return directory

    return make


def _spread_rewards(directory: Path) -> None:
    """Enlarge the weights: at their random start all texts get nearly one reward, and no test could see a wrong one."""
    file = directory / "model.safetensors"
    weights = load_file(file)
    save_file({name: w * 5 if w.ndim > 1 else w for name, w in weights.items()}, file, metadata={"format": "pt"})


def _modernbert(directory: Path, bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bert, trust_remote_code=False)
    config = AutoConfig.for_model(
        "modernbert",
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=96,
        local_attention=8,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForMaskedLM.from_config(config, trust_remote_code=False).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@pytest.fixture(scope="session")
def load(small_model: Callable[[str], Path]) -> Callable[..., RewardModel]:
    """Return a function that loads a small model, in eval mode; keywords as of ``load_reward_model``."""

    def load_small(architecture: str, **keywords: Any) -> RewardModel:
        settings: dict[str, Any] = {
            "dtype": torch.float32,
            "seed": 0,
            "dropout": False,
            "gradient_checkpointing": False,
            "pad_token_id": None,
            "vocab_size": None,
            "cpu_kernels": True,
        }
        return load_reward_model(str(small_model(architecture)), **(settings | keywords)).eval()

    return load_small


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> zero_world.World:
    """Return the models and tokens that real DeepSpeed ranks train on."""
    return zero_world.make_world(tmp_path_factory.mktemp("zero"))


@pytest.fixture(scope="session")
def full_reference(world: zero_world.World) -> zero_world.Reference:
    return zero_world.full_reference(world)


@pytest.fixture(scope="session")
def lora_reference(world: zero_world.World) -> zero_world.Reference:
    return zero_world.lora_reference(world)


@pytest.fixture(scope="session")
def one_rank(world: zero_world.World) -> zero_runs.Results:
    return zero_runs.run_ranks(world, 1, zero_runs.all_cases(world, 1))


@pytest.fixture(scope="session")
def two_ranks(world: zero_world.World) -> zero_runs.Results:
    return zero_runs.run_ranks(world, 2, zero_runs.all_cases(world, 2))


@pytest.fixture(scope="session")
def three_ranks(world: zero_world.World) -> zero_runs.Results:
    return zero_runs.run_ranks(world, 3, zero_runs.all_cases(world, 3))


@pytest.fixture
def runs(request: pytest.FixtureRequest) -> Callable[[int], zero_runs.Results]:
    """Return a function from a number of ranks to what its cases found, run once: starting ranks takes seconds."""
    return lambda world_size: request.getfixturevalue(("one_rank", "two_ranks", "three_ranks")[world_size - 1])
