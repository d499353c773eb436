"""A model that does not fit what a rank may take: ZeRO-3 trains it, since no rank ever holds all of it."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from zero_runs import case, run_ranks
from zero_world import LORA, World

SHARE = 0.75
"""Of the model's bytes, that a rank may take beyond its libraries."""


def large_model(folder: Path) -> tuple[Path, int]:
    """Write a Llama of some 400 MB; return its folder and its bytes."""
    config = LlamaConfig(
        vocab_size=4000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=14,
        num_attention_heads=12,
        num_key_value_heads=4,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder, sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_over_each_ranks_limit_trains_under_zero_3(world: World, tmp_path: Path) -> None:
    folder, num_bytes = large_model(tmp_path / "model")
    limited = {"data_bytes": int(SHARE * num_bytes)}
    settings = {"model": str(folder), "lora": LORA, "num_steps": 1, "micro_batch_tokens": 300}
    found = run_ranks(
        world,
        2,
        [
            case(world, "whole", 3, **settings) | {"reading": "all"} | limited,
            case(world, "deferred", 3, **settings) | {"reading": "deferred"} | limited,
            case(world, "no limit", 3, **settings) | {"reading": "all", "data_bytes": 2**36},
        ],
        ranks="limited_ranks",
    )
    print({name: (result["message"][:200], result["losses"]) for name, result in found.items()})
    assert "memory" in found["whole"]["message"].lower()
    assert found["deferred"]["message"] == ""
    assert torch.tensor(found["deferred"]["losses"]).isfinite().all()
    assert found["deferred"]["losses"] == found["no limit"]["losses"]
