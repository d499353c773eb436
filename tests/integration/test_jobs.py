"""The way the manual says: `ray job submit` of every stage, on real rankings, on a head that grows by itself."""

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_head import RayHead, autoscaling_head

from training_runs import ROOT, make_model

REAL_RANKINGS = ROOT.parent / "shared/data/rankings_dev.jsonl.zst"

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    if not REAL_RANKINGS.exists():
        pytest.skip(f"needs the real rankings at {REAL_RANKINGS}")
    with autoscaling_head(tmp_path_factory.mktemp("head"), head_cpus=1, worker_cpus=2, max_workers=2) as head:
        yield head


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    make_model(folder / "model")
    return folder


def check(job: subprocess.CompletedProcess[str]) -> str:
    assert job.returncode == 0, f"{job.stdout[-6000:]}\n{job.stderr[-2000:]}"
    return job.stdout


class NodeWatch(threading.Thread):
    """Records how many nodes live, until it is stopped."""

    def __init__(self, head: RayHead) -> None:
        super().__init__(daemon=True)
        self._head = head
        self._stop = threading.Event()
        self.counts: list[int] = []

    def run(self) -> None:
        while not self._stop.wait(1.0):
            self.counts.append(len(self._head.living_nodes()))

    def stop(self) -> None:
        self._stop.set()
        self.join()


def test_a_submitted_road_from_real_rankings_to_a_report_on_a_cluster_that_grows_and_shrinks(
    head: RayHead, folder: Path
) -> None:
    annotations, pairs, run = (str(folder / name) for name in ("annotations", "pairs", "run"))
    ingest = ["jobs/ingest.py", str(REAL_RANKINGS), "--into", annotations]
    log = check(head.submit(ROOT, *ingest, "--config", "jobs/formats/instruction_answers.toml"))
    assert "2,436" in log
    log = check(head.submit(ROOT, "jobs/expand.py", annotations, "--into", pairs))
    assert "18,099" in log
    assert "47,090" in log
    assert len(head.living_nodes()) == 1, "the head alone does the data work"

    watch = NodeWatch(head)
    watch.start()
    settings = {
        "output": run,
        "model.path": str(folder / "model"),
        "data.pairs": pairs,
        "training.max_steps": 4,
        "training.checkpoint_every_steps": 2,
        "batches.groups_per_step": 8,
        "workers.cpus_per_worker": 2,
    }
    overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    log = check(head.submit(ROOT, "jobs/train.py", "jobs/recipes/cpu_smoke.toml", *overrides))
    watch.stop()
    assert "step 4/4" in log
    assert max(watch.counts) == 3, "two nodes come for two workers"
    assert json.loads((folder / "run" / "training.json").read_text())["steps"] == 4

    log = check(head.submit(ROOT, "jobs/evaluate.py", f"{run}/model", "--pairs", pairs))
    assert "accuracy" in log
    report = json.loads((folder / "run" / "report.json").read_text())
    assert 0.7 < report["overall"]["longer_wins"] < 0.85

    deadline = time.monotonic() + 90
    while len(head.living_nodes()) > 1:
        assert time.monotonic() < deadline, "idle nodes did not go"
        time.sleep(1)


def test_a_job_that_cannot_work_fails_with_the_message_and_no_traceback(head: RayHead) -> None:
    job = head.submit(ROOT, "jobs/expand.py", "nowhere", "--into", "/tmp/unused")
    assert job.returncode != 0
    assert "error: " in job.stdout + job.stderr
    assert "Traceback" not in job.stdout
