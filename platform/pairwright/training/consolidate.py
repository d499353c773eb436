"""A checkpoint's shards, of any ZeRO stage and number of ranks -> all the weights that it holds, in one process.

The weights are those that the ranks computed with, to the bit: up to ZeRO-2 each rank's model file has them whole;
under ZeRO-3 they are put together from the ranks' float32 partitions and rounded once, as DeepSpeed rounds them after
each step. The files are mapped, not read: the optimizer's moments, two thirds of them, are never touched, and the
memory taken is that of the weights alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from pathlib import Path

import torch
from torch import Tensor

from pairwright.errors import DamagedCheckpointError
from pairwright.training.checkpoint import TAG, CheckpointManifest, verify_all
from pairwright.training.universal_checkpoint import read_shard


def whole_weights(directory: Path, manifest: CheckpointManifest, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights in a checkpoint, and the model's buffers, under the names of ``RewardModel.state_dict()``.

    Frozen weights are in no checkpoint. Every file is read once before, for its hash.

    Args:
        directory: of the checkpoint, local.
        manifest: its manifest.
        dtype: that the run computed in.

    Raises:
        DamagedCheckpointError: if a file is missing, or is not what was written.
        CheckpointError: if a file names what reading it would run.
    """
    verify_all(directory, manifest)
    try:
        weights = _weights(directory / TAG, manifest, dtype)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DamagedCheckpointError(
            f"{directory}: its files can be read, but do not hold what its manifest says: {type(error).__name__} "
            f"({error}); no run wrote them together"
        ) from None
    if odd := [name for name, weight in weights.items() if not isinstance(weight, Tensor)]:
        raise DamagedCheckpointError(f"{directory}: holds no tensor under the name {odd[0]!r}")
    return weights


def _weights(shards: Path, manifest: CheckpointManifest, dtype: torch.dtype) -> dict[str, Tensor]:
    if manifest.zero_stage < 3:
        return dict(read_shard(shards / "mp_rank_00_model_states.pt")["module"])
    kind = "bf16_" if manifest.precision == "bf16" else ""
    states = [
        read_shard(shards / f"{kind}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")["optimizer_state_dict"]
        for rank in range(manifest.world_size)
    ]
    model = read_shard(shards / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    partitions = [state["fp32_flat_groups"] for state in states]
    found = {name: model["module"][name] for name in model["buffer_names"] if name in model["module"]}
    shapes = {name: shape for group in model["param_shapes"] for name, shape in group.items()}
    return found | {name: whole.detach().to(dtype) for name, whole in _joined(shapes, partitions)}


def _joined(shapes: Mapping[str, torch.Size], partitions: Sequence[Sequence[Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight in float32: its parts of equal length lie at one place of every rank's groups, end to end.

    A part may go over the end of one group into the next.
    """
    num_ranks, first = len(partitions), 0
    for name, shape in shapes.items():
        length = math.ceil(shape.numel() / num_ranks)
        parts = [_between(groups, first, first + length) for groups in partitions]
        yield name, torch.cat(list(chain.from_iterable(parts)))[: shape.numel()].view(shape)
        first += length


def _between(groups: Sequence[Tensor], first: int, end: int) -> list[Tensor]:
    """Return what lies between two places of tensors laid end to end."""
    starts = accumulate((group.numel() for group in groups), initial=0)
    return [
        group[max(first - start, 0) : end - start]
        for group, (start, stop) in zip(groups, pairwise(starts), strict=True)
        if start < end and first < stop
    ]
