"""This rank's micro-batches of a global batch, by its plan, and the rewards of groups split over several of them.

Micro-batches are read one at a time, from views into the tokens table; a rank reads its own part only.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pairwright.config import TrainConfig
from pairwright.data.tokens.tokenize_groups import TokenGroup, TokenTable
from pairwright.model.batching.cost_model import ModelShape
from pairwright.model.batching.plan import GroupPart, Rules, plan_micro_batches
from pairwright.model.collate import Layout, MicroBatch, collate
from pairwright.model.reward_model import RewardModel


class StepEngine(Protocol):
    """The methods of the engine (training/engine.py) that a step calls."""

    @property
    def device(self) -> torch.device: ...

    def rewards(self, batch: MicroBatch) -> Tensor: ...

    def accumulate(self, loss: Tensor, *, is_last: bool) -> None: ...

    def step(self, learning_rate: float) -> float: ...

    def train(self, *, training: bool) -> None: ...


@dataclass(frozen=True)
class Run:
    """Configuration, data and model shape of a run, as one rank needs them."""

    config: TrainConfig
    run_digest: str
    tokens: TokenTable
    pad_token_id: int
    layout: Layout
    """Layout of micro-batches (model/collate.py)."""
    shape: ModelShape
    """Of the trained model: the input of the cost model."""

    def rules(self) -> Rules:
        """Return the constraints of this run's plans."""
        return Rules(
            layout=self.layout,
            shape=self.shape,
            world_size=dist.get_world_size(),
            micro_batch_tokens=self.config.batches.micro_batch_tokens,
        )


def shape_of(model: RewardModel) -> ModelShape:
    """Return the model's sizes that decide the cost of a token; call it before ZeRO-3 partitions the weights."""
    config = model.model.config.get_text_config()
    linear = [module for module in model.modules() if isinstance(module, (nn.Linear, Conv1D))]
    # hidden_size is the width of all heads together, except for models that configure their heads' size.
    head_size = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
    return ModelShape(
        linear_parameters=sum(module.weight.numel() for module in linear),
        attention_width=config.num_hidden_layers * config.num_attention_heads * head_size,
    )


class GlobalBatch:
    """A global batch and its plan, as this rank computes it.

    Attributes:
        split_positions: positions of the split groups in the global batch, ascending; their completions are numbered
            0 to M - 1 in this order.
        num_split_completions: M.
    """

    def __init__(self, engine: StepEngine, run: Run, rows: np.ndarray, *, step: int) -> None:
        self.engine, self.run = engine, run
        self._rows, self._step = rows, step
        self.plan = plan = plan_micro_batches(run.tokens.sizes_of(rows), self._completion_tokens, run.rules())
        self.split_positions = plan.split_positions()
        sizes = run.tokens.num_completions_G[rows[self.split_positions]].astype(np.int64)
        self._first_index = dict(zip(self.split_positions, (np.cumsum(sizes) - sizes).tolist(), strict=True))
        self.num_split_completions = int(sizes.sum())

    def _completion_tokens(self, position: int) -> list[int]:
        return self.run.tokens.completion_tokens(int(self._rows[position])).tolist()

    def groups(self, positions: Iterable[int]) -> list[TokenGroup]:
        """Return whole groups by their positions in the global batch."""
        return [self.run.tokens.group(int(self._rows[position])) for position in positions]

    def batch(self, parts: Sequence[GroupPart]) -> MicroBatch:
        """Return a micro-batch on the device."""
        groups = self.groups(part.position for part in parts)
        selected = [_select_completions(group, part) for group, part in zip(groups, parts, strict=True)]
        return collate(selected, self.run.pad_token_id, self.run.layout).to(self.engine.device)

    def completion_indices(self, parts: Sequence[GroupPart]) -> Tensor:
        """Return the indices of these completions among those of the split groups, int64, shape (N,)."""
        first = self._first_index
        index_N = [first[part.position] + index for part in parts for index in range(part.first, part.last)]
        return torch.tensor(index_N, dtype=torch.int64, device=self.engine.device)

    def seed_dropout(self, number: int) -> None:
        """Seed a micro-batch's dropout: equally in both passes of a split group, differently on every rank and step."""
        state = np.random.SeedSequence(
            [self.run.config.training.seed, self._step, dist.get_rank(), number]
        ).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0] >> 1))

    @torch.no_grad()
    def split_group_rewards(self) -> Tensor:
        """Return the reward of each completion of the split groups, on every rank; a collective.

        Returns:
            float64, shape (M,), without gradient.
        """
        reward_M = torch.zeros(self.num_split_completions, dtype=torch.float64, device=self.engine.device)
        for number, planned in enumerate(self.plan.split[dist.get_rank()]):
            batch = self.batch(planned.parts)
            self.seed_dropout(number)
            index_N = self.completion_indices(planned.parts)
            # An empty micro-batch has one reward that belongs to no completion.
            reward_M[index_N] = self.engine.rewards(batch)[: index_N.numel()].double()
        # Each element was computed by one rank and is 0 elsewhere, so the sum is exact.
        dist.all_reduce(reward_M)
        return reward_M


def _select_completions(group: TokenGroup, part: GroupPart) -> TokenGroup:
    """Return the group with some of its completions and no pairs; with all of them, the group as it is."""
    if part.last - part.first == len(group.completion_ids):
        return group
    return dataclasses.replace(
        group,
        completion_ids=group.completion_ids[part.first : part.last],
        num_characters=group.num_characters[part.first : part.last],
        completion_index=group.completion_index[part.first : part.last],
        chosen_P=group.chosen_P[:0],
        rejected_P=group.rejected_P[:0],
        weight_P=group.weight_P[:0],
        margin_P=group.margin_P[:0],
    )
