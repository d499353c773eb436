"""What the training loop needs from whoever started it: the ``RunContext`` protocol and this rank's status.

The loop knows no Ray. ``cluster/train/ray_context.py`` implements the protocol on Ray Train; the tests implement it on
a folder.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from pairwright.events import RunEvent


@dataclass(frozen=True)
class RankStatus:
    """What one rank is doing."""

    phase: str = "starting"
    step: int = 0
    """Number of the current step, from 1."""
    micro_batch: int = 0
    """Forward passes started in this phase."""
    count: int = 0
    """Increases with every change of status, equally on all ranks: a rank with a lower count is behind."""
    is_monitored: bool = False
    """Whether a long silence means that the rank hangs; False while it waits for storage, which may take any time."""


class StatusTracker:
    """Holds this rank's status; replaced as a whole, so that another thread never reads a half-written one."""

    def __init__(self) -> None:
        self.now = RankStatus()

    def set_phase(self, phase: str, step: int, *, is_monitored: bool) -> None:
        """Record what this rank does from now on."""
        self.now = RankStatus(phase=phase, step=step, count=self.now.count + 1, is_monitored=is_monitored)

    def forward(self) -> None:
        """Record that a forward pass starts."""
        self.now = replace(self.now, micro_batch=self.now.micro_batch + 1, count=self.now.count + 1)


class RunContext(Protocol):
    """This rank's place in the run, its checkpoints and its way to report."""

    rank: int
    world_size: int
    attempt: str
    """Identifies this start of the run, equally on every rank: a checkpoint's folder must never be used twice."""
    status: StatusTracker
    """Where the loop records what this rank is doing."""

    def latest_checkpoint(self) -> AbstractContextManager[Path] | None:
        """Return the latest committed checkpoint as a local folder, the same on every rank; None if there is none.

        Entering it raises CheckpointError if the checkpoint cannot be fetched.
        """
        ...

    def staging_folder(self, name: str) -> Path:
        """Return a new empty folder on this rank's disk; raises OSError if there is no room."""
        ...

    def wait_for_upload(self) -> None:
        """Wait until the previous checkpoint has left every rank's disk: at most one uploads at a time. A collective.

        Raises CheckpointError, on every rank alike, if a rank's part could not be stored.
        """
        ...

    def save_checkpoint(self, metrics: dict[str, Any], directory: Path, name: str) -> None:
        """Upload a finished folder in the background and commit it together with those of the other ranks."""
        ...

    def log_event(self, event: RunEvent) -> None:
        """Report an event of the run: most of them from rank 0, a problem from the rank that has it."""
        ...

    def poll_control(self, steps_taken: int) -> Literal["save", "stop"] | None:
        """Return whether to save a checkpoint now, or to save one and stop; equal on every rank. A collective.

        The loop calls it once a step. A request is returned once: the preemption of a node is announced once.
        """
        ...
