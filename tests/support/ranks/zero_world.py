"""What the DeepSpeed tests run on, and what they should find (the runs: zero_runs.py).

The reference shares no code with the library: it loads the model with plain transformers in float64, computes each
completion's reward alone, without padding, adds the pairs' losses one by one and steps with plain torch. Adapters are
added to the weights by the formula of Hu et al. 2021, not by peft.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModelForSequenceClassification

from pairwright.data.table.table import Table
from pairwright.data.tokens.tokenize_groups import TokenGroup, groups_to_table
from pairwright.model.load_model import load_reward_model
from pairwright.model.tiny_models import new_tiny_model

NUM_STEPS = 3
LEARNING_RATE = 1e-2
ADAM_EPS = 0.1
WEIGHT_DECAY = 0.1
# Well under the gradient's norm, so that every step is clipped.
MAX_GRADIENT_NORM = 0.2
LABEL_SMOOTHING = 0.1
LORA = {"rank": 4, "alpha": 12.0}

World = dict[str, Any]
Reference = dict[str, Any]


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


def make_world(folder: Path) -> World:
    """Write the models, the adapters and the tokens that all ranks read."""
    groups = make_groups(seed=1)
    table = Table(str(folder / "tokens"), "tokens")
    file = table.write_data(groups_to_table(groups, ["train"] * len(groups)), compress=False)
    world = {"folder": folder, "groups": groups, "tokens": table.local_path(file)}
    # GPT-2 has dropout of every kind in its configuration, Llama none.
    for architecture in ("llama", "gpt2"):
        world[architecture] = _sequence_classifier(folder, architecture)
    world["adapters"] = _adapters(world["llama"], folder / "adapters.pt")
    return world


def _sequence_classifier(folder: Path, architecture: str) -> Path:
    base = new_tiny_model(
        folder / f"base_{architecture}",
        architecture=architecture,
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
        dropout=True,
        gradient_checkpointing=False,
        pad_token_id=0,
        vocab_size=None,
        cpu_kernels=True,
    )
    started.model.save_pretrained(folder / architecture)
    return folder / architecture


def _adapters(model: Path, file: Path) -> Path:
    """Write adapters of every linear layer of the Llama model, under peft's names."""
    draw, rank = torch.Generator().manual_seed(4), LORA["rank"]
    adapters = {}
    for name, parameter in AutoModelForSequenceClassification.from_pretrained(
        model, trust_remote_code=False
    ).named_parameters():
        if name.endswith("_proj.weight"):
            layer, (num_out, num_in) = f"model.{name.removesuffix('.weight')}", parameter.shape
            adapters[f"{layer}.lora_A.default.weight"] = 0.1 * torch.randn((rank, num_in), generator=draw)
            adapters[f"{layer}.lora_B.default.weight"] = 0.1 * torch.randn((num_out, rank), generator=draw)
    torch.save(adapters, file)
    return file


# ---------------------------------------------------------------------------------------------- the reference


def full_reference(world: World) -> Reference:
    """Return three steps of plain torch on all weights."""
    model = AutoModelForSequenceClassification.from_pretrained(
        world["llama"], dtype=torch.float64, trust_remote_code=False
    )
    parameters = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
    return _train(parameters, lambda: _loss(model, world["groups"]))


def lora_reference(world: World) -> Reference:
    """Return three steps of plain torch on adapters and head: W + (alpha / rank) B A in place of each W."""
    model = AutoModelForSequenceClassification.from_pretrained(
        world["llama"], dtype=torch.float64, trust_remote_code=False
    )
    model.requires_grad_(False)
    adapters = {
        name: value.double().requires_grad_()
        for name, value in torch.load(world["adapters"], weights_only=True).items()
    }
    head = model.get_parameter("score.weight").requires_grad_()

    def loss() -> Tensor:
        weights = {}
        for name, weight in model.named_parameters():
            layer = f"model.{name.removesuffix('.weight')}"
            if f"{layer}.lora_A.default.weight" in adapters:
                a, b = (adapters[f"{layer}.lora_{letter}.default.weight"] for letter in "AB")
                weights[name] = weight + LORA["alpha"] / LORA["rank"] * b @ a
        return _loss(lambda **inputs: functional_call(model, weights, (), inputs), world["groups"])

    return _train(adapters | {"model.score.weight": head}, loss)


def _loss(model: Callable[..., Any], groups: list[TokenGroup]) -> Tensor:
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


def _train(parameters: dict[str, Tensor], loss: Callable[[], Tensor]) -> Reference:
    start = {name: value.detach().numpy().copy() for name, value in parameters.items()}
    groups = [
        {"params": [p for p in parameters.values() if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), eps=ADAM_EPS)
    losses, gradients = [], []
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        losses.append(value.item())
        gradients.append({name: p.grad.numpy().copy() for name, p in parameters.items() if p.grad is not None})
        torch.nn.utils.clip_grad_norm_(parameters.values(), MAX_GRADIENT_NORM)
        optimizer.step()
    change = {name: p.detach().numpy() - start[name] for name, p in parameters.items()}
    return {"losses": losses, "loss": losses[0], "gradient": gradients[0], "change": change, "start": start}


def relative_difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Return the norm of the difference over the norm of what is expected, over all tensors together."""
    assert found.keys() == expected.keys()
    difference = sum(float(((found[name] - expected[name]) ** 2).sum()) for name in expected)
    return math.sqrt(difference / sum(float((value**2).sum()) for value in expected.values()))


def changes(found: dict[str, Any], reference: Reference) -> dict[str, np.ndarray]:
    """Return how far the trained weights of a run moved."""
    return {name: found["state"][name] - start for name, start in reference["start"].items()}
