"""Loss and gradient under real DeepSpeed, ZeRO 0-3, on 1, 2 and 3 ranks, against one written pair by pair in float64.

The reference shares no code with the library: it loads the model with plain transformers in float64, computes each
completion's reward alone, without padding, and adds the pairs' losses one by one.
"""

import json
import math
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from pairwright.data.store import Table
from pairwright.data.tokens import TokenGroup, groups_to_table
from pairwright.model.reward_model import load_reward_model
from pairwright.model.small import new_small_model

NUM_STEPS = 3
LEARNING_RATE = 1e-2
ADAM_EPS = 0.1
WEIGHT_DECAY = 0.1
# Well under the gradient's norm, so that every step is clipped.
MAX_GRADIENT_NORM = 0.2

LABEL_SMOOTHING = 0.1
# Measured in November 2026: at most 2.4e-7 for the gradient on every stage and number of ranks.
GRADIENT_TOLERANCE = 2e-6
LOSS_TOLERANCE = 2e-6
# Of the weights' change over three steps; measured 1.1e-5 everywhere, since DeepSpeed clips by norm + 1e-6.
CHANGE_TOLERANCE = 1e-4
# bfloat16 rounds to 8 bits, 4e-3. Measured in November 2026: loss off by 1.7e-4, gradient by 7.3e-3.
BF16_LOSS_TOLERANCE = 1e-3
BF16_GRADIENT_TOLERANCE = 2e-2


def make_groups(seed: int) -> list[TokenGroup]:
    """Return groups with every K from 2 to 9, ties (pairs left out), contradictions, weights and some margins."""
    draw = np.random.default_rng(seed)
    groups = []
    for num_completions in range(2, 10):
        ranks = [draw.integers(1, 5, num_completions) for _ in range(1 + num_completions % 3)]
        pairs = [
            (i, j, 1.0 / math.comb(num_completions, 2) / len(ranks))
            for rank in ranks
            for i in range(num_completions)
            for j in range(num_completions)
            if rank[i] < rank[j]
        ] or [(0, 1, 1.0)]
        margin = np.where(draw.random(len(pairs)) < 0.5, draw.random(len(pairs)), np.nan)
        groups.append(
            TokenGroup(
                group_id=f"{num_completions:032x}",
                subset=None,
                prompt_ids=draw.integers(5, 200, draw.integers(1, 12)).astype(np.int32),
                completion_ids=[
                    draw.integers(5, 200, draw.integers(1, 20)).astype(np.int32) for _ in range(num_completions)
                ],
                num_characters=np.ones(num_completions, np.int32),
                completion_index=np.arange(num_completions, dtype=np.int16),
                chosen_P=np.array([i for i, _, _ in pairs], np.int64),
                rejected_P=np.array([j for _, j, _ in pairs], np.int64),
                weight_P=np.array([w for _, _, w in pairs], np.float32),
                margin_P=margin.astype(np.float32),
            )
        )
    return groups


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("zero")
    base = new_small_model(
        folder / "base",
        architecture="llama",
        texts=["some words to learn from"],
        vocab_size=300,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        max_positions=64,
        seed=0,
    )
    started = load_reward_model(
        str(base),
        dtype=torch.float32,
        seed=0,
        dropout=False,
        gradient_checkpointing=False,
        pad_token_id=0,
        vocab_size=None,
    )
    started.model.save_pretrained(folder / "model")
    groups = make_groups(seed=1)
    table = Table(str(folder / "tokens"), "tokens")
    file = table.write_data(groups_to_table(groups, ["train"] * len(groups)), compress=False)
    return {"folder": folder, "model": folder / "model", "tokens": table.local_path(file), "groups": groups}


def reference_loss(model: torch.nn.Module, groups: list[TokenGroup]) -> torch.Tensor:
    """Return the loss of the global batch, float64, one completion and then one pair at a time."""
    total, weight_sum = torch.zeros((), dtype=torch.float64), 0.0
    for group in groups:
        rewards = [
            model(input_ids=torch.tensor([[*group.prompt_ids.tolist(), *ids.tolist()]])).logits[0, 0]
            for ids in group.completion_ids
        ]
        for i, j, weight, margin in zip(
            group.chosen_P, group.rejected_P, group.weight_P.tolist(), group.margin_P.tolist(), strict=True
        ):
            difference = rewards[i] - rewards[j] - (0.0 if math.isnan(margin) else margin)
            likely = torch.log1p(torch.exp(-difference))
            unlikely = torch.log1p(torch.exp(difference))
            total = total + weight * ((1 - LABEL_SMOOTHING) * likely + LABEL_SMOOTHING * unlikely)
            weight_sum += weight
    return total / weight_sum


@pytest.fixture(scope="module")
def reference(world: dict[str, Any]) -> dict[str, Any]:
    """Loss and gradient of the global batch, and the weights after three steps of plain torch, all in float64."""
    model = AutoModelForSequenceClassification.from_pretrained(world["model"], dtype=torch.float64)
    model.train()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), eps=ADAM_EPS, weight_decay=WEIGHT_DECAY
    )
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    biases = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    optimizer.add_param_group({"params": biases, "weight_decay": 0.0})
    losses, gradients = [], []
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = reference_loss(model, world["groups"])
        loss.backward()
        losses.append(loss.item())
        gradients.append(
            {f"model.{n}": p.grad.numpy().copy() for n, p in model.named_parameters() if p.grad is not None}
        )
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
    change = {f"model.{name}": (p.detach() - start[name]).numpy() for name, p in model.named_parameters()}
    return {"losses": losses, "loss": losses[0], "gradient": gradients[0], "change": change, "start": start}


def run_ranks(world: dict[str, Any], world_size: int) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # A budget that cuts the batch finely for one stage, coarsely for the next: memory must not change the result.
    cases = [
        {"name": f"zero{stage} {precision}", "zero_stage": stage, "precision": precision, "micro_batch_tokens": budget}
        for stage, budget in enumerate((300, 100_000, 300, 100_000))
        for precision in ("fp32", "bf16")
    ]
    output = world["folder"] / f"results-{world_size}.pt"
    processes = []
    for rank in range(world_size):
        arguments = {
            "rank": rank,
            "world_size": world_size,
            "port": port,
            "model": str(world["model"]),
            "tokens": str(world["tokens"]),
            "output": str(output),
            "cases": cases,
            "num_steps": NUM_STEPS,
            "label_smoothing": LABEL_SMOOTHING,
            "optimizer": {
                "learning_rate": LEARNING_RATE,
                "eps": ADAM_EPS,
                "weight_decay": WEIGHT_DECAY,
                "max_gradient_norm": MAX_GRADIENT_NORM,
            },
        }
        file = world["folder"] / f"arguments-{world_size}-{rank}.json"
        file.write_text(json.dumps(arguments))
        script = Path(__file__).with_name("zero_ranks.py")
        processes.append(subprocess.Popen([sys.executable, str(script), str(file)], stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-4000:]
    return torch.load(output, weights_only=False)


@pytest.fixture(scope="module")
def results(world: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {world_size: run_ranks(world, world_size) for world_size in (1, 2, 3)}


def relative_difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    assert found.keys() == expected.keys()
    difference = sum(float(((found[name] - expected[name]) ** 2).sum()) for name in expected)
    return math.sqrt(difference / sum(float((value**2).sum()) for value in expected.values()))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_loss_and_gradient_equal_the_pair_by_pair_reference(
    results: dict[int, dict[str, Any]], reference: dict[str, Any], world_size: int, stage: int
) -> None:
    """TRAPS.md 6, 7, 19, 21: whatever the ranks, the ZeRO stage and the budget, one loss and one gradient."""
    found = results[world_size][f"zero{stage} fp32"]
    assert found["figures"][0]["loss"] == pytest.approx(reference["loss"], rel=LOSS_TOLERANCE)
    difference = relative_difference(found["gradients"][0], reference["gradient"])
    print(f"ZeRO-{stage}, {world_size} ranks: relative gradient difference {difference:.1e}")
    assert difference < GRADIENT_TOLERANCE


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_reported_norm_is_that_of_the_gradient_before_clipping(
    results: dict[int, dict[str, Any]], reference: dict[str, Any], world_size: int, stage: int
) -> None:
    norm = math.sqrt(sum(float((g**2).sum()) for g in reference["gradient"].values()))
    assert results[world_size][f"zero{stage} fp32"]["figures"][0]["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_three_steps_change_the_weights_as_plain_torch_does(
    results: dict[int, dict[str, Any]], reference: dict[str, Any], world_size: int, stage: int
) -> None:
    """TRAPS.md 21: clipping at our norm, our learning rate, no factor of ranks or accumulation steps.

    Adam's epsilon is large here, so that an update is in proportion to its gradient and a wrong factor shows.
    """
    found = results[world_size][f"zero{stage} fp32"]
    assert [figures["loss"] for figures in found["figures"]] == pytest.approx(reference["losses"], rel=LOSS_TOLERANCE)
    change = {
        name: found["state"][name] - reference["start"][name.removeprefix("model.")].numpy()
        for name in reference["change"]
    }
    difference = relative_difference(change, reference["change"])
    print(f"ZeRO-{stage}, {world_size} ranks: weights changed by {difference:.1e} more or less")
    assert difference < CHANGE_TOLERANCE


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_training_follows_the_reference_as_closely_as_its_rounding_allows(
    results: dict[int, dict[str, Any]], reference: dict[str, Any], world_size: int, stage: int
) -> None:
    found = results[world_size][f"zero{stage} bf16"]
    difference = relative_difference(found["gradients"][0], reference["gradient"])
    loss = found["figures"][0]["loss"]
    print(f"ZeRO-{stage} bf16, {world_size} ranks: loss {loss / reference['loss'] - 1:.1e}, gradient {difference:.1e}")
    assert loss == pytest.approx(reference["loss"], rel=BF16_LOSS_TOLERANCE)
    assert difference < BF16_GRADIENT_TOLERANCE
    assert found["figures"][-1]["loss"] < found["figures"][0]["loss"]
