"""A group split into parts has the loss and gradient of the unsplit group, dropout included.

One rank in plain torch, so that it can be float64; several, under DeepSpeed, are in test_zero_ranks.py.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from pairwright.config import TrainConfig
from pairwright.data.table.table import Table
from pairwright.data.tokens.tokenize_groups import TokenGroup, TokenTable, groups_to_table
from pairwright.model.collate import Layout, MicroBatch, collate
from pairwright.model.loss import preference_loss
from pairwright.model.reward_metrics import EvaluationSums
from pairwright.model.reward_model import RewardModel
from pairwright.training.global_batch import GlobalBatch, Run, shape_of
from pairwright.training.step import evaluate_split, train_step

LAYOUTS = get_args(Layout)
LOSSES: dict[str, dict[str, Any]] = {
    "bradley_terry": {"label_smoothing": 0.1, "center_coefficient": 0.01},
    "hinge": {"kind": "hinge"},
    "plackett_luce": {"kind": "plackett_luce", "use_margin": False},
}
UNSPLIT, SPLIT = 100_000, 45
"""Budgets in tokens: of all groups at once, and of two or three completions."""
Gradient = dict[str, Tensor]


class PlainEngine:
    """Plain torch on one rank; keeps the gradient of the last step, and the tokens of each forward."""

    def __init__(self, model: RewardModel, layout: Layout) -> None:
        model.accept_packed_sequences(enabled=layout != "padded")
        self.model = model
        self.device = torch.device("cpu")
        self.gradient: Gradient = {}
        self.forwards: list[int] = []
        self.lasts: list[bool] = []

    def rewards(self, batch: MicroBatch) -> Tensor:
        self.forwards.append(batch.input_ids_RT.numel())
        return self.model(
            batch.input_ids_RT, batch.position_ids_RT, batch.attention_mask_RT, batch.segments, batch.last_N
        )

    def accumulate(self, loss: Tensor, *, is_last: bool) -> None:
        loss.backward()
        self.lasts.append(is_last)

    def step(self, learning_rate: float) -> float:
        self.gradient = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad()
        return math.sqrt(sum(float(grad.double().square().sum()) for grad in self.gradient.values()))

    def train(self, *, training: bool) -> None:
        self.model.train(training)


@pytest.fixture(scope="module", autouse=True)
def _alone() -> Iterator[None]:
    """A process group of one; and one thread, which such small models are faster with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def groups(random_group: Callable[..., TokenGroup]) -> list[TokenGroup]:
    """Every K from 2 to 9, ties, margins on some pairs and several annotators; one small, so that it stays whole."""
    rng = np.random.default_rng(11)
    made = [
        random_group(rng, num_completions=k, num_annotators=int(rng.integers(1, 4)), vocab=(5, 260))
        for k in range(2, 10)
    ]
    small = dataclasses.replace(made[0], completion_ids=[ids[:4] for ids in made[0].completion_ids])
    return [small, *made[1:]]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, groups: list[TokenGroup]) -> TokenTable:
    table = Table(str(tmp_path_factory.mktemp("tokens")), "tokens")
    path = table.local_path(table.write_data(groups_to_table(groups, ["train"] * len(groups)), compress=False))
    assert path is not None
    return TokenTable([path])


def _run(tokens: TokenTable, model: RewardModel, layout: Layout, budget: int, loss: str = "bradley_terry") -> Run:
    config = TrainConfig.model_validate(
        {
            "output": "unused",
            "model": {"path": "unused"},
            "data": {"pairs": "unused"},
            "tokens": {"max_length": 8},
            "batches": {"micro_batch_tokens": budget, "groups_per_step": 3},
            "loss": LOSSES[loss],
        }
    )
    return Run(config=config, run_digest="", tokens=tokens, pad_token_id=0, layout=layout, shape=shape_of(model))


def _step(model: RewardModel, run: Run, rows: np.ndarray) -> tuple[dict[str, float], PlainEngine]:
    engine = PlainEngine(model, run.layout)
    return train_step(engine, run, rows, 0.0, step=5), engine


def _difference(found: Gradient, expected: Gradient) -> float:
    assert found.keys() == expected.keys()
    difference = math.sqrt(sum(float((found[n] - expected[n]).double().square().sum()) for n in expected))
    return difference / math.sqrt(sum(float(expected[n].double().square().sum()) for n in expected))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("loss", "dtype", "tolerance"),
    [*((loss, torch.float64, 1e-12) for loss in LOSSES), ("bradley_terry", torch.float32, 2e-6)],
)
def test_split_groups_have_the_gradient_and_metrics_of_unsplit_ones(
    load, tokens, layout: Layout, loss: str, dtype: torch.dtype, tolerance: float
):
    model, rows = load("gpt2", dtype=dtype), np.arange(len(tokens))
    metrics, whole = _step(model, _run(tokens, model, layout, UNSPLIT, loss), rows)
    found, split = _step(model, _run(tokens, model, layout, SPLIT, loss), rows)
    assert len(whole.forwards) == 1
    assert max(split.forwards) <= SPLIT
    # Parts run twice, whole groups once.
    assert len(split.lasts) < len(split.forwards) < 2 * len(split.lasts)
    assert split.lasts == [False] * (len(split.lasts) - 1) + [True]
    assert _difference(split.gradient, whole.gradient) < tolerance
    assert found.keys() == metrics.keys()
    for name in ("loss", "accuracy", "reward_margin", "grad_norm"):
        assert found[name] == pytest.approx(metrics[name], rel=max(tolerance, 1e-9)), name


def test_split_groups_alone_make_a_step(load, tokens):
    model, rows = load("gpt2", dtype=torch.float64), np.array([6, 7])
    _, whole = _step(model, _run(tokens, model, "shared", UNSPLIT), rows)
    _, split = _step(model, _run(tokens, model, "shared", SPLIT), rows)
    assert split.lasts[-1]
    assert not any(split.lasts[:-1])
    assert _difference(split.gradient, whole.gradient) < 1e-12


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_passes_of_a_split_group_see_the_same_dropout(load, tokens, layout: Layout):
    """Against one backward through all parts at once, each drawn as the step draws it."""
    model = load("gpt2", dtype=torch.float64, dropout=True).train()
    rows, run = np.arange(len(tokens)), _run(tokens, model, layout, SPLIT, "plackett_luce")
    _, engine = _step(model, run, rows)
    assert _difference(engine.gradient, _kept_graph_gradient(model, run, rows, same_draws=True)) < 1e-12
    assert _difference(engine.gradient, _kept_graph_gradient(model, run, rows, same_draws=False)) > 1e-2


def _kept_graph_gradient(model: RewardModel, run: Run, rows: np.ndarray, *, same_draws: bool) -> Gradient:
    work = GlobalBatch(PlainEngine(model, run.layout), run, rows, step=5)
    batches = [*work.plan.split[0], *work.plan.unsplit[0]]
    rewards: dict[tuple[int, int], Tensor] = {}
    for number, planned in enumerate(batches):
        work.seed_dropout(number if same_draws else number + 1000)
        reward_N = work.engine.rewards(work.batch(planned.parts))
        places = [(part.position, k) for part in planned.parts for k in range(part.first, part.last)]
        rewards |= dict(zip(places, reward_N, strict=True))
    groups = work.groups(range(len(rows)))
    targets = collate(groups, 0, "padded").targets
    reward_N = torch.stack([rewards[g, k] for g, group in enumerate(groups) for k in range(len(group.completion_ids))])
    weight = torch.tensor(float(run.tokens.weight_G[rows].sum()))
    preference_loss(reward_N, targets, run.config.loss, global_weight=weight).backward()
    engine = PlainEngine(model, run.layout)
    engine.step(0.0)
    return engine.gradient


def test_tokens_are_counted_once_though_parts_run_twice(load, tokens, groups):
    model, rows = load("gpt2"), np.arange(len(tokens))
    rows_tokens = sum(group.prompt_ids.size + ids.size for group in groups for ids in group.completion_ids)
    for budget in (UNSPLIT, SPLIT):
        metrics, _ = _step(model, _run(tokens, model, "packed", budget), rows)
        assert metrics["num_tokens"] == rows_tokens


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_evaluation_of_split_groups_has_the_metrics_of_unsplit_ones(load, tokens, groups, layout: Layout):
    model = load("gpt2", dtype=torch.float64)
    engine = PlainEngine(model, layout)
    found = evaluate_split(engine, _run(tokens, model, layout, SPLIT), "train")
    assert max(engine.forwards) <= SPLIT
    sums = EvaluationSums()
    for group in groups:
        batch = collate([group], 0, "padded")
        sums.add(PlainEngine(model, "padded").rewards(batch).detach().float().numpy(), group)
    assert found.keys() == sums.report().keys()
    for name, value in sums.report()["overall"].items():
        assert found["overall"][name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize("loss", LOSSES)
def test_accuracy_and_reward_margin_of_a_step_are_those_of_its_pairs_whatever_the_loss(load, tokens, groups, loss: str):
    model = load("gpt2", dtype=torch.float64)
    metrics, _ = _step(model, _run(tokens, model, "padded", UNSPLIT, loss), np.arange(len(tokens)))
    sums = EvaluationSums()
    for group in groups:
        batch = collate([group], 0, "padded")
        sums.add(PlainEngine(model, "padded").rewards(batch).detach().numpy(), group)
    expected = sums.report()["overall"]
    for name in ("accuracy", "reward_margin"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-12), name
