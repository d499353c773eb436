"""Writes and verifies checkpoints: sharded state files, a hash list for each rank, and a manifest.

A checkpoint is a folder that all ranks fill together: DeepSpeed's shards under ``state/``, one ``files-00000.json`` a
rank that lists what this rank wrote with its SHA-256, and ``checkpoint.json`` from rank 0, which identifies the run.
Nothing is loaded before every hash was checked: a shard cut short by a lost node would otherwise load, silently, as
zeros.
"""

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from pairwright.data.storage.backoff import backoff_delays
from pairwright.errors import CheckpointError, DamagedCheckpointError
from pairwright.events import Retrying
from pairwright.records import UNREADABLE_JSON
from pairwright.training.collectives import first_error
from pairwright.training.context import RunContext

TAG = "state"
MANIFEST_NAME = "checkpoint.json"


class CheckpointManifest(msgspec.Struct, frozen=True, kw_only=True):
    """Which run a checkpoint belongs to, and which of its steps; ``checkpoint.json``."""

    format_version: int
    step: int
    """Optimizer steps taken."""
    num_steps: int
    """Optimizer steps of the whole run."""
    world_size: int
    zero_stage: int
    precision: str
    run_digest: str
    """Digest of everything that decides the result: configuration, data, tokenizer, starting weights."""
    code_version: str
    skipped_steps: tuple[int, ...] = ()
    """Those of these steps that changed nothing, because their loss or gradient was not finite."""
    validation: dict[str, float] = {}
    """Weighted accuracy and log loss on the validation split after this step; empty where it was not evaluated."""

    def __post_init__(self) -> None:
        """Refuse values that no run writes: with a world size of 0 there would be no file to verify."""
        if self.world_size < 1 or self.zero_stage not in range(4):
            raise ValueError(f"world_size is {self.world_size}, zero_stage {self.zero_stage}")


class ShardFile(msgspec.Struct, frozen=True):
    """One file of a checkpoint; an entry of ``files-*.json``."""

    path: str
    bytes: int
    sha256: str


def listing_name(rank: int) -> str:
    """Return the name of the list of the files that a rank wrote."""
    return f"files-{rank:05d}.json"


def write_manifests(directory: Path, manifest: CheckpointManifest, *, rank: int) -> None:
    """Record the files that this rank wrote below ``directory``, and on rank 0 the checkpoint's manifest."""
    files = [_describe(path, directory) for path in sorted((directory / TAG).rglob("*")) if path.is_file()]
    (directory / listing_name(rank)).write_bytes(msgspec.json.format(msgspec.json.encode(files), indent=1))
    if rank == 0:
        (directory / MANIFEST_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))


def read_manifest(directory: Path) -> CheckpointManifest:
    """Return a checkpoint's manifest.

    Raises:
        DamagedCheckpointError: if the folder has none, or one that cannot be read.
    """
    try:
        return msgspec.json.decode((directory / MANIFEST_NAME).read_bytes(), type=CheckpointManifest)
    except (FileNotFoundError, *UNREADABLE_JSON) as error:
        raise DamagedCheckpointError(
            f"{directory}: not a checkpoint: {MANIFEST_NAME} cannot be read ({error})"
        ) from None


def verify(directory: Path, manifest: CheckpointManifest, *, rank: int) -> None:
    """Check the files that this rank is about to read, its own and rank 0's, against the recorded sizes and hashes.

    Raises:
        DamagedCheckpointError: naming the first file that is missing or differs.
    """
    for writer in sorted({0, rank} & set(range(manifest.world_size))):
        _verify_files_of(directory, writer)


def verify_all(directory: Path, manifest: CheckpointManifest) -> None:
    """Check the files of every rank that wrote, as ``verify`` does for those that one rank reads.

    Raises:
        DamagedCheckpointError: naming the first file that is missing or differs.
    """
    for writer in range(manifest.world_size):
        _verify_files_of(directory, writer)


def check_belongs(manifest: CheckpointManifest, directory: Path, *, run_digest: str) -> None:
    """Refuse a checkpoint of another run.

    Raises:
        CheckpointError: saying what differs and what to do.
    """
    if manifest.run_digest != run_digest:
        raise CheckpointError(
            f"{directory}: this checkpoint belongs to another run (digest {manifest.run_digest[:12]}, this run is "
            f"{run_digest[:12]}); give the new run another output"
        )


def _verify_files_of(directory: Path, writer: int) -> None:
    listing = directory / listing_name(writer)
    try:
        files = msgspec.json.decode(listing.read_bytes(), type=list[ShardFile])
    except (FileNotFoundError, *UNREADABLE_JSON) as error:
        raise DamagedCheckpointError(f"{listing}: the list of rank {writer}'s files cannot be read ({error})") from None
    for expected in files:
        _check(directory, expected)


def _describe(path: Path, directory: Path) -> ShardFile:
    return ShardFile(path.relative_to(directory).as_posix(), path.stat().st_size, _sha256(path))


def _check(directory: Path, expected: ShardFile) -> None:
    path = directory / expected.path
    if not path.is_file():
        raise DamagedCheckpointError(f"{path}: missing from its checkpoint")
    if path.stat().st_size != expected.bytes:
        raise DamagedCheckpointError(
            f"{path}: {path.stat().st_size} bytes, expected {expected.bytes}; it was cut short or changed"
        )
    if _sha256(path) != expected.sha256:
        raise DamagedCheckpointError(f"{path}: content differs from what was written (SHA-256); the file is damaged")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------------------------------------- writing


def write_checkpoint(
    save: Callable[[Path, str], None], manifest: CheckpointManifest, context: RunContext, *, retry_seconds: float
) -> Path:
    """Write this rank's part of a checkpoint and return its folder; all ranks succeed together or fail together.

    Saving is a collective, and a checkpoint with a part missing is none. So the ranks agree after each attempt: if one
    rank's disk is full, all of them retry together, with exponential backoff.

    Args:
        save: writes this rank's shards below a folder under a tag (``Engine.save``).
        manifest: of the checkpoint.
        context: this rank's.
        retry_seconds: how long to retry.

    Raises:
        CheckpointError: on every rank alike, if a rank still cannot write after the last retry.
    """
    for pause in [*backoff_delays(retry_seconds), None]:
        directory: Path | None = None
        error: CheckpointError | None = None
        try:
            directory = context.staging_folder(f"step-{manifest.step}-rank-{context.rank}")
        except OSError as found:
            error = _disk_error(found, manifest, context)
        if (first := first_error(error)) is None:
            assert directory is not None
            error = _write_part(save, manifest, context, directory)
            if (first := first_error(error)) is None:
                return directory
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
        if pause is None:
            raise first
        if error is not None:
            context.log_event(Retrying(step=manifest.step, reason=str(error), seconds=pause))
        time.sleep(pause)
    raise AssertionError  # the last pause is None


def _write_part(
    save: Callable[[Path, str], None], manifest: CheckpointManifest, context: RunContext, directory: Path
) -> CheckpointError | None:
    try:
        save(directory, TAG)
        write_manifests(directory, manifest, rank=context.rank)
    except OSError as found:
        return _disk_error(found, manifest, context)
    return None


def _disk_error(found: OSError, manifest: CheckpointManifest, context: RunContext) -> CheckpointError:
    return CheckpointError(
        f"rank {context.rank} cannot write the checkpoint of step {manifest.step} on its own disk: {found}; free space "
        "there, or point TMPDIR at a larger disk"
    )
