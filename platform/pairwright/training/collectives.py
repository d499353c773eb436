"""One rank's mistake -> the same error on every rank: a rank that left alone would leave the others waiting for it."""

from typing import TypeVar

import torch.distributed as dist

from pairwright.errors import PairwrightError

Value = TypeVar("Value")


def gathered(value: Value) -> list[Value]:
    """Return every rank's value, on every rank, in the order of the ranks. A collective."""
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def first_error(error: PairwrightError | None) -> PairwrightError | None:
    """Return, on every rank, the error of the first rank that has one. A collective.

    Args:
        error: what went wrong on this rank, if anything.
    """
    return next((found for found in gathered(error) if found is not None), None)


def raise_together(error: PairwrightError | None) -> None:
    """Raise, on every rank, the error of the first rank that has one; return if none has. A collective.

    Args:
        error: what went wrong on this rank, if anything.
    """
    found = first_error(error)
    if found is not None:
        raise found
