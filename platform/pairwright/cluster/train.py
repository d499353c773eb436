"""A configuration -> a run folder with a model: Ray Train starts the ranks, replaces lost ones, keeps checkpoints.

The driver prepares (data version, tokens, identity), waits, and writes ``training.json`` last. Starting the same
command again after any death of the driver finds the run's own records and goes on from its newest checkpoint.
"""

import os
import platform
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Any, NoReturn

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

from pairwright import __version__
from pairwright.cluster.best import BestKeeper, Figure
from pairwright.cluster.mending import mend, sweep
from pairwright.cluster.notices import StopSignals, TerminationNotice
from pairwright.cluster.preparing import Prepared, check_model, prepare, version_of, with_absolute_paths
from pairwright.cluster.progress import RestartNotice, Watcher, last_line
from pairwright.cluster.run_folder import (
    CHECKPOINTS_NAME,
    MODEL_NAME,
    RunFolder,
    TrainedOn,
    TrainingSummary,
)
from pairwright.cluster.session import ray_session
from pairwright.cluster.worker_task import WorkerTask, start_worker
from pairwright.config import TrainConfig, config_digest
from pairwright.data.store import Manifest, Table
from pairwright.data.tokenizers import load_tokenizer
from pairwright.errors import ConfigError, StoppedError, TrainingError
from pairwright.training.schedule import schedule_of

LEFTOVER_SECONDS = 600.0
"""Far longer than the workers of a killed driver live; what they left and is younger goes when the run is over."""
PACKAGES = ("torch", "ray", "deepspeed", "transformers", "peft", "tokenizers", "pyarrow", "numpy")


@dataclass(frozen=True)
class TrainSummary:
    """How a training command ended."""

    training: TrainingSummary
    """Content of ``training.json``."""
    model: str
    """Path or URL of the model directory."""
    already_finished: bool
    """Whether an earlier command had finished this run."""


def dry_run(config: TrainConfig) -> dict[str, Any]:
    """Return the resolved configuration and the size of the run, having checked what can be checked without a cluster.

    Raises:
        ConfigError, StoreError, ModelError: as ``train`` would, for what it finds wrong.
    """
    manifest = Table.open(config.data.pairs, "pairs").manifest(config.data.version)
    load_tokenizer(config.model.path)
    check_model(config)
    num_groups = int(manifest.totals["groups"] - manifest.totals["groups_validation"])
    schedule = schedule_of(num_groups, config)
    return {
        "config": config.model_dump(mode="json"),
        "pairs_version": manifest.version,
        "groups": num_groups,
        "steps": schedule.num_steps,
        "steps_per_epoch": schedule.steps_per_epoch,
    }


def train(config: TrainConfig) -> TrainSummary:
    """Run a training to its end, or go on with the one that ``config.output`` already holds.

    Raises:
        ConfigError: if the output holds another run, or the batch cannot be planned.
        StoreError, ModelError: if the pairs table or the model cannot be used.
        TrainingError: if the run stopped for good; what it left is still there to go on from.
        StoppedError: if SIGTERM asked it to stop; KeyboardInterrupt, if Ctrl-C did.
    """
    signals = StopSignals()
    try:
        return _train(config, signals)
    except KeyboardInterrupt:
        if signals.received != signal.SIGTERM:
            raise
        raise StoppedError(
            f"run {config.output}: ended at once by SIGTERM; the same command goes on from the newest checkpoint"
        ) from None


def _train(config: TrainConfig, signals: StopSignals) -> TrainSummary:
    folder = RunFolder(config.output)
    pairs = Table.open(config.data.pairs, "pairs")
    manifest = pairs.manifest(version_of(config, folder))
    started = time.time()
    with ray_session(), signals:  # in this order: Ray takes SIGTERM for itself when it starts
        _check_resources(config)
        prepared = prepare(config, folder, pairs, manifest)
        folder.claim(prepared.identity)
        if (summary := folder.summary()) is not None:
            return TrainSummary(training=summary, model=folder.path(MODEL_NAME), already_finished=True)
        _announce(config, prepared, folder)
        with ExitStack() as stack:
            watcher = stack.enter_context(_watcher(config, folder))
            if config.training.keep_best is not None:
                stack.enter_context(_best_kept(config.training.keep_best, folder, watcher))
            signals.ask_through(watcher.board)
            outcome = _fit_from_what_is_whole(config, prepared, folder, watcher)
            if "stopped" in outcome:
                _say_stopped(folder, outcome["stopped"], signals)
    summary = _summary(config, prepared, manifest, outcome, watcher, time.time() - started)
    folder.finish(summary)
    return TrainSummary(training=summary, model=folder.path(MODEL_NAME), already_finished=False)


def _watcher(config: TrainConfig, folder: RunFolder) -> Watcher:
    return Watcher(
        folder.local_directory,
        run=folder.url,
        log_every_steps=config.training.log_every_steps,
        hang_seconds=config.workers.hang_seconds,
        publish=folder.publish,
    )


def _best_kept(by: Figure, folder: RunFolder, watcher: Watcher) -> BestKeeper:
    keeper = BestKeeper(folder, by, watcher.say)
    watcher.on_commit = keeper.committed
    return keeper


def _check_resources(config: TrainConfig) -> None:
    """Refuse at once what a cluster started for this command can never give; a real cluster may still grow."""
    if "RAY_ADDRESS" in os.environ:
        return
    workers, resources = config.workers, ray.cluster_resources()
    num_cpus, num_gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    if workers.least * workers.cpus_per_worker > num_cpus:
        raise ConfigError(
            f"workers.num_workers={workers.least} with workers.cpus_per_worker={workers.cpus_per_worker} needs "
            f"{workers.least * workers.cpus_per_worker} CPUs; this machine has {num_cpus:.0f}. Lower them, or "
            "submit to a cluster"
        )
    if workers.use_gpu and workers.least > num_gpus:
        raise ConfigError(
            f"workers.use_gpu with workers.num_workers={workers.least} needs as many GPUs; this machine has "
            f"{num_gpus:.0f}. Set workers.use_gpu=false, or submit to a cluster"
        )


def _announce(config: TrainConfig, prepared: Prepared, folder: RunFolder) -> None:
    totals, workers, data = prepared.tokens_manifest.totals, config.workers, config.data
    num_workers = f"{workers.least}" if workers.least == workers.most else f"{workers.least} to {workers.most}"
    print(
        f"run {folder.url}\n"
        f"  data    {data.pairs} version {prepared.identity.pairs_version}: {prepared.schedule.num_groups:,} groups to "
        f"train on, {totals['tokens']:,.0f} tokens with the held-out ones\n"
        f"  dropped {totals['completions_dropped']:,.0f} completions over {config.tokens.max_length} tokens, "
        f"{totals['pairs_identical']:,.0f} pairs of equal tokens, {totals['groups_dropped']:,.0f} groups unpaired\n"
        f"  steps   {prepared.schedule.num_steps} of {config.batches.groups_per_step} groups\n"
        f"  workers {num_workers} ({'GPU' if workers.use_gpu else 'CPU'}), ZeRO-{config.engine.zero_stage}, "
        f"{config.engine.precision}",
        flush=True,
    )


class _Trainer(TorchTrainer):
    """Ray's trainer, but for its answer to Ctrl-C, and for where its controller looks for the cluster."""

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


def _say_stopped(folder: RunFolder, step: int, signals: StopSignals) -> NoReturn:
    """Raise what ends a command whose run was asked to stop and did."""
    where = f"from step {step}, whose checkpoint is committed" if step else "from its first step"
    said = f"run {folder.url}: stopped; the same command goes on {where}"
    if signals.received == signal.SIGINT:
        print(said, flush=True)
        raise KeyboardInterrupt
    raise StoppedError(said)


def _fit_from_what_is_whole(
    config: TrainConfig, prepared: Prepared, folder: RunFolder, watcher: Watcher
) -> dict[str, Any]:
    """Train to the end; where the workers find the newest checkpoint damaged, set it aside and start them again."""
    damaged: dict[str, str] = {}
    watcher.swept(sweep(folder, older_than_seconds=LEFTOVER_SECONDS))
    while True:
        watcher.mended(mend(folder, damaged=damaged))
        outcome = _fit(config, prepared, folder, watcher)
        if "damaged" not in outcome:
            watcher.swept(sweep(folder, older_than_seconds=0))
            return outcome
        damaged = {outcome["damaged"]: outcome["reason"]}


def _fit(config: TrainConfig, prepared: Prepared, folder: RunFolder, watcher: Watcher) -> dict[str, Any]:
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
    callbacks: list[Any] = [RestartNotice(watcher.board), TerminationNotice()]
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
    except ray.train.TrainingFailedError as error:
        raise TrainingError(_explain(error, folder, workers.max_failures)) from None
    if outcome is None:
        raise TrainingError(f"run {folder.url}: the workers ended without a result; see the Ray logs of this session")
    if "error" in outcome:
        raise TrainingError(f"run {folder.url}: {outcome['error']}")
    return outcome


def _explain(error: Exception, folder: RunFolder, max_failures: int) -> str:
    failures = error.worker_failures if isinstance(error, ray.train.WorkerGroupError) else {}
    causes = [f"rank {rank}: {last_line(failure)}" for rank, failure in sorted(failures.items())] or [last_line(error)]
    return (
        f"run {folder.url}: gave up after {max_failures} restarts (workers.max_failures). Last causes:\n  "
        + "\n  ".join(causes)
        + "\nCheckpoints are kept: the same command goes on from the newest one"
    )


def _summary(
    config: TrainConfig,
    prepared: Prepared,
    manifest: Manifest,
    outcome: dict[str, Any],
    watcher: Watcher,
    seconds: float,
) -> TrainingSummary:
    return TrainingSummary(
        config=config.model_dump(mode="json"),
        config_digest=config_digest(config),
        run_digest=prepared.identity.digest,
        data=TrainedOn(
            pairs=config.data.pairs,
            version=manifest.version,
            digest=manifest.digest,
            inputs=manifest.inputs,
            tokens=prepared.tokens_url,
            tokens_digest=prepared.tokens_manifest.digest,
            tokens_totals=prepared.tokens_manifest.totals,
        ),
        model_digest=prepared.identity.model_digest,
        steps=prepared.schedule.num_steps,
        resumes=watcher.num_resumes,
        restarts=watcher.num_restarts,
        recoveries=watcher.recoveries.all,
        damaged_checkpoints=watcher.num_damaged,
        world_sizes=tuple(watcher.world_sizes),
        skipped_steps=tuple(outcome["skipped_steps"]),
        seconds=round(seconds, 1),
        validation=outcome["validation"],
        versions={"pairwright": __version__, "python": platform.python_version()}
        | {name: package_version(name) for name in PACKAGES},
    )
