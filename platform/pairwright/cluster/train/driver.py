"""A configuration -> a run folder with a model: Ray Train starts the ranks, replaces lost ones, keeps checkpoints.

The driver prepares (data version, tokens, identity), waits, and writes ``training.json`` last. Starting the same
command again after any death of the driver finds the run's own records and goes on from its newest checkpoint.
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
from pairwright.cluster.train.monitor import Watcher
from pairwright.cluster.train.preemption import StopSignals
from pairwright.cluster.train.run_plan import Prepared, cache_of, check_model, check_places, prepare, version_of
from pairwright.cluster.train.trainer import fit
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
from pairwright.runs.best_checkpoint import BestKeeper, Figure
from pairwright.runs.run_dir import (
    MODEL_NAME,
    RunFolder,
    TrainedOn,
    TrainingSummary,
    check_model_place,
)
from pairwright.terminal import escaped, one_per_line, say
from pairwright.training.schedule import schedule_of

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
        ConfigError, DataError, StoreError, ModelError: as ``train`` would, for what it finds wrong.
    """
    check_places(config)
    if _is_there(config.output):
        RunFolder(config.output).check_free()
    pairs = Table.open(config.data.pairs, "pairs")
    manifest = pairs.manifest(config.data.version)
    tokenizer = load_tokenizer(config.model.path)
    check_model(config)
    tokens = totals_beforehand(pairs, manifest, tokenizer, config.tokens, cache_of(config))
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
    """Run a training to its end, or go on with the one that ``config.output`` already holds.

    Raises:
        ConfigError: if the output holds another run, lies in the starting model or around it, or the batch cannot be
            planned.
        StoreError, ModelError: if the pairs table, the model or the output cannot be used.
        LeaseError: if another command trains in this output.
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
    check_places(config)
    folder = RunFolder(config.output)
    folder.check_free()
    pairs = Table.open(config.data.pairs, "pairs")
    manifest = pairs.manifest(version_of(config, folder))
    started = time.time()
    with (
        Lease(folder.url, RUN, what="`pairwright train`", lost=signals.end_now) as lease,
        ray_session(),
        signals,  # after Ray, which takes SIGTERM for itself when it starts
    ):
        _check_resources(config)
        prepared = prepare(config, folder, pairs, manifest)
        folder.claim(prepared.identity)
        if (summary := folder.summary()) is not None:
            return TrainSummary(training=summary, model=folder.path(MODEL_NAME), already_finished=True)
        check_model_place(folder.url)
        _announce(config, prepared, folder)
        with ExitStack() as stack:
            watcher = stack.enter_context(_watcher(config, folder))
            if config.training.keep_best is not None:
                stack.enter_context(_best_kept(config.training.keep_best, folder, watcher))
            signals.ask_through(watcher.board)
            outcome = fit(config, prepared, folder, watcher, lease)
            if "stopped" in outcome:
                _say_stopped(folder, outcome["stopped"], signals)
    summary = _summary(config, prepared, manifest, outcome, watcher, time.time() - started)
    retry_with_backoff(lambda: folder.finish(summary), config.training.storage_patience_seconds, _say_refused)
    return TrainSummary(training=summary, model=folder.path(MODEL_NAME), already_finished=False)


def _is_there(url: str) -> bool:
    root = local_root(url)
    return root is None or root.is_dir()


def _watcher(config: TrainConfig, folder: RunFolder) -> Watcher:
    return Watcher(
        folder.local_directory,
        run=folder.url,
        log_every_steps=config.training.log_every_steps,
        workers=config.workers,
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
    lines = [
        f"run {folder.url}",
        f"  data    {data.pairs} version {prepared.identity.pairs_version}: {prepared.schedule.num_groups:,} groups to "
        f"train on, {totals['tokens']:,.0f} tokens with the held-out ones",
        f"  dropped {totals['completions_dropped']:,.0f} completions over {config.tokens.max_length} tokens, "
        f"{totals['pairs_identical']:,.0f} pairs of equal tokens, {totals['groups_dropped']:,.0f} groups unpaired",
        *_equal_lines(totals),
        *_refused_lines(totals),
        *_special_lines(totals, config),
        f"  steps   {prepared.schedule.num_steps} of {config.batches.groups_per_step} groups",
        f"  workers {num_workers} ({'GPU' if workers.use_gpu else 'CPU'}), ZeRO-{config.engine.zero_stage}, "
        f"{config.engine.precision}",
    ]
    say(one_per_line(lines))


def _equal_lines(totals: Mapping[str, int | float]) -> list[str]:
    num_pairs = totals["pairs_equal_in_template"]
    return [f"  equal   {num_pairs:,.0f} pairs {EQUAL_IN_TEMPLATE}"] if num_pairs else []


def _refused_lines(totals: Mapping[str, int | float]) -> list[str]:
    reasons = [f"{reason} ({count:,})" for reason, count in counts_behind(totals, REFUSED_PREFIX).items()]
    num_groups = totals["groups_refused"]
    return [f"  refused {num_groups:,.0f} groups by the chat template: {'; '.join(reasons)}"] if num_groups else []


def _special_lines(totals: Mapping[str, int | float], config: TrainConfig) -> list[str]:
    num_groups = totals["groups_with_special"]
    rule = config.tokens.special_in_text
    return [f"  special {num_groups:,.0f} groups {special_line(totals, rule)}"] if num_groups else []


def _say_refused(reason: str, pause: float) -> None:
    say(escaped(f"training.json cannot be written: {reason}; trying again in {pause:.0f} s"))


def _say_stopped(folder: RunFolder, step: int, signals: StopSignals) -> NoReturn:
    """Raise what ends a command whose run was asked to stop and did."""
    where = f"from step {step}, whose checkpoint is committed" if step else "from its first step"
    said = f"run {folder.url}: stopped; the same command goes on {where}"
    if signals.received == signal.SIGINT:
        say(escaped(said))
        raise KeyboardInterrupt
    raise StoppedError(said)


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
