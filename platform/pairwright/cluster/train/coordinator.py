"""The actor between ranks and driver, and what they exchange: tasks, events, heartbeats, requests, results.

Ranks and Ray Train's controller push events to the coordinator, and each answer holds what the driver requests; the
driver drains them. Apart from monitor.py, so that neither imports what draws bars, writes event files and plans a run
(6 s), and from worker.py, so that the driver does not import DeepSpeed (5 s).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import msgspec
import ray
from ray.actor import ActorProxy
from ray.train import UserCallback

from pairwright.config import TrainConfig
from pairwright.data.table.table import Manifest
from pairwright.events import CheckpointCommitted, RunEvent, WorkersLost, cause_of
from pairwright.training.context import RankStatus

# ------------------------------------------------------------------------------------ a rank's task and result


@dataclass(frozen=True)
class WorkerTask:
    """What the driver gives every rank."""

    config: TrainConfig
    run_digest: str
    run_url: str
    tokens_url: str
    tokens_manifest: Manifest
    coordinator: "ActorProxy[RunCoordinator]"


class RunFinished(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The ranks took the last step, and the model is exported."""

    validation: Mapping[str, Any]
    """Metrics on the validation split, empty where it holds no pair."""
    skipped_steps: tuple[int, ...]


class RunStopped(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The ranks stopped as the driver requested; the checkpoint of this step is committed."""

    step: int


class RunFailed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The ranks met an error that a new start would meet again."""

    message: str


class CheckpointRejected(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The ranks found the checkpoint corrupt that they were to resume from."""

    name: str
    reason: str


WorkerResult: TypeAlias = RunFinished | RunStopped | RunFailed | CheckpointRejected


def start_worker(loop_config: dict[str, Any]) -> WorkerResult:
    """Run one rank; Ray Train calls it on every worker."""
    from pairwright.cluster.train.worker import train_worker

    return train_worker(loop_config["task"])


# ---------------------------------------------------------------------------------------------- the controller


class RunEventCallback(UserCallback):
    """Sends lost workers and committed checkpoints to the coordinator; Ray Train calls it on its controller.

    The ranks start once the controller has imported this module.
    """

    def __init__(self, coordinator: "ActorProxy[RunCoordinator]") -> None:
        self._coordinator = coordinator

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if checkpoint is not None:
            self._coordinator.push.remote(CheckpointCommitted(step=metrics[0]["step"]))

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        causes = tuple(f"rank {rank}: {cause_of(error)}" for rank, error in sorted(worker_exceptions.items()))
        self._coordinator.push.remote(WorkersLost(causes=causes))


# -------------------------------------------------------------------------------------------------- the actor


@dataclass(frozen=True)
class Heartbeat:
    """What one rank reports of itself."""

    rank: int
    world_size: int
    attempt: str
    """Names the group of workers, as in the name of a checkpoint's folder."""
    number: int
    pid: int
    node: str
    now: RankStatus
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class ControlRequest:
    """What the driver requests from the ranks."""

    stop_signal: str | None = None
    """The signal for which the run is to stop."""
    num_checkpoints: int = 0
    """How many checkpoints were requested so far."""
    checkpoint_reason: str = ""
    """Of the last one."""


class RunCoordinator:
    """Holds the events that the driver has not drained yet, the newest heartbeats, and the driver's requests."""

    def __init__(self) -> None:
        self._events: list[RunEvent] = []
        self._request = ControlRequest()
        self._heartbeats: dict[int, Heartbeat] = {}
        self._ended_groups: set[str] = set()
        self._abort_reason: str | None = None

    @ray.method
    def push(self, event: RunEvent) -> ControlRequest:
        """Keep an event, with the time of its arrival; return what the driver requests."""
        self._events.append(msgspec.structs.replace(event, time=round(time.time(), 3)))
        return self._request

    @ray.method
    def drain(self) -> list[RunEvent]:
        """Return the events since the last call."""
        events, self._events = self._events, []
        return events

    @ray.method
    def request_stop(self, signal_name: str) -> None:
        self._request = replace(self._request, stop_signal=signal_name)

    @ray.method
    def request_checkpoint(self, reason: str) -> None:
        number = self._request.num_checkpoints + 1
        self._request = replace(self._request, num_checkpoints=number, checkpoint_reason=reason)

    @ray.method
    def report_alive(self, heartbeat: Heartbeat) -> bool:
        """Take a rank's heartbeat; return whether its group is to end."""
        self._heartbeats[heartbeat.rank] = heartbeat
        return heartbeat.attempt in self._ended_groups

    @ray.method
    def heartbeats(self) -> list[Heartbeat]:
        """Return the newest heartbeat of each rank."""
        return list(self._heartbeats.values())

    @ray.method
    def end_group(self, attempt: str) -> None:
        """Make the ranks of a group end themselves with their next heartbeat."""
        self._ended_groups.add(attempt)

    @ray.method
    def abort(self, reason: str) -> None:
        """Keep the first reason for which no further start of the ranks can succeed."""
        self._abort_reason = self._abort_reason or reason

    @ray.method
    def abort_reason(self) -> str | None:
        return self._abort_reason
