"""Ray Train's snapshot of a run: its private list of the committed checkpoints, read and rewritten here.

A workaround. Ray 2.60 has no public call that lists a run's checkpoints without starting the run, and none that takes a
corrupt checkpoint off its list: it refuses to start from a snapshot that cannot be parsed or names a checkpoint that is
gone, and always resumes from the newest entry. No upstream issue is known. tests/contracts/test_workarounds.py compares
the keys with Ray's own, and fails once Ray starts from such a snapshot by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import msgspec
import obstore
from obstore.store import ObjectStore

from pairwright.data.storage.object_store import open_store, store_errors
from pairwright.data.storage.ownership import CHECKPOINT_NAME
from pairwright.records import UNREADABLE_JSON
from pairwright.runs.run_dir import CHECKPOINTS_NAME, RunFolder, read_object

SNAPSHOT_NAME = "checkpoint_manager_snapshot.json"


@dataclass(frozen=True)
class Snapshot:
    """What Ray's snapshot says."""

    state: Literal["read", "missing", "torn"]
    names: tuple[str, ...] = ()
    """Of the committed checkpoints, the newest last."""


class _Entry(msgspec.Struct, frozen=True):
    checkpoint_dir_name: str


class _Content(msgspec.Struct, frozen=True):
    """The part of the file that says what is committed."""

    checkpoint_results: list[_Entry]


def read_snapshot(store: ObjectStore) -> Snapshot:
    """Return the snapshot of a run, read from a store of the run's folder.

    A list with other names than a run gives its checkpoints, such as ``../model``, is not used either: Ray deletes what
    its list names.
    """
    content = read_object(store, f"{CHECKPOINTS_NAME}/{SNAPSHOT_NAME}")
    if content is None:
        return Snapshot("missing")
    try:
        results = msgspec.json.decode(content, type=_Content).checkpoint_results
    except UNREADABLE_JSON:
        return Snapshot("torn")
    names = tuple(entry.checkpoint_dir_name for entry in results)
    return Snapshot("read", names) if all(map(CHECKPOINT_NAME.fullmatch, names)) else Snapshot("torn")


def write_snapshot(folder: RunFolder, committed: Sequence[tuple[str, int]]) -> None:
    """Rewrite the snapshot, in one put.

    Args:
        folder: of the run.
        committed: name and step of each checkpoint, the newest last.

    Raises:
        StoreError: if it cannot be written.
    """
    results = [{"version": 0, "checkpoint_dir_name": name, "metrics": {"step": step}} for name, step in committed]
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
