"""Runs a planned training on Ray Train, which starts the ranks and replaces lost ones.

Ray Train fails where the newest checkpoint is corrupt and where its list of them cannot be written. Both are repaired
here, and Ray Train is started again.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray.train
from ray.train.torch import TorchConfig

from pairwright.cluster.local_ray import LoopbackRanks
from pairwright.cluster.node_pools import pool_labels
from pairwright.cluster.train.coordinator import (
    CheckpointRejected,
    RunEventCallback,
    RunFailed,
    RunFinished,
    RunStopped,
    WorkerResult,
    WorkerTask,
    start_worker,
)
from pairwright.cluster.train.monitor import RunMonitor
from pairwright.cluster.train.preemption import SigtermHandler
from pairwright.cluster.train.ray_workarounds import RayTrainer, storage_uri
from pairwright.config import TrainConfig
from pairwright.data.storage.backoff import backoff_delays
from pairwright.data.storage.lease import Lease
from pairwright.errors import PairwrightError, StoreError, TrainingError
from pairwright.events import Retrying, cause_of
from pairwright.runs.repair import remove_uncommitted, repair_snapshot
from pairwright.runs.run_dir import CHECKPOINTS_NAME, RunFolder
from pairwright.runs.run_plan import RunPlan, with_absolute_paths

UNCOMMITTED_SECONDS = 600.0
"""Far longer than the workers of a killed driver live; younger uncommitted checkpoints are removed at the run's end."""
POLL_SECONDS = 0.25
"""Between two looks of Ray Train's controller at its ranks; each commits one checkpoint at most. With Ray's 2 s a run
waited 12 s at its end, where its six checkpoints had come within three."""


def run_trainer(
    config: TrainConfig, plan: RunPlan, folder: RunFolder, monitor: RunMonitor, lease: Lease
) -> RunFinished | RunStopped:
    """Train until the run is finished, or stops as requested.

    Where the workers find the newest checkpoint corrupt, it is moved away and they start again. Where Ray cannot write
    its list of checkpoints, that is retried with growing delays.

    Raises:
        TrainingError: if the run failed for good; what it left is still there to resume from.
        CheckpointError: if no checkpoint is valid.
        LeaseError: if another command has taken the run over.
        StoreError: if the run's folder cannot be read or written to begin with.
    """
    corrupt: dict[str, str] = {}
    budget = RetryBudget(config.training.storage_retry_seconds)
    _clean_up(folder, monitor, older_than_seconds=UNCOMMITTED_SECONDS)
    while True:
        lease.check()
        try:
            with budget.storage_errors():
                for event in repair_snapshot(folder, corrupt=corrupt).events():
                    monitor.log_event(event)
            result = _run_once(config, plan, folder, monitor)
        except _StorageError as error:
            step = monitor.history.last_step
            delay = budget.next_delay(step)
            if delay is None:
                raise TrainingError(
                    f"run {folder.url}: {error}; tried for training.storage_retry_seconds = {budget.seconds:g}. "
                    "When the storage works again, the same command resumes from the newest committed checkpoint"
                ) from None
            monitor.log_event(Retrying(step=step, reason=str(error), seconds=delay))
            time.sleep(delay)
            continue
        if not isinstance(result, CheckpointRejected):
            lease.check()
            _clean_up(folder, monitor, older_than_seconds=0)
            return result
        corrupt = {result.name: result.reason}


def _clean_up(folder: RunFolder, monitor: RunMonitor, *, older_than_seconds: float) -> None:
    removed = remove_uncommitted(folder, older_than_seconds=older_than_seconds)
    if removed.num_checkpoints:
        monitor.log_event(removed)


class _StorageError(PairwrightError):
    """The run's folder could not be written where Ray keeps its list of checkpoints."""


class RetryBudget:
    """Delays between retries of a run's storage, for a limited time; renewed once the run has made progress."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._delays: Iterator[float] | None = None
        self._step = 0

    def next_delay(self, step: int) -> float | None:
        """Return how many seconds to wait before the next try, None where the budget is spent."""
        if self._delays is None or step > self._step:
            self._delays, self._step = iter(backoff_delays(self.seconds)), step
        return next(self._delays, None)

    @contextmanager
    def storage_errors(self) -> Iterator[None]:
        """Retry an error of the run's folder if there was one before; the first start's is the user's to correct."""
        try:
            yield
        except StoreError as error:
            if self._delays is None:
                raise
            raise _StorageError(str(error)) from None


def _run_once(
    config: TrainConfig, plan: RunPlan, folder: RunFolder, monitor: RunMonitor
) -> RunFinished | RunStopped | CheckpointRejected:
    try:
        result: WorkerResult | None = _ray_trainer(config, plan, folder, monitor).fit().return_value
    except ray.train.ControllerError as error:
        cause = error.controller_failure
        if isinstance(cause, OSError):
            raise _StorageError(f"Ray's list of checkpoints cannot be written: {cause_of(cause)}") from None
        raise TrainingError(
            f"run {folder.url}: Ray Train's controller failed: {cause_of(cause)}. Checkpoints are kept: the same "
            "command resumes from the newest one"
        ) from None
    except ray.train.TrainingFailedError as error:
        raise TrainingError(_explain(error, folder, config.workers.max_failures)) from None
    if result is None:
        raise TrainingError(f"run {folder.url}: the workers ended without a result; see the Ray logs of this session")
    if isinstance(result, RunFailed):
        raise TrainingError(f"run {folder.url}: {result.message}")
    return result


def _ray_trainer(config: TrainConfig, plan: RunPlan, folder: RunFolder, monitor: RunMonitor) -> RayTrainer:
    task = WorkerTask(
        config=with_absolute_paths(config),
        run_digest=plan.identity.digest,
        run_url=folder.url,
        tokens_url=plan.tokens_url,
        tokens_manifest=plan.tokens_manifest,
        coordinator=monitor.coordinator,
    )
    workers = config.workers
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(workers.start_timeout_seconds)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(POLL_SECONDS))
    # What the run has left: workers that start again after a corrupt checkpoint get no new count.
    max_failures = max(0, workers.max_failures - monitor.history.num_restarts)
    # Typed for UserCallback, and checked for what both are.
    callbacks: list[Any] = [RunEventCallback(monitor.coordinator), SigtermHandler(), LoopbackRanks()]
    return RayTrainer(
        start_worker,
        train_loop_config={"task": task},
        torch_config=TorchConfig(backend="nccl" if workers.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_workers,
            elastic_resize_monitor_interval_s=workers.resize_interval_seconds,
            use_gpu=workers.use_gpu,
            resources_per_worker=workers.resources,
            label_selector=pool_labels("training") or None,
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS_NAME,
            storage_path=storage_uri(folder.url),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.training.keep_checkpoints),
            callbacks=callbacks,
        ),
    )


def _explain(error: Exception, folder: RunFolder, max_failures: int) -> list[str]:
    failures = error.worker_failures if isinstance(error, ray.train.WorkerGroupError) else {}
    causes = [f"rank {rank}: {cause_of(failure)}" for rank, failure in sorted(failures.items())] or [cause_of(error)]
    return [
        f"run {folder.url}: gave up after {max_failures} restarts (workers.max_failures). Last causes:",
        *(f"  {cause}" for cause in causes),
        "Checkpoints are kept: the same command resumes from the newest one",
    ]
