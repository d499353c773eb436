"""The data order: which groups a step trains on, as a pure function of (size, seed, epoch, step).

The order of an epoch is a permutation computed as a function, not stored as an array: a step costs the same at 1e4 and
at 1e10 groups, and a resume is an index. The permutation is of hash quality only, which is all that training needs. It
depends on the number of groups, the seed and the epoch, and never on ranks or micro-batches.

Source: Luby and Rackoff 1988 (Feistel network as permutation); Black and Rogaway 2002 (cycle walking to any size).
"""

import numpy as np
from numpy.typing import NDArray

NUM_ROUNDS = 8
# With halves of three bits and more, eight rounds mix evenly; smaller networks reach only some permutations.
MIN_HALF_BITS = 3


def steps_per_epoch(num_groups: int, groups_per_step: int) -> int:
    """Return the number of global batches that hold every group once; the last one may be shorter."""
    if num_groups < 1 or groups_per_step < 1:
        raise ValueError(f"num_groups ({num_groups}) and groups_per_step ({groups_per_step}) must both be at least 1")
    return -(-num_groups // groups_per_step)


def group_indices(num_groups: int, *, seed: int, epoch: int, step: int, groups_per_step: int) -> NDArray[np.int64]:
    """Return the indices of one global batch's groups.

    Over the steps of an epoch each index in ``range(num_groups)`` occurs exactly once; every epoch and seed has its own
    order.

    Args:
        num_groups: size of the permuted range.
        seed: of the whole run, at least 0.
        epoch: pass over the groups, from 0.
        step: step within that epoch, from 0; ``divmod(global_step, steps_per_epoch(...))`` gives both.
        groups_per_step: groups in a global batch; the last step of an epoch has what is left.

    Returns:
        int64, shape (G,).

    Raises:
        ValueError: if the epoch has no such step, or if a number is negative.
    """
    num_steps = steps_per_epoch(num_groups, groups_per_step)
    if not 0 <= step < num_steps:
        raise ValueError(
            f"step {step} is not in an epoch of {num_steps} steps ({num_groups} groups, {groups_per_step} a step)"
        )
    first = step * groups_per_step
    return _permute(np.arange(first, min(first + groups_per_step, num_groups)), num_groups, seed=seed, epoch=epoch)


def _permute(position_G: NDArray[np.int64], size: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the image of each position under the epoch's permutation of ``range(size)``."""
    half_bits = np.uint64(max(MIN_HALF_BITS, ((size - 1).bit_length() + 1) // 2))
    round_keys = np.random.SeedSequence([seed, epoch]).generate_state(NUM_ROUNDS, np.uint64).astype(np.uint64)
    value_G = _encipher(position_G.astype(np.uint64), half_bits, round_keys)
    # The network permutes a power of four, up to four times `size` (64 at least): walk on until inside.
    while (outside := np.flatnonzero(value_G >= size)).size:
        value_G[outside] = _encipher(value_G[outside], half_bits, round_keys)
    return value_G.astype(np.int64)


def _encipher(value_G: NDArray[np.uint64], half_bits: np.uint64, round_keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    half_mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left_G, right_G = value_G >> half_bits, value_G & half_mask
    for key in round_keys:
        left_G, right_G = right_G, left_G ^ (_mix(right_G ^ key) & half_mask)
    return (left_G << half_bits) | right_G


def _mix(value_G: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each value (the finaliser of SplitMix64, Steele et al. 2014)."""
    value_G = (value_G ^ (value_G >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value_G = (value_G ^ (value_G >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value_G ^ (value_G >> np.uint64(31))
