"""Committed checkpoints, each with its own figures on the validation split -> the best of them, kept in its own folder.

Ray keeps the newest ones, so that a start loses few steps, and its list takes no other rule beside that. So the best
is copied out of its reach, by the driver, beside everything else. Which one that is follows from what is stored alone:
a driver that is killed on the way leaves nothing that the next one would not put right.
"""

import threading
from collections.abc import Callable
from typing import Any, Literal

from pairwright.errors import PairwrightError, StoreError
from pairwright.runs.checkpoints import KeptCheckpoint, kept_checkpoints
from pairwright.runs.folder_transfer import copy_folder, remove_folder
from pairwright.runs.run_dir import BEST_NAME, CHECKPOINTS_NAME, RunFolder

Figure = Literal["accuracy", "log_loss"]


def keep_best(run: RunFolder, by: Figure) -> KeptCheckpoint | None:
    """Keep the best committed checkpoint apart, and drop the one that was; None if that one is still the best.

    Of equals the first stays. A checkpoint at whose step there was no evaluation is never the best.

    Raises:
        StoreError, FileNotFoundError: if the run's folder cannot be read or written, or Ray has just removed what was
            being copied.
    """
    found = kept_checkpoints(run.url, verify=False)
    candidates = [kept for kept in found.checkpoints if kept.committed and _score(kept, by) is not None]
    best = max(reversed(candidates), key=lambda kept: _score(kept, by) or 0.0, default=None)
    if best is None or (_score(found.best, by) or float("-inf")) >= (_score(best, by) or 0.0):
        return None
    copied = f"{BEST_NAME}/{best.name}"
    copy_folder(run, f"{CHECKPOINTS_NAME}/{best.name}", copied)
    kept = {one.name: one for one in kept_checkpoints(run.url, verify=False).kept_apart}
    if best.name not in kept or kept[best.name].damage is not None:
        remove_folder(run, copied)
        raise StoreError(f"{run.path(copied)}: removed while it was copied")
    # The one before, and what drivers left that were killed in the middle of this.
    for name in kept.keys() - {best.name}:
        remove_folder(run, f"{BEST_NAME}/{name}")
    return best


def _score(kept: KeptCheckpoint | None, by: Figure) -> float | None:
    """Return a figure of a whole checkpoint, turned so that more is better."""
    if kept is None or kept.manifest is None or kept.damage is not None or by not in kept.manifest.validation:
        return None
    return kept.manifest.validation[by] * (1 if by == "accuracy" else -1)


class BestKeeper:
    """Looks for a new best checkpoint in a thread of its own, whenever one was committed; a context manager.

    Args:
        run: the run's folder.
        by: the figure that decides.
        say: takes a record for the log.
    """

    def __init__(self, run: RunFolder, by: Figure, say: Callable[[dict[str, Any]], None]) -> None:
        self._run, self._say = run, say
        self._by: Figure = by
        self._look, self._stopping = threading.Event(), False
        self._thread = threading.Thread(target=self._keep, name="pairwright-best", daemon=True)

    def __enter__(self) -> "BestKeeper":
        self._look.set()  # at what a driver that was killed left undone
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping = True
        self._look.set()
        self._thread.join()

    def committed(self) -> None:
        """Look, soon."""
        self._look.set()

    def _keep(self) -> None:
        while True:
            self._look.wait()
            self._look.clear()
            is_last = self._stopping
            try:
                best = keep_best(self._run, self._by)
            except (PairwrightError, FileNotFoundError) as error:
                self._say({"kind": "mended", "step": 0, "what": f"the best checkpoint is not kept yet: {error}"})
            else:
                if best is not None and best.manifest is not None:
                    self._say({"kind": "best", "step": best.manifest.step, **best.manifest.validation})
            if is_last:
                return
