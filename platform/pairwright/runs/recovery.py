"""Records of a run -> for each loss of workers, what it cost: a list in ``training.json``, and a line of the log."""

from datetime import UTC, datetime

import msgspec


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """One loss of workers, and how the run went on."""

    at: datetime
    """When the driver learned of it, UTC."""
    causes: list[str]
    """What the watchdog and Ray said."""
    restored_step: int
    """Of the checkpoint that the new workers went on from; 0 if they began anew."""
    steps_redone: int
    """Steps that had been taken since that checkpoint."""
    seconds: float | None
    """From then to the end of the first step that the new workers took; None if they took none."""
    workers_seconds: float | None = None
    """Of these, until the new workers were there, each with a model in hand."""
    load_seconds: float | None = None
    """Of these, after that, until the checkpoint was loaded; None if there was none."""


class Recoveries:
    """Follows a run's losses of workers; ``now`` is seconds of any one clock."""

    def __init__(self) -> None:
        self._ended: list[Recovery] = []
        self._lost: Recovery | None = None
        self._lost_at = self._workers_at = 0.0
        self._hang: str | None = None

    @property
    def all(self) -> list[Recovery]:
        """Every loss so far, in order; the last one perhaps not yet got over."""
        return [*self._ended, *([] if self._lost is None else [self._lost])]

    def hangs(self, reason: str) -> None:
        """Take note of why the workers are about to be lost."""
        self._hang = reason

    def lost(self, causes: list[str], *, last_step: int, now: float) -> None:
        """Begin with a loss; one before it, from which nothing came, is kept as it stands."""
        if self._lost is not None:
            self._ended.append(self._lost)
        causes = causes if self._hang is None else [self._hang, *causes]
        self._hang, self._lost_at = None, now
        self._lost = Recovery(
            at=datetime.now(UTC), causes=causes, restored_step=0, steps_redone=last_step, seconds=None
        )

    def started(self, now: float) -> None:
        """Take note of new workers."""
        self._workers_at = now
        if self._lost is not None:
            self._lost = msgspec.structs.replace(self._lost, workers_seconds=round(now - self._lost_at, 1))

    def resumed(self, step: int, *, now: float) -> None:
        """Take note of the checkpoint that the workers have loaded."""
        if self._lost is not None:
            last_step = self._lost.restored_step + self._lost.steps_redone
            self._lost = msgspec.structs.replace(
                self._lost,
                restored_step=step,
                steps_redone=max(0, last_step - step),
                load_seconds=round(now - self._workers_at, 1),
            )

    def stepped(self, now: float) -> str | None:
        """End with the first step after a loss, and return the line that says so."""
        if self._lost is None:
            return None
        lost, self._lost = msgspec.structs.replace(self._lost, seconds=round(now - self._lost_at, 1)), None
        self._ended.append(lost)
        parts = {"workers": lost.workers_seconds, "checkpoint": lost.load_seconds}
        split = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in parts.items() if seconds is not None)
        took = f"{lost.seconds:.0f} s after the loss{f' ({split})' if split else ''}"
        return f"going on {took}, {lost.steps_redone} steps taken again"
