"""Sizes of groups, or of parts of them -> tokens computed and what a forward over them costs, in each layout.

Analytic, so that a plan is the same on every rank and after every restart; the two constants below were measured once
(benchmarks/forward_cost.py). Completions of one group are taken to be equally long, which is off by less than a
hundredth of the cost; sliding windows are not looked at.
"""

# ruff: noqa: N815 - shape suffixes: I groups or parts of them

from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from pairwright.model.collate import Layout

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
ScalarOrInts = Any

# What a micro-batch costs whatever its size, in tokens' worth of linear layers. On CPU 33 to 201 were measured in
# November 2026; launches and ZeRO-3's gathers on a GPU take more. A plan hardly depends on it: it weighs fewer rounds
# against more even ones.
MICRO_BATCH_OVERHEAD_TOKENS = 512
# Time of a FLOP of causal attention in those of a linear layer: on CPU 1.1 to 2.3 in float32, 1.4 to 3.9 in bfloat16.
ATTENTION_FLOP_COST = 2.0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides the cost of a token."""

    linear_parameters: int
    """Of all linear layers; a token costs two FLOPs for each, forward."""
    attention_width: int
    """Heads x head size, summed over layers; a token that sees another costs four FLOPs for each, forward."""


@dataclass(frozen=True, slots=True)
class PartSizes:
    """Groups, or parts of groups: a prompt and some completions each. All int64, shape (I,)."""

    rows_I: Ints
    """Completions."""
    prompt_I: Ints
    """Tokens of the prompt."""
    completions_I: Ints
    """Tokens of the completions together."""
    longest_I: Ints
    """Tokens of the prompt and the longest completion."""

    def take(self, number_I: Ints) -> "PartSizes":
        """Return the sizes of some of them."""
        return PartSizes(
            rows_I=self.rows_I[number_I],
            prompt_I=self.prompt_I[number_I],
            completions_I=self.completions_I[number_I],
            longest_I=self.longest_I[number_I],
        )

    def tokens_I(self, layout: Layout) -> Ints:
        """Return the tokens that each takes in a micro-batch of its own, padding included, shape (I,)."""
        match layout:
            case "shared":
                return self.prompt_I + self.completions_I
            case "packed":
                return self.rows_I * self.prompt_I + self.completions_I
            case "padded":
                return self.rows_I * self.longest_I
            case _:
                assert_never(layout)

    def costs_I(self, layout: Layout, shape: ModelShape) -> Floats:
        """Return what a forward of each costs by itself, in FLOPs of a linear layer, shape (I,)."""
        prompt_I, completion_I = self.prompt_I.astype(np.float64), self.completions_I / np.maximum(self.rows_I, 1)
        match layout:
            case "shared":
                seen_I = prompt_I**2 / 2 + self.completions_I * (prompt_I + completion_I / 2)
            case "packed":
                seen_I = self.rows_I * (prompt_I + completion_I) ** 2 / 2
            case "padded":
                return padded_cost(self.rows_I, self.longest_I, shape)
            case _:
                assert_never(layout)
        return _flops(self.tokens_I(layout), seen_I, shape)


def padded_cost(rows: ScalarOrInts, longest: ScalarOrInts, shape: ModelShape) -> Any:
    """Return the cost of a forward over so many rows of one length, padding included."""
    return _flops(rows * longest, rows * (1.0 * longest) ** 2 / 2, shape)


def _flops(tokens: Any, seen: Any, shape: ModelShape) -> Any:
    """Return the cost of ``tokens`` in linear layers and of ``seen`` pairs of a token and one that it attends to."""
    return 2.0 * shape.linear_parameters * tokens + ATTENTION_FLOP_COST * 4.0 * shape.attention_width * seen


def overhead(shape: ModelShape) -> float:
    """Return what a forward costs beyond its tokens, in FLOPs of a linear layer."""
    return 2.0 * shape.linear_parameters * MICRO_BATCH_OVERHEAD_TOKENS
