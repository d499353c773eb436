"""Raises one rank's error on every rank, so that none is left waiting in a collective."""

from typing import TypeVar

from pairwright.errors import PairwrightError

Value = TypeVar("Value")


def all_gather_object(value: Value) -> list[Value]:
    """Return every rank's value, on every rank, in rank order. A collective."""
    import torch.distributed as dist  # here, since `pairwright checkpoints` lists files with what is above this

    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def first_error(error: PairwrightError | None) -> PairwrightError | None:
    """Return, on every rank, the error of the first rank that has one. A collective.

    Args:
        error: this rank's error, if any.
    """
    return next((found for found in all_gather_object(error) if found is not None), None)


def raise_on_all_ranks(error: PairwrightError | None) -> None:
    """Raise, on every rank, the error of the first rank that has one; return if none has. A collective.

    Args:
        error: this rank's error, if any.
    """
    found = first_error(error)
    if found is not None:
        raise found
