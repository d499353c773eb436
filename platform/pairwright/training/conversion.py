"""A checkpoint of one number of ranks -> DeepSpeed's universal form of it, from which any number of ranks loads.

Made in process, on this node's own disk, by whichever of its ranks comes first: the others wait for the lock and read
what it made. It is made beside and renamed when whole, so that a converter that was killed leaves nothing that counts.
What no living process uses is removed by the next one that comes. It writes a file for each moment of each weight,
which is what lets a rank read just its part; shards are mapped, not read whole. Time grows with the model, 0.11 s a
million weights on two cores, memory with its largest weight (benchmarks/checkpoint_conversion.py, up to 496M).
"""

import argparse
import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from deepspeed.checkpoint import ds_to_universal
from torch.utils.serialization import config as serialization

from pairwright.errors import CheckpointError
from pairwright.training.checkpoint import TAG, CheckpointManifest, listing_name, verify_all

SPACE_FACTOR = 2.6
"""Free space that a conversion takes, over the size of the checkpoint's state: fragments, and what they make.

Measured: 1.5 (ZeRO 1 and 2, fp32), 1.7 (ZeRO-2, bf16), 2.5 (ZeRO-3).
"""


@contextmanager
def converted(directory: Path, manifest: CheckpointManifest) -> Iterator[Path]:
    """Yield a folder that holds a ZeRO checkpoint's universal form under ``TAG``; valid only inside the block.

    Args:
        directory: of the checkpoint, whole, readable on this node.
        manifest: of it.

    Raises:
        DamagedCheckpointError: if a file of any rank is missing or differs from what was written.
        CheckpointError: if it cannot be converted here, such as for want of space.
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
    place = Path(tempfile.gettempdir()) / f"pairwright-universal-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    return place


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
    partial.rename(target)


def _check_stepped(directory: Path, manifest: CheckpointManifest) -> None:
    """Refuse what DeepSpeed 0.19.8 would convert into a file of all weights for each weight: no moments to divide."""
    shard = next((directory / TAG).glob("*optim_states.pt"))
    with _mapped_reading():
        state = torch.load(shard, map_location="cpu", weights_only=False)["optimizer_state_dict"]
    if not state.get("base_optimizer_state", state.get("optimizer_state_dict"))["state"]:
        raise CheckpointError(
            f"{directory}: no step up to this checkpoint changed a weight, each was skipped, so it holds nothing of "
            "the optimizer that another number of workers could go on with; set "
            f"workers.num_workers={manifest.world_size}, or choose another output to begin anew"
        )


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
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), _mapped_reading():
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
