"""A global batch's groups and their plan -> this rank's micro-batches, and the rewards of groups that lie in several.

Micro-batches are read one at a time, from views into the tokens table; nothing of another rank's part is.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pairwright.config import TrainConfig
from pairwright.data.tokens.group_sizes import GroupSizes
from pairwright.data.tokens.tokenize_groups import TokenGroup, TokenTable
from pairwright.model.batching.cost_model import ModelShape
from pairwright.model.batching.plan import CompletionTokens, Part, Plan, Rules
from pairwright.model.collate import Layout, MicroBatch, collate
from pairwright.model.reward_model import RewardModel

Planner = Callable[[GroupSizes, CompletionTokens, Rules], Plan]


class StepEngine(Protocol):
    """What a step needs of the engine (training/engine.py)."""

    @property
    def device(self) -> torch.device: ...

    def rewards(self, batch: MicroBatch) -> Tensor: ...

    def accumulate(self, loss: Tensor, *, is_last: bool) -> None: ...

    def step(self, learning_rate: float) -> float: ...

    def train(self, *, training: bool) -> None: ...


@dataclass(frozen=True)
class Run:
    """What one rank needs to know to train."""

    config: TrainConfig
    run_digest: str
    tokens: TokenTable
    pad_token_id: int
    layout: Layout
    """How groups lie in a forward (model/collate.py)."""
    shape: ModelShape
    """Of the model that is trained: what plans weigh costs by."""

    def rules(self) -> Rules:
        """Return what this run's plans keep to."""
        return Rules(
            layout=self.layout,
            shape=self.shape,
            world_size=dist.get_world_size(),
            micro_batch_tokens=self.config.batches.micro_batch_tokens,
        )


def shape_of(model: RewardModel) -> ModelShape:
    """Return what decides the cost of the model's tokens; of whole weights, so before ZeRO-3 cuts them."""
    config = model.model.config.get_text_config()
    linear = [module for module in model.modules() if isinstance(module, (nn.Linear, Conv1D))]
    # hidden_size is the width of all heads together, but for models that name their heads' size.
    head_size = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
    return ModelShape(
        linear_parameters=sum(module.weight.numel() for module in linear),
        attention_width=config.num_hidden_layers * config.num_attention_heads * head_size,
    )


class GlobalBatch:
    """A global batch and its plan, as this rank computes it.

    Attributes:
        divided_positions: of the divided groups in the global batch, ascending; their completions are numbered 0 to M
            in this order.
        num_divided_completions: M.
    """

    def __init__(self, engine: StepEngine, run: Run, rows: np.ndarray, planner: Planner, *, step: int) -> None:
        self.engine, self.run = engine, run
        self._rows, self._step = rows, step
        self.plan = plan = planner(run.tokens.sizes_of(rows), self._completion_tokens, run.rules())
        self.divided_positions = plan.divided_positions()
        sizes = run.tokens.num_completions_G[rows[self.divided_positions]].astype(np.int64)
        self._first_place = dict(zip(self.divided_positions, (np.cumsum(sizes) - sizes).tolist(), strict=True))
        self.num_divided_completions = int(sizes.sum())

    def _completion_tokens(self, position: int) -> list[int]:
        return self.run.tokens.completion_tokens(int(self._rows[position])).tolist()

    def groups(self, positions: Iterable[int]) -> list[TokenGroup]:
        """Return whole groups by their positions in the global batch."""
        return [self.run.tokens.group(int(self._rows[position])) for position in positions]

    def batch(self, parts: Sequence[Part]) -> MicroBatch:
        """Return a micro-batch on the device."""
        groups = self.groups(part.position for part in parts)
        cut = [_some_completions(group, part) for group, part in zip(groups, parts, strict=True)]
        return collate(cut, self.run.pad_token_id, self.run.layout).to(self.engine.device)

    def places(self, parts: Sequence[Part]) -> Tensor:
        """Return the numbers of these completions among those of the divided groups, int64, shape (N,)."""
        first = self._first_place
        place_N = [first[part.position] + index for part in parts for index in range(part.first, part.last)]
        return torch.tensor(place_N, dtype=torch.int64, device=self.engine.device)

    def seed_dropout(self, number: int) -> None:
        """Set what a micro-batch draws: the same in both passes of a divided group, on this rank and step alone."""
        state = np.random.SeedSequence(
            [self.run.config.training.seed, self._step, dist.get_rank(), number]
        ).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0] >> 1))

    @torch.no_grad()
    def divided_rewards(self) -> Tensor:
        """Return the reward of each completion of the divided groups, on every rank; a collective.

        Returns:
            float64, shape (M,), without gradient.
        """
        reward_M = torch.zeros(self.num_divided_completions, dtype=torch.float64, device=self.engine.device)
        for number, planned in enumerate(self.plan.divided[dist.get_rank()]):
            batch = self.batch(planned.parts)
            self.seed_dropout(number)
            place_N = self.places(planned.parts)
            # An empty micro-batch has a reward without a place.
            reward_M[place_N] = self.engine.rewards(batch)[: place_N.numel()].double()
        # Each place was filled by one rank, so the sum is exact.
        dist.all_reduce(reward_M)
        return reward_M


def _some_completions(group: TokenGroup, part: Part) -> TokenGroup:
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
