"""Checkpoints that an accident left in disorder -> Ray's list, which names what is there and, as far as known, whole.

The driver's work, before and between the times that workers are at work: Ray refuses a list that names what is gone,
always starts from its newest entry, and counts a damaged one among those it keeps. So a damaged checkpoint leaves the
list, and goes to a folder of its own, where a person can look at it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

import msgspec
import obstore

from pairwright.data.storage.object_store import open_store, store_errors
from pairwright.errors import CheckpointError
from pairwright.runs.checkpoints import (
    SNAPSHOT_NAME,
    KeptCheckpoint,
    KeptCheckpoints,
    kept_checkpoints,
    step_of,
)
from pairwright.runs.folder_transfer import copy_folder, move_folder, remove_folder
from pairwright.runs.run_dir import BEST_NAME, CHECKPOINTS_NAME, DAMAGED_NAME, RunFolder


@dataclass(frozen=True)
class Mended:
    """What was out of order and what was done."""

    set_aside: dict[str, str]
    """Damaged checkpoint -> what is wrong with it; each now lies below ``checkpoints-damaged/``."""
    list_written_anew: str | None
    """Why Ray's list could not be used as it was, and what the new one names; None if it could, less what was set
    aside."""


@dataclass(frozen=True)
class Swept:
    """What uploads that never ended had left, and was removed."""

    num_folders: int
    bytes: int


def mend(folder: RunFolder, *, damaged: Mapping[str, str] | None = None) -> Mended:
    """Leave in Ray's list what is whole, and set aside what it names and is damaged.

    Names and sizes are compared here; hashes by the workers, each its own files, who say what they find. Only a list
    that is torn, or names what is gone, is written anew from every checkpoint whose hashes are right, whether or not
    the old one had come to name it: each is an exact state of this run. To be called while no worker is at work.

    Args:
        folder: of a run that may not have started yet.
        damaged: checkpoint -> what workers found wrong with it, beyond names and sizes.

    Raises:
        CheckpointError: if the list names checkpoints and neither of them nor the best one is whole; nothing is
            changed then.
        StoreError: if the folder cannot be read or written.
    """
    if folder.identity() is None:
        return Mended(set_aside={}, list_written_anew=None)
    found = kept_checkpoints(folder.url, verify=False)
    broken = found.list_is_broken
    if broken:
        found = kept_checkpoints(folder.url, verify=True)
    wrong = _wrong(found, damaged or {})
    whole = [kept for kept in found.checkpoints if (kept.committed or broken) and _wrong_with(kept, damaged) is None]
    best = None if whole or not (broken or wrong) else _whole_best(found, damaged)
    if wrong and not whole and best is None:
        raise CheckpointError(
            f"no checkpoint of this run is whole: {'; '.join(f'{name}: {reason}' for name, reason in wrong.items())}. "
            f"To start it again from its first step, remove {folder.path(CHECKPOINTS_NAME)}"
        )
    for name in wrong:
        move_folder(folder, f"{CHECKPOINTS_NAME}/{name}", f"{DAMAGED_NAME}/{name}")
    if best is not None:
        copy_folder(folder, f"{BEST_NAME}/{best.name}", f"{CHECKPOINTS_NAME}/{best.name}")
        whole = [best]
    if broken or wrong:
        _write_list(folder, whole)
    if best is not None:
        return Mended(
            set_aside=wrong, list_written_anew=f"no other is whole: back to the best one, step {step_of(best)}"
        )
    return Mended(set_aside=wrong, list_written_anew=_why_anew(found, whole) if broken else None)


def _whole_best(found: KeptCheckpoints, damaged: Mapping[str, str] | None) -> KeptCheckpoint | None:
    """Return the best checkpoint, which is kept apart, if there is one and every hash in it is right."""
    best = (found if found.verified else kept_checkpoints(found.run, verify=True)).best
    return best if best is not None and _wrong_with(best, damaged) is None else None


def _wrong_with(kept: KeptCheckpoint, damaged: Mapping[str, str] | None) -> str | None:
    return (damaged or {}).get(kept.name, kept.damage)


def _wrong(found: KeptCheckpoints, damaged: Mapping[str, str]) -> dict[str, str]:
    """Return what is wrong with each committed checkpoint that is there and damaged."""
    reasons = {
        kept.name: _wrong_with(kept, damaged)
        for kept in found.checkpoints
        if kept.committed and kept.written_at is not None
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _why_anew(found: KeptCheckpoints, whole: list[KeptCheckpoint]) -> str:
    gone = ", ".join(kept.name for kept in found.checkpoints if kept.written_at is None)
    wrong = f"named what is gone ({gone})" if gone else "was cut short"
    steps = ", ".join(f"{step_of(kept)}" for kept in whole)
    return f"the list of committed checkpoints {wrong}; written anew with those that are whole: {steps or 'none'}"


def _write_list(folder: RunFolder, whole: list[KeptCheckpoint]) -> None:
    """Write Ray Train's list of committed checkpoints, in one put: the given ones, which come newest first."""
    results = [
        {"version": 0, "checkpoint_dir_name": kept.name, "metrics": {"step": step_of(kept)}} for kept in reversed(whole)
    ]
    state = {
        "ray_version": version("ray"),
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(results))),
        "latest_checkpoint_result": results[-1] if results else None,
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(results),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    url = folder.path(CHECKPOINTS_NAME)
    with store_errors(url):
        obstore.put(open_store(url), SNAPSHOT_NAME, msgspec.json.encode(state))


def sweep(folder: RunFolder, *, older_than_seconds: float) -> Swept:
    """Remove what uploads that never ended left in Ray's folder: whatever its list does not name.

    To be called while no worker of this run is at work.

    Args:
        folder: of a run.
        older_than_seconds: keep what was written since; the workers of a driver that was just killed may still write.

    Raises:
        StoreError: if the folder cannot be read or written.
    """
    found = kept_checkpoints(folder.url, verify=False)
    if found.snapshot != "read" or found.list_is_broken:
        return Swept(num_folders=0, bytes=0)
    before = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
    left = [
        kept
        for kept in found.checkpoints
        if not kept.committed and kept.written_at is not None and kept.written_at <= before
    ]
    for kept in left:
        remove_folder(folder, f"{CHECKPOINTS_NAME}/{kept.name}")
    return Swept(num_folders=len(left), bytes=sum(kept.bytes for kept in left))
