"""State -> sharded files and a manifest, and back.

A checkpoint is a folder that all ranks fill together: DeepSpeed's shards under ``state/``, one
``files-00000.json`` a rank that lists what this rank wrote with its SHA-256, and ``checkpoint.json`` from rank 0,
which says whose it is. Nothing is loaded before every hash was checked: a shard cut short by a lost node would
otherwise load, silently, as zeros.
"""

import hashlib
from pathlib import Path

import msgspec

from pairwright.errors import CheckpointError, DamagedCheckpointError
from pairwright.records import UNREADABLE_JSON

TAG = "state"
MANIFEST_NAME = "checkpoint.json"


class CheckpointManifest(msgspec.Struct, frozen=True, kw_only=True):
    """Whose checkpoint this is; ``checkpoint.json``."""

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
    """Of these steps: the ones that changed nothing, since their loss or gradient was not finite."""
    validation: dict[str, float] = {}
    """Weighted accuracy and log loss on the validation split after this step; empty where it was not evaluated."""

    def __post_init__(self) -> None:
        """Refuse what no run writes: of no rank at all there would be no file to verify."""
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
    """Record what this rank wrote below ``directory``, and on rank 0 whose checkpoint it is."""
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
    """Check what this rank is about to read, its own files and rank 0's, against the recorded sizes and hashes.

    Raises:
        DamagedCheckpointError: naming the first file that is missing or differs.
    """
    for writer in sorted({0, rank} & set(range(manifest.world_size))):
        _verify_files_of(directory, writer)


def verify_all(directory: Path, manifest: CheckpointManifest) -> None:
    """Check the files of every rank that wrote, as ``verify`` does those that one rank reads.

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
