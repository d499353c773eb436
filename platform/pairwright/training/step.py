"""A global batch's groups -> one optimizer step; a split's groups -> its figures: this rank's share, and all of it.

A divided group (model/batching/plan.py) is computed in two passes, since its loss needs all of its rewards at once and
its parts lie in different micro-batches, on different ranks: rewards without gradient, from them the loss and its
gradient with respect to each reward, then the parts again, each with the surrogate loss ``sum(reward * gradient)``. By
the chain rule that is the gradient of the undivided group, if both passes see the same dropout: every micro-batch has
its seed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.errors import ModelError, NotFiniteError
from pairwright.model.batching.plan import plan_forward, plan_step
from pairwright.model.loss import preference_loss
from pairwright.model.reward_metrics import EvaluationSums, merged
from pairwright.model.targets import Judgements
from pairwright.training.collectives import raise_together
from pairwright.training.global_batch import GlobalBatch, Run, StepEngine

# --------------------------------------------------------------------------------------------------- a step


def train_step(engine: StepEngine, run: Run, rows: np.ndarray, learning_rate: float, *, step: int) -> dict[str, float]:
    """Take one optimizer step on the groups of a global batch and return its figures, equal on every rank.

    ``num_tokens`` counts each token that a gradient was computed for, in the run's layout and without padding: a prompt
    once where it is shared, once a completion where it is not.

    Args:
        engine: of the model that is trained.
        run: what to train on, and how.
        rows: of the global batch's groups in the table, int64, shape (G,).
        learning_rate: of this step.
        step: its number, from 0.

    Raises:
        NotFiniteError: on every rank, if a loss or a gradient is not finite on any; neither a weight nor a moment of
            the optimizer has changed then.
    """
    # Also without dropout, whose rates are then 0: gradient checkpointing is silently off in evaluation mode.
    engine.train(training=True)
    figures = _accumulate(engine, run, rows, step=step)
    grad_norm = engine.step(learning_rate)
    if not math.isfinite(grad_norm):
        raise _not_finite(step, figures.not_finite(), [run.tokens.group_id(int(row)) for row in rows[:8]])
    dist.all_reduce(figures.sums)
    loss, weight, correct, margin, num_tokens = figures.sums.tolist()
    return {
        "loss": loss,
        "accuracy": correct / weight,
        "reward_margin": margin / weight,
        "grad_norm": grad_norm,
        "num_tokens": num_tokens,
    }


class _Figures:
    """Sums over this rank's part of a step; they stay on the device until its end, since reading waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(5, dtype=torch.float64, device=device)
        self._losses: list[Tensor] = []
        self._group_ids: list[tuple[str, ...]] = []

    def add(self, reward_N: Tensor, judgements: Judgements, loss: Tensor, group_ids: tuple[str, ...]) -> None:
        difference_P = (reward_N[judgements.chosen_P] - reward_N[judgements.rejected_P]).detach().double()
        weight_P = judgements.weight_P.double()
        correct_P = (difference_P > 0).double() + 0.5 * (difference_P == 0).double()
        weighted = [weight_P, weight_P * correct_P, weight_P * difference_P]
        self.sums[:4] += torch.stack([loss.detach().double(), *(term_P.sum() for term_P in weighted)])
        self._losses.append(loss.detach().double())
        self._group_ids.append(group_ids)

    def add_tokens(self, num_tokens: int) -> None:
        self.sums[4] += num_tokens

    def not_finite(self) -> list[str]:
        """Return the groups whose micro-batch has a loss that is not finite."""
        finite = torch.stack(self._losses).isfinite().tolist() if self._losses else []
        return [name for names, good in zip(self._group_ids, finite, strict=True) if not good for name in names]


def _accumulate(engine: StepEngine, run: Run, rows: np.ndarray, *, step: int) -> _Figures:
    """Add up this rank's part of the gradient."""
    work = GlobalBatch(engine, run, rows, plan_step, step=step)
    global_weight = torch.tensor(float(run.tokens.weight_G[rows].sum()), dtype=torch.float32, device=engine.device)
    figures = _Figures(engine.device)
    mine = work.plan.whole[dist.get_rank()]
    if work.divided_positions:
        _accumulate_divided(work, figures, global_weight, ends_step=not mine)
    for number, planned in enumerate(mine, start=len(work.plan.divided[dist.get_rank()])):
        batch = work.batch(planned.parts)
        work.seed_dropout(number)
        reward_N = engine.rewards(batch)
        loss = preference_loss(reward_N, batch.judgements, run.config.loss, global_weight=global_weight)
        engine.accumulate(loss * _poison(loss), is_last=planned is mine[-1])
        figures.add(reward_N, batch.judgements, loss, batch.group_ids)
        figures.add_tokens(batch.num_tokens)
    return figures


def _accumulate_divided(work: GlobalBatch, figures: _Figures, global_weight: Tensor, *, ends_step: bool) -> None:
    """Add up this rank's part of the divided groups' gradient."""
    reward_M = work.divided_rewards().requires_grad_()
    groups = work.groups(work.divided_positions)
    judgements = Judgements.of(groups).to(reward_M.device)
    loss = preference_loss(reward_M, judgements, work.run.config.loss, global_weight=global_weight)
    (gradient_M,) = torch.autograd.grad(loss * _poison(loss), reward_M)
    if dist.get_rank() == 0:  # every rank has the same
        figures.add(reward_M, judgements, loss, tuple(group.group_id for group in groups))
    mine = work.plan.divided[dist.get_rank()]
    for number, planned in enumerate(mine):
        batch = work.batch(planned.parts)
        work.seed_dropout(number)
        reward_N = work.engine.rewards(batch)
        place_N = work.places(planned.parts)
        surrogate = (reward_N[: place_N.numel()] * gradient_M[place_N].to(reward_N.dtype)).sum()
        work.engine.accumulate(surrogate, is_last=ends_step and planned is mine[-1])
        figures.add_tokens(batch.num_tokens)


def _poison(loss: Tensor) -> Tensor:
    """Return 1 for a finite loss, else NaN: as a factor it makes the gradient as bad as the loss.

    An infinite loss may have a finite gradient. With this the gradient's norm, which all ranks learn before the update,
    says all, and no step has to ask for more.
    """
    return 1.0 + 0.0 * loss.detach()


def _not_finite(step: int, group_ids: Sequence[str], first_of_step: Sequence[str]) -> NotFiniteError:
    """Return what to say of a step whose gradient is not finite; a collective.

    Args:
        step: its number, from 0.
        group_ids: of the groups whose micro-batch on this rank has a loss that is not finite.
        first_of_step: the first of the global batch's groups, to be named where every loss is finite.
    """
    gathered: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(gathered, list(group_ids))
    found = [name for names in gathered for name in names]
    if not found:
        return NotFiniteError(
            f"step {step + 1}: the gradient is not finite, though the loss is; lower optimizer.learning_rate, or try "
            f'engine.precision = "fp32". First groups of this step: {", ".join(first_of_step)}'
        )
    return NotFiniteError(
        f"step {step + 1}: the loss is not finite in the micro-batches with groups {', '.join(found[:8])}"
        f"{f' and {len(found) - 8} more' if len(found) > 8 else ''}; look at these rows of the pairs table (by "
        "group_id), or lower optimizer.learning_rate and give the new run another output"
    )


# ---------------------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def evaluate_split(engine: StepEngine, run: Run, split: str) -> Mapping[str, Any]:
    """Return the figures on a split, equal on every rank and exact on any number; empty where the split is.

    Raises:
        ModelError: on every rank, if a reward is not finite.
    """
    rows = run.tokens.rows_of_split(split)
    if len(rows) == 0:
        return {}
    engine.train(training=False)
    sums = EvaluationSums()
    error: ModelError | None = None
    size = run.config.batches.groups_per_step
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        work = GlobalBatch(engine, run, part, plan_forward, step=0)
        for groups, reward_N in _evaluated(work):
            try:
                _count(sums, groups, reward_N)
            except ModelError as found:
                # Go on to the end: the other ranks' forwards need this one's.
                error = error or found
    raise_together(error)
    gathered: list[EvaluationSums] = [sums] * dist.get_world_size()
    dist.all_gather_object(gathered, sums)
    return merged(gathered).report()


def _evaluated(work: GlobalBatch) -> Iterator[tuple[list[TokenGroup], np.ndarray]]:
    """Yield groups and their rewards, each group on one rank."""
    if work.divided_positions:
        reward_M = work.divided_rewards()
        if dist.get_rank() == 0:
            yield work.groups(work.divided_positions), reward_M.float().cpu().numpy()
    for planned in work.plan.whole[dist.get_rank()]:
        reward_N = work.engine.rewards(work.batch(planned.parts))
        yield work.groups(part.position for part in planned.parts), reward_N.float().cpu().numpy()


def _count(sums: EvaluationSums, groups: Sequence[TokenGroup], reward_N: np.ndarray) -> None:
    first = 0
    for group in groups:
        last = first + len(group.completion_ids)
        sums.add(reward_N[first:last], group)
        first = last
