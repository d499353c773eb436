"""A run's output folder -> its checkpoints: what a restart would find, whether it is whole, what is left over.

Reads what the run wrote and what Ray's snapshot names; starts no Ray, so it can be asked while the run goes on.
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
from pairwright.records import UNREADABLE_JSON
from pairwright.runs.folder_transfer import objects_below
from pairwright.runs.run_dir import BEST_NAME, CHECKPOINTS_NAME, DAMAGED_NAME, RUN_NAME, RunFolder, read_object
from pairwright.runs.run_log_lines import format_figures
from pairwright.terminal import escaped, one_per_line
from pairwright.training.checkpoint import MANIFEST_NAME, CheckpointManifest, ShardFile, listing_name

if TYPE_CHECKING:
    from obstore import ObjectMeta

SNAPSHOT_NAME = "checkpoint_manager_snapshot.json"


class KeptCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One folder below a run's ``checkpoints/``."""

    name: str
    committed: bool
    """Whether Ray's snapshot names it, so that a restart may use it; else it is being written, or a leftover."""
    manifest: CheckpointManifest | None
    """Its ``checkpoint.json``, if that can be read."""
    bytes: int
    """Of all its files."""
    written_at: datetime | None
    """When its newest file was written; None where Ray's snapshot names a folder that is gone."""
    damage: str | None
    """What is wrong with it; None if nothing was found, by names and sizes or, verified, by every hash."""


class KeptCheckpoints(msgspec.Struct, frozen=True, kw_only=True):
    """What ``pairwright checkpoints`` shows."""

    run: str
    verified: bool
    """Whether every file was read and its hash compared, or only names and sizes."""
    snapshot: Literal["read", "missing", "torn"]
    """Ray's list of what is committed."""
    checkpoints: list[KeptCheckpoint]
    """The newest step first."""
    kept_apart: list[KeptCheckpoint] = []
    """What ``training.best_metric`` keeps below ``checkpoints-best/``: one, unless a driver was killed on the way."""
    set_aside: list[str] = []
    """Damaged ones, below ``checkpoints-damaged/``."""
    foreign: list[str] = []
    """Folders below ``checkpoints/`` that no run names so: they are never touched."""

    @property
    def best(self) -> KeptCheckpoint | None:
        """The best one: the newest whole one of those that are kept apart."""
        return max(self.kept_apart, key=lambda kept: (kept.damage is None, step_of(kept)), default=None)

    @property
    def list_is_broken(self) -> bool:
        """Whether the next start has to write Ray's list anew (``mending.mend``)."""
        return self.snapshot == "torn" or any(kept.written_at is None for kept in self.checkpoints)

    @property
    def next_start(self) -> KeptCheckpoint | None:
        """The newest whole one of those that the next start looks at: the committed, or all if the list is broken."""
        looked_at = [kept for kept in self.checkpoints if kept.committed or self.list_is_broken]
        return next((kept for kept in looked_at if kept.damage is None), None)


class _Named(msgspec.Struct, frozen=True):
    checkpoint_dir_name: str


class _Snapshot(msgspec.Struct, frozen=True):
    """The part of Ray Train's snapshot that says what is committed."""

    checkpoint_results: list[_Named]


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
        raise StoreError(f"{run}: no run here ({RUN_NAME} is missing); expected the output of `pairwright train`")
    store = open_store(folder.url)
    with store_errors(folder.url):
        snapshot, committed = _committed(store)
        folders = _folders(store, CHECKPOINTS_NAME)
        found = [
            _looked_at(store, f"{CHECKPOINTS_NAME}/{name}", entries, committed=name in committed, verify=verify)
            for name, entries in sorted(folders.items())
            if CHECKPOINT_NAME.fullmatch(name)
        ]
        found += [_gone(name) for name in committed if name not in folders]
        kept_apart = [
            _looked_at(store, f"{BEST_NAME}/{name}", entries, committed=True, verify=verify)
            for name, entries in sorted(_folders(store, BEST_NAME).items())
            if CHECKPOINT_NAME.fullmatch(name)
        ]
        set_aside = sorted(_folders(store, DAMAGED_NAME))
    found.sort(key=lambda kept: (step_of(kept), kept.committed), reverse=True)
    return KeptCheckpoints(
        run=folder.url,
        verified=verify,
        snapshot=snapshot,
        checkpoints=found,
        kept_apart=kept_apart,
        set_aside=set_aside,
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


def _committed(store: ObjectStore) -> tuple[Literal["read", "missing", "torn"], list[str]]:
    """Return the state of Ray Train's list of committed checkpoints, and the names in it, the newest last."""
    content = read_object(store, f"{CHECKPOINTS_NAME}/{SNAPSHOT_NAME}")
    if content is None:
        return "missing", []
    try:
        results = msgspec.json.decode(content, type=_Snapshot).checkpoint_results
    except UNREADABLE_JSON:
        return "torn", []
    names = [named.checkpoint_dir_name for named in results]
    # Ray deletes what its list names, so a list with other names than a run's, such as ../model, is not one to use.
    return ("read", names) if all(map(CHECKPOINT_NAME.fullmatch, names)) else ("torn", [])


def _looked_at(
    store: ObjectStore, path: str, entries: Sequence["ObjectMeta"], *, committed: bool, verify: bool
) -> KeptCheckpoint:
    manifest, damage = _manifest(store, path)
    if manifest is not None:
        sizes = {entry["path"]: entry["size"] for entry in entries}
        damage = _damage(store, path, manifest, sizes, verify=verify)
    return KeptCheckpoint(
        name=path.rpartition("/")[2],
        committed=committed,
        manifest=manifest,
        bytes=sum(entry["size"] for entry in entries),
        written_at=max(entry["last_modified"] for entry in entries),
        damage=damage,
    )


def _gone(name: str) -> KeptCheckpoint:
    return KeptCheckpoint(
        name=name,
        committed=True,
        manifest=None,
        bytes=0,
        written_at=None,
        damage="the folder is gone",
    )


def _manifest(store: ObjectStore, path: str) -> tuple[CheckpointManifest | None, str | None]:
    content = read_object(store, f"{path}/{MANIFEST_NAME}")
    if content is None:
        return None, f"{MANIFEST_NAME} is missing"
    try:
        return msgspec.json.decode(content, type=CheckpointManifest), None
    except UNREADABLE_JSON as error:
        return None, f"{MANIFEST_NAME} cannot be read ({error})"


def _damage(
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
    lines += [f"set aside, damaged: {DAMAGED_NAME}/{name}" for name in found.set_aside]
    lines += [f"not of this run, left alone: {CHECKPOINTS_NAME}/{name}" for name in found.foreign]
    return one_per_line([*lines, _next_start(found)])


def _lines(kept: KeptCheckpoint, standing: str, name: str) -> list[str]:
    lines = [f"{_name(kept):>10}  {kept.bytes / 1e6:10,.1f} MB  {standing:<22}  {name}"]
    if kept.manifest is not None and kept.manifest.validation:
        lines[0] += f"  ({format_figures(kept.manifest.validation)})"
    return lines if kept.damage is None else [*lines, f"{'':>10}  {kept.damage}"]


def _next_start(found: KeptCheckpoints) -> str:
    if found.next_start is not None:
        return f"the next start goes on from step {step_of(found.next_start):,}"
    if found.checkpoints and found.best is not None and found.best.damage is None:
        return (
            f"no committed checkpoint is whole: the next start goes on from the best one, step {step_of(found.best):,}"
        )
    if any(kept.committed and kept.written_at is not None for kept in found.checkpoints):
        return "no committed checkpoint is whole: the next start refuses, until the checkpoints folder is removed"
    return "the next start goes on from its first step"


def _name(kept: KeptCheckpoint) -> str:
    return "?" if kept.manifest is None else f"step {kept.manifest.step:,}"


def _standing(kept: KeptCheckpoint, found: KeptCheckpoints) -> str:
    if not kept.committed:
        return "not committed"
    if kept.damage is not None:
        return "DAMAGED"
    return "verified" if found.verified else "committed"
