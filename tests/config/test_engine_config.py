"""Combinations of engine keys, and numbers of workers, that cannot be are refused before anything starts."""

import pytest

from pairwright.config import TrainConfig, load_config
from pairwright.errors import ConfigError
from pairwright.training.engine import deepspeed_config

REQUIRED = ["output=o", "model.path=m", "data.pairs=p"]


def load(*overrides: str) -> TrainConfig:
    return load_config(TrainConfig, None, [*REQUIRED, *overrides])


@pytest.mark.parametrize(
    ("key", "stage", "least"), [("offload_optimizer", 0, 1), ("offload_parameters", 0, 3), ("offload_parameters", 2, 3)]
)
def test_offload_needs_a_stage_that_partitions_what_is_offloaded(key: str, stage: int, least: int) -> None:
    with pytest.raises(ConfigError, match=rf"{key} needs deepspeed\.zero_stage {least} or more, found {stage}"):
        load(f"deepspeed.{key}=true", f"deepspeed.zero_stage={stage}")


def test_parameters_are_not_offloaded_without_the_optimizer() -> None:
    with pytest.raises(ConfigError, match=r"needs deepspeed\.offload_optimizer too"):
        load("deepspeed.offload_parameters=true", "deepspeed.zero_stage=3")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offload_reaches_deepspeed(stage: int) -> None:
    overrides = ["deepspeed.offload_optimizer=true", f"deepspeed.zero_stage={stage}"]
    config = load(*overrides, *(["deepspeed.offload_parameters=true"] if stage == 3 else []))
    zero = deepspeed_config(config.deepspeed, config.optimizer)["zero_optimization"]
    offloaded = {key for key in ("offload_optimizer", "offload_param") if zero.get(key) == {"device": "cpu"}}
    assert offloaded == ({"offload_optimizer", "offload_param"} if stage == 3 else {"offload_optimizer"})


def test_lora_is_off_unless_its_section_is_there() -> None:
    assert load().lora is None
    lora = load("lora.rank=8").lora
    assert lora is not None
    assert (lora.rank, lora.target_modules) == (8, "all-linear")


@pytest.mark.parametrize("value", ["[]", '[""]', "q_proj", "3"])
def test_target_modules_are_all_linear_or_a_list_of_names(value: str) -> None:
    with pytest.raises(ConfigError, match=r"lora\.target_modules"):
        load(f"lora.target_modules={value}")


@pytest.mark.parametrize(("value", "least", "most"), [("3", 3, 3), ("[1,4]", 1, 4), ("[2,2]", 2, 2)])
def test_a_number_of_workers_is_one_or_a_range(value: str, least: int, most: int) -> None:
    workers = load(f"workers.num_workers={value}").workers
    assert (workers.least, workers.most) == (least, most)


@pytest.mark.parametrize(("value", "message"), [("[3,2]", "swap the two"), ("[0,2]", "num_workers"), ("[1]", "num_wo")])
def test_a_range_of_workers_that_cannot_be_is_refused(value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(f"workers.num_workers={value}")
