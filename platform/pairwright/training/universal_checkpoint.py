"""Converts a ZeRO checkpoint to DeepSpeed's universal format, from which any number of ranks can load.

The first rank of a node to need the conversion makes it, in process, on the node's own disk; the others wait for the
lock and read the result. It is written under another name and renamed when complete, so that a converter that is killed
leaves nothing behind that counts. What no living process uses is removed by the next conversion. The universal format
has a file for each moment of each weight, so a rank reads its own part only; shards are memory-mapped. Time grows with
the model, 0.11 s for a million weights on two cores, memory with its largest weight
(benchmarks/checkpoint_conversion.py, up to 496M).
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
from typing import Any, BinaryIO

from deepspeed.checkpoint import ds_to_universal
from torch.utils.serialization import config as serialization

from pairwright.data.storage.model_files import reason_of
from pairwright.data.storage.object_store import own_folder
from pairwright.errors import CheckpointError, DamagedCheckpointError
from pairwright.terminal import counted
from pairwright.training.checkpoint import TAG, CheckpointManifest, listing_name, verify_all
from pairwright.training.checkpoint_shards import check_shards, read_shard
from pairwright.training.deepspeed_workarounds import safe_loading

SPACE_FACTOR = 2.6
"""Free disk space that a conversion takes, as a multiple of the checkpoint's state: its fragments and its output.

Measured: 1.5 (ZeRO 1 and 2, fp32), 1.7 (ZeRO-2, bf16), 2.5 (ZeRO-3).
"""


@contextmanager
def converted(directory: Path, manifest: CheckpointManifest) -> Iterator[Path]:
    """Yield a folder with a ZeRO checkpoint in the universal format under ``TAG``; valid only inside the block.

    Args:
        directory: of the checkpoint, with the files of all ranks, readable on this node.
        manifest: its manifest.

    Raises:
        DamagedCheckpointError: if a file of any rank is missing or differs from what was written.
        CheckpointError: if it cannot be converted here, such as for lack of space, or if loading it would run code.
        StoreError: if other users can write to the folder for it.
    """
    cache = _cache_folder()
    _remove_leftovers(cache)
    target = cache / _content_name(directory, manifest)
    with _lock_file(target, ".using") as in_use, _lock_file(target, ".making") as making:
        # Held shared, it keeps others from removing the folder. Two locks: a converter must not wait for readers.
        fcntl.flock(in_use, fcntl.LOCK_SH)
        try:
            fcntl.flock(making, fcntl.LOCK_EX)
            if not target.exists():
                _convert_into(directory, manifest, target)
            fcntl.flock(making, fcntl.LOCK_UN)
            yield target
        finally:
            _remove_if_unused(in_use, target)


def _cache_folder() -> Path:
    """Return the folder of this user's converted checkpoints on this node."""
    return own_folder(Path(tempfile.gettempdir()) / f"pairwright-universal-{os.getuid()}")


def _content_name(directory: Path, manifest: CheckpointManifest) -> str:
    """Return a name that only checkpoints with equal content share: their file lists hold every file's hash."""
    digest = hashlib.sha256()
    for rank in range(manifest.world_size):
        with contextlib.suppress(OSError):  # ``verify_all`` reports missing files
            digest.update((directory / listing_name(rank)).read_bytes())
    return f"{manifest.run_digest[:12]}-{manifest.step:08d}-{digest.hexdigest()[:16]}"


def _lock_file(target: Path, suffix: str) -> BinaryIO:
    """Return the open file of a lock, which the kernel releases when its process ends in any way."""
    return target.with_name(target.name + suffix).open("ab")


def _remove_leftovers(cache: Path) -> None:
    """Remove folders that no process uses, as killed processes leave them."""
    for path in cache.glob("*.using"):
        with path.open("ab") as in_use:
            _remove_if_unused(in_use, path.with_suffix(""))


def _remove_if_unused(in_use: BinaryIO, target: Path) -> None:
    """Release the folder, and remove it if no other process uses it."""
    try:
        fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(in_use, fcntl.LOCK_UN)
        return
    shutil.rmtree(target, ignore_errors=True)
    shutil.rmtree(_partial(target), ignore_errors=True)
    fcntl.flock(in_use, fcntl.LOCK_UN)


def _partial(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")


def _convert_into(directory: Path, manifest: CheckpointManifest, target: Path) -> None:
    """Verify a checkpoint and convert it; ``target`` exists once the conversion is complete."""
    verify_all(directory, manifest)
    check_shards(directory)
    _check_has_moments(directory, manifest)
    _check_space(directory, target.parent)
    partial = _partial(target)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _run_converter(directory / TAG, partial / TAG)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{directory}: written by {counted(manifest.world_size, 'worker')}, and cannot be converted for another "
            f"number in {target.parent} ({error}); give this node more room there, or set TMPDIR to another folder, "
            f"or set workers.num_workers={manifest.world_size} to go on as it is"
        ) from None
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DamagedCheckpointError(
            f"{directory}: its files can be read, but not converted for another number of workers "
            f"({reason_of(error)}); no run wrote them together"
        ) from None
    partial.rename(target)


def _check_has_moments(directory: Path, manifest: CheckpointManifest) -> None:
    """Refuse a checkpoint without moments: DeepSpeed 0.19.8 would write a file of all weights for each weight."""
    if not _moments(directory):
        raise CheckpointError(
            f"{directory}: no step up to this checkpoint changed a weight, each was skipped, so it holds nothing of "
            "the optimizer that another number of workers could go on with; set "
            f"workers.num_workers={manifest.world_size}, or choose another output to begin anew"
        )


def _moments(directory: Path) -> Any:
    """Return the optimizer's state of one rank; empty before the first step that changed a weight."""
    try:
        state = read_shard(next((directory / TAG).glob("*optim_states.pt")))["optimizer_state_dict"]
        return state.get("base_optimizer_state", state.get("optimizer_state_dict"))["state"]
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError) as error:
        raise DamagedCheckpointError(f"{directory}: holds no optimizer state ({reason_of(error)})") from None


def _check_space(directory: Path, cache: Path) -> None:
    needed = SPACE_FACTOR * sum(path.stat().st_size for path in (directory / TAG).rglob("*") if path.is_file())
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise CheckpointError(
            f"{cache}: has {free / 1e9:.1f} GB free, and to convert {directory} for another number of workers takes "
            f"{needed / 1e9:.1f} GB; make room, or set TMPDIR to a folder that has it"
        )


def _run_converter(source: Path, into: Path) -> None:
    """Call DeepSpeed's command-line converter as a function."""
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
    # It prints, and draws progress bars.
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        _memory_mapped_loading(),
        safe_loading(),
    ):
        ds_to_universal.main(arguments)


@contextmanager
def _memory_mapped_loading() -> Iterator[None]:
    """Let ``torch.load`` map files into memory instead of reading them."""
    before = serialization.load.mmap
    serialization.load.mmap = True
    try:
        yield
    finally:
        serialization.load.mmap = before
