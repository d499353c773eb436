"""The events of a training run: one tagged union of what ranks, coordinator and driver tell each other.

An event knows its line of the log, the metrics that it sets, and whether it counts as a restart. ``kind`` names its
type in ``metrics-*.jsonl``. The union lies below ``training/``, whose loop is where most events begin.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

import msgspec

_NOT_A_SCALAR = frozenset({"kind", "step", "num_steps", "epoch", "time"})


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """What all events have."""

    counts_as_restart: ClassVar[bool] = False
    """Whether workers were lost with it, which ``workers.max_failures`` limits."""
    scalar_prefix: ClassVar[str | None] = None
    """Below which TensorBoard shows its numbers; None if it shows none."""

    step: int = 0
    """Steps taken when it happened; 0 if it belongs to no step."""
    time: float = 0.0
    """When the coordinator received it, in seconds since 1970."""

    @property
    def log_line(self) -> str | None:
        """Its line of the log; None if it has none."""
        return None

    @property
    def metrics(self) -> dict[str, float]:
        """The gauges that it sets (``cluster/train/run_metrics.py``)."""
        return {}

    @property
    def record(self) -> dict[str, Any]:
        """The event as a line of ``metrics-*.jsonl``, without what is not known."""
        return {name: value for name, value in msgspec.to_builtins(self).items() if value is not None}

    @property
    def scalars(self) -> dict[str, float]:
        """Its numbers for TensorBoard."""
        if self.scalar_prefix is None:
            return {}
        return {name: value for name, value in self.record.items() if name not in _NOT_A_SCALAR}


# --------------------------------------------------------------------------------------- workers start and end


class WorkersStarted(Event, frozen=True, kw_only=True, tag="workers"):
    """All workers of a group have started and have a model in memory."""

    world_size: int


class PhaseStarted(Event, frozen=True, kw_only=True, tag="phase"):
    """The ranks begin with something other than a step; rank 0 reports it."""

    phase: str
    """What they do, as a person says it: ``loading the model``."""


class HeadInitialized(Event, frozen=True, kw_only=True, tag="new_head"):
    """The starting model has no reward head under the expected name, so a new one was drawn."""

    ignored_heads: tuple[str, ...]
    """Weights that look like a head under another name."""

    @property
    def log_line(self) -> str:
        names = ", ".join(self.ignored_heads)
        return f"a new head is drawn, although the weights hold one under another name ({names}), which is left out"


class WholeModelRead(Event, frozen=True, kw_only=True, tag="whole_model"):
    """Every worker has read the whole starting model, which ZeRO-3 otherwise reads part by part."""

    reason: str

    @property
    def log_line(self) -> str:
        return f"every worker holds the whole model while it loads: {self.reason}"


class LayoutChosen(Event, frozen=True, kw_only=True, tag="layout"):
    """The layout of micro-batches, and the check that it passed."""

    layout: str
    reason: str

    @property
    def log_line(self) -> str:
        return f"layout {self.layout}: {self.reason}"


class Resumed(Event, frozen=True, kw_only=True, tag="resumed"):
    """The workers have loaded a checkpoint; ``step`` is the checkpoint's."""

    num_steps: int

    @property
    def log_line(self) -> str:
        return f"resumed from the checkpoint of step {self.step} of {self.num_steps}"


class HangDetected(Event, frozen=True, kw_only=True, tag="hang"):
    """The watchdog saw no progress, and ends the workers."""

    reason: str

    @property
    def log_line(self) -> str:
        return f"the run hangs: {self.reason}; restarting all workers"


class WorkersLost(Event, frozen=True, kw_only=True, tag="restart"):
    """Ray Train lost workers and replaces the whole group."""

    counts_as_restart: ClassVar[bool] = True

    causes: tuple[str, ...]

    @property
    def log_line(self) -> str:
        return f"lost workers ({'; '.join(self.causes)}); starting new ones"


class Preemption(Event, frozen=True, kw_only=True, tag="preemption"):
    """A signal, a node that is drained or an expected scale-up requested a checkpoint, or that and the end."""

    reason: str

    @property
    def log_line(self) -> str:
        return f"after step {self.step}: {self.reason}"


# ------------------------------------------------------------------------------------------ steps and metrics


class StepTaken(Event, frozen=True, kw_only=True, tag="step"):
    """One optimizer step, with its metrics over all ranks."""

    scalar_prefix: ClassVar[str | None] = "train"

    num_steps: int
    epoch: float
    learning_rate: float
    seconds: float
    tokens_per_second: float
    loss: float
    accuracy: float
    reward_margin: float
    grad_norm: float
    num_tokens: float

    @property
    def log_line(self) -> str:
        return f"step {self.step}/{self.num_steps}: {format_metrics(self.record)}"

    @property
    def metrics(self) -> dict[str, float]:
        return {"step": self.step, "loss": self.loss, "tokens_per_second": self.tokens_per_second}


class StepSkipped(Event, frozen=True, kw_only=True, tag="skipped"):
    """A step whose loss or gradient was not finite, and which changed nothing."""

    num_skipped: int
    """Steps of the run skipped so far, this one included."""
    reason: str

    @property
    def log_line(self) -> str:
        return f"skipped {self.reason}"

    @property
    def metrics(self) -> dict[str, float]:
        return {"step": self.step, "skipped_steps": self.num_skipped}


class Evaluated(Event, frozen=True, kw_only=True, tag="evaluation"):
    """Metrics on the validation split."""

    scalar_prefix: ClassVar[str | None] = "validation"

    groups: int
    pairs: int
    weight: float
    accuracy: float | None = None
    log_loss: float | None = None
    reward_margin: float | None = None

    @property
    def log_line(self) -> str:
        return f"validation after step {self.step}: {format_metrics(self.record)}"


# ------------------------------------------------------------------------------------ checkpoints and storage


class CheckpointWritten(Event, frozen=True, kw_only=True, tag="checkpoint_written"):
    """Rank 0 has written its part of a checkpoint to its own disk; the upload begins."""

    waited_seconds: float
    """For the upload of the checkpoint before."""
    written_seconds: float

    @property
    def metrics(self) -> dict[str, float]:
        return {"checkpoint_stall_seconds": self.waited_seconds + self.written_seconds}


class CheckpointCommitted(Event, frozen=True, kw_only=True, tag="committed"):
    """Ray Train's snapshot names a new checkpoint: a restart may resume from it."""


class BestCheckpointKept(Event, frozen=True, kw_only=True, tag="best"):
    """A checkpoint with better validation metrics than the best one so far was copied."""

    accuracy: float | None = None
    log_loss: float | None = None

    @property
    def log_line(self) -> str:
        return f"the checkpoint of step {self.step} is the best so far: {format_metrics(self.record)}"


class BestCheckpointFailed(Event, frozen=True, kw_only=True, tag="best_failed"):
    """The best checkpoint could not be copied; the next commit tries again."""

    reason: str

    @property
    def log_line(self) -> str:
        return f"the best checkpoint is not kept yet: {self.reason}"


class Retrying(Event, frozen=True, kw_only=True, tag="retrying"):
    """A disk or a storage returned an error, and the operation is tried again."""

    reason: str
    seconds: float
    """Until the next try."""

    @property
    def log_line(self) -> str:
        return f"{self.reason}; retrying in {self.seconds:.0f} s"


class CorruptCheckpoint(Event, frozen=True, kw_only=True, tag="corrupt"):
    """A checkpoint failed verification and was moved to ``checkpoints-corrupt/``."""

    name: str
    reason: str

    @property
    def log_line(self) -> str:
        return f"checkpoint {self.name} is corrupt and was moved to checkpoints-corrupt/: {self.reason}"


class SnapshotRepaired(Event, frozen=True, kw_only=True, tag="repaired"):
    """Ray Train's list of committed checkpoints was rewritten."""

    reason: str

    @property
    def log_line(self) -> str:
        return self.reason


class UncommittedRemoved(Event, frozen=True, kw_only=True, tag="uncommitted_removed"):
    """Checkpoints that were never committed were deleted."""

    num_checkpoints: int
    bytes: int

    @property
    def log_line(self) -> str:
        return f"removed {self.num_checkpoints} uncommitted checkpoints ({self.bytes / 1e6:,.1f} MB)"


RunEvent: TypeAlias = (
    PhaseStarted
    | WorkersStarted
    | HeadInitialized
    | WholeModelRead
    | LayoutChosen
    | Resumed
    | HangDetected
    | WorkersLost
    | Preemption
    | StepTaken
    | StepSkipped
    | Evaluated
    | CheckpointWritten
    | CheckpointCommitted
    | BestCheckpointKept
    | BestCheckpointFailed
    | Retrying
    | CorruptCheckpoint
    | SnapshotRepaired
    | UncommittedRemoved
)


def format_metrics(values: Mapping[str, Any]) -> str:
    """Return metrics as one line, the most important first."""
    formats = {
        "loss": "loss {:.4f}",
        "log_loss": "log loss {:.4f}",
        "accuracy": "accuracy {:.3f}",
        "reward_margin": "reward margin {:+.3f}",
        "grad_norm": "grad norm {:.3g}",
        "learning_rate": "lr {:.3g}",
        "tokens_per_second": "{:,.0f} tokens/s",
    }
    return "  ".join(text.format(values[name]) for name, text in formats.items() if values.get(name) is not None)


def cause_of(error: BaseException) -> str:
    """Return the last line of an exception's text: the cause, where Ray puts a remote traceback before it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
