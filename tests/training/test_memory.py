"""Memory that the system refuses, in a real step: what is said of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pairwright.data.table.table import Table
from pairwright.data.tokens.tokenize_groups import TokenGroup, groups_to_table
from pairwright.training.engine import is_out_of_memory
from zero_runs import Results, case, run_ranks
from zero_world import World

MICRO_BATCH = "a micro-batch of 24,640 tokens, padding included (40 rows of 616; 40 completions of groups 00000abc)"


def large_group(folder: Path) -> Path:
    """Write one group whose forward takes some hundred megabytes."""
    draw = np.random.default_rng(0)
    group = TokenGroup(
        group_id="00000abc",
        subset=None,
        prompt_ids=draw.integers(5, 200, 16).astype(np.int32),
        completion_ids=[draw.integers(5, 200, 600).astype(np.int32) for _ in range(40)],
        num_characters=np.ones(40, np.int32),
        completion_index=np.arange(40, dtype=np.int16),
        chosen_P=np.array([0], np.int64),
        rejected_P=np.array([1], np.int64),
        weight_P=np.array([1.0], np.float32),
        margin_P=np.array([np.nan], np.float32),
    )
    table = Table(str(folder / "large_group"), "tokens")
    path = table.local_path(table.write_data(groups_to_table([group], ["train"]), compress=False))
    assert path is not None
    return path


@pytest.fixture(scope="module")
def runs(world: World) -> Results:
    settings = {"tokens": str(large_group(world["folder"])), "micro_batch_tokens": 100_000}
    return run_ranks(
        world,
        1,
        [
            case(world, "forward", 2, memory_bytes=20_000_000, **settings),
            case(world, "enough", 2, memory_bytes=20_000_000_000, **settings),
        ],
    )


def test_the_micro_batch_its_groups_and_the_budget_to_set_are_named(runs: Results) -> None:
    message = runs["forward"]["message"]
    assert "rank 0 on " in message
    assert f"ran out of memory in the forward pass of {MICRO_BATCH}" in message
    assert "set batches.micro_batch_tokens to 12320 or less" in message


def test_the_same_step_goes_through_where_there_is_enough(runs: Results) -> None:
    assert runs["enough"]["message"] == "there was enough"


def test_a_gpu_without_memory_is_known_and_another_error_is_not() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not is_out_of_memory(RuntimeError("Connection closed by peer"))
