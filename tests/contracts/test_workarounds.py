"""Workarounds for Ray 2.60: each is still needed. A test that fails here says which one can go after an upgrade."""

import contextlib
import json
import queue
import signal
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated import autoscaler_pb2
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    SUBCLUSTER_LABEL_KEY,
    _AutoscalingCoordinatorActor,
)
from ray.train import CheckpointUploadMode, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager, _CheckpointManagerState
from ray.train.v2._internal.execution.context import TrainContext
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
    AUTOSCALING_REQUESTS_INTERVAL_S,
)
from ray.train.v2._internal.state import util
from ray.util.metrics import Gauge

from pairwright.cluster.node_pools import POOL_LABELS
from pairwright.cluster.train.ray_workarounds import (
    ElasticPolicy,
    RayTrainer,
    StorageContext,
    UploadAborted,
    WorkerCallback,
)
from pairwright.cluster.train.run_metrics import label_value
from pairwright.runs.ray_snapshot import SNAPSHOT_NAME, write_snapshot
from pairwright.runs.run_dir import RunFolder
from run_folders import add, claim, name


def test_the_private_parts_are_those_of_the_ray_that_pyproject_pins() -> None:
    assert version("ray").startswith("2.60.")


# --------------------------------------------------------------------------------------- runs/ray_snapshot.py


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of steps 10 and 20, and no snapshot."""
    root = tmp_path / "run"
    claim(root)
    for step in (10, 20):
        add(root, step, {})
    return root


def loaded_by_ray(run: Path) -> CheckpointManager:
    config: Any = ray.train.CheckpointConfig()  # annotated as the older class of that name
    return CheckpointManager(config, StorageContext(str(run), "checkpoints"))


def test_a_snapshot_that_we_write_has_the_keys_that_ray_writes_and_ray_resumes_from_its_newest_entry(run: Path) -> None:
    write_snapshot(RunFolder(str(run)), [(name(10), 10), (name(20), 20)])
    content = json.loads((run / "checkpoints" / SNAPSHOT_NAME).read_text())
    assert content.keys() == set(_CheckpointManagerState.model_fields)
    latest = loaded_by_ray(run).latest_checkpoint_result
    assert latest is not None
    assert latest.checkpoint is not None
    assert Path(latest.checkpoint.path).name == name(20)


def test_ray_still_refuses_a_snapshot_that_is_cut_short(run: Path) -> None:
    write_snapshot(RunFolder(str(run)), [(name(10), 10)])
    file = run / "checkpoints" / SNAPSHOT_NAME
    file.write_text(file.read_text()[:-20])
    with pytest.raises(CheckpointManagerInitializationError):
        loaded_by_ray(run)


def test_ray_still_refuses_a_snapshot_that_lists_a_missing_checkpoint(run: Path) -> None:
    write_snapshot(RunFolder(str(run)), [(name(10), 10), (name(99), 99)])
    with pytest.raises(CheckpointManagerInitializationError):
        loaded_by_ray(run)


# ---------------------------------------------------------------------------- cluster/train/ray_workarounds.py


def trainer(kind: type[TorchTrainer], folder: Path) -> Any:
    return kind(
        print,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(name="checkpoints", storage_path=str(folder)),
    )


def test_ray_still_adds_a_datasets_callback_where_there_are_no_datasets(tmp_path: Path) -> None:
    callbacks = {kind: trainer(kind, tmp_path)._create_default_callbacks() for kind in (TorchTrainer, RayTrainer)}
    assert any(isinstance(callback, DatasetsCallback) for callback in callbacks[TorchTrainer])
    assert len(callbacks[RayTrainer]) == len(callbacks[TorchTrainer]) - 1
    assert not any(isinstance(callback, DatasetsCallback) for callback in callbacks[RayTrainer])


def test_that_callback_still_starts_an_actor_without_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[object] = []
    monkeypatch.setattr(
        "ray.train.v2._internal.callbacks.datasets.RayDatasetShardProvider", lambda **given: started.append(given)
    )
    callbacks = trainer(TorchTrainer, tmp_path)._create_default_callbacks()
    [callback] = [callback for callback in callbacks if isinstance(callback, DatasetsCallback)]
    worker: Any = SimpleNamespace(metadata=SimpleNamespace(node_id="node"))
    callback.before_init_train_context([worker])
    assert len(started) == 1


def test_ray_still_takes_ctrl_c_for_itself(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        trainer(RayTrainer, tmp_path)._register_sigint_handler(None)
        assert signal.getsignal(signal.SIGINT) == before
        trainer(TorchTrainer, tmp_path)._register_sigint_handler(None)
        assert signal.getsignal(signal.SIGINT) != before
    finally:
        signal.signal(signal.SIGINT, before)


def test_ray_still_gives_an_elastic_training_no_node_with_the_label_of_ray_data() -> None:
    nodes = [
        {"NodeID": name, "Alive": True, "Labels": labels, "Resources": {"CPU": 2.0}}
        for name, labels in [("apart", {SUBCLUSTER_LABEL_KEY: "training"}), ("ours", POOL_LABELS["training"])]
    ]
    ray_actor: Any = _AutoscalingCoordinatorActor
    coordinator = ray_actor(send_resources_request=lambda *_, **__: None, get_cluster_nodes=lambda: nodes)
    request = {"requester_id": "train", "resources": [{"CPU": 2.0}] * 2, "expire_after_s": 180.0}
    coordinator.request_resources(**request, label_selectors=[{SUBCLUSTER_LABEL_KEY: "training"}] * 2)
    assert set(coordinator.get_reserved_resources("train")) == {"ours"}, "whatever the training asked for"


@pytest.mark.parametrize(("num_asked", "num_started"), [(1, 1), (2, 0)])
def test_the_autoscaler_still_starts_no_node_for_a_request_that_it_cannot_meet_whole(
    num_asked: int, num_started: int
) -> None:
    kind = NodeTypeConfig(name="training", min_worker_nodes=0, max_worker_nodes=1, resources={"CPU": 2})
    messages: Any = autoscaler_pb2  # generated, and without types
    asked = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make({"CPU": 2}) for _ in range(num_asked)])
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs={"training": kind},
        cluster_resource_constraints=[messages.ClusterResourceConstraint(resource_requests=asked)],
    )
    launches = ResourceDemandScheduler(None).schedule(request).to_launch
    assert sum(launch.count for launch in launches) == num_started


def test_an_elastic_run_asks_for_the_most_ranks_and_for_fewer_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("pairwright.cluster.train.ray_workarounds.time.monotonic", lambda: now)
    sent: list[int] = []
    context: Any = None
    policy = ElasticPolicy(ray.train.ScalingConfig(num_workers=(2, 8)))
    client: Any = SimpleNamespace(
        maybe_send_resource_request=lambda _, num_workers: sent.append(num_workers),
        send_resource_request=lambda _, num_workers: sent.append(num_workers),
    )
    monkeypatch.setattr("pairwright.cluster.train.ray_workarounds.ElasticScalingPolicy.after_controller_start", print)
    policy.after_controller_start(context)
    monkeypatch.setattr(policy, "_coordinator_client", client)
    monkeypatch.setattr(policy, "_get_reserved_resources", lambda: {"node": {"CPU": float(num_there)}})

    def decide(num_running: int) -> int | None:
        state: Any = SimpleNamespace(num_workers=num_running, start_time=now)
        if num_running:
            decision = policy.make_decision_for_running_worker_group(state, state)
        else:
            decision = policy.make_decision_for_non_running_worker_group()
        return getattr(decision, "num_workers", None)

    num_there = 1
    assert decide(0) is None
    now += AUTOSCALING_REQUESTS_INTERVAL_S
    assert decide(0) is None
    assert sent == [8, 2], "no node came for the most: then for the least"
    num_there = 2
    assert decide(0) is None
    assert sent[-1] == 8, "perhaps there is more than was asked for"
    num_there = 3
    assert decide(0) == 3
    assert decide(3) is None
    now += AUTOSCALING_REQUESTS_INTERVAL_S
    assert decide(3) is None
    assert sent[-1] == 4, "one more"
    assert decide(0) == 3, "lost workers: the most again"
    assert sent[-1] == 8


def test_ray_still_asks_for_its_controller_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(util, "get_actor", lambda *_, **given: asked.append(given))
    assert not util.is_actor_alive("id", 1)
    [given] = asked
    assert "address" not in given
    assert "RAY_ADDRESS" not in ENV_VARS_TO_PROPAGATE


@pytest.mark.parametrize(("error", "reaches_ray"), [(OSError, True), (UploadAborted, False)])
def test_ray_still_replaces_the_workers_for_an_exception_of_an_upload(
    error: type[BaseException], reaches_ray: bool, tmp_path: Path
) -> None:
    errors: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def upload(*_: object) -> None:
        raise error

    def submit(work: Any, *given: Any) -> None:
        with contextlib.suppress(UploadAborted):
            work(*given)

    context: Any = SimpleNamespace(
        report_call_index=0,
        has_validation_fn=False,
        execution_context=SimpleNamespace(
            train_context_callbacks=[], training_thread_runner=SimpleNamespace(get_exception_queue=lambda: errors)
        ),
        checkpoint_upload_threadpool=SimpleNamespace(submit=submit),
        _sync_checkpoint_dir_name_across_ranks=lambda name: name,
        _upload_checkpoint=upload,
    )
    checkpoint = ray.train.Checkpoint.from_directory(tmp_path)
    TrainContext.report(context, {}, checkpoint, "name", CheckpointUploadMode.ASYNC)
    assert errors.empty() != reaches_ray


def test_there_is_still_no_public_name_for_what_runs_in_a_worker_and_for_its_storage() -> None:
    assert not hasattr(ray.train, "WorkerCallback")
    assert not hasattr(ray.train, "StorageContext")
    assert hasattr(WorkerCallback, "after_init_train_context")
    assert not hasattr(UserCallback, "after_init_train_context")


# ------------------------------------------------------------------------------- cluster/train/run_metrics.py


def test_ray_still_refuses_a_label_that_is_not_ascii() -> None:
    gauge = Gauge("pairwright_test_workaround", description="none", tag_keys=("run",))
    with pytest.raises(UnicodeEncodeError):
        gauge.set(1.0, {"run": "läufe"})
    gauge.set(1.0, {"run": label_value("läufe")})
