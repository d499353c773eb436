"""Chooses the fastest layout that a model computes correctly, by a test on the model itself before training.

A model may accept a packed sequence and silently compute something else: positions that continue from text to text, a
sliding window that is ignored, an attention of its own. So a few random groups run through it, padded and packed, and
rewards and gradient must agree as closely as two paddings do, for this model in this precision. It costs a few forward
passes of some hundred tokens, whatever the model's size: gradients are compared on its smaller tensors. Under ZeRO-3 it
runs on the model's first layers: what is tested is the architecture's code, and the whole model may fit nowhere.
"""

# ruff: noqa: N815 - shape suffix: N completions

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pairwright.data.tokens.token_group import TokenGroup
from pairwright.errors import ConfigError
from pairwright.model.collate import Layout, collate
from pairwright.model.reward_model import RewardModel

# Allowed rounding, as a share of the rewards' spread or of the gradient's norm, and as a multiple of the difference
# between two paddings. Measured (November 2026, nine architectures): float32 2e-6; bfloat16 0.03, and up to 7 times
# where paddings happened to differ by 0.0015; a sequence whose texts see each other: 0.07 at least.
ROUNDING = {torch.float64: 1e-6, torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 0.04}
TIMES_PADDINGS = 4.0
# Larger tensors are left out of the compared gradient: norms, biases and small matrices of every layer remain.
MOST_NUMBERS_OF_TENSOR = 2**20
SEED = 20261121
# Prompt tokens and those of each completion: two completions, an empty prompt, many completions of different lengths.
GROUPS = ((24, (5, 17)), (0, (9, 1, 20)), (3, (30, 2, 11, 11)))


@dataclass(frozen=True, slots=True)
class LayoutChoice:
    """The layout of a run's micro-batches, and the reason for it."""

    layout: Layout
    reason: str
    """One line with the measured differences."""


def choose_layout(
    model: RewardModel,
    wanted: Literal["auto", "shared", "packed", "padded"],
    *,
    pad_token_id: int,
    max_length: int,
    device: torch.device | str,
) -> LayoutChoice:
    """Return the fastest layout that this model computes correctly, and switch the model to it.

    Weights, gradients, random state and training mode stay as they are; equal weights give the same choice everywhere
    on one kind of device.

    Args:
        model: as it will be trained, before DeepSpeed wraps it.
        wanted: ``auto`` for the first of ``shared``, ``packed`` and ``padded`` that is correct.
        pad_token_id: fills padded rows.
        max_length: longest text of the run, in tokens: a longer sliding window needs no test.
        device: on which the run will compute; afterwards the model is back on its own.

    Raises:
        ConfigError: if the requested layout is not correct on this model, with the measured differences.
    """
    if wanted == "padded":
        model.accept_packed_sequences(enabled=False)
        return LayoutChoice("padded", "batches.layout asks for it")
    candidates: Sequence[Layout] = (wanted,) if wanted != "auto" else ("shared", "packed")
    failures: list[str] = []
    with _undisturbed(model, device):
        groups = random_groups(model, max_length, pad_token_id)
        for layout in candidates:
            is_correct, finding = _check(model, groups, layout, pad_token_id)
            if is_correct:
                return LayoutChoice(layout, "; ".join([*failures, finding]))
            failures.append(f"{layout}: {finding}")
    model.accept_packed_sequences(enabled=False)
    if wanted != "auto":
        raise ConfigError(
            f'batches.layout is "{wanted}", which {type(model.model).__name__} computes differently from padded: '
            f'{failures[0]}; set it to "auto"'
        )
    return LayoutChoice("padded", "; ".join(failures))


def random_groups(model: RewardModel, max_length: int, pad_token_id: int) -> list[TokenGroup]:
    """Return the groups of the test: the same in every process, no longer than model and run allow."""
    longest = min(max_length, model.max_positions or max_length)
    sizes = [(min(prompt, longest // 2), completions) for prompt, completions in GROUPS]
    window = model.sliding_window
    if window is not None and window < longest:
        # A prompt longer than the window, and a completion too if that is cheap.
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
        groups.append(_without_pairs(f"random {number}", prompt_ids, completion_ids))
    return groups


def _without_pairs(group_id: str, prompt_ids: np.ndarray, completion_ids: list[np.ndarray]) -> TokenGroup:
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
    """Rewards and gradients of a model on the groups."""

    reward_N: Tensor
    gradients: list[Tensor]


@dataclass(frozen=True, slots=True)
class _Difference:
    """Between two outcomes, as shares of the rewards' spread and of the gradient's norm."""

    rewards: float
    gradient: float

    def within(self, allowed: "_Difference") -> bool:
        # Written so that NaN is no agreement.
        return self.rewards <= allowed.rewards and self.gradient <= allowed.gradient


def _check(model: RewardModel, groups: list[TokenGroup], layout: Layout, pad_token_id: int) -> tuple[bool, str]:
    """Return whether the layout gives the results of padded rows, and the finding in words."""
    model.accept_packed_sequences(enabled=False)
    padded = _outcome(model, [groups], "padded", pad_token_id)
    others = _outcome(model, [[group] for group in groups], "padded", pad_token_id)
    try:
        model.accept_packed_sequences(enabled=True)
        packed = _outcome(model, [groups], layout, pad_token_id)
    except Exception as error:
        # Any error of a model on a packed sequence means that it does not support the layout.
        return False, str(error).strip().partition("\n")[0] or type(error).__name__
    rounding, paddings = ROUNDING[model.model.dtype], _difference(others, padded)
    found = _difference(packed, padded)
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
    """Put the model on the device and in the mode to test, and restore both afterwards."""
    was_training, was_on = model.training, next(model.parameters()).device
    devices = [device] if torch.device(device).type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            # Gradient checkpointing is off outside of training mode; under dropout no two passes are equal.
            model.to(device).train(not model.drops_out)
            yield
    finally:
        model.to(was_on).train(was_training)
