"""The cost model: tokens and FLOPs of a forward pass over groups, or parts of groups, in each layout.

It is analytic, so that a plan is the same on every rank and after every restart; its two constants were measured
(benchmarks/forward_cost.py). It takes the completions of a group to be equally long, an error of less than a hundredth
of the cost, and ignores sliding windows.
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

# Fixed cost of a micro-batch, in tokens through the linear layers. On CPUs 33 to 201 were measured in November 2026;
# kernel launches and ZeRO-3's gathers on a GPU take more. Plans hardly depend on it: it decides between fewer
# micro-batches and better balanced ones.
MICRO_BATCH_OVERHEAD_TOKENS = 512
# Time of a FLOP of causal attention, relative to one of a linear layer: on CPUs 1.1 to 2.3 in float32, 1.4 to 3.9 in
# bfloat16.
ATTENTION_FLOP_COST = 2.0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model that decide the cost of a token."""

    linear_parameters: int
    """Number of weights in all linear layers; a token costs two FLOPs for each, forward."""
    attention_width: int
    """Heads x head size, summed over layers; a (token, visible token) pair costs four FLOPs for each, forward."""


@dataclass(frozen=True, slots=True)
class PartSizes:
    """Sizes of I groups or parts of groups, each a prompt and some completions. All int64, shape (I,)."""

    rows_I: Ints
    """Number of completions."""
    prompt_I: Ints
    """Tokens of the prompt."""
    completions_I: Ints
    """Tokens of the completions together."""
    longest_I: Ints
    """Tokens of the prompt and the longest completion."""

    def take(self, number_I: Ints) -> "PartSizes":
        """Return the sizes of a selection, by index."""
        return PartSizes(
            rows_I=self.rows_I[number_I],
            prompt_I=self.prompt_I[number_I],
            completions_I=self.completions_I[number_I],
            longest_I=self.longest_I[number_I],
        )

    def tokens_I(self, layout: Layout) -> Ints:
        """Return each part's tokens in a micro-batch of its own, padding included, shape (I,)."""
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
        """Return the cost of each part's own forward pass, in FLOPs of a linear layer, shape (I,)."""
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
    """Return the cost of a forward pass over rows of one length, padding included."""
    return _flops(rows * longest, rows * (1.0 * longest) ** 2 / 2, shape)


def _flops(tokens: Any, seen: Any, shape: ModelShape) -> Any:
    """Return the cost of ``tokens`` in the linear layers, and of ``seen`` (token, visible token) pairs."""
    return 2.0 * shape.linear_parameters * tokens + ATTENTION_FLOP_COST * 4.0 * shape.attention_width * seen


def overhead(shape: ModelShape) -> float:
    """Return the fixed cost of a forward pass, in FLOPs of a linear layer."""
    return 2.0 * shape.linear_parameters * MICRO_BATCH_OVERHEAD_TOKENS
