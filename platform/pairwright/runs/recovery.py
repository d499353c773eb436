"""The history of one command's run, added up from its events: restarts, resumes, world sizes, and each recovery.

A recovery is a loss of workers and what it cost; ``summary.json`` lists them.
"""

from datetime import UTC, datetime

import msgspec

from pairwright.events import (
    CorruptCheckpoint,
    Event,
    HangDetected,
    Resumed,
    StepTaken,
    WorkersLost,
    WorkersStarted,
)
from pairwright.terminal import counted


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """One loss of workers, and how the run recovered."""

    at: datetime
    """When the driver learned of it, UTC."""
    causes: list[str]
    """What the watchdog and Ray said."""
    restored_step: int
    """Step of the checkpoint that the new workers resumed from; 0 if they started from the first step."""
    steps_redone: int
    """Steps taken since that checkpoint, which had to be recomputed."""
    seconds: float | None
    """From the loss to the end of the first step of the new workers; None if they took none."""
    workers_seconds: float | None = None
    """Of these, until the new workers had started and had a model in memory."""
    load_seconds: float | None = None
    """Of these, after that, until the checkpoint was loaded; None if there was none."""


class RunHistory:
    """Adds up the events of one command."""

    def __init__(self) -> None:
        self.num_restarts = 0
        self.num_resumes = 0
        self.num_corrupt_checkpoints = 0
        self.world_sizes: list[int] = []
        self.last_step = 0
        self._recovered: list[Recovery] = []
        self._open: Recovery | None = None
        self._lost_at = self._workers_at = 0.0
        self._hang: str | None = None

    @property
    def recoveries(self) -> list[Recovery]:
        """Every loss of workers so far, in order; the run may not have recovered from the last one yet."""
        return [*self._recovered, *([] if self._open is None else [self._open])]

    def add(self, event: Event) -> str | None:
        """Take an event; return a line for the log if it ended a recovery or changed the number of workers."""
        self.num_restarts += event.counts_as_restart
        match event:
            case WorkersStarted():
                return self._add_workers(event)
            case Resumed():
                self._add_resume(event)
            case HangDetected():
                self._hang = event.reason
            case WorkersLost():
                self._add_loss(event)
            case CorruptCheckpoint():
                self.num_corrupt_checkpoints += 1
            case StepTaken():
                self.last_step = event.step
                return self._end_recovery(event)
            case _:
                pass
        return None

    def _add_loss(self, event: WorkersLost) -> None:
        """Begin a recovery; one that is still open, and never got to a step, is kept as it is."""
        if self._open is not None:
            self._recovered.append(self._open)
        causes = [*event.causes] if self._hang is None else [self._hang, *event.causes]
        self._hang, self._lost_at = None, event.time
        self._open = Recovery(
            at=datetime.now(UTC), causes=causes, restored_step=0, steps_redone=self.last_step, seconds=None
        )

    def _add_workers(self, event: WorkersStarted) -> str | None:
        self._workers_at = event.time
        if self._open is not None:
            self._open = msgspec.structs.replace(self._open, workers_seconds=round(event.time - self._lost_at, 1))
        before = self.world_sizes[-1] if self.world_sizes else event.world_size
        self.world_sizes.append(event.world_size)
        return None if before == event.world_size else f"the run has {event.world_size} workers now, {before} before"

    def _add_resume(self, event: Resumed) -> None:
        self.num_resumes += 1
        if self._open is not None:
            last_step = self._open.restored_step + self._open.steps_redone
            self._open = msgspec.structs.replace(
                self._open,
                restored_step=event.step,
                steps_redone=max(0, last_step - event.step),
                load_seconds=round(event.time - self._workers_at, 1),
            )

    def _end_recovery(self, event: StepTaken) -> str | None:
        if self._open is None:
            return None
        ended, self._open = msgspec.structs.replace(self._open, seconds=round(event.time - self._lost_at, 1)), None
        self._recovered.append(ended)
        parts = {"workers": ended.workers_seconds, "checkpoint load": ended.load_seconds}
        split = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in parts.items() if seconds is not None)
        took = f"recovered in {ended.seconds:.0f} s{f' ({split})' if split else ''}"
        return f"{took}; {counted(ended.steps_redone, 'step')} recomputed"
