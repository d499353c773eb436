"""Reads the shards of a checkpoint safely, and consolidates them into one state dict without DeepSpeed.

Shards are pickles, and whoever can write to a run's folder writes them. So torch rebuilds tensors, plain values and
three records of DeepSpeed's from them, and refuses every other type that a pickle names.

The consolidated weights are those that the ranks computed with, to the bit: up to ZeRO-2 each rank's model file has all
of them; under ZeRO-3 they are joined from the ranks' float32 partitions and rounded once, as DeepSpeed rounds them
after each step. The files are memory-mapped: the optimizer's moments, two thirds of them, are never read, and the
memory taken is that of the weights alone.
"""

import math
import os
import pickle
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pairwright.data.storage.model_files import reason_of, refused_in_pickle
from pairwright.errors import CheckpointError, DamagedCheckpointError
from pairwright.training.checkpoint import TAG, CheckpointManifest, verify_all

TRUSTED_TYPES = (
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
"""Types in shards beside tensors and plain values, at every ZeRO stage (tests/training/test_hostile_checkpoints.py).

The constructors of the three do no more than take what they are given.
"""
_ONLY_WEIGHTS, _NOT_ONLY_WEIGHTS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_ENVIRONMENT_LOCK = threading.RLock()
_WEIGHT_NAME = re.compile(r"\w[\w.-]*")
_FOREIGN_KEYS = frozenset({"universal_checkpoint_info", "ds_autoep_layers", "autoep_layers"})
"""Keys that no run of ours writes, under which DeepSpeed's converter finds search patterns and file names."""


class _Unread:
    """Takes the place of an object of a trusted type, so that reading a shard needs no DeepSpeed."""

    def __init__(self, *args: object) -> None:
        pass


_STAND_INS = [(_Unread, name) for name in TRUSTED_TYPES]


# ---------------------------------------------------------------------------------------- the whole state dict


def consolidated_state_dict(directory: Path, manifest: CheckpointManifest, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return all weights and buffers in a checkpoint, under the names of ``RewardModel.state_dict()``.

    Frozen weights are in no checkpoint. Every file is read once before, to check its hash.

    Args:
        directory: of the checkpoint, local.
        manifest: its manifest.
        dtype: that the run computed in.

    Raises:
        DamagedCheckpointError: if a file is missing, or differs from what was written.
        CheckpointError: if a file names a type whose loading would run code.
    """
    verify_all(directory, manifest)
    try:
        weights = _state_dict(directory / TAG, manifest, dtype)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DamagedCheckpointError(
            f"{directory}: its files can be read, but do not hold what its manifest says: {type(error).__name__} "
            f"({error}); no run wrote them together"
        ) from None
    if odd := [name for name, weight in weights.items() if not isinstance(weight, Tensor)]:
        raise DamagedCheckpointError(f"{directory}: holds no tensor under the name {odd[0]!r}")
    return weights


def _state_dict(shards: Path, manifest: CheckpointManifest, dtype: torch.dtype) -> dict[str, Tensor]:
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
    """Yield each weight in float32, joined from the ranks' partitions.

    A weight's partitions have one length and lie at one offset in every rank's flat groups, taken end to end; a
    partition may continue from one group into the next.
    """
    num_ranks, first = len(partitions), 0
    for name, shape in shapes.items():
        length = math.ceil(shape.numel() / num_ranks)
        slices = [_between(groups, first, first + length) for groups in partitions]
        yield name, torch.cat(list(chain.from_iterable(slices)))[: shape.numel()].view(shape)
        first += length


def _between(groups: Sequence[Tensor], first: int, end: int) -> list[Tensor]:
    """Return the slices between two offsets of tensors laid end to end."""
    starts = accumulate((group.numel() for group in groups), initial=0)
    return [
        group[max(first - start, 0) : end - start]
        for group, (start, stop) in zip(groups, pairwise(starts), strict=True)
        if start < end and first < stop
    ]


# ------------------------------------------------------------------------------------------------- reading shards


@contextmanager
def trusted_types_only(types: Sequence[Any]) -> Iterator[None]:
    """Restrict ``torch.load`` to tensors, plain values and these types, whatever its caller asks for.

    DeepSpeed asks for ``weights_only=False`` in every call. torch reads the environment at each load and lets this
    variable override that, in this process and in those that it starts.

    Args:
        types: as ``torch.serialization.safe_globals`` takes them.
    """
    with _ENVIRONMENT_LOCK, torch.serialization.safe_globals([*types]):
        before = {name: os.environ.get(name) for name in (_ONLY_WEIGHTS, _NOT_ONLY_WEIGHTS)}
        os.environ[_ONLY_WEIGHTS] = "1"
        os.environ.pop(_NOT_ONLY_WEIGHTS, None)  # torch refuses to see both
        try:
            yield
        finally:
            os.environ.pop(_ONLY_WEIGHTS)
            os.environ.update({name: value for name, value in before.items() if value is not None})


def read_shard(path: Path) -> dict[str, Any]:
    """Return the content of one file of a checkpoint, its tensors memory-mapped.

    Objects of ``TRUSTED_TYPES`` are not rebuilt: whoever calls this reads weights, names and shapes.

    Raises:
        DamagedCheckpointError: if it cannot be read, or does not hold a shard.
        CheckpointError: if it names a type whose loading would run code; nothing of it was run.
    """
    try:
        with trusted_types_only(_STAND_INS):
            state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: {refused_in_pickle(error)}, and a checkpoint holds tensors and plain values only: no run wrote "
            "this file as it is. Nothing of it was run; go on from a checkpoint whose writers you trust"
        ) from None
    except Exception as error:  # torch and its unpickler raise exceptions of any kind
        raise DamagedCheckpointError(f"{path}: cannot be read ({reason_of(error)})") from None
    if not isinstance(state, dict):
        raise DamagedCheckpointError(f"{path}: holds a {type(state).__name__}, expected a shard's state")
    return state


def check_shards(directory: Path) -> None:
    """Read every shard as DeepSpeed is about to, except for its tensors, and check the names that become file names.

    Raises:
        CheckpointError: as ``read_shard``, or if a weight's name is not a valid one.
    """
    for path in sorted((directory / TAG).glob("*.pt")):
        state = read_shard(path)
        if odd := sorted(_FOREIGN_KEYS & state.keys()) or [name for name in _names(state) if not _is_weight_name(name)]:
            raise CheckpointError(
                f"{path}: holds {odd[0]!r}, which no run writes; go on from a checkpoint whose writers you trust"
            )


def _names(state: dict[str, Any]) -> list[Any]:
    """Return the weights' names in a shard, from every place where the converter reads names."""
    optimizer = state.get("optimizer_state_dict")
    groups = [state.get("module"), state.get("frozen_param_shapes"), *_items(state.get("param_shapes"))]
    groups += _items(optimizer.get("param_slice_mappings")) if isinstance(optimizer, dict) else []
    return [name for group in groups if isinstance(group, dict) for name in group]


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_weight_name(name: Any) -> bool:
    return isinstance(name, str) and _WEIGHT_NAME.fullmatch(name) is not None
