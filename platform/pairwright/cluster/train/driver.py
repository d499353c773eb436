"""The driver of ``pairwright train``: plans a run, has it trained on Ray, and writes its summary.

The driver plans (data version, tokens, identity), waits, and writes ``summary.json`` last. However a driver ended, the
same command finds the run in its folder and resumes from the newest checkpoint.
"""

import os
import platform
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Any, NoReturn

import ray
import ray.train

from pairwright import __version__
from pairwright.cluster.session import ray_session
from pairwright.cluster.train.coordinator import RunFinished, RunStopped
from pairwright.cluster.train.monitor import RunMonitor
from pairwright.cluster.train.preemption import ShutdownSignals
from pairwright.cluster.train.run_plan import (
    RunPlan,
    check_model,
    data_version,
    plan_run,
    token_cache_url,
)
from pairwright.cluster.train.trainer import run_trainer
from pairwright.config import TrainConfig, config_digest
from pairwright.data.storage.backoff import retry_with_backoff
from pairwright.data.storage.lease import Lease
from pairwright.data.storage.object_store import local_root
from pairwright.data.storage.ownership import RUN
from pairwright.data.table.table import Manifest, Table
from pairwright.data.tokens.tokenize import totals_beforehand
from pairwright.data.tokens.tokenize_groups import EQUAL_IN_TEMPLATE, REFUSED_PREFIX, counts_behind, special_line
from pairwright.data.tokens.tokenizer import load_tokenizer
from pairwright.errors import ConfigError, StoppedError
from pairwright.runs.best_checkpoint import BestCheckpoint, BestMetric
from pairwright.runs.run_dir import (
    MODEL_NAME,
    SUMMARY_NAME,
    RunFolder,
    TrainedOn,
    TrainingSummary,
    check_model_folder,
    check_output,
)
from pairwright.terminal import counted, escaped, one_per_line, say
from pairwright.training.schedule import schedule_of

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


def dry_run(config: TrainConfig) -> dict[str, Any]:
    """Return the resolved configuration and the size of the run; checks what can be checked without a cluster.

    Raises:
        ConfigError, DataError, StoreError, ModelError: as ``train`` would, for what it finds wrong.
    """
    check_output(config)
    if _is_there(config.output):
        RunFolder(config.output).check_free()
    pairs = Table.open(config.data.pairs, "pairs")
    manifest = pairs.manifest(config.data.version)
    tokenizer = load_tokenizer(config.model.path)
    check_model(config)
    tokens = totals_beforehand(pairs, manifest, tokenizer, config.tokens, token_cache_url(config))
    num_groups = int(manifest.totals["groups"] - manifest.totals["groups_validation"])
    schedule = schedule_of(num_groups, config)
    return {
        "config": config.model_dump(mode="json"),
        "pairs_version": manifest.version,
        "groups": num_groups,
        "steps": schedule.num_steps,
        "steps_per_epoch": schedule.steps_per_epoch,
        "tokens": tokens,
    }


def train(config: TrainConfig) -> TrainSummary:
    """Run a training to its end, or resume the one that ``config.output`` already holds.

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
        return _train(config, signals)
    except KeyboardInterrupt:
        if signals.received != signal.SIGTERM:
            raise
        raise StoppedError(
            f"run {config.output}: ended at once by SIGTERM; the same command resumes from the newest checkpoint"
        ) from None


def _train(config: TrainConfig, signals: ShutdownSignals) -> TrainSummary:
    check_output(config)
    folder = RunFolder(config.output)
    folder.check_free()
    pairs = Table.open(config.data.pairs, "pairs")
    manifest = pairs.manifest(data_version(config, folder))
    started = time.time()
    with (
        Lease(folder.url, RUN, what="`pairwright train`", lost=signals.end_now) as lease,
        ray_session(),
        signals,  # after Ray, which takes SIGTERM for itself when it starts
    ):
        _check_resources(config)
        plan = plan_run(config, pairs, manifest)
        folder.claim(plan.identity)
        if (summary := folder.summary()) is not None:
            return TrainSummary(training=summary, model=folder.path(MODEL_NAME), already_finished=True)
        check_model_folder(folder.url)
        _announce(config, plan, folder)
        with ExitStack() as stack:
            monitor = stack.enter_context(_run_monitor(config, folder))
            if config.training.best_metric is not None:
                stack.enter_context(_best_checkpoint(config.training.best_metric, folder, monitor))
            signals.connect(monitor.coordinator)
            result = run_trainer(config, plan, folder, monitor, lease)
            if isinstance(result, RunStopped):
                _raise_stopped(folder, result.step, signals)
    summary = _summary(config, plan, manifest, result, monitor, time.time() - started)
    retry_with_backoff(lambda: folder.finish(summary), config.training.storage_retry_seconds, _print_retry)
    return TrainSummary(training=summary, model=folder.path(MODEL_NAME), already_finished=False)


def _is_there(url: str) -> bool:
    root = local_root(url)
    return root is None or root.is_dir()


def _run_monitor(config: TrainConfig, folder: RunFolder) -> RunMonitor:
    return RunMonitor(
        folder.local_directory,
        run=folder.url,
        log_every_steps=config.training.log_every_steps,
        workers=config.workers,
        publish=folder.publish,
    )


def _best_checkpoint(metric: BestMetric, folder: RunFolder, monitor: RunMonitor) -> BestCheckpoint:
    best = BestCheckpoint(folder, metric, monitor.log_event)
    monitor.on_commit = best.on_commit
    return best


def _check_resources(config: TrainConfig) -> None:
    """Refuse at once what a cluster that this command starts can never provide; any other cluster may still grow."""
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


def _announce(config: TrainConfig, plan: RunPlan, folder: RunFolder) -> None:
    totals, workers, data = plan.tokens_manifest.totals, config.workers, config.data
    num_workers = f"{workers.least}" if workers.least == workers.most else f"{workers.least} to {workers.most}"
    lines = [
        f"run {folder.url}",
        f"  data    {data.pairs} version {plan.identity.pairs_version}: {counted(plan.schedule.num_groups, 'group')} "
        f"to train on, {totals['tokens']:,.0f} tokens with the held-out ones",
        f"  dropped {counted(int(totals['completions_dropped']), 'completion')} over {config.tokens.max_length} "
        f"tokens, {counted(int(totals['pairs_identical']), 'pair')} of equal tokens, "
        f"{counted(int(totals['groups_dropped']), 'group')} unpaired",
        *_equal_lines(totals),
        *_refused_lines(totals),
        *_special_lines(totals, config),
        f"  steps   {plan.schedule.num_steps} of {counted(config.batches.groups_per_step, 'group')}",
        f"  workers {num_workers} ({'GPU' if workers.use_gpu else 'CPU'}), ZeRO-{config.deepspeed.zero_stage}, "
        f"{config.deepspeed.precision}",
    ]
    say(one_per_line(lines))


def _equal_lines(totals: Mapping[str, int | float]) -> list[str]:
    num_pairs = totals["pairs_equal_in_template"]
    return [f"  equal   {counted(int(num_pairs), 'pair')} {EQUAL_IN_TEMPLATE}"] if num_pairs else []


def _refused_lines(totals: Mapping[str, int | float]) -> list[str]:
    reasons = [f"{reason} ({count:,})" for reason, count in counts_behind(totals, REFUSED_PREFIX).items()]
    num_groups = totals["groups_refused"]
    return (
        [f"  refused {counted(int(num_groups), 'group')} by the chat template: {'; '.join(reasons)}"]
        if num_groups
        else []
    )


def _special_lines(totals: Mapping[str, int | float], config: TrainConfig) -> list[str]:
    num_groups = totals["groups_with_special"]
    rule = config.tokens.special_in_text
    return [f"  special {counted(int(num_groups), 'group')} {special_line(totals, rule)}"] if num_groups else []


def _print_retry(reason: str, delay: float) -> None:
    say(escaped(f"{SUMMARY_NAME} cannot be written: {reason}; retrying in {delay:.0f} s"))


def _raise_stopped(folder: RunFolder, step: int, signals: ShutdownSignals) -> NoReturn:
    """Raise what ends a command whose run stopped as requested."""
    where = f"from step {step}, whose checkpoint is committed" if step else "from its first step"
    message = f"run {folder.url}: stopped; the same command resumes {where}"
    if signals.received == signal.SIGINT:
        say(escaped(message))
        raise KeyboardInterrupt
    raise StoppedError(message)


def _summary(
    config: TrainConfig,
    plan: RunPlan,
    manifest: Manifest,
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
            version=manifest.version,
            digest=manifest.digest,
            inputs=manifest.inputs,
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
