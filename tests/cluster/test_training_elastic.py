"""Training on real Ray clusters of several nodes whose number changes: a node is lost, another one comes."""

import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ray.cluster_utils import Cluster

from pairwright.config import TrainConfig
from pairwright.runs.run_dir import RunFolder
from training_runs import (
    committed_steps,
    make_model,
    make_pairs,
    run_config,
    start_command,
    steps_logged,
    training_workers,
    wait_until,
    weights,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_STEPS = 80
# Relative, over all weights, after 80 steps of AdamW at its own epsilon; and of losses, to that of the first step.
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
        deepspeed={"zero_stage": stage},
        workers={"num_workers": [1, 2], "start_timeout_seconds": 10, "resize_interval_seconds": 15},
    )


def records(output: Path, kind: str) -> list[dict[str, Any]]:
    lines = [line for file in sorted(output.glob("metrics-*.jsonl")) for line in file.read_text().splitlines()]
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def world_sizes(output: Path) -> list[int]:
    return [record["world_size"] for record in records(output, "workers")]


def losses(output: Path) -> dict[int, float]:
    """Return the loss of every step, as it was taken last; a killed driver has not written its last second's."""
    return {record["step"]: record["loss"] for record in records(output, "step")}


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
    assert "the run has 1 workers now, 2 before" in log
    assert "the run has 2 workers now, 1 before" in log
    assert re.search(r"after step \d+: room for 1 more worker: writing a checkpoint now", log)
    summary = RunFolder(str(output)).summary()
    assert summary is not None
    assert summary.world_sizes[0] == 2
    assert summary.world_sizes[-1] == 2
    assert 1 in summary.world_sizes
    check_same_weights(output, undisturbed(folder, stage, nodes.address), stage)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for the names of Ray's sockets below it."""
    with tempfile.TemporaryDirectory(prefix="pw-", dir="/tmp", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_worker_killed_in_the_conversion_of_its_checkpoint_changes_nothing(
    folder: Path, short_path: Path, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One driver, killed with two workers at work; the next one has one worker, which is killed twice on the way."""
    monkeypatch.setenv("TMPDIR", str(short_path))  # where checkpoints are converted
    config = elastic_config(folder, f"converted-{stage}", stage)
    file = folder / f"converted-{stage}.toml"
    output = Path(config.output)
    driver = start_command(with_workers(config, 2), file)

    def has_checkpoint_and_its_events() -> bool:
        # A killed driver may not have written the events of its last half second.
        steps = [record["step"] for record in records(output, "step")]
        return bool(found := committed_steps(output)) and max(steps, default=0) >= max(found)

    wait_until(has_checkpoint_and_its_events, timeout_seconds=240, what="a checkpoint")
    end_with_workers(driver)
    driver = start_command(with_workers(config, 1), file)
    for _ in range(2):
        kill_in_conversion(driver, short_path)
    log, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, log
    summary = RunFolder(config.output).summary()
    assert summary is not None
    assert (summary.restarts, set(summary.world_sizes)) == (2, {1})
    assert summary.recoveries[-1].restored_step > 0
    assert not converted_folders(short_path), "nothing is left of them"
    check_same_weights(Path(config.output), undisturbed(folder, stage), stage)


def kill_in_conversion(driver: subprocess.Popen[str], place: Path) -> None:
    """Wait until a worker converts, stop it to be sure that it still does, and kill it."""
    killed: list[psutil.Process] = []
    began = time.time()

    def is_done() -> bool:
        # Not the one that a worker who was killed before has left.
        partial = [path for path in converted_folders(place) if path.suffix == ".partial" and changed_at(path) > began]
        workers = training_workers(psutil.Process(driver.pid))
        if not partial or not workers:
            return False
        workers[0].suspend()
        if not partial[0].is_dir():
            workers[0].resume()
            return False
        assert not partial[0].with_suffix("").exists(), "it has its name only when whole"
        killed.append(workers[0])
        return True

    wait_until(is_done, timeout_seconds=240, what="a conversion")
    killed[0].kill()
    wait_until(lambda: not killed[0].is_running(), timeout_seconds=30, what="its end")


def converted_folders(place: Path) -> list[Path]:
    return [path for path in place.glob("pairwright-universal-*/*") if path.is_dir()]


def changed_at(path: Path) -> float:
    """Return when a folder was last changed, in seconds since 1970; 0 once it has its whole name, or is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def with_workers(config: TrainConfig, num_workers: int) -> TrainConfig:
    return config.model_copy(update={"workers": config.workers.model_copy(update={"num_workers": num_workers})})


def end_with_workers(driver: subprocess.Popen[str]) -> None:
    """Kill a driver and wait until nothing of its run is at work."""
    workers = training_workers(psutil.Process(driver.pid))
    driver.kill()
    driver.communicate()
    wait_until(
        lambda: not any(worker.is_running() for worker in workers), timeout_seconds=60, what="its workers to end"
    )


def undisturbed(folder: Path, stage: int, address: str | None = None) -> Path:
    """Return the output of a run of two workers, made by the first test that asks."""
    config = elastic_config(folder, f"undisturbed-{stage}", stage)
    if not (Path(config.output) / "summary.json").exists():
        driver = start_command(config, folder / f"undisturbed-{stage}.toml", address=address)
        log, _ = driver.communicate(timeout=600)
        assert driver.returncode == 0, log
    return Path(config.output)


def check_same_weights(found: Path, expected: Path, stage: int) -> None:
    first, second = weights(found), weights(expected)
    assert first.keys() == second.keys()
    difference = np.sqrt(sum(float(((first[name] - second[name]) ** 2).sum()) for name in second))
    relative = difference / np.sqrt(sum(float((value**2).sum()) for value in second.values()))
    ours, theirs = losses(found), losses(expected)
    assert len(theirs) == NUM_STEPS
    assert len(ours) > NUM_STEPS - 20
    apart = max(abs(loss - theirs[step]) for step, loss in ours.items()) / theirs[1]
    print(f"ZeRO-{stage}: weights differ by {relative:.1e}, the losses of steps by at most {apart:.1e} of the first")
    assert relative < TOLERANCE
    assert apart < TOLERANCE
