"""Keeps a copy of the best committed checkpoint, by its validation metrics, in ``checkpoints-best/``.

Ray keeps the newest checkpoints, so that a restart recomputes few steps, and takes no second rule. So the driver copies
the best one to where Ray does not delete, in a thread of its own. Which one is the best follows from what is stored
alone, so the next driver completes what a killed one left unfinished.
"""

import threading
from collections.abc import Callable
from typing import Literal, TypeAlias

from pairwright.errors import PairwrightError, StoreError
from pairwright.events import BestCheckpointFailed, BestCheckpointKept, RunEvent
from pairwright.runs.checkpoints import KeptCheckpoint, kept_checkpoints
from pairwright.runs.folder_transfer import copy_folder, remove_folder
from pairwright.runs.run_dir import BEST_NAME, CHECKPOINTS_NAME, RunFolder
from pairwright.training.checkpoint import CheckpointManifest

BestMetric: TypeAlias = Literal["accuracy", "log_loss"]


def keep_best(run: RunFolder, metric: BestMetric) -> KeptCheckpoint | None:
    """Copy the best committed checkpoint in place of the copy before; return None if that one is still the best.

    Of equals the first stays. A checkpoint of a step without an evaluation is never the best.

    Raises:
        StoreError, FileNotFoundError: if the run's folder cannot be read or written, or Ray has just removed what was
            being copied.
    """
    found = kept_checkpoints(run.url, verify=False)
    candidates = [kept for kept in found.checkpoints if kept.committed and _score(kept, metric) is not None]
    best = max(reversed(candidates), key=lambda kept: _score(kept, metric) or 0.0, default=None)
    if best is None or (_score(found.best, metric) or float("-inf")) >= (_score(best, metric) or 0.0):
        return None
    copied = f"{BEST_NAME}/{best.name}"
    copy_folder(run, f"{CHECKPOINTS_NAME}/{best.name}", copied)
    kept = {one.name: one for one in kept_checkpoints(run.url, verify=False).best_copies}
    if best.name not in kept or kept[best.name].corruption is not None:
        remove_folder(run, copied)
        raise StoreError(f"{run.path(copied)}: the checkpoint was removed while it was copied")
    # The copy before, and what a driver left that was killed here.
    for name in kept.keys() - {best.name}:
        remove_folder(run, f"{BEST_NAME}/{name}")
    return best


def _score(kept: KeptCheckpoint | None, metric: BestMetric) -> float | None:
    """Return the metric of a valid checkpoint, with the sign that makes more better."""
    if kept is None or kept.manifest is None or kept.corruption is not None or metric not in kept.manifest.validation:
        return None
    return kept.manifest.validation[metric] * (1 if metric == "accuracy" else -1)


class BestCheckpoint:
    """Updates the copy of the best checkpoint after each commit, in a thread of its own; a context manager.

    Args:
        run: the run's folder.
        metric: decides which one is the best.
        log_event: takes an event of the run.
    """

    def __init__(self, run: RunFolder, metric: BestMetric, log_event: Callable[[RunEvent], None]) -> None:
        self._run, self._log_event = run, log_event
        self._metric: BestMetric = metric
        self._wake, self._stopping = threading.Event(), False
        self._thread = threading.Thread(target=self._update, name="pairwright-best", daemon=True)

    def __enter__(self) -> "BestCheckpoint":
        self._wake.set()  # for what a killed driver left unfinished
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def on_commit(self) -> None:
        """Compare the committed checkpoints, soon."""
        self._wake.set()

    def _update(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            is_last = self._stopping
            try:
                best = keep_best(self._run, self._metric)
            except (PairwrightError, FileNotFoundError) as error:
                self._log_event(BestCheckpointFailed(reason=str(error)))
            else:
                if best is not None and best.manifest is not None:
                    self._log_event(_kept_event(best.manifest))
            if is_last:
                return


def _kept_event(manifest: CheckpointManifest) -> BestCheckpointKept:
    validation = manifest.validation
    return BestCheckpointKept(
        step=manifest.step, accuracy=validation.get("accuracy"), log_loss=validation.get("log_loss")
    )
