"""A head alone, and two kinds of nodes that Ray's autoscaler starts: data work and training bring their own kind."""

import json
import threading
import time
from pathlib import Path

import pytest

from pairwright.cluster.node_pools import POOL_LABEL, POOLS_VARIABLE, pool_labels
from ray_head import NodePool, RayHead, ray_head
from training_runs import ROOT, make_model

RECIPE = "platform/pairwright/config/recipes/demo.toml"
IDLE_TIMEOUT_SECONDS = 180


def test_work_asks_for_a_pool_only_on_a_cluster_that_has_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv(POOLS_VARIABLE, "1")
    assert pool_labels("data") == {}, "a Ray of this command's own has no labels"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert pool_labels("data") == {POOL_LABEL: "data"}
    monkeypatch.setenv(POOLS_VARIABLE, "0")
    assert pool_labels("data") == {}


def test_the_label_is_the_one_that_ray_data_gives_its_requests() -> None:
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import SUBCLUSTER_LABEL_KEY

    assert SUBCLUSTER_LABEL_KEY == POOL_LABEL


class PoolWatch(threading.Thread):
    """Records which pools have nodes, until it is stopped."""

    def __init__(self, head: RayHead) -> None:
        super().__init__(daemon=True)
        self._head = head
        self._done = threading.Event()
        self.seen: list[dict[str, int]] = []

    def run(self) -> None:
        while not self._done.wait(1.0):
            self.seen.append(pools(self._head))

    def most(self, pool: str) -> int:
        """Stop, and return the most nodes of a pool at one time."""
        self._done.set()
        self.join()
        return max(seen.get(pool, 0) for seen in self.seen)


def pools(head: RayHead) -> dict[str, int]:
    """Return how many nodes each pool has now."""
    labels = [node["labels"].get(POOL_LABEL) for node in head.living_nodes()]
    return {pool: labels.count(pool) for pool in ("data", "training")}


def watched_job(head: RayHead, *arguments: str) -> PoolWatch:
    """Run a job to its successful end, and return what was seen meanwhile."""
    watch = PoolWatch(head)
    watch.start()
    job = head.submit_installed(ROOT, str(ROOT / "jobs/run.py"), *arguments)
    assert job.returncode == 0, f"{job.stdout[-6000:]}\n{job.stderr[-2000:]}"
    return watch


def wait_for_no_nodes(head: RayHead) -> None:
    deadline = time.monotonic() + IDLE_TIMEOUT_SECONDS
    while pools(head) != {"data": 0, "training": 0}:
        assert time.monotonic() < deadline, f"idle nodes did not go: {pools(head)}"
        time.sleep(1)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ingestion_brings_data_nodes_and_training_brings_training_nodes(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from pairwright.data.synthetic import write_rankings

    folder = tmp_path_factory.mktemp("pools")
    make_model(folder / "model")
    write_rankings(folder / "rankings.jsonl", 60, seed=0)
    kinds = {"data": NodePool(num_cpus=2, max_nodes=2), "training": NodePool(num_cpus=2, max_nodes=2)}
    with ray_head(folder, num_cpus=0, pools=kinds) as head:
        assert len(head.living_nodes()) == 1, "a head alone"
        seen = watched_job(head, "ingest", str(folder / "rankings.jsonl"), "--output", str(folder / "annotations"))
        assert seen.most("data") >= 1
        assert seen.most("training") == 0, "no data work on nodes for training"
        seen = watched_job(head, "expand", str(folder / "annotations"), "--output", str(folder / "pairs"))
        assert seen.most("training") == 0
        # The first run makes the tokens, on data nodes; the second finds them.
        for name in ("first", "second"):
            seen = watched_job(head, "train", "--config", str(ROOT / RECIPE), *settings(folder, name))
            assert seen.most("training") == 2, "a node for each of two workers"
            assert json.loads((folder / name / "summary.json").read_text())["steps"] == 2
            if name == "second":
                assert seen.most("data") == 0
            wait_for_no_nodes(head)


def settings(folder: Path, name: str) -> list[str]:
    values = {
        "output": folder / name,
        "model.path": folder / "model",
        "data.pairs": folder / "pairs",
        "batches.groups_per_step": 8,
        "training.max_steps": 2,
        "training.checkpoint_every_steps": 2,
        "workers.num_workers": 2,
        "workers.cpus_per_worker": 2,
    }
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
