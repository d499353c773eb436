"""Token groups -> a trained reward model, on one rank of many.

The loop knows no Ray: a ``Host`` tells it its place and takes what it reports. Everything that decides the result is
a pure function of (data, seed, step), so a resume is ``for step in range(restored, num_steps)`` and nothing more.
"""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch.distributed as dist

from pairwright import __version__
from pairwright.errors import CheckpointError, NotFiniteError, PairwrightError
from pairwright.model.reward_model import RewardModel
from pairwright.training.checkpoint import (
    TAG,
    CheckpointManifest,
    check_belongs,
    read_manifest,
    verify,
)
from pairwright.training.collectives import raise_together
from pairwright.training.engine import Engine
from pairwright.training.global_batch import Run
from pairwright.training.non_finite import with_skipped
from pairwright.training.order import group_indices
from pairwright.training.rank_status import Pulse
from pairwright.training.schedule import Schedule, learning_rate_at, schedule_of
from pairwright.training.step import evaluate_split, train_step
from pairwright.training.universal_checkpoint import check_shards, converted
from pairwright.training.write_checkpoint import staged

CHECKPOINT_FORMAT_VERSION = 1
FIGURES_KEPT = ("accuracy", "log_loss")
"""Of an evaluation, in the checkpoint of its step."""


class Host(Protocol):
    """What the loop needs from whoever started it."""

    rank: int
    world_size: int
    attempt: str
    """Names this start of the run, the same on every rank: a checkpoint's folder must never be used twice."""
    pulse: Pulse
    """Where the loop says what this rank is doing."""

    def newest_checkpoint(self) -> AbstractContextManager[Path] | None:
        """The newest committed checkpoint, the same on every rank, as a local folder; None where there is none.

        Entering raises CheckpointError where it cannot be fetched.
        """
        ...

    def staging_folder(self, name: str) -> Path:
        """Return a new empty folder on this rank's disk; raises OSError if there is no room."""
        ...

    def wait_for_upload(self) -> None:
        """Return once the checkpoint before has left every rank's disk: at most one is on its way. A collective.

        Raises CheckpointError, on every rank alike, where a rank's could not be stored.
        """
        ...

    def save_checkpoint(self, metrics: dict[str, Any], directory: Path, name: str) -> None:
        """Upload a finished folder in the background and commit it together with the other ranks'."""
        ...

    def progress(self, record: dict[str, Any]) -> None:
        """Show one step's, or one evaluation's, figures, from rank 0; or what went wrong, from any rank."""
        ...

    def asked(self, steps_taken: int) -> Literal["save", "stop"] | None:
        """Whether a checkpoint is wanted now, or that and the end, the same on every rank. A collective, once a step.

        Wanted is what was not asked for before: a node that will be taken away is told of once.
        """
        ...


@dataclass(frozen=True)
class _Taken:
    """Where a run stands after a step."""

    step: int
    """Its number, from 1."""
    figures: dict[str, float]
    """Of this step; empty if it was skipped."""
    skipped: tuple[int, ...]
    """Steps skipped so far."""


@dataclass(frozen=True)
class Trained:
    """What is there after the last step."""

    engine: Engine
    validation: Mapping[str, Any]
    """Figures on the validation split, empty where it holds no pair."""
    skipped_steps: tuple[int, ...]


@dataclass(frozen=True)
class Stopped:
    """A run that was asked to stop, and has a checkpoint of its last step on the way."""

    step: int


def train(run: Run, model: RewardModel, host: Host) -> Trained | Stopped:
    """Train to the last step and evaluate on the validation split, or to where the host asks the run to stop.

    Raises:
        TrainingError: if a loss or a gradient is not finite and may not be skipped; the step has changed nothing.
        ModelError: if a reward of the validation split is not finite.
        CheckpointError: if the newest checkpoint is damaged, cannot be fetched, or is another run's.

    All of these are raised on every rank alike.
    """
    config = run.config
    rows = run.tokens.rows_of_split("train")
    schedule = schedule_of(len(rows), config)
    host.pulse.begins("loading", 0, is_watched=False)
    engine = Engine(model, engine=config.engine, optimizer=config.optimizer, pulse=host.pulse)
    first_step, skipped = _restore(engine, run, host)
    if host.asked(first_step) == "stop":
        return Stopped(first_step)
    final: Mapping[str, Any] | None = None
    for step in range(first_step, schedule.num_steps):
        host.pulse.begins("training", step + 1, is_watched=True)
        started = time.perf_counter()
        indices = group_indices(
            schedule.num_groups,
            seed=config.training.seed,
            epoch=step // schedule.steps_per_epoch,
            step=step % schedule.steps_per_epoch,
            groups_per_step=config.batches.groups_per_step,
        )
        rate = learning_rate_at(step, schedule.num_steps, config.optimizer)
        try:
            figures = train_step(engine, run, rows[indices], rate, step=step)
            record = _step_record(step + 1, schedule, figures, rate, time.perf_counter() - started)
        except NotFiniteError as error:
            skipped, figures = with_skipped(skipped, step + 1, error, config.training), {}
            record = {"kind": "skipped", "step": step + 1, "num_skipped": len(skipped), "reason": str(error)}
        if host.rank == 0:
            host.progress(record)
        asked = host.asked(step + 1)
        final = _after_step(engine, run, host, schedule, _Taken(step + 1, figures, skipped), asked)
        if asked == "stop":
            return Stopped(step + 1)
    if final is None:
        # The checkpoint that the run went on from is that of its last step.
        final = _evaluated(engine, run, host, schedule.num_steps)
    host.pulse.begins("ending", schedule.num_steps, is_watched=False)
    return Trained(engine, final, skipped)


def _after_step(
    engine: Engine, run: Run, host: Host, schedule: Schedule, taken: _Taken, asked: Literal["save", "stop"] | None
) -> Mapping[str, Any] | None:
    """Save and evaluate, where it is time to; return what the evaluation found, None where there was none.

    The evaluation comes first, so that a checkpoint says how good it is. Not so if it was asked for: somebody is about
    to take a node away.
    """
    training, steps_taken = run.config.training, taken.step
    is_last = steps_taken == schedule.num_steps
    if asked:
        _save(engine, run, host, schedule, taken, {})
    if asked == "stop":
        return None
    report: Mapping[str, Any] | None = None
    if is_last or (training.evaluate_every_steps and steps_taken % training.evaluate_every_steps == 0):
        report = _evaluated(engine, run, host, steps_taken)
    if not asked and (is_last or steps_taken % training.checkpoint_every_steps == 0):
        _save(engine, run, host, schedule, taken, report or {})
    return report


def _evaluated(engine: Engine, run: Run, host: Host, steps_taken: int) -> Mapping[str, Any]:
    host.pulse.begins("evaluating", steps_taken, is_watched=True)
    report = evaluate_split(engine, run, "validation")
    if host.rank == 0 and report:
        host.progress({"kind": "evaluation", "step": steps_taken, **report["overall"]})
    return report


def _step_record(
    steps_taken: int, schedule: Schedule, figures: dict[str, float], rate: float, seconds: float
) -> dict[str, Any]:
    return {
        "kind": "step",
        "step": steps_taken,
        "num_steps": schedule.num_steps,
        "epoch": steps_taken / schedule.steps_per_epoch,
        "learning_rate": rate,
        "seconds": seconds,
        "tokens_per_second": figures["num_tokens"] / seconds,
        **figures,
    }


# --------------------------------------------------------------------------------------------- checkpoints


def _save(
    engine: Engine, run: Run, host: Host, schedule: Schedule, taken: _Taken, validation: Mapping[str, Any]
) -> None:
    host.pulse.begins("saving", taken.step, is_watched=False)
    began = time.perf_counter()
    host.wait_for_upload()
    waited = time.perf_counter()
    manifest = CheckpointManifest(
        format_version=CHECKPOINT_FORMAT_VERSION,
        step=taken.step,
        num_steps=schedule.num_steps,
        world_size=host.world_size,
        zero_stage=run.config.engine.zero_stage,
        precision=run.config.engine.precision,
        run_digest=run.run_digest,
        code_version=__version__,
        skipped_steps=taken.skipped,
        validation={name: validation["overall"][name] for name in FIGURES_KEPT} if validation else {},
    )
    directory = staged(engine, manifest, host, patience_seconds=run.config.training.storage_patience_seconds)
    host.save_checkpoint({"step": taken.step, **taken.figures}, directory, f"step-{taken.step:08d}-{host.attempt}")
    if host.rank == 0:
        seconds = {"waited_seconds": waited - began, "written_seconds": time.perf_counter() - waited}
        host.progress({"kind": "checkpoint_written", "step": taken.step, **seconds})


def _restore(engine: Engine, run: Run, host: Host) -> tuple[int, tuple[int, ...]]:
    """Load the newest committed checkpoint and return its step, 0 where there is none, and the steps skipped so far.

    Raises:
        DamagedCheckpointError: if a rank finds that it is not what was written.
        CheckpointError: if it cannot be fetched, or belongs to another run, or cannot be converted here.
    """
    checkpoint = host.newest_checkpoint()
    if checkpoint is None:
        return 0, ()
    manifest = _loaded(engine, run, host, checkpoint)
    if host.rank == 0:
        host.progress({"kind": "resumed", "step": manifest.step, "num_steps": manifest.num_steps})
    return manifest.step, manifest.skipped_steps


def _loaded(engine: Engine, run: Run, host: Host, checkpoint: AbstractContextManager[Path]) -> CheckpointManifest:
    """Load a checkpoint if all ranks find it whole, else raise the first one's error on every rank."""
    error: PairwrightError | None = None
    read: tuple[Path, CheckpointManifest] | None = None
    with ExitStack() as stack:
        try:
            directory = stack.enter_context(checkpoint)
            manifest = read_manifest(directory)
            check_belongs(manifest, directory, run_digest=run.run_digest)
            if _needs_conversion(manifest, host):
                directory = stack.enter_context(converted(directory, manifest))
            else:
                verify(directory, manifest, rank=host.rank)
                check_shards(directory)
            read = directory, manifest
        except PairwrightError as found:
            error = found
        except OSError as found:
            error = CheckpointError(f"rank {host.rank} cannot read the newest checkpoint: {found}")
        raise_together(error)
        assert read is not None
        engine.load(read[0], TAG, universal=_needs_conversion(read[1], host))
        # No rank may leave, and drop its copy of the folder, while another still reads.
        dist.barrier()
    return read[1]


def _needs_conversion(manifest: CheckpointManifest, host: Host) -> bool:
    """Whether each rank's file holds a part for another number of ranks; without ZeRO, rank 0's holds it all."""
    return manifest.world_size != host.world_size and manifest.zero_stage > 0
