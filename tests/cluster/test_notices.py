"""Notices on real clusters: signals to the driver and to a worker, `ray job stop`, and a node that Ray drains.

Each leads to a checkpoint at once, and none changes a bit of the result. The runs write no other before their end.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ray
import ray._private.state
from ray.cluster_utils import Cluster

from pairwright.cluster.train.driver import train
from pairwright.config import TrainConfig
from ray_head import ray_head
from training_runs import (
    NUM_STEPS,
    ROOT,
    TRAINING,
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
    write_config,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NO_CHECKPOINTS = {**TRAINING, "checkpoint_every_steps": NUM_STEPS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notices")
    make_pairs(folder / "pairs", num_groups=150)
    make_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Path:
    command = start_command(run_config(folder, "undisturbed"), folder / "undisturbed.toml")
    log, _ = command.communicate(timeout=300)
    assert command.returncode == 0, log
    return folder / "undisturbed"


def wait_for_step(step: int, config: TrainConfig) -> None:
    wait_until(lambda: step in steps_logged(Path(config.output)), timeout_seconds=200, what=f"step {step}")


def finishes_as(undisturbed: Path, config: TrainConfig, file: Path) -> str:
    """Run the command again, check its weights, and return its log."""
    again = start_command(config, file)
    log, _ = again.communicate(timeout=400)
    assert again.returncode == 0, log
    assert same_bits(weights(Path(config.output)), weights(undisturbed))
    return log


@pytest.mark.parametrize(("which", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signalled_driver_ends_with_its_status_and_a_line_that_holds(
    folder: Path, undisturbed: Path, which: signal.Signals, status: int
) -> None:
    config = run_config(folder, f"driver-{status}", training=NO_CHECKPOINTS)
    file = folder / f"driver-{status}.toml"
    driver = start_command(config, file)
    wait_for_step(4, config)
    driver.send_signal(which)
    log, _ = driver.communicate(timeout=120)
    assert driver.returncode == status, log
    assert "Traceback" not in log, log
    said = re.search(r"the same command resumes from step (\d+), whose checkpoint is committed", log)
    assert said, log
    assert committed_steps(Path(config.output)) == [int(said[1])]
    log = finishes_as(undisturbed, config, file)
    assert f"resumed from the checkpoint of step {said[1]} of {NUM_STEPS}" in log


def test_a_second_signal_ends_at_once_and_the_run_can_be_started_again(folder: Path, undisturbed: Path) -> None:
    config = run_config(folder, "twice", training=NO_CHECKPOINTS)
    driver = start_command(config, folder / "twice.toml")
    wait_for_step(4, config)
    # Ranks that stand still take no checkpoint, however long one waits.
    for worker in training_workers(psutil.Process(driver.pid)):
        worker.suspend()
    driver.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        driver.wait(timeout=5)
    driver.send_signal(signal.SIGTERM)
    log, _ = driver.communicate(timeout=60)
    assert driver.returncode == 143, log
    assert "ended at once by SIGTERM" in log
    assert "Traceback" not in log, log
    finishes_as(undisturbed, config, folder / "twice.toml")


def test_sigterm_to_a_worker_is_a_checkpoint_and_no_restart(folder: Path, undisturbed: Path) -> None:
    config = run_config(folder, "worker", training=NO_CHECKPOINTS)
    driver = start_command(config, folder / "worker.toml")
    wait_for_step(4, config)
    training_workers(psutil.Process(driver.pid))[-1].terminate()
    log, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, log
    assert re.search(r"after step \d+: SIGTERM to rank \d: writing a checkpoint now", log), log
    assert len(committed_steps(Path(config.output))) == 2
    assert json.loads((Path(config.output) / "summary.json").read_text())["restarts"] == 0
    assert same_bits(weights(Path(config.output)), weights(undisturbed))


def test_ray_job_stop_with_time_to_wait_leaves_a_checkpoint(folder: Path, undisturbed: Path) -> None:
    config = run_config(folder, "job", training=NO_CHECKPOINTS)
    output, file = Path(config.output), folder / "job.toml"
    write_config(config, file)
    with ray_head(folder, num_cpus=2) as head:
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": "60", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        options = ["--address", head.address, "--submission-id", "stopped"]
        options += ["--runtime-env-json", json.dumps({"env_vars": variables})]
        entry_point = [sys.executable, str(ROOT / "jobs/run.py"), "train", "--config", str(file)]
        command = ["ray", "job", "submit", *options, "--no-wait", "--", *entry_point]
        wait_until(
            lambda: subprocess.run(command, env=head.environment, check=False).returncode == 0,
            timeout_seconds=60,
            what="a head that takes jobs",
        )
        wait_for_step(4, config)
        stop = ["ray", "job", "stop", "--address", head.address, "stopped"]
        subprocess.run(stop, env=head.environment, check=True, timeout=120)
        logs = ["ray", "job", "logs", "--address", head.address, "stopped"]
        log = subprocess.run(logs, env=head.environment, check=True, capture_output=True, text=True).stdout
    (step,) = committed_steps(output)
    assert f"the same command resumes from step {step}, whose checkpoint is committed" in log
    finishes_as(undisturbed, config, file)


# -------------------------------------------------------------------------------------------- a drained node


@contextmanager
def three_nodes() -> Iterator[Cluster]:
    """A cluster of a head without CPUs and two nodes of two, and this process as its driver."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2)
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("RAY_ADDRESS", str(cluster.address))
            environment.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
            environment.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
            yield cluster
    finally:
        cluster.shutdown()


def drain_the_node_of_rank_0(cluster: Cluster, config: TrainConfig, seconds: int) -> None:
    wait_for_step(4, config)
    # From the cluster's own table: the dashboard that the public listing asks may have found its port taken.
    actors = ray._private.state.actors(actor_state_name="ALIVE").values()
    node = next(actor["Address"]["NodeID"] for actor in actors if "RayTrainWorker" in actor["ActorClassName"])
    command = [Path(sys.executable).with_name("ray"), "drain-node", "--address", cluster.address, "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back"]
    subprocess.run([*command, "--deadline-remaining-seconds", str(seconds)], check=True)


def test_a_drained_node_leads_to_a_checkpoint_before_the_deadline_and_the_run_goes_on_elsewhere(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if ray.is_initialized():
        pytest.skip("this process is on another cluster already")
    training = {**TRAINING, "epochs": 100, "max_steps": 300, "checkpoint_every_steps": 300}
    reference, config = (run_config(folder, name, training=training) for name in ("longer", "drained"))
    log, _ = start_command(reference, folder / "longer.toml").communicate(timeout=300)
    with three_nodes() as cluster:
        drain = threading.Thread(target=drain_the_node_of_rank_0, args=(cluster, config, 4), daemon=True)
        drain.start()
        summary = train(config).training
        drain.join()
    said = capfd.readouterr().out
    notice = re.search(r"after step (\d+): node \w+ \(rank .*\) will be preempted at .* UTC, in \d+ s: writing", said)
    assert notice, said
    assert f"resumed from the checkpoint of step {notice[1]} of 300" in said
    assert summary.resumes == 1
    assert same_bits(weights(Path(config.output)), weights(Path(reference.output))), log
