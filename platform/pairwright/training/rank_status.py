"""What a rank is doing now: written by the thread that trains, read by the one that tells the driver."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Moment:
    """What a rank is doing."""

    doing: str = "starting"
    step: int = 0
    """Number of the step that it is at, from 1."""
    micro_batch: int = 0
    """Forwards begun since it began what it is doing."""
    count: int = 0
    """Grows with each of these changes, on all ranks alike: a rank with a lower one is behind."""
    is_watched: bool = False
    """Whether a long silence means that it hangs; not where it waits for storage, for as long as that takes."""


class Pulse:
    """Holds one moment, replaced as a whole, so that another thread never reads half of one."""

    def __init__(self) -> None:
        self.now = Moment()

    def begins(self, doing: str, step: int, *, is_watched: bool) -> None:
        """Say what this rank does from now on."""
        self.now = Moment(doing=doing, step=step, count=self.now.count + 1, is_watched=is_watched)

    def forward(self) -> None:
        """Say that a forward begins."""
        self.now = replace(self.now, micro_batch=self.now.micro_batch + 1, count=self.now.count + 1)
