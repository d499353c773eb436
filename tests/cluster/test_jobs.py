"""The way the manual says: `ray job submit` of every stage, on real rankings; and a head that grows by itself."""

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from ray_head import RayHead, ray_head
from training_runs import ROOT, make_model, make_pairs, wait_until

REAL_RANKINGS = ROOT.parent / "shared/data/rankings_dev.jsonl.zst"
NUM_RANKINGS = 400
RECIPE = "platform/pairwright/config/recipes/demo.toml"

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with ray_head(tmp_path_factory.mktemp("head"), num_cpus=2) as head:
        yield head


def check(job: subprocess.CompletedProcess[str]) -> str:
    assert job.returncode == 0, f"{job.stdout[-6000:]}\n{job.stderr[-2000:]}"
    return job.stdout


def settings(folder: Path, **others: int) -> list[str]:
    """Return a short run over ``folder/pairs`` and ``folder/model`` as overrides of a recipe."""
    values = {
        "output": folder / "run",
        "model.path": folder / "model",
        "data.pairs": folder / "pairs",
        "batches.groups_per_step": 8,
        "training.max_steps": 4,
        "training.checkpoint_every_steps": 2,
    } | {key.replace("__", "."): value for key, value in others.items()}
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def some_rankings(path: Path) -> tuple[Path, int, int]:
    """Write some real rankings to a file; return it, its comparisons, and those that are no ties."""
    with REAL_RANKINGS.open("rb") as file:
        lines = zstandard.ZstdDecompressor().stream_reader(file).read().splitlines()[:NUM_RANKINGS]
    path.write_bytes(b"\n".join(lines))
    ranks = [[answer["rank"] for answer in json.loads(line)["answers"]] for line in lines]
    compared = [pair for group in ranks for pair in itertools.combinations(group, 2)]
    return path, len(compared), sum(a != b for a, b in compared)


def test_submitted_jobs_walk_the_road_from_real_rankings_to_a_report(head: RayHead, tmp_path: Path) -> None:
    if not REAL_RANKINGS.exists():
        pytest.skip(f"needs the real rankings at {REAL_RANKINGS}")
    make_model(tmp_path / "model")
    annotations, pairs = str(tmp_path / "annotations"), str(tmp_path / "pairs")
    source, comparisons, decisive = some_rankings(tmp_path / "rankings.jsonl")
    ingest = ["jobs/run.py", "ingest", str(source), "--output", annotations]
    fields = "platform/pairwright/config/recipes/instruction_answers.toml"
    log = check(head.submit_packaged(ROOT, *ingest, "--config", fields))
    assert f"accepted {NUM_RANKINGS} and refused 0 records" in log
    log = check(head.submit_packaged(ROOT, "jobs/run.py", "expand", annotations, "--output", pairs))
    assert f"{comparisons:,}" in log
    assert f"{decisive:,}" in log
    log = check(head.submit_packaged(ROOT, "jobs/run.py", "train", "--config", RECIPE, *settings(tmp_path)))
    assert "step 4/4" in log
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 4
    log = check(head.submit_packaged(ROOT, "jobs/run.py", "evaluate", f"{tmp_path}/run/model", "--pairs", pairs))
    assert "accuracy" in log
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["overall"]["pairs"] > 0
    assert report["pairs"]["pairs"] > report["overall"]["pairs"], "the recipe's short limit drops some, and says so"


def test_a_job_that_cannot_work_fails_with_the_message_and_no_traceback(head: RayHead) -> None:
    job = head.submit_packaged(ROOT, "jobs/run.py", "expand", "nowhere", "--output", "nothing")
    assert job.returncode != 0
    assert "error: " in job.stdout
    assert "nowhere" in job.stdout
    assert "Traceback" not in job.stdout


@pytest.mark.slow
def test_the_hook_of_a_pod_stops_the_jobs_and_waits_until_they_have_ended(head: RayHead, tmp_path: Path) -> None:
    """What deploy/kuberay/ runs before a head goes: a job has its time, as a training that writes a checkpoint."""
    program = tmp_path / "job.py"
    program.write_text(
        "import pathlib, signal, sys, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "def end(*_):\n    time.sleep(5)\n    (folder / 'saved').touch()\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "(folder / 'started').touch()\ntime.sleep(600)\n"
    )
    environment = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}
    submit = ["ray", "job", "submit", "--address", head.address, "--no-wait"]
    submit += ["--runtime-env-json", json.dumps(environment), "--", "python", str(program)]
    subprocess.run(submit, env=head.environment, check=True, capture_output=True, timeout=120)
    wait_until((tmp_path / "started").exists, timeout_seconds=120, what="the job")
    hook = [sys.executable, str(ROOT / "deploy" / "stop_jobs.py"), head.address]
    subprocess.run(hook, env=head.environment, check=True, timeout=120)
    assert (tmp_path / "saved").exists()


class NodeWatch(threading.Thread):
    """Records how many nodes live, until it is stopped."""

    def __init__(self, head: RayHead) -> None:
        super().__init__(daemon=True)
        self._head = head
        self._done = threading.Event()
        self.counts: list[int] = []

    def run(self) -> None:
        while not self._done.wait(1.0):
            self.counts.append(len(self._head.living_nodes()))

    def stop(self) -> None:
        self._done.set()
        self.join()


@pytest.mark.slow
def test_a_submitted_run_brings_two_nodes_up_trains_on_them_and_they_go_again(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("growing")
    make_model(folder / "model")
    make_pairs(folder / "pairs", num_groups=60)
    with ray_head(folder, num_cpus=1, max_nodes=2, cpus_per_node=2) as head:
        assert len(head.living_nodes()) == 1, "a head alone"
        watch = NodeWatch(head)
        watch.start()
        # Two CPUs for each worker: the head has one, so neither fits there.
        arguments = [
            str(ROOT / "jobs/run.py"),
            "train",
            "--config",
            str(ROOT / RECIPE),
            *settings(folder, workers__cpus_per_worker=2),
        ]
        log = check(head.submit_installed(ROOT, *arguments))
        watch.stop()
        assert "step 4/4" in log
        # For a moment Ray may start one more than it is allowed to, and end it at once.
        assert max(watch.counts) >= 3, "two nodes come for two workers"
        assert json.loads((folder / "run" / "summary.json").read_text())["steps"] == 4
        deadline = time.monotonic() + 120
        while len(head.living_nodes()) > 1:
            assert time.monotonic() < deadline, "idle nodes did not go"
            time.sleep(1)
