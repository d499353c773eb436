"""A run whose driver is killed and which resumes is one run with one curve in every tracker that is installed."""

import os
import signal
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from tracker_stores import STORES, store_variables
from training_runs import (
    NUM_STEPS,
    TRAINING,
    committed_steps,
    make_model,
    make_pairs,
    run_config,
    start_command,
    steps_logged,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.ray]
INSTALLED = [name for name in STORES if (spec := find_spec(name)) is not None and spec.origin is not None]


@pytest.mark.skipif(not INSTALLED, reason="no tracker is installed: pip install pairwright[mlflow,wandb,trackio]")
def test_a_killed_driver_leaves_one_run_with_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in store_variables(tmp_path).items():
        monkeypatch.setenv(name, value)
    make_pairs(tmp_path / "pairs", num_groups=150)
    make_model(tmp_path / "model")
    config = run_config(tmp_path, "run", training=TRAINING | {"evaluate_every_steps": 8}, workers={"num_workers": 1})
    config = config.model_copy(update={"tracking": tuple(INSTALLED)})
    output = Path(config.output)

    killed = start_command(config, tmp_path / "run.toml")
    wait_until(lambda: bool(committed_steps(output)), timeout_seconds=200, what="a checkpoint")
    first = max(committed_steps(output))
    wait_until(lambda: max(steps_logged(output)) > first + 1, timeout_seconds=60, what="steps after it")
    children = psutil.Process(killed.pid).children(recursive=True)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    psutil.wait_procs(children, timeout=60)

    resumed = start_command(config, tmp_path / "run.toml")
    log, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, log
    assert len(steps_logged(output)) > NUM_STEPS, "some steps were computed twice"
    assert not (output / "tensorboard").exists()
    for name in INSTALLED:
        assert f"tracked as {name} run" in log
        runs, curves = STORES[name](tmp_path)
        assert runs == 1, name
        assert [step for step, _ in curves["train/loss"]] == list(range(1, NUM_STEPS + 1)), name
        assert [step for step, _ in curves["eval/accuracy"]] == [8, 16, 24, 32], name
