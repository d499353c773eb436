"""Training whose output is on a real S3 server: an outage, a killed driver, and what is there at the end."""

import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import obstore
import psutil
import pytest
from safetensors.numpy import load, load_file

from pairwright.cluster.train.driver import train
from pairwright.config import TrainConfig
from pairwright.data.storage.object_store import open_store
from pairwright.runs.checkpoints import kept_checkpoints
from pairwright.runs.export_run import export_checkpoint
from pairwright.runs.run_dir import RunFolder
from training_runs import (
    RunningCommand,
    make_model,
    make_pairs,
    run_config,
    same_bits,
    training_workers,
    wait_until,
    weights,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

OUTAGE_SECONDS = 20.0
NUM_STEPS = 200
# Long enough that a driver is still at work when its first checkpoint is seen to be committed.
TRAINING = {"epochs": 50, "max_steps": NUM_STEPS, "checkpoint_every_steps": 25, "log_every_steps": 1}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> TrainConfig:
    folder = tmp_path_factory.mktemp("remote")
    make_pairs(folder / "pairs", num_groups=150)
    make_model(folder / "model")
    config = run_config(folder, "undisturbed", training=TRAINING)
    train(config)
    return config


def remote_weights(url: str) -> dict[str, np.ndarray]:
    return load(bytes(obstore.get(open_store(url), "model/model.safetensors").bytes()))


def test_an_outage_of_the_storage_holds_the_run_up_and_changes_nothing_in_the_weights(
    undisturbed: TrainConfig, s3_bucket: str, s3_server: subprocess.Popen[str], tmp_path: Path
) -> None:
    url = f"{s3_bucket}/runs/outage"
    driver = RunningCommand(undisturbed.model_copy(update={"output": url}), tmp_path / "outage.toml")
    driver.wait_for_line(f"step 10/{NUM_STEPS}:")
    s3_server.send_signal(signal.SIGSTOP)
    time.sleep(OUTAGE_SECONDS)
    s3_server.send_signal(signal.SIGCONT)
    log = driver.end()
    print(log)
    assert "cannot be stored" in log
    assert "Traceback" not in log
    assert same_bits(remote_weights(url), weights(Path(undisturbed.output)))
    summary = RunFolder(url).summary()
    assert summary is not None
    assert summary.steps == NUM_STEPS
    found = kept_checkpoints(url, verify=True)
    assert [kept.corruption for kept in found.checkpoints if kept.committed] == [None, None]
    export_checkpoint(url, checkpoint=str(NUM_STEPS), into=str(tmp_path / "exported"), model=None)
    assert same_bits(load_file(tmp_path / "exported" / "model.safetensors"), weights(Path(undisturbed.output)))
    stored = {entry["path"] for chunk in obstore.list(open_store(url)) for entry in chunk}
    assert any(re.match(r"metrics-.*\.jsonl", path) for path in stored)
    assert any(path.startswith("tensorboard/") for path in stored)


def test_a_driver_that_is_killed_goes_on_from_what_is_on_the_storage(
    undisturbed: TrainConfig, s3_bucket: str, tmp_path: Path
) -> None:
    url = f"{s3_bucket}/runs/killed"
    config = undisturbed.model_copy(update={"output": url})
    driver = RunningCommand(config, tmp_path / "killed.toml")
    driver.wait_for_line(f"step 26/{NUM_STEPS}:")
    wait_until(lambda: kept_checkpoints(url, verify=False).next_start is not None, timeout_seconds=60, what="a commit")
    workers = training_workers(psutil.Process(driver.process.pid))
    assert driver.process.poll() is None
    driver.process.kill()
    wait_until(lambda: not any(w.is_running() for w in workers), timeout_seconds=60, what="its workers to end")
    log = RunningCommand(config, tmp_path / "killed.toml").end()
    assert re.search(rf"resumed from the checkpoint of step \d+ of {NUM_STEPS}", log)
    assert same_bits(remote_weights(url), weights(Path(undisturbed.output)))
