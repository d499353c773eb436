"""A checkpoint of one number of ranks -> DeepSpeed's universal form of it, from which any number of ranks loads.

Made in process, on this node's own disk, by whichever of its ranks comes first: the others wait for the lock and read
what it made. It is made beside and renamed when whole, so that a converter that was killed leaves nothing that counts.
What no living process uses is removed by the next one that comes. It writes a file for each moment of each weight,
which is what lets a rank read just its part; shards are mapped, not read whole. Time grows with the model, 0.11 s a
million weights on two cores, memory with its largest weight (benchmarks/checkpoint_conversion.py, up to 496M).

Shards are pickles, and whoever can write a run's folder writes them. So here is also how shards are read, wherever they
are: torch rebuilds tensors, plain values and three records of DeepSpeed's, and refuses whatever else a pickle names.
"""

import argparse
import contextlib
import fcntl
import hashlib
import io
import os
import pickle
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.checkpoint.constants import AUTOEP_LAYERS_KEY, AUTOEP_LAYERS_KEY_LEGACY, UNIVERSAL_CHECKPOINT_INFO
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch.utils.serialization import config as serialization

from pairwright.data.storage.model_files import reason_of, refused_in_pickle
from pairwright.data.storage.object_store import own_folder
from pairwright.errors import CheckpointError, DamagedCheckpointError
from pairwright.training.checkpoint import TAG, CheckpointManifest, listing_name, verify_all

SPACE_FACTOR = 2.6
"""Free space that a conversion takes, over the size of the checkpoint's state: fragments, and what they make.

Measured: 1.5 (ZeRO 1 and 2, fp32), 1.7 (ZeRO-2, bf16), 2.5 (ZeRO-3).
"""
KNOWN_TYPES = (ZeroStageEnum, LossScaler, fragment_address)
"""What shards hold beside tensors and plain values, at every ZeRO stage (tests/numerics/test_hostile_checkpoints.py).

Torch keeps the list for the whole process; none of the three does more when it is made than take what it is given.
"""
torch.serialization.add_safe_globals(list(KNOWN_TYPES))
_ONLY_WEIGHTS, _NOT_ONLY_WEIGHTS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_SETTING = threading.RLock()
_WEIGHT_NAME = re.compile(r"\w[\w.-]*")
_NEVER_OURS = {UNIVERSAL_CHECKPOINT_INFO, AUTOEP_LAYERS_KEY, AUTOEP_LAYERS_KEY_LEGACY}
"""Keys that no run of ours writes, under which the converter finds patterns to search for and names of files."""


@contextmanager
def converted(directory: Path, manifest: CheckpointManifest) -> Iterator[Path]:
    """Yield a folder that holds a ZeRO checkpoint's universal form under ``TAG``; valid only inside the block.

    Args:
        directory: of the checkpoint, whole, readable on this node.
        manifest: of it.

    Raises:
        DamagedCheckpointError: if a file of any rank is missing or differs from what was written.
        CheckpointError: if it cannot be converted here, such as for want of space, or would run something.
        StoreError: if the folder for it is not this user's alone.
    """
    place = _place()
    _sweep(place)
    target = place / _content_name(directory, manifest)
    with _opened(target, ".using") as using, _opened(target, ".making") as making:
        # From here on nobody removes it. Two locks: one who waits to make it must not wait for those who read it.
        fcntl.flock(using, fcntl.LOCK_SH)
        try:
            fcntl.flock(making, fcntl.LOCK_EX)
            if not target.exists():
                _make(directory, manifest, target)
            fcntl.flock(making, fcntl.LOCK_UN)
            yield target
        finally:
            _remove_if_unused(using, target)


def _place() -> Path:
    """Return the folder of this user's converted checkpoints on this node."""
    return own_folder(Path(tempfile.gettempdir()) / f"pairwright-universal-{os.getuid()}")


def _content_name(directory: Path, manifest: CheckpointManifest) -> str:
    """Return a name that only checkpoints of the same content share: their lists hold every file's hash."""
    digest = hashlib.sha256()
    for rank in range(manifest.world_size):
        with contextlib.suppress(OSError):  # ``verify_all`` says what is missing
            digest.update((directory / listing_name(rank)).read_bytes())
    return f"{manifest.run_digest[:12]}-{manifest.step:08d}-{digest.hexdigest()[:16]}"


def _opened(target: Path, suffix: str) -> BinaryIO:
    """Return the open file of a lock, which the kernel lets go of when its process ends, however it does."""
    return target.with_name(target.name + suffix).open("ab")


def _sweep(place: Path) -> None:
    """Remove what killed processes left: folders that nobody uses."""
    for path in place.glob("*.using"):
        with path.open("ab") as using:
            _remove_if_unused(using, path.with_suffix(""))


def _remove_if_unused(using: BinaryIO, target: Path) -> None:
    """Stop using the folder, and remove it if nobody else does."""
    try:
        fcntl.flock(using, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(using, fcntl.LOCK_UN)
        return
    shutil.rmtree(target, ignore_errors=True)
    shutil.rmtree(_partial(target), ignore_errors=True)
    fcntl.flock(using, fcntl.LOCK_UN)


def _partial(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")


def _make(directory: Path, manifest: CheckpointManifest, target: Path) -> None:
    verify_all(directory, manifest)
    check_shards(directory)
    _check_stepped(directory, manifest)
    _check_space(directory, target.parent)
    partial = _partial(target)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _convert(directory / TAG, partial / TAG)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{directory}: written by {manifest.world_size} workers, and cannot be converted for another number in "
            f"{target.parent} ({error}); give this node more room there, or set TMPDIR to another folder, or set "
            f"workers.num_workers={manifest.world_size} to go on as it is"
        ) from None
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DamagedCheckpointError(
            f"{directory}: its files can be read, but not converted for another number of workers "
            f"({reason_of(error)}); no run wrote them together"
        ) from None
    partial.rename(target)


def _check_stepped(directory: Path, manifest: CheckpointManifest) -> None:
    """Refuse what DeepSpeed 0.19.8 would convert into a file of all weights for each weight: no moments to divide."""
    if not _moments(directory):
        raise CheckpointError(
            f"{directory}: no step up to this checkpoint changed a weight, each was skipped, so it holds nothing of "
            "the optimizer that another number of workers could go on with; set "
            f"workers.num_workers={manifest.world_size}, or choose another output to begin anew"
        )


def _moments(directory: Path) -> Any:
    """Return the optimizer's state of one rank, empty before the first step that changed a weight."""
    try:
        state = read_shard(next((directory / TAG).glob("*optim_states.pt")))["optimizer_state_dict"]
        return state.get("base_optimizer_state", state.get("optimizer_state_dict"))["state"]
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError) as error:
        raise DamagedCheckpointError(f"{directory}: holds no optimizer's state ({reason_of(error)})") from None


def _check_space(directory: Path, place: Path) -> None:
    needed = SPACE_FACTOR * sum(path.stat().st_size for path in (directory / TAG).rglob("*") if path.is_file())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise CheckpointError(
            f"{place}: has {free / 1e9:.1f} GB free, and to convert {directory} for another number of workers takes "
            f"{needed / 1e9:.1f} GB; make room, or set TMPDIR to a folder that has it"
        )


def _convert(source: Path, into: Path) -> None:
    arguments = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(into),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    into.mkdir(parents=True)
    # It prints, and draws bars.
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        _mapped_reading(),
        known_types_only(),
    ):
        ds_to_universal.main(arguments)


@contextmanager
def _mapped_reading() -> Iterator[None]:
    """Let ``torch.load`` map files instead of reading them whole."""
    before = serialization.load.mmap
    serialization.load.mmap = True
    try:
        yield
    finally:
        serialization.load.mmap = before


# ------------------------------------------------------------------------------------------------- reading shards


@contextmanager
def known_types_only() -> Iterator[None]:
    """Let ``torch.load`` rebuild nothing but tensors, plain values and ``KNOWN_TYPES``, whatever its caller asks for.

    DeepSpeed 0.19.8 asks for ``weights_only=False`` in every call. torch reads the environment at each load and lets
    this variable win over that, in this process and in those that it starts.
    """
    with _SETTING:
        before = {name: os.environ.get(name) for name in (_ONLY_WEIGHTS, _NOT_ONLY_WEIGHTS)}
        os.environ[_ONLY_WEIGHTS] = "1"
        os.environ.pop(_NOT_ONLY_WEIGHTS, None)  # torch refuses to see both
        try:
            yield
        finally:
            os.environ.pop(_ONLY_WEIGHTS)
            os.environ.update({name: value for name, value in before.items() if value is not None})


def read_shard(path: Path) -> dict[str, Any]:
    """Return what one file of a checkpoint holds, its tensors mapped and not read.

    Raises:
        DamagedCheckpointError: if it cannot be read, or holds something else than such a file does.
        CheckpointError: if it names anything that reading it would run; nothing of it was run.
    """
    try:
        with known_types_only():
            state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: {refused_in_pickle(error)}, and a checkpoint holds tensors and plain values only: no run wrote "
            "this file as it is. Nothing of it was run; go on from a checkpoint whose writers you trust"
        ) from None
    except Exception as error:  # torch and its unpickler raise whatever they stumble over
        raise DamagedCheckpointError(f"{path}: cannot be read ({reason_of(error)})") from None
    if not isinstance(state, dict):
        raise DamagedCheckpointError(f"{path}: holds a {type(state).__name__}, expected a shard's state")
    return state


def check_shards(directory: Path) -> None:
    """Read every shard as DeepSpeed is about to, but for its tensors, and check the names that become names of files.

    Raises:
        CheckpointError: as ``read_shard``, or if a weight has a name that none can have.
    """
    for path in sorted((directory / TAG).glob("*.pt")):
        state = read_shard(path)
        if odd := sorted(_NEVER_OURS & state.keys()) or [name for name in _names(state) if not _is_weight_name(name)]:
            raise CheckpointError(
                f"{path}: holds {odd[0]!r}, which no run writes; go on from a checkpoint whose writers you trust"
            )


def _names(state: dict[str, Any]) -> list[Any]:
    """Return the names of weights in a shard, wherever the converter takes them from."""
    optimizer = state.get("optimizer_state_dict")
    groups = [state.get("module"), state.get("frozen_param_shapes"), *_items(state.get("param_shapes"))]
    groups += _items(optimizer.get("param_slice_mappings")) if isinstance(optimizer, dict) else []
    return [name for group in groups if isinstance(group, dict) for name in group]


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_weight_name(name: Any) -> bool:
    return isinstance(name, str) and _WEIGHT_NAME.fullmatch(name) is not None
