"""Lists the checkpoints of a run: which are committed, which are corrupt, and which one the next start resumes from.

Reads what the run wrote and what Ray's snapshot lists. Starts no Ray, so it can be used while the run is training.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import msgspec
import obstore
from obstore.exceptions import NotFoundError
from obstore.store import ObjectStore

from pairwright.data.storage.object_store import local_root, store_errors
from pairwright.data.storage.ownership import CHECKPOINT_NAME
from pairwright.data.table.table import open_store
from pairwright.errors import StoreError
from pairwright.events import format_metrics
from pairwright.records import UNREADABLE_JSON
from pairwright.runs.folder_transfer import objects_below
from pairwright.runs.ray_snapshot import SNAPSHOT_NAME, read_snapshot
from pairwright.runs.run_dir import BEST_NAME, CHECKPOINTS_NAME, CORRUPT_NAME, RUN_NAME, RunFolder, read_object
from pairwright.suggestions import did_you_mean_path
from pairwright.terminal import escaped, one_per_line
from pairwright.training.checkpoint import MANIFEST_NAME, CheckpointManifest, ShardFile, listing_name

if TYPE_CHECKING:
    from obstore import ObjectMeta


class KeptCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One folder below a run's ``checkpoints/``."""

    name: str
    committed: bool
    """Whether Ray's snapshot lists it, so that a restart may use it; else its upload has not ended, or never did."""
    manifest: CheckpointManifest | None
    """Its ``checkpoint.json``, if that can be read."""
    bytes: int
    """Of all its files."""
    written_at: datetime | None
    """When its newest file was written; None where Ray's snapshot lists a folder that is gone."""
    corruption: str | None
    """What is wrong with it; None if names and sizes of its files are right and, where verified, every hash."""


class KeptCheckpoints(msgspec.Struct, frozen=True, kw_only=True):
    """What ``pairwright checkpoints`` shows."""

    run: str
    verified: bool
    """Whether every file was read and its hash compared, or only names and sizes."""
    snapshot: Literal["read", "missing", "torn"]
    """Ray's list of what is committed."""
    checkpoints: list[KeptCheckpoint]
    """The newest step first."""
    best_copies: list[KeptCheckpoint] = []
    """What ``training.best_metric`` keeps in ``checkpoints-best/``: one, unless a driver was killed while it copied."""
    corrupt: list[str] = []
    """Checkpoints that were moved to ``checkpoints-corrupt/``."""
    foreign: list[str] = []
    """Folders in ``checkpoints/`` with other names than a run gives: they are never touched."""

    @property
    def best(self) -> KeptCheckpoint | None:
        """The newest valid copy of a best checkpoint."""
        return max(self.best_copies, key=lambda kept: (kept.corruption is None, step_of(kept)), default=None)

    @property
    def snapshot_is_unusable(self) -> bool:
        """Whether the next start has to rewrite Ray's snapshot (``repair.py``)."""
        return self.snapshot == "torn" or any(kept.written_at is None for kept in self.checkpoints)

    @property
    def next_start(self) -> KeptCheckpoint | None:
        """The newest valid one of those that the next start considers: the committed, or all if it has to repair."""
        considered = [kept for kept in self.checkpoints if kept.committed or self.snapshot_is_unusable]
        return next((kept for kept in considered if kept.corruption is None), None)


def kept_checkpoints(run: str, *, verify: bool) -> KeptCheckpoints:
    """Return the checkpoints of a run.

    Args:
        run: output folder of a run, a path or a URL.
        verify: read every file and compare its hash; names and sizes are compared in any case.

    Raises:
        StoreError: if there is no run.
    """
    root = local_root(run)
    folder = RunFolder(run) if root is None or root.is_dir() else None  # which would make the folder
    if folder is None or folder.identity() is None:
        raise StoreError(
            f"{run}: no run here ({RUN_NAME} is missing); expected the output of `pairwright train`"
            f"{did_you_mean_path(run) if folder is None else ''}"
        )
    store = open_store(folder.url)
    with store_errors(folder.url):
        snapshot = read_snapshot(store)
        folders = _folders(store, CHECKPOINTS_NAME)
        found = [
            _inspected(store, f"{CHECKPOINTS_NAME}/{name}", entries, committed=name in snapshot.names, verify=verify)
            for name, entries in sorted(folders.items())
            if CHECKPOINT_NAME.fullmatch(name)
        ]
        found += [_missing(name) for name in snapshot.names if name not in folders]
        best_copies = [
            _inspected(store, f"{BEST_NAME}/{name}", entries, committed=True, verify=verify)
            for name, entries in sorted(_folders(store, BEST_NAME).items())
            if CHECKPOINT_NAME.fullmatch(name)
        ]
        corrupt = sorted(_folders(store, CORRUPT_NAME))
    found.sort(key=lambda kept: (step_of(kept), kept.committed), reverse=True)
    return KeptCheckpoints(
        run=folder.url,
        verified=verify,
        snapshot=snapshot.state,
        checkpoints=found,
        best_copies=best_copies,
        corrupt=corrupt,
        foreign=sorted(name for name in folders if not CHECKPOINT_NAME.fullmatch(name)),
    )


def _folders(store: ObjectStore, below: str) -> dict[str, list["ObjectMeta"]]:
    """Return folder -> what is in it, for the folders below one of a run's."""
    folders: dict[str, list[ObjectMeta]] = {}
    for entry in objects_below(store, below):
        _, name, *rest = entry["path"].split("/")
        if rest and not name.startswith("."):
            folders.setdefault(name, []).append(entry)
    return folders


def _inspected(
    store: ObjectStore, path: str, entries: Sequence["ObjectMeta"], *, committed: bool, verify: bool
) -> KeptCheckpoint:
    manifest, corruption = _manifest(store, path)
    if manifest is not None:
        sizes = {entry["path"]: entry["size"] for entry in entries}
        corruption = _corruption(store, path, manifest, sizes, verify=verify)
    return KeptCheckpoint(
        name=path.rpartition("/")[2],
        committed=committed,
        manifest=manifest,
        bytes=sum(entry["size"] for entry in entries),
        written_at=max(entry["last_modified"] for entry in entries),
        corruption=corruption,
    )


def _missing(name: str) -> KeptCheckpoint:
    return KeptCheckpoint(
        name=name,
        committed=True,
        manifest=None,
        bytes=0,
        written_at=None,
        corruption="the folder is gone",
    )


def _manifest(store: ObjectStore, path: str) -> tuple[CheckpointManifest | None, str | None]:
    content = read_object(store, f"{path}/{MANIFEST_NAME}")
    if content is None:
        return None, f"{MANIFEST_NAME} is missing"
    try:
        return msgspec.json.decode(content, type=CheckpointManifest), None
    except UNREADABLE_JSON as error:
        return None, f"{MANIFEST_NAME} cannot be read ({error})"


def _corruption(
    store: ObjectStore, path: str, manifest: CheckpointManifest, sizes: dict[str, int], *, verify: bool
) -> str | None:
    """Return the first thing that is wrong with a checkpoint's files, or None."""
    for rank in range(manifest.world_size):
        content = read_object(store, f"{path}/{listing_name(rank)}")
        if content is None:
            return f"{listing_name(rank)} is missing"
        try:
            files = msgspec.json.decode(content, type=list[ShardFile])
        except UNREADABLE_JSON as error:
            return f"{listing_name(rank)} cannot be read ({error})"
        for file in files:
            size = sizes.get(f"{path}/{file.path}")
            if size is None:
                return f"{file.path} is missing"
            if size != file.bytes:
                return f"{file.path} has {size:,} bytes, expected {file.bytes:,}"
            if verify and _sha256(store, f"{path}/{file.path}") != file.sha256:
                return f"{file.path} is not what was written (SHA-256)"
    return None


def _sha256(store: ObjectStore, path: str) -> str | None:
    digest = hashlib.sha256()
    try:
        for chunk in obstore.get(store, path).stream():
            digest.update(chunk)
    except (NotFoundError, FileNotFoundError):  # the run has just put a newer one in its place
        return None
    return digest.hexdigest()


def step_of(kept: KeptCheckpoint) -> int:
    """Return the step of a checkpoint; -1 if its manifest cannot be read."""
    return -1 if kept.manifest is None else kept.manifest.step


def format_checkpoints(found: KeptCheckpoints) -> str:
    """Return the checkpoints as text, a line each."""
    if not found.checkpoints and found.best is None:
        return escaped(f"run {found.run}: no checkpoints yet")
    lines = [f"run {found.run}"]
    if found.snapshot != "read":
        lines.append(f"  Ray's list of committed checkpoints ({SNAPSHOT_NAME}) is {found.snapshot}")
    for kept in found.checkpoints:
        lines += _lines(kept, _standing(kept, found), kept.name)
    if found.best is not None:
        lines += _lines(found.best, "best", f"{BEST_NAME}/{found.best.name}")
    lines += [f"corrupt, not used: {CORRUPT_NAME}/{name}" for name in found.corrupt]
    lines += [f"not of this run, left alone: {CHECKPOINTS_NAME}/{name}" for name in found.foreign]
    return one_per_line([*lines, _next_start(found)])


def _lines(kept: KeptCheckpoint, standing: str, name: str) -> list[str]:
    lines = [f"{_name(kept):>10}  {kept.bytes / 1e6:10,.1f} MB  {standing:<22}  {name}"]
    if kept.manifest is not None and kept.manifest.validation:
        lines[0] += f"  ({format_metrics(kept.manifest.validation)})"
    return lines if kept.corruption is None else [*lines, f"{'':>10}  {kept.corruption}"]


def _next_start(found: KeptCheckpoints) -> str:
    if found.next_start is not None:
        return f"the next start resumes from step {step_of(found.next_start):,}"
    if found.checkpoints and found.best is not None and found.best.corruption is None:
        return (
            f"no committed checkpoint is valid: the next start resumes from the best one, step {step_of(found.best):,}"
        )
    if any(kept.committed and kept.written_at is not None for kept in found.checkpoints):
        return "no committed checkpoint is valid: the next start fails until the checkpoints folder is removed"
    return "the next start begins at the first step"


def _name(kept: KeptCheckpoint) -> str:
    return "?" if kept.manifest is None else f"step {kept.manifest.step:,}"


def _standing(kept: KeptCheckpoint, found: KeptCheckpoints) -> str:
    if not kept.committed:
        return "not committed"
    if kept.corruption is not None:
        return "CORRUPT"
    return "verified" if found.verified else "committed"
