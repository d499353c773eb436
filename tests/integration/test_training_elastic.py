"""Training on real Ray clusters of several nodes whose number changes: a node is lost, another one comes."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ray.cluster_utils import Cluster

from pairwright.cluster.run_folder import RunFolder
from pairwright.config import TrainConfig
from training_runs import (
    committed_steps,
    make_model,
    make_pairs,
    run_config,
    start_command,
    steps_logged,
    wait_until,
    weights,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_STEPS = 80
# Relative, over all weights, after 80 steps of AdamW at its own epsilon.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    make_pairs(folder / "pairs", num_groups=150)
    # Large enough that the run lasts until the new node is noticed.
    make_model(folder / "model", hidden_size=192)
    return folder


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """Start a cluster of two nodes with room for one worker each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def elastic_config(folder: Path, name: str, stage: int) -> TrainConfig:
    training = {"epochs": 50, "max_steps": NUM_STEPS, "checkpoint_every_steps": 5, "log_every_steps": 1}
    return run_config(
        folder,
        name,
        training=training,
        batches={"groups_per_step": 64, "micro_batch_tokens": 1024},
        engine={"zero_stage": stage},
        workers={"num_workers": [1, 2], "start_timeout_seconds": 10, "resize_seconds": 2},
    )


def world_sizes(output: Path) -> list[int]:
    lines = [line for file in sorted(output.glob("metrics-*.jsonl")) for line in file.read_text().splitlines()]
    return [record["world_size"] for record in map(json.loads, lines) if record["kind"] == "workers"]


@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_shrinks_with_a_lost_node_grows_with_a_new_one_and_ends_in_the_same_weights(
    folder: Path, nodes: Cluster, stage: int
) -> None:
    config = elastic_config(folder, f"elastic-{stage}", stage)
    output = Path(config.output)
    driver = start_command(config, folder / f"elastic-{stage}.toml", address=nodes.address)
    (lost,) = nodes.worker_nodes
    wait_until(lambda: bool(committed_steps(output)), timeout_seconds=240, what="a checkpoint of two workers")
    at = time.monotonic()
    nodes.remove_node(lost, allow_graceful=False)
    wait_until(lambda: world_sizes(output)[-1:] == [1], timeout_seconds=240, what="one worker")
    done = len(steps_logged(output))
    wait_until(lambda: len(steps_logged(output)) > done, timeout_seconds=240, what="a step of one worker")
    print(f"ZeRO-{stage}: {time.monotonic() - at:.0f} s from the loss of a node to the next step")
    at = time.monotonic()
    nodes.add_node(num_cpus=1)
    wait_until(lambda: world_sizes(output)[-1:] == [2], timeout_seconds=240, what="two workers again")
    print(f"ZeRO-{stage}: {time.monotonic() - at:.0f} s from the new node to a group that uses it")
    log, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, log
    assert "1 workers now; there were 2" in log
    assert "2 workers now; there were 1" in log
    summary = RunFolder(str(output)).summary()
    assert summary is not None
    assert summary.world_sizes[0] == 2
    assert summary.world_sizes[-1] == 2
    assert 1 in summary.world_sizes
    check_same_weights(output, undisturbed(folder, nodes, stage), stage)


def undisturbed(folder: Path, nodes: Cluster, stage: int) -> Path:
    config = elastic_config(folder, f"undisturbed-{stage}", stage)
    driver = start_command(config, folder / f"undisturbed-{stage}.toml", address=nodes.address)
    log, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, log
    return Path(config.output)


def check_same_weights(found: Path, expected: Path, stage: int) -> None:
    first, second = weights(found), weights(expected)
    assert first.keys() == second.keys()
    difference = np.sqrt(sum(float(((first[name] - second[name]) ** 2).sum()) for name in second))
    relative = difference / np.sqrt(sum(float((value**2).sum()) for value in second.values()))
    print(f"ZeRO-{stage}: weights differ by {relative:.1e}")
    assert relative < TOLERANCE
