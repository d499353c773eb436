"""Token groups -> a trained reward model, on one rank of many.

The loop knows no Ray: a ``Host`` tells it its place and takes what it reports. Everything that decides the result is
a pure function of (data, seed, step), so a resume is ``for step in range(restored, num_steps)`` and nothing more.
"""

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from pairwright import __version__
from pairwright.config import TrainConfig
from pairwright.data.tokens import TokenGroup, TokenTable
from pairwright.errors import CheckpointError, ModelError, TrainingError
from pairwright.model.batches import Layout, MicroBatch, collate
from pairwright.model.loss import preference_loss
from pairwright.model.metrics import EvaluationSums, merged
from pairwright.model.planning import plan_micro_batches
from pairwright.model.reward_model import RewardModel
from pairwright.training.agreement import raise_together
from pairwright.training.checkpoint import (
    TAG,
    CheckpointManifest,
    check_belongs,
    read_manifest,
    verify,
    write_manifests,
)
from pairwright.training.engine import Engine
from pairwright.training.order import group_indices
from pairwright.training.schedule import Schedule, learning_rate_at, schedule_of

CHECKPOINT_FORMAT_VERSION = 1


class Host(Protocol):
    """What the loop needs from whoever started it."""

    rank: int
    world_size: int
    attempt: str
    """Names this start of the run, the same on every rank: a checkpoint's folder must never be used twice."""

    def restored_checkpoint(self) -> AbstractContextManager[Path | None]:
        """The newest committed checkpoint, as a local folder, or None at the start of a run."""
        ...

    def wait_for_upload(self) -> None:
        """Return once the checkpoint before has left this rank's disk, so that at most one is on its way."""
        ...

    def save_checkpoint(self, metrics: dict[str, Any], directory: Path, name: str) -> None:
        """Upload a finished folder in the background and commit it together with the other ranks'."""
        ...

    def progress(self, record: dict[str, Any]) -> None:
        """Show one step's, or one evaluation's, figures; called on rank 0."""
        ...


@dataclass(frozen=True)
class Run:
    """What one rank needs to know to train."""

    config: TrainConfig
    run_digest: str
    tokens: TokenTable
    pad_token_id: int
    layout: Layout
    """How groups lie in a forward (model/batches.py)."""


def train(run: Run, model: RewardModel, host: Host) -> tuple[Engine, Mapping[str, Any]]:
    """Train to the last step and return the engine and the final evaluation on the validation split.

    Raises:
        TrainingError: if a loss or a gradient is not finite, before the update is kept.
        ModelError: if a reward of the validation split is not finite.
        CheckpointError: if the checkpoint to go on from is damaged or another run's.

    All of these are raised on every rank alike.
    """
    config = run.config
    rows = run.tokens.rows_of_split("train")
    schedule = schedule_of(len(rows), config)
    engine = Engine(model, engine=config.engine, optimizer=config.optimizer)
    first_step = _restore(engine, run, host)
    for step in range(first_step, schedule.num_steps):
        started = time.perf_counter()
        indices = group_indices(
            schedule.num_groups,
            seed=config.training.seed,
            epoch=step // schedule.steps_per_epoch,
            step=step % schedule.steps_per_epoch,
            groups_per_step=config.batches.groups_per_step,
        )
        rate = learning_rate_at(step, schedule.num_steps, config.optimizer)
        figures = train_step(engine, run, rows[indices], rate, step=step)
        if host.rank == 0:
            seconds = time.perf_counter() - started
            host.progress(_step_record(step + 1, schedule, figures, rate, seconds))
        _after_step(engine, run, host, schedule, step + 1, figures)
    final = evaluate_split(engine, run, "validation")
    if host.rank == 0 and final:
        host.progress({"kind": "evaluation", "step": schedule.num_steps, **final["overall"]})
    return engine, final


def _after_step(
    engine: Engine, run: Run, host: Host, schedule: Schedule, steps_taken: int, figures: dict[str, float]
) -> None:
    training = run.config.training
    is_last = steps_taken == schedule.num_steps
    if is_last or steps_taken % training.checkpoint_every_steps == 0:
        _save(engine, run, host, schedule, steps_taken, figures)
    if training.evaluate_every_steps and not is_last and steps_taken % training.evaluate_every_steps == 0:
        report = evaluate_split(engine, run, "validation")
        if host.rank == 0 and report:
            host.progress({"kind": "evaluation", "step": steps_taken, **report["overall"]})


# --------------------------------------------------------------------------------------------------- steps


def train_step(engine: Engine, run: Run, rows: np.ndarray, learning_rate: float, *, step: int) -> dict[str, float]:
    """Take one optimizer step on the groups of a global batch and return its figures, equal on every rank."""
    config = run.config
    torch.manual_seed(_dropout_seed(config.training.seed, step, dist.get_rank()))
    # Also without dropout, whose rates are then 0: gradient checkpointing is silently off in evaluation mode.
    engine.train(training=True)
    sums, non_finite = _accumulate(engine, run, rows)
    _stop_if_not_finite(step, non_finite, engine.device)
    grad_norm = engine.step(learning_rate)
    if not math.isfinite(grad_norm):
        raise TrainingError(
            f"step {step + 1}: the gradient's norm is {grad_norm} though the loss is finite; lower "
            'optimizer.learning_rate, or try engine.precision = "fp32". First groups of this step: '
            + ", ".join(run.tokens.group_id(int(row)) for row in rows[:8])
        )
    dist.all_reduce(sums)
    loss, weight, correct, margin, num_tokens = sums.tolist()
    return {
        "loss": loss,
        "accuracy": correct / weight,
        "reward_margin": margin / weight,
        "grad_norm": grad_norm,
        "num_tokens": num_tokens,
    }


def _accumulate(engine: Engine, run: Run, rows: np.ndarray) -> tuple[torch.Tensor, list[str]]:
    """Add up this rank's part of the gradient; return its sums and the groups of micro-batches with a bad loss."""
    global_weight = torch.tensor(float(run.tokens.weight_G[rows].sum()), dtype=torch.float32, device=engine.device)
    mine = _plan(run, rows)[dist.get_rank()]
    # Figures stay on the device until the end: reading one waits for the GPU.
    sums = torch.zeros(5, dtype=torch.float64, device=engine.device)
    losses: list[torch.Tensor] = []
    group_ids: list[tuple[str, ...]] = []
    for index, positions in enumerate(mine):
        groups = [run.tokens.group(int(rows[p])) for p in positions]
        batch = collate(groups, run.pad_token_id, run.layout).to(engine.device)
        reward_N = engine.rewards(batch)
        loss = preference_loss(reward_N, batch.judgements, run.config.loss, global_weight=global_weight)
        engine.accumulate(loss, is_last=index == len(mine) - 1)
        sums += _sums_of(batch, reward_N.detach(), loss.detach())
        losses.append(loss.detach())
        group_ids.append(batch.group_ids)
    finite = torch.stack(losses).isfinite().tolist()
    return sums, [name for names, is_finite in zip(group_ids, finite, strict=True) if not is_finite for name in names]


def _plan(run: Run, rows: np.ndarray) -> list[list[list[int]]]:
    return plan_micro_batches(
        run.tokens.num_completions_G[rows],
        run.tokens.longest_row_tokens_G[rows],
        world_size=dist.get_world_size(),
        micro_batch_tokens=run.config.batches.micro_batch_tokens,
    )


def _sums_of(batch: MicroBatch, reward_N: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
    difference_P = (reward_N[batch.judgements.chosen_P] - reward_N[batch.judgements.rejected_P]).double()
    weight_P = batch.judgements.weight_P.double()
    correct_P = (difference_P > 0).double() + 0.5 * (difference_P == 0).double()
    return torch.stack(
        [
            loss.double(),
            weight_P.sum(),
            (weight_P * correct_P).sum(),
            (weight_P * difference_P).sum(),
            torch.tensor(float(batch.num_tokens), dtype=torch.float64, device=reward_N.device),
        ]
    )


def _stop_if_not_finite(step: int, group_ids: Sequence[str], device: torch.device) -> None:
    """Raise on every rank, before the update, if a loss was not finite on any."""
    num_bad = torch.tensor(float(len(group_ids)), device=device)
    dist.all_reduce(num_bad)
    if num_bad.item() == 0:
        return
    gathered: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(gathered, list(group_ids))
    named = [group_id for ids in gathered for group_id in ids]
    raise TrainingError(
        f"step {step + 1}: the loss is not finite in the micro-batch of groups {', '.join(named[:16])}; the weights "
        "were not updated. Look for odd texts in these rows of the pairs table (by group_id), or lower "
        "optimizer.learning_rate and give the new run another output"
    )


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


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


# ---------------------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def evaluate_split(engine: Engine, run: Run, split: str) -> Mapping[str, Any]:
    """Return the figures on a split, equal on every rank and exact on any number; empty where the split is."""
    rows = run.tokens.rows_of_split(split)
    if len(rows) == 0:
        return {}
    engine.train(training=False)
    sums = EvaluationSums()
    error: ModelError | None = None
    size = run.config.batches.groups_per_step
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        for positions in _plan(run, part)[dist.get_rank()]:
            groups = [run.tokens.group(int(part[p])) for p in positions]
            batch = collate(groups, run.pad_token_id, run.layout).to(engine.device)
            reward_N = engine.rewards(batch).float().cpu().numpy()
            try:
                _count(sums, groups, reward_N)
            except ModelError as found:
                # Go on to the end: the other ranks' forwards need this one's.
                error = error or found
    raise_together(error)
    gathered: list[EvaluationSums] = [sums] * dist.get_world_size()
    dist.all_gather_object(gathered, sums)
    return merged(gathered).report()


def _count(sums: EvaluationSums, groups: Sequence[TokenGroup], reward_N: np.ndarray) -> None:
    first = 0
    for group in groups:
        last = first + len(group.completion_ids)
        sums.add(reward_N[first:last], group)
        first = last


# --------------------------------------------------------------------------------------------- checkpoints


def _save(
    engine: Engine, run: Run, host: Host, schedule: Schedule, steps_taken: int, figures: dict[str, float]
) -> None:
    host.wait_for_upload()
    directory = Path(tempfile.mkdtemp(prefix=f"pairwright-step-{steps_taken}-rank-{host.rank}-"))
    engine.save(directory, TAG)
    manifest = CheckpointManifest(
        format_version=CHECKPOINT_FORMAT_VERSION,
        step=steps_taken,
        num_steps=schedule.num_steps,
        world_size=host.world_size,
        zero_stage=run.config.engine.zero_stage,
        precision=run.config.engine.precision,
        run_digest=run.run_digest,
        code_version=__version__,
    )
    write_manifests(directory, manifest, rank=host.rank)
    host.save_checkpoint({"step": steps_taken, **figures}, directory, f"step-{steps_taken:08d}-{host.attempt}")


def _restore(engine: Engine, run: Run, host: Host) -> int:
    with host.restored_checkpoint() as directory:
        if directory is None:
            return 0
        manifest = _checked_manifest(directory, run, host)
        engine.load(directory, TAG)
        # No rank may leave, and drop its copy of the folder, while another still reads.
        dist.barrier()
    if host.rank == 0:
        host.progress({"kind": "resumed", "step": manifest.step, "num_steps": manifest.num_steps})
    return manifest.step


def _checked_manifest(directory: Path, run: Run, host: Host) -> CheckpointManifest:
    """Return the manifest of a checkpoint that every rank found whole; if one did not, raise on every rank."""
    error: CheckpointError | None = None
    manifest: CheckpointManifest | None = None
    try:
        manifest = read_manifest(directory)
        check_belongs(manifest, directory, run_digest=run.run_digest, world_size=host.world_size)
        verify(directory, manifest, rank=host.rank)
    except CheckpointError as found:
        error = CheckpointError(f"{found}. To start this run again from its first step, remove its checkpoints folder")
    raise_together(error)
    assert manifest is not None
    return manifest
