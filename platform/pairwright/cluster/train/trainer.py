"""A prepared run -> its outcome: Ray Train starts the ranks and replaces lost ones.

Ray gives up where the newest checkpoint is damaged and where its list of them cannot be written. Both are put in order
here, and Ray starts again.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

from pairwright.cluster.local_ray import LoopbackRanks
from pairwright.cluster.train.monitor import RestartNotice, Watcher
from pairwright.cluster.train.preemption import TerminationNotice
from pairwright.cluster.train.run_plan import Prepared, with_absolute_paths
from pairwright.cluster.train.worker_args import WorkerTask, start_worker
from pairwright.config import TrainConfig
from pairwright.data.storage.backoff import backoff_delays
from pairwright.data.storage.lease import Lease
from pairwright.errors import PairwrightError, StoreError, TrainingError
from pairwright.runs.repair import mend, sweep
from pairwright.runs.run_dir import CHECKPOINTS_NAME, RunFolder
from pairwright.runs.run_log_lines import last_line

LEFTOVER_SECONDS = 600.0
"""Far longer than the workers of a killed driver live; what they left and is younger goes when the run is over."""


def fit(config: TrainConfig, prepared: Prepared, folder: RunFolder, watcher: Watcher, lease: Lease) -> dict[str, Any]:
    """Train to the end and return what the ranks returned (``worker.train_worker``), but for errors and damage.

    Where the workers find the newest checkpoint damaged, it is set aside; where Ray cannot write its list of them, that
    is tried again with growing pauses.

    Raises:
        TrainingError: if the run stopped for good; what it left is still there to go on from.
        CheckpointError: if no checkpoint is whole.
        LeaseError: if another command has taken the run over.
        StoreError: if the run's folder cannot be read or written to begin with.
    """
    damaged: dict[str, str] = {}
    patience = _Patience(config.training.storage_patience_seconds)
    watcher.swept(sweep(folder, older_than_seconds=LEFTOVER_SECONDS))
    while True:
        lease.check()
        try:
            with patience.errors_of_the_folder():
                watcher.mended(mend(folder, damaged=damaged))
            outcome = _fit_once(config, prepared, folder, watcher)
        except _RefusedError as error:
            pause = patience.pause_after(watcher.last_step)
            if pause is None:
                raise TrainingError(
                    f"run {folder.url}: {error}; tried for training.storage_patience_seconds = {patience.seconds:g}. "
                    "When the storage takes it again, the same command goes on from the newest committed checkpoint"
                ) from None
            watcher.say({"kind": "refused", "step": watcher.last_step, "reason": str(error), "seconds": pause})
            time.sleep(pause)
            continue
        if "damaged" not in outcome:
            lease.check()
            watcher.swept(sweep(folder, older_than_seconds=0))
            return outcome
        damaged = {outcome["damaged"]: outcome["reason"]}


class _RefusedError(PairwrightError):
    """The run's folder could not be written where Ray keeps its list of checkpoints."""


class _Patience:
    """Pauses for a run's folder that refuses; counted anew once the run has gone on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._pauses: Iterator[float] | None = None
        self._step = 0

    def pause_after(self, step: int) -> float | None:
        """Return how many seconds to wait, None where the patience is over."""
        if self._pauses is None or step > self._step:
            self._pauses, self._step = iter(backoff_delays(self.seconds)), step
        return next(self._pauses, None)

    @contextmanager
    def errors_of_the_folder(self) -> Iterator[None]:
        """Take an error for a refusal that may pass, if there was one before: the first start's is a mistake."""
        try:
            yield
        except StoreError as error:
            if self._pauses is None:
                raise
            raise _RefusedError(str(error)) from None


def _fit_once(config: TrainConfig, prepared: Prepared, folder: RunFolder, watcher: Watcher) -> dict[str, Any]:
    task = WorkerTask(
        config=with_absolute_paths(config),
        run_digest=prepared.identity.digest,
        run_url=folder.url,
        tokens_url=prepared.tokens_url,
        tokens_manifest=prepared.tokens_manifest,
        board=watcher.board,
    )
    workers = config.workers
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(workers.start_timeout_seconds)
    # Typed for UserCallback, and checked for what both are.
    callbacks: list[Any] = [RestartNotice(watcher.board), TerminationNotice(), LoopbackRanks()]
    trainer = _Trainer(
        start_worker,
        train_loop_config={"task": task},
        torch_config=TorchConfig(backend="nccl" if workers.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_workers,
            elastic_resize_monitor_interval_s=workers.resize_seconds,
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.cpus_per_worker} | ({"GPU": 1} if workers.use_gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS_NAME,
            storage_path=folder.url,
            # What the run has left: a checkpoint set aside starts the workers anew, but no new count.
            failure_config=ray.train.FailureConfig(max_failures=max(0, workers.max_failures - watcher.num_restarts)),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.training.keep_checkpoints),
            callbacks=callbacks,
        ),
    )
    try:
        outcome = trainer.fit().return_value
    except ray.train.ControllerError as error:
        cause = error.controller_failure
        if isinstance(cause, OSError):
            raise _RefusedError(f"Ray's list of checkpoints cannot be written: {last_line(cause)}") from None
        raise TrainingError(
            f"run {folder.url}: Ray Train's controller failed: {last_line(cause)}. Checkpoints are kept: the same "
            "command goes on from the newest one"
        ) from None
    except ray.train.TrainingFailedError as error:
        raise TrainingError(_explain(error, folder, workers.max_failures)) from None
    if outcome is None:
        raise TrainingError(f"run {folder.url}: the workers ended without a result; see the Ray logs of this session")
    if "error" in outcome:
        raise TrainingError(f"run {folder.url}: {outcome['error']}")
    return outcome


def _explain(error: Exception, folder: RunFolder, max_failures: int) -> list[str]:
    failures = error.worker_failures if isinstance(error, ray.train.WorkerGroupError) else {}
    causes = [f"rank {rank}: {last_line(failure)}" for rank, failure in sorted(failures.items())] or [last_line(error)]
    return [
        f"run {folder.url}: gave up after {max_failures} restarts (workers.max_failures). Last causes:",
        *(f"  {cause}" for cause in causes),
        "Checkpoints are kept: the same command goes on from the newest one",
    ]


class _Trainer(TorchTrainer):
    """Ray's trainer, but for its answer to Ctrl-C, where its controller looks for the cluster, and a needless actor."""

    def _create_default_callbacks(self) -> list[Any]:
        """Leave out what hands datasets to the ranks: there are none, and its actor delays each start."""
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, DatasetsCallback)]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Do nothing, where Ray would abort: our signals ask for a checkpoint first."""

    def _initialize_and_run_controller(self, **controller_init_kwargs: Any) -> ray.train.Result:
        """Tell the controller which cluster it is on: Ray 2.60's asks the last one that was started on the machine.

        It asks there whether it is alive itself, and gives the run's nodes back if the answer is no; where that other
        cluster has ended, every run waits for an answer, 12 s, before it ends.
        """
        ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")
        before = os.environ.get("RAY_ADDRESS")
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        try:
            return super()._initialize_and_run_controller(**controller_init_kwargs)
        finally:
            os.environ.pop("RAY_ADDRESS") if before is None else os.environ.update(RAY_ADDRESS=before)
