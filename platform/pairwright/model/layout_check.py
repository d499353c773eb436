"""A model -> the layout that it computes rightly, proved on this very model before training.

A model may take a flat row and silently compute something else: positions counted through, a window left out, an
attention of its own (TRAPS.md 5). So a few random groups go through it, padded and flat, and rewards and gradient must
agree within what this model in this precision differs by from one padding to another. Costs a few forwards of some
hundred tokens, whatever the model's size: gradients are compared on its smaller tensors.
"""

# ruff: noqa: N815 - shape suffix: N completions

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.errors import ConfigError
from pairwright.model.collate import Layout, collate
from pairwright.model.reward_model import RewardModel

# What rounding alone may come to, as a share of the rewards' spread or of the gradient's norm, and how many times the
# difference between two paddings. Found (November 2026, nine architectures): float32 2e-6, bfloat16 0.03 and up to 7
# times where paddings happened to differ by 0.0015; a row whose texts see each other: 0.07 at least.
ROUNDING = {torch.float64: 1e-6, torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 0.04}
TIMES_PADDINGS = 4.0
# A tensor of more numbers is left out of the gradient: norms, biases and small matrices of every layer stay.
MOST_NUMBERS_OF_TENSOR = 2**20
SEED = 20261121
# Prompt tokens, then each completion's: two of them, none shared, one prompt of many, lengths that differ.
GROUPS = ((24, (5, 17)), (0, (9, 1, 20)), (3, (30, 2, 11, 11)))


@dataclass(frozen=True, slots=True)
class LayoutChoice:
    """How a run lays out its micro-batches, and why."""

    layout: Layout
    reason: str
    """One line with the figures that were found."""


def choose_layout(
    model: RewardModel,
    wanted: Literal["auto", "shared", "packed", "padded"],
    *,
    pad_token_id: int,
    max_length: int,
    device: torch.device | str,
) -> LayoutChoice:
    """Return the layout that computes least of those that are right on this model, and set the model up for it.

    Weights, gradients, random state and training mode stay as they are; equal weights give the same answer everywhere
    on one kind of device.

    Args:
        model: as it will be trained, before DeepSpeed wraps it.
        wanted: ``auto`` for the first of ``shared``, ``packed`` and ``padded`` that holds.
        pad_token_id: fills up padded rows.
        max_length: longest text of the run, in tokens: a sliding window longer than that needs no proof.
        device: where the run will compute; the model comes back to where it is.

    Raises:
        ConfigError: if a layout was asked for that this model computes otherwise, with the figures.
    """
    if wanted == "padded":
        model.take_flat_rows(enabled=False)
        return LayoutChoice("padded", "batches.layout asks for it")
    candidates: Sequence[Layout] = (wanted,) if wanted != "auto" else ("shared", "packed")
    failures: list[str] = []
    with _undisturbed(model, device):
        groups = random_groups(model, max_length, pad_token_id)
        for layout in candidates:
            holds, finding = _check(model, groups, layout, pad_token_id)
            if holds:
                return LayoutChoice(layout, "; ".join([*failures, finding]))
            failures.append(f"{layout}: {finding}")
    model.take_flat_rows(enabled=False)
    if wanted != "auto":
        raise ConfigError(
            f'batches.layout is "{wanted}", which {type(model.model).__name__} computes otherwise than padded: '
            f'{failures[0]}; set it to "auto"'
        )
    return LayoutChoice("padded", "; ".join(failures))


def random_groups(model: RewardModel, max_length: int, pad_token_id: int) -> list[TokenGroup]:
    """Return the groups of the check: the same in every process, no longer than model and run allow."""
    longest = min(max_length, model.max_positions or max_length)
    sizes = [(min(prompt, longest // 2), completions) for prompt, completions in GROUPS]
    window = model.sliding_window
    if window is not None and window < longest:
        # The prompt, and where that is cheap a completion, are longer than the window.
        sizes.append((min(window + 8, longest - 1), (12, window + 9 if window <= 64 else 4)))
    rng = np.random.default_rng(SEED)
    groups = []
    for number, (prompt, completions) in enumerate(sizes):
        ids = [
            rng.integers(0, model.vocab_size, size, np.int32)
            for size in (prompt, *(min(size, longest - prompt) for size in completions))
        ]
        prompt_ids, *completion_ids = [
            np.where(part == pad_token_id, (part + 1) % model.vocab_size, part) for part in ids
        ]
        groups.append(_unjudged(f"random {number}", prompt_ids, completion_ids))
    return groups


def _unjudged(group_id: str, prompt_ids: np.ndarray, completion_ids: list[np.ndarray]) -> TokenGroup:
    none = np.zeros(0, np.int64)
    return TokenGroup(
        group_id=group_id,
        subset=None,
        prompt_ids=prompt_ids,
        completion_ids=completion_ids,
        num_characters=np.zeros(len(completion_ids), np.int32),
        completion_index=np.arange(len(completion_ids), dtype=np.int16),
        chosen_P=none,
        rejected_P=none,
        weight_P=np.zeros(0, np.float32),
        margin_P=np.zeros(0, np.float32),
    )


# ------------------------------------------------------------------------------------------------------- the check


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a model makes of the groups."""

    reward_N: Tensor
    gradients: list[Tensor]


@dataclass(frozen=True, slots=True)
class _Difference:
    """Between two outcomes, as shares of the rewards' spread and of the gradient's norm."""

    rewards: float
    gradient: float

    def within(self, allowed: "_Difference") -> bool:
        # Not a comparison the other way round: NaN is no agreement.
        return self.rewards <= allowed.rewards and self.gradient <= allowed.gradient


def _check(model: RewardModel, groups: list[TokenGroup], layout: Layout, pad_token_id: int) -> tuple[bool, str]:
    """Return whether the layout gives what padded rows give, and the finding in words."""
    model.take_flat_rows(enabled=False)
    padded = _outcome(model, [groups], "padded", pad_token_id)
    others = _outcome(model, [[group] for group in groups], "padded", pad_token_id)
    try:
        model.take_flat_rows(enabled=True)
        flat = _outcome(model, [groups], layout, pad_token_id)
    except Exception as error:
        # Whatever a model makes of a row that it was not made for says: not in this layout.
        return False, str(error).strip().partition("\n")[0] or type(error).__name__
    rounding, paddings = ROUNDING[model.model.dtype], _difference(others, padded)
    found = _difference(flat, padded)
    allowed = _Difference(
        max(rounding, TIMES_PADDINGS * paddings.rewards), max(rounding, TIMES_PADDINGS * paddings.gradient)
    )
    return found.within(allowed), (
        f"rewards differ from padded by {found.rewards:.1e} of their spread ({allowed.rewards:.1e} allowed), "
        f"the gradient by {found.gradient:.1e} ({allowed.gradient:.1e})"
    )


def _outcome(model: RewardModel, micro_batches: list[list[TokenGroup]], layout: Layout, pad_token_id: int) -> _Outcome:
    """Return rewards, and the gradient of their sum with fixed random weights; no ``.grad`` is written."""
    parameters = [p for p in model.parameters() if p.requires_grad and p.numel() <= MOST_NUMBERS_OF_TENSOR]
    rng, device = np.random.default_rng(SEED), parameters[0].device
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    rewards = []
    for groups in micro_batches:
        reward_N = model.rewards(collate(groups, pad_token_id, layout).to(device))
        weight_N = torch.from_numpy(rng.standard_normal(len(reward_N))).to(reward_N)
        found = torch.autograd.grad((reward_N * weight_N).sum(), parameters, allow_unused=True)
        for gradient, part in zip(gradients, found, strict=True):
            if part is not None:
                gradient += part
        rewards.append(reward_N.detach())
    return _Outcome(torch.cat(rewards), gradients)


def _difference(found: _Outcome, expected: _Outcome) -> _Difference:
    spread = expected.reward_N.double().std()
    largest = (found.reward_N.double() - expected.reward_N.double()).abs().max()
    pairs = list(zip(found.gradients, expected.gradients, strict=True))
    apart = torch.stack([(a.double() - b.double()).square().sum() for a, b in pairs]).sum().sqrt()
    norm = torch.stack([b.double().square().sum() for _, b in pairs]).sum().sqrt()
    return _Difference(rewards=float(largest / spread), gradient=float(apart / norm))


@contextmanager
def _undisturbed(model: RewardModel, device: torch.device | str) -> Iterator[None]:
    """Put the model on the device, in the mode to be checked in, and everything back in the end."""
    was_training, was_on = model.training, next(model.parameters()).device
    devices = [device] if torch.device(device).type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            # Gradient checkpointing is off outside of training mode; dropout would make any two passes differ.
            model.to(device).train(not model.drops_out)
            yield
    finally:
        model.to(was_on).train(was_training)
