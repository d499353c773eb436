"""A head alone, and two kinds of nodes that Ray's autoscaler starts: data work and training bring their own kind."""

import json
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pairwright.cluster.node_pools import POOL_LABELS, POOLS_VARIABLE, pool_labels
from ray_head import NodePool, RayHead, ray_head
from training_runs import ROOT, committed_steps, make_model, make_pairs, steps_logged, wait_until

RECIPE = "platform/pairwright/config/recipes/demo.toml"
IDLE_TIMEOUT_SECONDS = 180


def test_work_asks_for_a_pool_only_on_a_cluster_that_has_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv(POOLS_VARIABLE, "1")
    assert pool_labels("data") == {}, "a Ray of this command's own has no labels"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert pool_labels("data") == POOL_LABELS["data"]
    monkeypatch.setenv(POOLS_VARIABLE, "0")
    assert pool_labels("data") == {}


def test_the_label_is_the_one_that_ray_data_gives_its_requests() -> None:
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import SUBCLUSTER_LABEL_KEY

    assert set(POOL_LABELS["data"]) == {SUBCLUSTER_LABEL_KEY}
    assert SUBCLUSTER_LABEL_KEY not in POOL_LABELS["training"], "Ray would count none of them for an elastic training"


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

    def end(self) -> None:
        self._done.set()
        self.join()

    def most(self, pool: str) -> int:
        """Stop, and return the most nodes of a pool at one time."""
        self.end()
        return max(seen.get(pool, 0) for seen in self.seen)


def pools(head: RayHead) -> dict[str, int]:
    """Return how many nodes each pool has now."""
    nodes = [node["labels"].items() for node in head.living_nodes()]
    return {pool: sum(labels.items() <= node for node in nodes) for pool, labels in POOL_LABELS.items()}


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
        wait_for_no_nodes(head)
        for name in ("first", "second"):
            seen = watched_job(head, "train", "--config", str(ROOT / RECIPE), *settings(folder, name))
            assert seen.most("training") == 2, "a node for each of two workers"
            assert json.loads((folder / name / "summary.json").read_text())["steps"] == 2
            assert seen.most("data") == 0, "the driver makes the tokens of a small table"
            wait_for_no_nodes(head)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_an_elastic_run_grows_onto_the_node_that_another_run_has_left(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("grow")
    make_model(folder / "model", hidden_size=192)
    make_pairs(folder / "pairs", num_groups=150)
    kinds = {"data": NodePool(num_cpus=2, max_nodes=1), "training": NodePool(num_cpus=2, max_nodes=2)}
    long = {"training.epochs": 100, "training.checkpoint_every_steps": 10, "batches.groups_per_step": 64}
    elastic = {"training.max_steps": 300, "workers.num_workers": "[1, 2]", "workers.resize_interval_seconds": 15}
    # Ray notices a node within 20 s.
    with ray_head(folder, num_cpus=0, pools=kinds, idle_minutes=1.0) as head, ThreadPoolExecutor() as jobs:
        fixed = {"training.max_steps": 250, "workers.num_workers": 1}
        first = jobs.submit(watched_job, head, *train_arguments(folder, "first", long | fixed))
        wait_until(lambda: bool(committed_steps(folder / "first")), timeout_seconds=300, what="a checkpoint")
        second = jobs.submit(watched_job, head, *train_arguments(folder, "second", long | elastic))
        wait_until(lambda: bool(steps_logged(folder / "second")), timeout_seconds=300, what="a step on what is left")
        assert not first.done(), "it starts with fewer ranks while the other has its node"
        first.result().end()
        assert second.result().most("training") == 2
        assert json.loads((folder / "second" / "summary.json").read_text())["world_sizes"] == [1, 2]
        wait_for_no_nodes(head)


def train_arguments(folder: Path, name: str, values: Mapping[str, object]) -> list[str]:
    more = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return ["train", "--config", str(ROOT / RECIPE), *settings(folder, name), *more]


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
