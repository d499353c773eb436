"""The training loop of one rank: steps, evaluations and checkpoints, from the latest checkpoint to the last step.

The loop knows no Ray: a ``RunContext`` gives it its rank and takes its reports. Everything that decides the result is a
pure function of (data, seed, step), so a resume is ``for step in range(restored, num_steps)`` and nothing more.
"""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from pairwright import __version__
from pairwright.config import TrainingConfig
from pairwright.errors import CheckpointError, NotFiniteError, PairwrightError, TrainingError
from pairwright.events import CheckpointWritten, Evaluated, PhaseStarted, Resumed, RunEvent, StepSkipped, StepTaken
from pairwright.model.reward_model import RewardModel
from pairwright.training.checkpoint import (
    TAG,
    CheckpointManifest,
    check_belongs,
    read_manifest,
    verify,
    write_checkpoint,
)
from pairwright.training.checkpoint_shards import check_shards
from pairwright.training.collectives import raise_on_all_ranks
from pairwright.training.context import RunContext
from pairwright.training.engine import Engine
from pairwright.training.global_batch import Run
from pairwright.training.order import group_indices
from pairwright.training.schedule import Schedule, learning_rate_at, schedule_of
from pairwright.training.step import evaluate_split, train_step
from pairwright.training.universal_checkpoint import converted

CHECKPOINT_FORMAT_VERSION = 1
VALIDATION_METRICS = ("accuracy", "log_loss")
"""Metrics of an evaluation that the checkpoint of its step records."""


@dataclass(frozen=True)
class _StepState:
    """State of a run after a step."""

    step: int
    """Its number, from 1."""
    metrics: dict[str, float]
    """Of this step; empty if it was skipped."""
    skipped: tuple[int, ...]
    """Steps skipped so far."""


@dataclass(frozen=True)
class Trained:
    """Result of a run that reached its last step."""

    engine: Engine
    validation: Mapping[str, Any]
    """Metrics on the validation split; empty if it holds no pair."""
    skipped_steps: tuple[int, ...]


@dataclass(frozen=True)
class Stopped:
    """Result of a run that was told to stop; a checkpoint of its last step is being uploaded."""

    step: int


def train(run: Run, model: RewardModel, context: RunContext) -> Trained | Stopped:
    """Train to the last step and evaluate on the validation split, or stop early if the context says so.

    Raises:
        TrainingError: if a loss or a gradient is not finite and may not be skipped; the step has changed nothing.
        ModelError: if a reward of the validation split is not finite.
        CheckpointError: if the latest checkpoint is corrupt, cannot be fetched, or belongs to another run.

    All of these are raised on every rank alike.
    """
    config = run.config
    rows = run.tokens.rows_of_split("train")
    schedule = schedule_of(len(rows), config)
    _enter_phase(context, "loading", 0, "preparing DeepSpeed", is_monitored=False)
    engine = Engine(model, config=config.deepspeed, optimizer=config.optimizer, status=context.status)
    first_step, skipped = _restore(engine, run, context)
    if context.poll_control(first_step) == "stop":
        return Stopped(first_step)
    final: Mapping[str, Any] | None = None
    if context.rank == 0:
        context.log_event(PhaseStarted(step=first_step, phase="taking the first step"))
    for step in range(first_step, schedule.num_steps):
        context.status.set_phase("training", step + 1, is_monitored=True)
        started = time.perf_counter()
        event: RunEvent
        rate = learning_rate_at(step, schedule.num_steps, config.optimizer)
        try:
            metrics = train_step(engine, run, rows[_groups_of_step(step, schedule, run)], rate, step=step)
            event = _step_taken(step + 1, schedule, metrics, rate, time.perf_counter() - started)
        except NotFiniteError as error:
            skipped, metrics = with_skipped(skipped, step + 1, error, config.training), {}
            event = StepSkipped(step=step + 1, num_skipped=len(skipped), reason=str(error))
        if context.rank == 0:
            context.log_event(event)
        control = context.poll_control(step + 1)
        final = _after_step(engine, run, context, schedule, _StepState(step + 1, metrics, skipped), control)
        if control == "stop":
            return Stopped(step + 1)
    if final is None:
        # The run resumed from the checkpoint of its last step.
        final = _evaluate(engine, run, context, schedule.num_steps)
    _enter_phase(context, "ending", schedule.num_steps, "exporting the model", is_monitored=False)
    return Trained(engine, final, skipped)


def _enter_phase(context: RunContext, phase: str, step: int, doing: str, *, is_monitored: bool) -> None:
    """Record what this rank does from now on, and report it from rank 0, as a person says it."""
    context.status.set_phase(phase, step, is_monitored=is_monitored)
    if context.rank == 0:
        context.log_event(PhaseStarted(step=step, phase=doing))


def with_skipped(
    skipped: tuple[int, ...], step: int, error: NotFiniteError, training: TrainingConfig
) -> tuple[int, ...]:
    """Return the skipped steps with one more, if the configuration allows to skip it.

    The limit holds for the whole run, so checkpoints carry the steps skipped so far. They carry numbers and not a
    count, so that a reader of ``summary.json`` can look at what the groups of these steps have in common.

    Raises:
        TrainingError: if the configuration does not allow it, or not so often.
    """
    if training.on_non_finite == "stop":
        raise error
    if len(skipped) == training.max_skipped_steps:
        raise TrainingError(
            f"{error}. Steps {', '.join(map(str, skipped))} were skipped for that before, as many as "
            f"training.max_skipped_steps allows ({training.max_skipped_steps})"
        )
    return (*skipped, step)


def _groups_of_step(step: int, schedule: Schedule, run: Run) -> Any:
    """Return the indices of a step's groups among those of the training split."""
    return group_indices(
        schedule.num_groups,
        seed=run.config.training.seed,
        epoch=step // schedule.steps_per_epoch,
        step=step % schedule.steps_per_epoch,
        groups_per_step=run.config.batches.groups_per_step,
    )


def _after_step(
    engine: Engine,
    run: Run,
    context: RunContext,
    schedule: Schedule,
    state: _StepState,
    control: Literal["save", "stop"] | None,
) -> Mapping[str, Any] | None:
    """Save and evaluate if due; return the evaluation, None if there was none.

    The evaluation comes before a regular checkpoint, so that the checkpoint records its metrics. A requested checkpoint
    comes first: a node may be about to go.
    """
    training, steps_taken = run.config.training, state.step
    is_last = steps_taken == schedule.num_steps
    if control:
        _save(engine, run, context, schedule, state, {})
    if control == "stop":
        return None
    report: Mapping[str, Any] | None = None
    if is_last or (training.evaluate_every_steps and steps_taken % training.evaluate_every_steps == 0):
        report = _evaluate(engine, run, context, steps_taken)
    if not control and (is_last or steps_taken % training.checkpoint_every_steps == 0):
        _save(engine, run, context, schedule, state, report or {})
    return report


def _evaluate(engine: Engine, run: Run, context: RunContext, steps_taken: int) -> Mapping[str, Any]:
    _enter_phase(context, "evaluating", steps_taken, "evaluating the validation split", is_monitored=True)
    report = evaluate_split(engine, run, "validation")
    if context.rank == 0 and report:
        context.log_event(Evaluated(step=steps_taken, **report["overall"]))
    return report


def _step_taken(
    steps_taken: int, schedule: Schedule, metrics: dict[str, float], rate: float, seconds: float
) -> StepTaken:
    return StepTaken(
        step=steps_taken,
        num_steps=schedule.num_steps,
        epoch=steps_taken / schedule.steps_per_epoch,
        learning_rate=rate,
        seconds=seconds,
        tokens_per_second=metrics["num_tokens"] / seconds,
        **metrics,
    )


# --------------------------------------------------------------------------------------------- checkpoints


def _save(
    engine: Engine,
    run: Run,
    context: RunContext,
    schedule: Schedule,
    state: _StepState,
    validation: Mapping[str, Any],
) -> None:
    """Write a checkpoint on every rank and start its upload."""
    _enter_phase(context, "saving", state.step, "writing a checkpoint", is_monitored=False)
    started = time.perf_counter()
    context.wait_for_upload()
    waited = time.perf_counter()
    manifest = CheckpointManifest(
        format_version=CHECKPOINT_FORMAT_VERSION,
        step=state.step,
        num_steps=schedule.num_steps,
        world_size=context.world_size,
        zero_stage=run.config.deepspeed.zero_stage,
        precision=run.config.deepspeed.precision,
        run_digest=run.run_digest,
        code_version=__version__,
        skipped_steps=state.skipped,
        validation={name: validation["overall"][name] for name in VALIDATION_METRICS} if validation else {},
    )
    retry_seconds = run.config.training.storage_retry_seconds
    directory = write_checkpoint(engine.save, manifest, context, retry_seconds=retry_seconds)
    context.save_checkpoint(
        {"step": state.step, **state.metrics}, directory, f"step-{state.step:08d}-{context.attempt}"
    )
    if context.rank == 0:
        seconds = {"waited_seconds": waited - started, "written_seconds": time.perf_counter() - waited}
        context.log_event(CheckpointWritten(step=state.step, **seconds))


def _restore(engine: Engine, run: Run, context: RunContext) -> tuple[int, tuple[int, ...]]:
    """Load the latest committed checkpoint; return its step (0 if there is none) and the steps skipped so far.

    Raises:
        DamagedCheckpointError: if a rank finds that it differs from what was written.
        CheckpointError: if it cannot be fetched, belongs to another run, or cannot be converted here.
    """
    checkpoint = context.latest_checkpoint()
    if checkpoint is None:
        return 0, ()
    _enter_phase(context, "loading", 0, "loading the checkpoint", is_monitored=False)
    manifest = _load(engine, run, context, checkpoint)
    if context.rank == 0:
        context.log_event(Resumed(step=manifest.step, num_steps=manifest.num_steps))
    return manifest.step, manifest.skipped_steps


def _load(
    engine: Engine, run: Run, context: RunContext, checkpoint: AbstractContextManager[Path]
) -> CheckpointManifest:
    """Load a checkpoint if all ranks find it intact, else raise the first rank's error on every rank."""
    error: PairwrightError | None = None
    read: tuple[Path, CheckpointManifest] | None = None
    with ExitStack() as stack:
        try:
            directory = stack.enter_context(checkpoint)
            manifest = read_manifest(directory)
            check_belongs(manifest, directory, run_digest=run.run_digest)
            if _needs_conversion(manifest, context):
                directory = stack.enter_context(converted(directory, manifest))
            else:
                verify(directory, manifest, rank=context.rank)
                check_shards(directory)
            read = directory, manifest
        except PairwrightError as found:
            error = found
        except OSError as found:
            error = CheckpointError(f"rank {context.rank} cannot read the latest checkpoint: {found}")
        raise_on_all_ranks(error)
        assert read is not None
        engine.load(read[0], TAG, universal=_needs_conversion(read[1], context))
        # No rank may leave, and drop its copy of the folder, while another still reads.
        dist.barrier()
    return read[1]


def _needs_conversion(manifest: CheckpointManifest, context: RunContext) -> bool:
    """Whether each rank's file holds a part for another world size; without ZeRO, rank 0's file holds everything."""
    return manifest.world_size != context.world_size and manifest.zero_stage > 0
