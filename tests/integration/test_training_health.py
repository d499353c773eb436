"""A run that nobody watches: what hangs is named and replaced, what is not finite is skipped, and all of it is told."""

import os
import re
import signal
import threading
from pathlib import Path

import psutil
import pytest

from pairwright.cluster.train import train
from training_runs import (
    make_model,
    make_pairs,
    run_config,
    same_bits,
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


def stop_a_worker_after(step: int, output: Path, stopped: list[int]) -> None:
    wait_until(lambda: step in steps_logged(output), timeout_seconds=200, what=f"step {step}")
    victim = training_workers(psutil.Process())[-1]
    os.kill(victim.pid, signal.SIGSTOP)
    stopped.append(victim.pid)


def test_a_rank_that_stands_still_is_named_and_replaced_and_changes_nothing_in_the_weights(
    folder: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = run_config(folder, "undisturbed")
    train(undisturbed)
    config = run_config(folder, "stopped", workers={"hang_seconds": 10})
    stopped: list[int] = []
    stopper = threading.Thread(target=stop_a_worker_after, args=(10, Path(config.output), stopped))
    stopper.start()
    summary = train(config).training
    stopper.join()
    log = capsys.readouterr().out
    assert re.search(rf"the run hangs: nothing has gone on .*rank \d \(process {stopped[0]} on .*silent", log), log
    assert summary.restarts == 1
    assert not psutil.pid_exists(stopped[0])
    assert same_bits(weights(Path(config.output)), weights(Path(undisturbed.output)))
