"""A run that nobody watches: what hangs is named and replaced, what is not finite is skipped, and all of it is told."""

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from pairwright.cluster.train.driver import train
from pairwright.config import TrainConfig
from training_runs import (
    NUM_STEPS,
    RunningCommand,
    committed_steps,
    make_model,
    make_pairs,
    run_config,
    same_bits,
    start_command,
    steps_logged,
    training_workers,
    wait_until,
    weights,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("health")
    make_pairs(folder / "pairs", num_groups=150)
    make_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path, ray_cluster: None) -> TrainConfig:
    config = run_config(folder, "undisturbed")
    train(config)
    return config


def stop_a_worker_with_a_checkpoint(output: Path, stopped: list[int]) -> None:
    # Once one is committed: what is still on its way would be lost too, and more steps with it.
    wait_until(lambda: bool(committed_steps(output)), timeout_seconds=200, what="a checkpoint")
    victim = training_workers(psutil.Process())[-1]
    os.kill(victim.pid, signal.SIGSTOP)
    stopped.append(victim.pid)


def test_a_rank_that_stands_still_is_named_and_replaced_and_changes_nothing_in_the_weights(
    folder: Path, undisturbed: TrainConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray commits when its controller next looks, every 2 s by default: in that time this run would be over.
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    config = run_config(folder, "stopped", workers={"hang_timeout_seconds": 10})
    stopped: list[int] = []
    stopper = threading.Thread(target=stop_a_worker_with_a_checkpoint, args=(Path(config.output), stopped))
    stopper.start()
    summary = train(config).training
    stopper.join()
    log = capsys.readouterr().out
    assert re.search(rf"the run hangs: no progress .*rank \d \(process {stopped[0]} on .*silent", log), log
    assert summary.restarts == 1
    (recovery,) = summary.recoveries
    assert f"process {stopped[0]}" in recovery.causes[0]
    assert recovery.restored_step % 8 == 0
    assert 0 <= recovery.steps_redone <= 9
    assert recovery.seconds is not None
    assert not psutil.pid_exists(stopped[0])
    assert same_bits(weights(Path(config.output)), weights(Path(undisturbed.output)))
    figures = served_figures(config.output)
    assert figures["restarts"] == 1
    assert figures["skipped_steps"] == 0
    assert figures["checkpoint_age_seconds"] < 120
    assert figures["loss"] > 0


def served_figures(run: str) -> dict[str, float]:
    """Return a finished run's figures as the agent of Ray's node serves them to Prometheus."""
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + 60
    found: dict[str, float] = {}
    while found.get("step") != NUM_STEPS:  # Ray passes them on every ten seconds
        assert time.monotonic() < deadline, found
        time.sleep(1.0)
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        lines = re.findall(r"^ray_pairwright_training_(\w+)\{(.*)\} (\S+)$", text, flags=re.MULTILINE)
        found = {name: float(value) for name, tags, value in lines if f'run="{run}"' in tags}
    return found


def leave_little_memory(worker: psutil.Process) -> None:
    """Let a process have no more than 16 MB beside the least that it holds within a second: less than a step takes."""
    held = []
    for _ in range(100):
        held.append(worker.memory_info().data)
        time.sleep(0.01)
    worker.rlimit(psutil.RLIMIT_DATA, (min(held) + 16_000_000, worker.rlimit(psutil.RLIMIT_DATA)[1]))


def test_a_rank_without_memory_ends_the_run_with_the_micro_batch_and_the_budget_to_set(folder: Path) -> None:
    batches = {"groups_per_step": 128, "micro_batch_tokens": 20_000}
    config = run_config(folder, "memory", batches=batches, training={"epochs": 100, "max_steps": 100})
    driver = start_command(config, folder / "memory.toml")
    wait_until(lambda: 2 in steps_logged(Path(config.output)), timeout_seconds=200, what="step 2")
    leave_little_memory(training_workers(psutil.Process(driver.pid))[-1])
    log, _ = driver.communicate(timeout=200)
    print(log)
    assert driver.returncode == 1
    said = re.search(
        r"error: run .*rank \d on .* ran out of memory in .* micro-batch of ([\d,]+) tokens.*to (\d+) or", log
    )
    assert said, log
    assert int(said[2]) == int(said[1].replace(",", "")) // 2
    assert "Traceback" not in log


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB, which only root can make."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def filled(disk: Path) -> Path:
    """Leave no byte of room on a disk that others write to, and return the file to remove."""
    with (disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(100_000))
    return disk / "ballast"


def test_a_disk_that_is_full_for_a_while_holds_the_run_up_and_changes_nothing_in_the_weights(
    folder: Path, undisturbed: TrainConfig, small_disk: Path, tmp_path: Path
) -> None:
    output = small_disk / "run"
    config = undisturbed.model_copy(update={"output": str(output)})
    driver = RunningCommand(config, tmp_path / "full.toml")
    wait_until(lambda: bool(committed_steps(output)), timeout_seconds=200, what="a checkpoint")
    ballast = filled(small_disk)
    # Not in the metrics: there is no room for them either.
    driver.wait_for_line("cannot be stored")
    time.sleep(5)
    ballast.unlink()
    log = driver.end()
    print(log)
    assert re.search(r"step-000000\d\d-\w+ cannot be stored: .*No space left on device.*; retrying in 1 s", log)
    assert "Traceback" not in log
    assert steps_logged(output) == list(range(1, NUM_STEPS + 1)), "nothing was lost, no step taken again"
    assert same_bits(weights(output), weights(Path(undisturbed.output)))


def test_a_disk_that_stays_full_stops_the_run_with_the_reason_and_it_goes_on_when_there_is_room(
    folder: Path, undisturbed: TrainConfig, small_disk: Path, tmp_path: Path
) -> None:
    output = small_disk / "run"
    training = undisturbed.training.model_copy(update={"storage_retry_seconds": 3})
    config = undisturbed.model_copy(update={"output": str(output), "training": training})
    driver = start_command(config, tmp_path / "full.toml")
    wait_until(lambda: bool(committed_steps(output)), timeout_seconds=200, what="a checkpoint")
    ballast = filled(small_disk)
    log, _ = driver.communicate(timeout=300)
    print(log)
    assert driver.returncode == 1
    assert re.search(r"error: run .*cannot be stored.*No space left.*storage_retry_seconds = 3", log)
    assert "Traceback" not in log
    ballast.unlink()
    log, _ = start_command(config, tmp_path / "full.toml").communicate(timeout=300)
    assert "resumed from the checkpoint of step" in log
    assert same_bits(weights(output), weights(Path(undisturbed.output)))
