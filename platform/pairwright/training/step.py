"""One optimizer step on a global batch, and one evaluation of a split, each on all ranks together.

A split group (model/batching/plan.py) has its completions in several micro-batches, on different ranks, but its loss
needs all of its rewards at once. So it is computed in two passes: first the rewards r without gradient, from which
follow the loss L(r) and dL/dr; then the parts again, each with the surrogate loss ``sum(r * dL/dr)``, in which dL/dr is
a constant. By the chain rule dL/dw = sum_i dL/dr_i * dr_i/dw, so the surrogates' gradients add up to that of the group
as a whole.

An example with one pair: rewards 2 and 1 give the loss -log sigmoid(2 - 1) = 0.313 and dL/dr = (-0.269, +0.269). The
part with the chosen completion runs backward from -0.269 * r_chosen, the other part from 0.269 * r_rejected. This holds
only if both passes see the same dropout, so every micro-batch has its own seed (``GlobalBatch.seed_dropout``).
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
from pairwright.model.loss import preference_loss
from pairwright.model.reward_metrics import EvaluationSums, merged
from pairwright.model.targets import PreferenceTargets
from pairwright.training.collectives import all_gather_object, raise_on_all_ranks
from pairwright.training.global_batch import GlobalBatch, Run, StepEngine

# --------------------------------------------------------------------------------------------------- a step


def train_step(engine: StepEngine, run: Run, rows: np.ndarray, learning_rate: float, *, step: int) -> dict[str, float]:
    """Take one optimizer step on the groups of a global batch and return its metrics, equal on every rank.

    ``num_tokens`` counts each token that a gradient was computed for, without padding: a prompt counts once in the
    shared-prefix layout and once a completion in the others.

    Args:
        engine: of the model that is trained.
        run: what to train on, and how.
        rows: of the global batch's groups in the table, int64, shape (G,).
        learning_rate: of this step.
        step: its number, from 0.

    Raises:
        NotFiniteError: on every rank, if a loss or a gradient is not finite on any; no weight and no moment of the
            optimizer has changed.
    """
    # Without dropout too, whose rates are then 0: gradient checkpointing is silently off in evaluation mode.
    engine.train(training=True)
    sums = _accumulate(engine, run, rows, step=step)
    grad_norm = engine.step(learning_rate)
    if not math.isfinite(grad_norm):
        raise _not_finite(step, sums.groups_not_finite(), [run.tokens.group_id(int(row)) for row in rows[:8]])
    dist.all_reduce(sums.total)
    loss, weight, correct, margin, num_tokens = sums.total.tolist()
    return {
        "loss": loss,
        "accuracy": correct / weight,
        "reward_margin": margin / weight,
        "grad_norm": grad_norm,
        "num_tokens": num_tokens,
    }


class _StepSums:
    """Sums over this rank's part of a step; on the device until the step ends, since reading them waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros(5, dtype=torch.float64, device=device)
        self._losses: list[Tensor] = []
        self._group_ids: list[tuple[str, ...]] = []

    def add(self, reward_N: Tensor, targets: PreferenceTargets, loss: Tensor, group_ids: tuple[str, ...]) -> None:
        difference_P = (reward_N[targets.chosen_P] - reward_N[targets.rejected_P]).detach().double()
        weight_P = targets.weight_P.double()
        correct_P = (difference_P > 0).double() + 0.5 * (difference_P == 0).double()
        weighted = [weight_P, weight_P * correct_P, weight_P * difference_P]
        self.total[:4] += torch.stack([loss.detach().double(), *(term_P.sum() for term_P in weighted)])
        self._losses.append(loss.detach().double())
        self._group_ids.append(group_ids)

    def add_tokens(self, num_tokens: int) -> None:
        self.total[4] += num_tokens

    def groups_not_finite(self) -> list[str]:
        """Return the ids of the groups whose micro-batch has a loss that is not finite."""
        finite = torch.stack(self._losses).isfinite().tolist() if self._losses else []
        return [name for names, good in zip(self._group_ids, finite, strict=True) if not good for name in names]


def _accumulate(engine: StepEngine, run: Run, rows: np.ndarray, *, step: int) -> _StepSums:
    """Accumulate this rank's part of the gradient."""
    work = GlobalBatch(engine, run, rows, step=step)
    global_weight = torch.tensor(float(run.tokens.weight_G[rows].sum()), dtype=torch.float32, device=engine.device)
    sums = _StepSums(engine.device)
    mine = work.plan.unsplit[dist.get_rank()]
    if work.split_positions:
        _accumulate_split_groups(work, sums, global_weight, ends_step=not mine)
    for number, planned in enumerate(mine, start=len(work.plan.split[dist.get_rank()])):
        batch = work.batch(planned.parts)
        work.seed_dropout(number)
        reward_N = engine.rewards(batch)
        loss = preference_loss(reward_N, batch.targets, run.config.loss, global_weight=global_weight)
        engine.accumulate(loss * _poison(loss), is_last=planned is mine[-1])
        sums.add(reward_N, batch.targets, loss, batch.group_ids)
        sums.add_tokens(batch.num_tokens)
    return sums


def _accumulate_split_groups(work: GlobalBatch, sums: _StepSums, global_weight: Tensor, *, ends_step: bool) -> None:
    """Accumulate this rank's part of the split groups' gradient, by the chain rule of the module's docstring."""
    reward_M = work.split_group_rewards().requires_grad_()
    groups = work.groups(work.split_positions)
    targets = PreferenceTargets.of(groups).to(reward_M.device)
    loss = preference_loss(reward_M, targets, work.run.config.loss, global_weight=global_weight)
    (gradient_M,) = torch.autograd.grad(loss * _poison(loss), reward_M)
    if dist.get_rank() == 0:  # every rank has the same
        sums.add(reward_M, targets, loss, tuple(group.group_id for group in groups))
    mine = work.plan.split[dist.get_rank()]
    for number, planned in enumerate(mine):
        batch = work.batch(planned.parts)
        work.seed_dropout(number)
        reward_N = work.engine.rewards(batch)
        index_N = work.completion_indices(planned.parts)
        surrogate = (reward_N[: index_N.numel()] * gradient_M[index_N].to(reward_N.dtype)).sum()
        work.engine.accumulate(surrogate, is_last=ends_step and planned is mine[-1])
        sums.add_tokens(batch.num_tokens)


def _poison(loss: Tensor) -> Tensor:
    """Return 1 for a finite loss, else NaN: multiplied with the loss it makes the gradient NaN too.

    An infinite loss may have a finite gradient. With this factor the gradient's norm, which all ranks know before the
    update, reports both, and no further collective is needed.
    """
    return 1.0 + 0.0 * loss.detach()


def _not_finite(step: int, group_ids: Sequence[str], first_of_step: Sequence[str]) -> NotFiniteError:
    """Return the error for a step whose gradient is not finite; a collective.

    Args:
        step: its number, from 0.
        group_ids: of the groups whose micro-batch on this rank has a loss that is not finite.
        first_of_step: the first of the global batch's groups, named if every loss is finite.
    """
    found = [name for names in all_gather_object(list(group_ids)) for name in names]
    if not found:
        return NotFiniteError(
            f"step {step + 1}: the gradient is not finite, though the loss is; lower optimizer.learning_rate, or try "
            f'deepspeed.precision = "fp32". First groups of this step: {", ".join(first_of_step)}'
        )
    return NotFiniteError(
        f"step {step + 1}: the loss is not finite in the micro-batches with groups {', '.join(found[:8])}"
        f"{f' and {len(found) - 8} more' if len(found) > 8 else ''}; look at these rows of the pairs table (by "
        "group_id), or lower optimizer.learning_rate and give the new run another output"
    )


# ---------------------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def evaluate_split(engine: StepEngine, run: Run, split: str) -> Mapping[str, Any]:
    """Return the metrics on a split, equal on every rank and exact at any world size; empty if the split is empty.

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
        work = GlobalBatch(engine, run, part, step=0)
        for groups, reward_N in _rewards_by_batch(work):
            try:
                _count(sums, groups, reward_N)
            except ModelError as found:
                # Continue to the end: the other ranks' forward passes need this rank's.
                error = error or found
    raise_on_all_ranks(error)
    return merged(all_gather_object(sums)).report()


def _rewards_by_batch(work: GlobalBatch) -> Iterator[tuple[list[TokenGroup], np.ndarray]]:
    """Yield groups and their rewards, each group on one rank."""
    if work.split_positions:
        reward_M = work.split_group_rewards()
        if dist.get_rank() == 0:
            yield work.groups(work.split_positions), reward_M.float().cpu().numpy()
    for planned in work.plan.unsplit[dist.get_rank()]:
        reward_N = work.engine.rewards(work.batch(planned.parts))
        yield work.groups(part.position for part in planned.parts), reward_N.float().cpu().numpy()


def _count(sums: EvaluationSums, groups: Sequence[TokenGroup], reward_N: np.ndarray) -> None:
    first = 0
    for group in groups:
        last = first + len(group.completion_ids)
        sums.add(reward_N[first:last], group)
        first = last
