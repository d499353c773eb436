"""Repairs Ray Train's checkpoint snapshot after a crash: it then lists only checkpoints that exist and are valid.

The driver repairs while no worker is running. ``plan_repair`` decides, from what was found and without touching a file;
``repair_snapshot`` finds, applies the plan and reports. A corrupt checkpoint leaves the list, since Ray always resumes
from the newest entry, and goes to ``checkpoints-corrupt/``, where a person can look at it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec

from pairwright.errors import CheckpointError
from pairwright.events import CorruptCheckpoint, RunEvent, SnapshotRepaired, UncommittedRemoved
from pairwright.runs.checkpoints import KeptCheckpoint, KeptCheckpoints, kept_checkpoints, step_of
from pairwright.runs.folder_transfer import copy_folder, move_folder, remove_folder
from pairwright.runs.ray_snapshot import write_snapshot
from pairwright.runs.run_dir import BEST_NAME, CHECKPOINTS_NAME, CORRUPT_NAME, RunFolder


@dataclass(frozen=True)
class Repair:
    """What is to be done, in this order."""

    move_corrupt: Mapping[str, str] = field(default_factory=dict)
    """Committed checkpoint -> what is wrong with it; each moves to ``checkpoints-corrupt/``."""
    restore_best: str | None = None
    """Checkpoint that is copied back from ``checkpoints-best/``, since no other is valid."""
    commit: tuple[tuple[str, int], ...] | None = None
    """Name and step of each checkpoint that the new snapshot lists, the newest last; None where the snapshot stays."""
    reason: str | None = None
    """Why the snapshot cannot stay, and what the new one lists; None where only corrupt checkpoints leave it."""


@dataclass(frozen=True)
class RepairReport:
    """What was repaired."""

    corrupt: Mapping[str, str] = field(default_factory=dict)
    """Checkpoint -> what is wrong with it; each is in ``checkpoints-corrupt/`` now."""
    snapshot_rewritten: str | None = None
    """Why the snapshot could not stay, and what the new one lists; None if it lost corrupt checkpoints at most."""

    def events(self) -> list[RunEvent]:
        """Return the report as events of the run."""
        repaired = [] if self.snapshot_rewritten is None else [SnapshotRepaired(reason=self.snapshot_rewritten)]
        return [*repaired, *(CorruptCheckpoint(name=name, reason=reason) for name, reason in self.corrupt.items())]


def repair_snapshot(folder: RunFolder, *, corrupt: Mapping[str, str] | None = None) -> RepairReport:
    """Leave only valid checkpoints in Ray's snapshot, and move those that it lists and that are corrupt.

    Names and sizes are compared here. Hashes are verified by the workers, each its own files, and here only where the
    snapshot has to be rewritten or the best checkpoint restored. To be called while no worker is running.

    Args:
        folder: of a run that may not have started yet.
        corrupt: checkpoint -> what workers found wrong with it, beyond names and sizes.

    Raises:
        CheckpointError: if the snapshot lists checkpoints and neither of them nor the best one is valid; nothing is
            changed then.
        StoreError: if the folder cannot be read or written.
    """
    if folder.identity() is None:
        return RepairReport()
    found = kept_checkpoints(folder.url, verify=False)
    if found.snapshot_is_unusable:
        found = kept_checkpoints(folder.url, verify=True)
    repair = plan_repair(found, corrupt or {})
    if repair.restore_best is not None and not found.verified:
        best = kept_checkpoints(folder.url, verify=True).best_copies
        repair = plan_repair(msgspec.structs.replace(found, best_copies=best), corrupt or {})
    _apply(folder, repair)
    return RepairReport(corrupt=repair.move_corrupt, snapshot_rewritten=repair.reason)


def plan_repair(found: KeptCheckpoints, corrupt: Mapping[str, str]) -> Repair:
    """Return what is to be done about what was found; reads and writes nothing.

    A snapshot that is torn, or lists what is gone, is replaced by one with every checkpoint that passes verification,
    whether or not the old one listed it: each is an exact state of this run. Any other loses what is corrupt.

    Args:
        found: the run's checkpoints; verified, where the snapshot is unusable.
        corrupt: checkpoint -> what workers found wrong with it.

    Raises:
        CheckpointError: if a committed checkpoint is corrupt and no valid one is left.
    """
    unusable = found.snapshot_is_unusable
    listed = [kept for kept in found.checkpoints if kept.committed and kept.written_at is not None]
    wrong = {kept.name: reason for kept in listed if (reason := _corruption(kept, corrupt)) is not None}
    if not unusable and not wrong:
        return Repair()
    candidates = found.checkpoints if unusable else listed
    valid = [kept for kept in candidates if _corruption(kept, corrupt) is None]
    if valid:
        reason = _why_rewritten(found, valid) if unusable else None
        return Repair(move_corrupt=wrong, commit=_entries(valid), reason=reason)
    if found.best is not None and _corruption(found.best, corrupt) is None:
        reason = f"no other checkpoint is valid: restored the best one, of step {step_of(found.best)}"
        return Repair(move_corrupt=wrong, restore_best=found.best.name, commit=_entries([found.best]), reason=reason)
    if wrong:
        raise CheckpointError(
            f"no checkpoint of this run is valid: {'; '.join(f'{name}: {reason}' for name, reason in wrong.items())}. "
            f"To start the run again from its first step, remove {found.run}/{CHECKPOINTS_NAME}"
        )
    return Repair(commit=(), reason=_why_rewritten(found, []))


def _corruption(kept: KeptCheckpoint, corrupt: Mapping[str, str]) -> str | None:
    return corrupt.get(kept.name, kept.corruption)


def _entries(newest_first: list[KeptCheckpoint]) -> tuple[tuple[str, int], ...]:
    return tuple((kept.name, step_of(kept)) for kept in reversed(newest_first))


def _why_rewritten(found: KeptCheckpoints, valid: list[KeptCheckpoint]) -> str:
    gone = ", ".join(kept.name for kept in found.checkpoints if kept.written_at is None)
    wrong = f"listed missing checkpoints ({gone})" if gone else "was cut short"
    steps = ", ".join(f"{step_of(kept)}" for kept in valid)
    return (
        f"Ray's list of committed checkpoints {wrong}; rewritten with the valid checkpoints of steps: {steps or 'none'}"
    )


def _apply(folder: RunFolder, repair: Repair) -> None:
    for name in repair.move_corrupt:
        move_folder(folder, f"{CHECKPOINTS_NAME}/{name}", f"{CORRUPT_NAME}/{name}")
    if repair.restore_best is not None:
        copy_folder(folder, f"{BEST_NAME}/{repair.restore_best}", f"{CHECKPOINTS_NAME}/{repair.restore_best}")
    if repair.commit is not None:
        write_snapshot(folder, repair.commit)


def remove_uncommitted(folder: RunFolder, *, older_than_seconds: float) -> UncommittedRemoved:
    """Remove what interrupted uploads left in Ray's folder: every checkpoint that its snapshot does not list.

    To be called while no worker of this run is running.

    Args:
        folder: of a run.
        older_than_seconds: keep what was written since; the workers of a driver that was just killed may still write.

    Raises:
        StoreError: if the folder cannot be read or written.
    """
    found = kept_checkpoints(folder.url, verify=False)
    if found.snapshot != "read" or found.snapshot_is_unusable:
        return UncommittedRemoved(num_checkpoints=0, bytes=0)
    before = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
    left = [
        kept
        for kept in found.checkpoints
        if not kept.committed and kept.written_at is not None and kept.written_at <= before
    ]
    for kept in left:
        remove_folder(folder, f"{CHECKPOINTS_NAME}/{kept.name}")
    return UncommittedRemoved(num_checkpoints=len(left), bytes=sum(kept.bytes for kept in left))
