"""One rank's mistake -> the same error on every rank: a rank that left alone would leave the others waiting for it."""

import torch.distributed as dist

from pairwright.errors import PairwrightError


def raise_together(error: PairwrightError | None) -> None:
    """Raise, on every rank, the error of the first rank that has one; return if none has. A collective.

    Args:
        error: what went wrong on this rank, if anything.
    """
    gathered: list[PairwrightError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, error)
    for found in gathered:
        if found is not None:
            raise found
