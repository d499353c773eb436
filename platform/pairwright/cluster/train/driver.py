"""The driver of ``pairwright train``: plans a run, has it trained on Ray, and writes its summary.

The driver plans (data version, tokens, identity), waits, and writes ``summary.json`` last. However a driver ended, the
same command finds the run in its folder and resumes from the newest checkpoint.
"""

import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from typing import NoReturn, TextIO

import msgspec

from pairwright import __version__
from pairwright.cluster.local_ray import local_resources
from pairwright.cluster.session import ray_session
from pairwright.cluster.sized_executor import SizedExecutor
from pairwright.cluster.train.coordinator import RunFinished, RunStopped
from pairwright.cluster.train.monitor import RunMonitor
from pairwright.cluster.train.preemption import ShutdownSignals
from pairwright.cluster.train.trainer import run_trainer
from pairwright.config import TrainConfig, config_digest
from pairwright.data.storage.backoff import retry_with_backoff
from pairwright.data.storage.lease import Lease
from pairwright.data.storage.object_store import absolute_url, local_root
from pairwright.data.storage.ownership import RUN
from pairwright.data.table.table import Manifest, Table
from pairwright.errors import ConfigError, StoppedError
from pairwright.runs.best_checkpoint import BestCheckpoint, BestMetric
from pairwright.runs.event_log import EventLog
from pairwright.runs.preview import RunPreview, preview_of
from pairwright.runs.run_dir import (
    MODEL_NAME,
    SUMMARY_NAME,
    RunClaim,
    RunFolder,
    TrainedOn,
    TrainingSummary,
    check_model_folder,
    check_output,
)
from pairwright.runs.run_plan import RunPlan, data_version, plan_run
from pairwright.runs.trackers.tracker_backends import check_trackers
from pairwright.runs.trackers.tracking import Tracking
from pairwright.terminal import escaped, say

WHAT = "`pairwright train`"
EXECUTOR = SizedExecutor(small_on_cluster=False)
"""For tokens. Those of a small table are made in the driver: a task takes seconds to start, and a data node may have to
come for it.
"""
PACKAGES = ("torch", "ray", "deepspeed", "transformers", "peft", "tokenizers", "pyarrow", "numpy")


@dataclass(frozen=True)
class TrainSummary:
    """How a training command ended."""

    training: TrainingSummary
    """Content of ``summary.json``."""
    model: str
    """Path or URL of the model directory."""
    already_finished: bool
    """Whether an earlier command had finished this run."""


def dry_run(config: TrainConfig) -> RunPreview:
    """Return what ``train`` would do; makes the token table, which the run then finds, and starts nothing.

    Raises:
        ConfigError, DataError, StoreError, ModelError, LeaseError: as ``train`` would, for what it finds wrong.
    """
    check_output(config)
    check_trackers(config)
    _check_resources(config)
    folder = RunFolder(config.output) if _is_there(config.output) else None
    pairs = Table.open(config.data.pairs, "pairs")
    if folder is not None:
        folder.check_free()
        Lease(folder.url, RUN, what=WHAT, lost=lambda: None).check_free()
        check_model_folder(folder.url)
    plan = plan_run(config, pairs, pairs.manifest(data_version(config, pairs, folder)), executor=EXECUTOR)
    claim = RunClaim(status="new", identity=plan.identity) if folder is None else folder.examine(plan.identity)
    url = absolute_url(config.output) if folder is None else folder.url
    return preview_of(config, plan, claim, folder, url)


def train(config: TrainConfig, *, log: TextIO | None = None) -> TrainSummary:
    """Run a training to its end, or resume the one that ``config.output`` already holds.

    Args:
        config: of the run.
        log: where its lines and its progress bar go; standard output if None.

    Raises:
        ConfigError: if the output holds another run, lies in the starting model or around it, or the batch cannot be
            planned.
        StoreError, ModelError: if the pairs table, the model or the output cannot be used.
        LeaseError: if another command trains in this output.
        TrainingError: if the run failed for good; what it left is still there to resume from.
        StoppedError: if SIGTERM stopped it; KeyboardInterrupt, if Ctrl-C did.
    """
    signals = ShutdownSignals()
    try:
        return _train(config, signals, log or sys.stdout)
    except KeyboardInterrupt:
        if signals.received != signal.SIGTERM:
            raise
        raise StoppedError(
            f"run {config.output}: ended at once by SIGTERM; the same command resumes from the newest checkpoint"
        ) from None


def _train(config: TrainConfig, signals: ShutdownSignals, log: TextIO) -> TrainSummary:
    started = time.time()
    check_output(config)
    check_trackers(config)
    _check_resources(config)
    folder = RunFolder(config.output)
    folder.check_free()
    pairs = Table.open(config.data.pairs, "pairs")
    manifest = pairs.manifest(data_version(config, pairs, folder))
    with (
        Lease(folder.url, RUN, what=WHAT, lost=signals.end_now) as lease,
        # A large table has Ray started for its tokens, and the run goes on with it.
        EXECUTOR.session(sum(file.bytes for file in manifest.files)),
    ):
        with signals:
            plan = _planned(config, pairs, manifest, folder, log)
        if (summary := folder.summary()) is not None:
            return TrainSummary(training=summary, model=folder.path(MODEL_NAME), already_finished=True)
        with _tracking(config, plan, folder, log) as tracking:
            summary = _run(config, plan, folder, lease, tracking, signals, log, started)
    return TrainSummary(training=summary, model=folder.path(MODEL_NAME), already_finished=False)


def _run(
    config: TrainConfig,
    plan: RunPlan,
    folder: RunFolder,
    lease: Lease,
    tracking: Tracking,
    signals: ShutdownSignals,
    log: TextIO,
    started: float,
) -> TrainingSummary:
    """Run a planned training on Ray to its end, and write its summary."""
    with ray_session(), signals, ExitStack() as stack:  # signals after Ray, which takes SIGTERM as it starts
        _check_resources(config)
        monitor = stack.enter_context(_run_monitor(config, folder, tracking, log))
        if config.training.best_metric is not None:
            stack.enter_context(_best_checkpoint(config.training.best_metric, folder, monitor))
        signals.connect(monitor.coordinator)
        result = run_trainer(config, plan, folder, monitor, lease)
        if isinstance(result, RunStopped):
            _raise_stopped(folder, result.step, signals)
    summary = _summary(config, plan, result, monitor, time.time() - started)
    retry_with_backoff(lambda: folder.finish(summary), config.training.storage_retry_seconds, _print_retry)
    tracking.add_artifact(SUMMARY_NAME, msgspec.json.encode(summary))
    return summary


@contextmanager
def _tracking(config: TrainConfig, plan: RunPlan, folder: RunFolder, log: TextIO) -> Iterator[Tracking]:
    """Start the run's trackers, and end them with the run; the monitor prints their lines, but for the last."""
    tracking = Tracking.of(config, plan, folder)
    try:
        with tracking:
            yield tracking
    finally:
        for line in tracking.messages():
            say(escaped(f"{datetime.now(UTC):%H:%M:%S} {line}"), to=log)


def _planned(config: TrainConfig, pairs: Table, manifest: Manifest, folder: RunFolder, log: TextIO) -> RunPlan:
    """Return the plan of a run that the folder now belongs to, and print what the run will do."""
    plan = plan_run(config, pairs, manifest, executor=EXECUTOR)
    claim = folder.claim(plan.identity)
    plan = replace(plan, identity=claim.identity)
    if folder.summary() is None:
        check_model_folder(folder.url)
        say(preview_of(config, plan, claim, folder, folder.url).text(), to=log)
    return plan


def _is_there(url: str) -> bool:
    root = local_root(url)
    return root is None or root.is_dir()


def _run_monitor(config: TrainConfig, folder: RunFolder, tracking: Tracking, log: TextIO) -> RunMonitor:
    return RunMonitor(
        EventLog(folder.local_directory, with_tensorboard="tensorboard" in config.tracking),
        tracking,
        run=folder.url,
        log_every_steps=config.training.log_every_steps,
        workers=config.workers,
        publish=folder.publish,
        log=log,
    )


def _best_checkpoint(metric: BestMetric, folder: RunFolder, monitor: RunMonitor) -> BestCheckpoint:
    best = BestCheckpoint(folder, metric, monitor.log_event)
    monitor.on_commit = best.on_commit
    return best


def _check_resources(config: TrainConfig) -> None:
    """Refuse at once what a cluster that this command starts can never provide; any other cluster may still grow."""
    if "RAY_ADDRESS" in os.environ:
        return
    workers, resources = config.workers, local_resources()
    if workers.least * workers.cpus_per_worker > resources.num_cpus:
        raise ConfigError(
            f"workers.num_workers={workers.least} with workers.cpus_per_worker={workers.cpus_per_worker} needs "
            f"{workers.least * workers.cpus_per_worker} CPUs; this machine has {resources.num_cpus}. Lower them, or "
            "submit to a cluster"
        )
    if workers.use_gpu and workers.least > resources.num_gpus:
        raise ConfigError(
            f"workers.use_gpu with workers.num_workers={workers.least} needs as many GPUs; this machine has "
            f"{resources.num_gpus}. Set workers.use_gpu=false, or submit to a cluster"
        )


def _print_retry(reason: str, delay: float) -> None:
    say(escaped(f"{SUMMARY_NAME} cannot be written: {reason}; retrying in {delay:.0f} s"), to=sys.stderr)


def _raise_stopped(folder: RunFolder, step: int, signals: ShutdownSignals) -> NoReturn:
    """Raise what ends a command whose run stopped as requested."""
    where = f"from step {step}, whose checkpoint is committed" if step else "from its first step"
    message = f"run {folder.url}: stopped; the same command resumes {where}"
    if signals.received == signal.SIGINT:
        say(escaped(message), to=sys.stderr)
        raise KeyboardInterrupt
    raise StoppedError(message)


def _summary(
    config: TrainConfig,
    plan: RunPlan,
    result: RunFinished,
    monitor: RunMonitor,
    seconds: float,
) -> TrainingSummary:
    history = monitor.history
    return TrainingSummary(
        config=config.model_dump(mode="json"),
        config_digest=config_digest(config),
        run_digest=plan.identity.digest,
        data=TrainedOn(
            pairs=config.data.pairs,
            version=plan.pairs.version,
            digest=plan.pairs.digest,
            inputs=plan.pairs.inputs,
            tokens=plan.tokens_url,
            tokens_digest=plan.tokens_manifest.digest,
            tokens_totals=plan.tokens_manifest.totals,
        ),
        model_digest=plan.identity.model_digest,
        steps=plan.schedule.num_steps,
        resumes=history.num_resumes,
        restarts=history.num_restarts,
        recoveries=history.recoveries,
        corrupt_checkpoints=history.num_corrupt_checkpoints,
        world_sizes=tuple(history.world_sizes),
        skipped_steps=result.skipped_steps,
        seconds=round(seconds, 1),
        validation=dict(result.validation),
        versions={"pairwright": __version__, "python": platform.python_version()}
        | {name: package_version(name) for name in PACKAGES},
    )
