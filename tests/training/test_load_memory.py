"""A model that does not fit what a rank may take: ZeRO-3 trains it, since no rank ever holds all of it."""

from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from zero_runs import case, run_ranks
from zero_world import LORA, World

SHARE = 0.9
"""Of the model's bytes, that a rank may take beyond its libraries."""


def large_model(folder: Path) -> tuple[Path, int]:
    """Write a Llama in float32; return its folder, and its bytes in bfloat16, about 380 MB."""
    config = LlamaConfig(
        vocab_size=4000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=30,
        num_attention_heads=12,
        num_key_value_heads=4,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder, 2 * model.num_parameters()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_over_each_ranks_limit_trains_under_zero_3(world: World, tmp_path: Path) -> None:
    """With frozen weights: an optimizer keeps more than the model for trained ones, however they are read."""
    folder, num_bytes = large_model(tmp_path / "model")
    limit = int(SHARE * num_bytes)
    settings = {"model": str(folder), "lora": LORA, "num_steps": 1, "micro_batch_tokens": 100_000, "precision": "bf16"}

    def run(name: str, reading: str, limit_bytes: int | None) -> dict[str, object]:
        limited = {"small_model": str(world["llama"]), "reading": reading, "limit_bytes": limit_bytes}
        one = case(world, name, 3, **settings) | limited
        return run_ranks(world, 2, [one], ranks="limited_ranks")[name]

    with pytest.raises(AssertionError, match=r"killed: took [\d,]+ bytes"):
        run("whole", "all", limit)
    found, expected = run("partitioned", "deferred", limit), run("no limit", "all", None)
    print(
        f"{num_bytes:,} bytes of weights; rank 0 took {found['most_bytes']:,}, and {expected['most_bytes']:,} if whole"
    )
    assert found["losses"] == expected["losses"]
