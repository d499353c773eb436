"""Every recipe is a configuration that loads, and holds the settings that its papers give."""

from pathlib import Path

import pytest

from pairwright.config import TrainConfig, load_config

RECIPES = sorted((Path(__file__).parents[2] / "jobs" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads(path: Path) -> None:
    assert load_config(TrainConfig, str(path)).output


def test_the_8b_recipe_has_the_papers_settings() -> None:
    config = load_config(TrainConfig, str(next(path for path in RECIPES if path.stem == "llama8b_zero3")))
    assert (config.deepspeed.zero_stage, config.deepspeed.precision) == (3, "bf16")
    assert (config.workers.num_workers, config.workers.use_gpu) == (8, True)
    # InstructGPT: 64 prompts a batch, one epoch, 9e-6, cosine to 10 %; Llama 2: 3 % warm-up.
    assert (config.batches.groups_per_step, config.training.epochs) == (64, 1)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.min_lr_ratio, optimizer.warmup_ratio) == (9e-6, 0.1, 0.03)
    # Nine completions of the longest length fit one micro-batch.
    assert config.batches.micro_batch_tokens >= 9 * config.tokens.max_length


def test_there_is_a_recipe_for_a_machine_without_gpus() -> None:
    assert any(not load_config(TrainConfig, str(path)).workers.use_gpu for path in RECIPES)


def test_the_listwise_recipe_differs_from_the_smoke_recipe_in_its_loss_alone() -> None:
    smoke, listwise = (
        load_config(TrainConfig, str(next(path for path in RECIPES if path.stem == name)))
        for name in ("cpu_smoke", "cpu_listwise")
    )
    assert (smoke.loss.kind, listwise.loss.kind) == ("bradley_terry", "plackett_luce")
    assert listwise.model_copy(update={"loss": smoke.loss, "output": smoke.output}) == smoke
