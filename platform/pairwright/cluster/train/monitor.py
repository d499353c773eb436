"""The driver's monitor of a run: drains the events, shows and logs them, detects hangs, and watches for scale-up.

Events go to ``metrics-*.jsonl``, TensorBoard, other trackers and Prometheus; a person sees a progress bar in a
terminal, and lines elsewhere, without a worker's prefix before each of them.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pairwright.cluster.node_pools import training_room
from pairwright.cluster.session import ray_resources
from pairwright.cluster.train.coordinator import RunCoordinator
from pairwright.cluster.train.heartbeat import Watchdog, heartbeat_interval
from pairwright.cluster.train.run_metrics import RunMetrics
from pairwright.config import WorkersConfig
from pairwright.errors import StoreError
from pairwright.events import (
    CheckpointCommitted,
    HangDetected,
    PhaseStarted,
    RunEvent,
    StepSkipped,
    StepTaken,
    WorkersLost,
    WorkersStarted,
)
from pairwright.runs.event_log import EventLog
from pairwright.runs.recovery import RunHistory
from pairwright.runs.trackers.tracking import Tracking
from pairwright.terminal import counted, encodable, escaped, say

DRAIN_SECONDS = 0.5
PUBLISH_SECONDS = 60.0
SILENCE_SECONDS = 30.0
STEP_SECONDS = 60.0
"""After which a step has its line, however many steps ``training.log_every_steps`` leaves out."""
STARTING = "starting workers"
LONG_START_SECONDS = 120.0
"""After which a start of workers may wait for what the cluster has not got."""
LOGGED_METRICS = ("restarts", "skipped_steps", "checkpoint_age_seconds", "checkpoint_stall_seconds")


class RunMonitor:
    """Shows and logs a run's events while the driver waits for it; a context manager around the training.

    Args:
        event_log: the log files, in a local folder; the run's own where that is local.
        tracking: the run's trackers.
        run: the run's output, which labels its metrics.
        log_every_steps: steps between two printed lines.
        workers: of the run.
        publish: called every minute and at the end, to copy the log files to where the run's output lives.
        log: where lines and the bar go.
    """

    def __init__(
        self,
        event_log: EventLog,
        tracking: Tracking,
        *,
        run: str,
        log_every_steps: int,
        workers: WorkersConfig,
        publish: Callable[[], None],
        log: TextIO,
    ) -> None:
        # On the driver's node, since it is useless without the driver: a lost node elsewhere would take it along.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.coordinator = ray.remote(num_cpus=0)(RunCoordinator).options(scheduling_strategy=here).remote()
        self.history = RunHistory()
        self.on_commit: Callable[[], None] | None = None
        """Called, soon, once a checkpoint is committed."""
        self._metrics = RunMetrics(run)
        self._watchdog = Watchdog(workers.hang_timeout_seconds)
        self._workers = workers
        self._scale_up = ScaleUpWatcher(workers)
        # Several times between two of Ray's checks for room: whoever sees it first decides what is saved.
        self._check_seconds = min(heartbeat_interval(workers.hang_timeout_seconds), workers.resize_interval_seconds / 4)
        self._log_every_steps = log_every_steps
        self._publish = publish
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._monitor, name="pairwright-monitor", daemon=True)
        self._event_log = event_log
        self._tracking = tracking
        self._log = log
        self._console = Console(file=log)
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
        )
        self._task = self._bar.add_task("training", total=None, note=STARTING)
        self._activity = Activity(time.monotonic())
        self._printed_at = time.monotonic()

    def __enter__(self) -> "RunMonitor":
        if self._console.is_terminal:
            self._bar.start()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(timeout=60)
        if self._console.is_terminal:
            self._bar.stop()
        self._print_write_error(self._event_log.flush())
        self._publish_files()

    def log_event(self, event: RunEvent) -> None:
        """Log an event of the driver's own, in order with the others."""
        self.coordinator.push.remote(event)

    def _monitor(self) -> None:
        published = heard = checked = time.monotonic()
        while True:
            # Drained once more after the stop, so that no event is lost.
            stopping = self._stop.wait(DRAIN_SECONDS)
            events = self._drain()
            for event in events:
                self._handle(event)
            self._print_write_error(self._event_log.flush())
            for line in self._tracking.messages():
                self._print(line)
            if events:
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENCE_SECONDS:
                self._print_silence()
                heard = time.monotonic()
            if time.monotonic() - checked > self._check_seconds:
                self._check_for_hang()
                self._check_for_scale_up()
                self._metrics.publish()
                checked = time.monotonic()
            if stopping:
                self._metrics.publish()  # of the last step too
                return
            if time.monotonic() - published > PUBLISH_SECONDS:
                self._publish_files()
                published = time.monotonic()

    def _drain(self) -> list[RunEvent]:
        try:
            return ray.get(self.coordinator.drain.remote(), timeout=30)
        except (RayActorError, GetTimeoutError):
            # The cluster is going down. The trainer reports why, and the events so far are written already.
            return []

    def _check_for_hang(self) -> None:
        try:
            heartbeats = ray.get(self.coordinator.heartbeats.remote(), timeout=30)
        except (RayActorError, GetTimeoutError):
            return
        hang = self._watchdog.check(heartbeats, time.monotonic())
        if hang is not None:
            self.log_event(HangDetected(step=self.history.last_step, reason=hang.reason))
            self.coordinator.end_group.remote(hang.attempt)

    def _check_for_scale_up(self) -> None:
        if (reason := self._scale_up.expected()) is not None:
            self.coordinator.request_checkpoint.remote(reason)

    def _handle(self, event: RunEvent) -> None:
        self._event_log.add(event)
        self._tracking.add(event)
        self._metrics.add(event)
        line = self.history.add(event)
        if line is not None:
            self._print(line)
        self._activity.add(event, time.monotonic())
        match event:
            case PhaseStarted():
                self._show_phase(event.phase)
            case WorkersStarted():
                self._scale_up.workers_started(event.world_size)
            case WorkersLost():
                self._watchdog.worker_group_ended()
            case CheckpointCommitted() if self.on_commit is not None:
                self.on_commit()
            case _:
                pass
        if isinstance(event, StepTaken):
            self._show_step(event)
        elif event.log_line is not None:
            self._print(event.log_line)

    def _show_phase(self, phase: str) -> None:
        if self._console.is_terminal:
            self._bar.update(self._task, note=phase, refresh=True)

    def _show_step(self, event: StepTaken) -> None:
        metrics = {name: self._metrics.values[name] for name in LOGGED_METRICS}
        self._event_log.add_scalars("health", metrics, event.step)
        if self._console.is_terminal:
            note = f"loss {event.loss:.4f}"
            self._bar.update(self._task, completed=event.step, total=event.num_steps, note=note, refresh=True)
        if is_line_due(event.step, event.num_steps, self._log_every_steps, time.monotonic() - self._printed_at):
            self._print(event.log_line)

    def _publish_files(self) -> None:
        try:
            self._publish()
        except StoreError as error:
            self._print(f"the metrics are not in the run's output yet: {error}")

    def _print_write_error(self, reason: str | None) -> None:
        if reason is not None:
            self._print(f"metrics cannot be written and are buffered in memory: {reason}")

    def _print_silence(self) -> None:
        now = time.monotonic()
        line = self._activity.line(now, self._watchdog.micro_batches())
        if self._activity.is_start:
            room, least = training_room(self._workers.resources), self._workers.least
            if room < least:
                line = self._activity.waiting(now, f"there is room for {room} of {counted(least, 'rank')}")
            if room < least or self._activity.is_long_start(now):
                line = f"{line}; {ray_resources()}"
        self._print(line)

    def _print(self, line: str) -> None:
        self._printed_at = time.monotonic()
        text = escaped(f"{datetime.now(UTC):%H:%M:%S} {line}")
        if self._console.is_terminal:
            self._console.print(encodable(text, self._log), markup=False, emoji=False, highlight=False)
        else:
            say(text, to=self._log)


def is_line_due(step: int, num_steps: int, log_every_steps: int, seconds: float) -> bool:
    """Return whether a step has a line in the log, ``seconds`` after the line before."""
    return step in (1, num_steps) or step % log_every_steps == 0 or seconds >= STEP_SECONDS


class Activity:
    """What a run does, and since when; times are seconds of one clock, the caller's."""

    def __init__(self, now: float) -> None:
        self._doing, self._since = STARTING, now

    def add(self, event: RunEvent, now: float) -> None:
        """Take an event."""
        match event:
            case PhaseStarted():
                self._doing, self._since = event.phase, now
            case StepTaken() | StepSkipped():
                self._doing, self._since = f"taking step {event.step + 1}", now
            case WorkersLost():
                self._doing, self._since = STARTING, now
            case _:
                pass

    def line(self, now: float, micro_batches: int) -> str:
        """Return what is being done, for how long, and how fast; nothing in it is an error."""
        seconds = now - self._since
        is_counted = micro_batches > 1 and self._doing != STARTING
        rate = f", {micro_batches:,} micro-batches begun, {seconds / micro_batches:.1f} s each" if is_counted else ""
        return f"still {self._doing}, for {seconds:.0f} s{rate}"

    def waiting(self, now: float, why: str) -> str:
        """Return what a start waits for, and for how long, where the cluster has too few nodes for it."""
        return f"waiting for nodes, for {now - self._since:.0f} s: {why}"

    @property
    def is_start(self) -> bool:
        """Whether workers are starting."""
        return self._doing == STARTING

    def is_long_start(self, now: float) -> bool:
        """Return whether workers have been starting for so long that the cluster may lack what they need."""
        return self.is_start and now - self._since >= LONG_START_SECONDS


class ScaleUpWatcher:
    """Predicts when Ray Train scales the worker group up, so that a checkpoint is written before.

    Every ``workers.resize_interval_seconds`` Ray checks whether there is room for more workers, and then restarts all
    of them from the newest checkpoint, without warning. With a checkpoint right before, the steps to recompute are
    bounded by that time, and not by the steps between two checkpoints.
    """

    def __init__(self, workers: WorkersConfig) -> None:
        self._workers = workers
        self._world_size: int | None = None

    def workers_started(self, world_size: int) -> None:
        self._world_size = world_size

    def expected(self) -> str | None:
        """Return why Ray will scale up; once for each start of workers."""
        if self._world_size is None or self._world_size >= self._workers.most:
            return None
        room = training_room(self._workers.resources, only_free=True)
        if not room:
            return None
        more = min(room, self._workers.most - self._world_size)
        self._world_size = None
        return f"room for {more} more worker{'s' if more > 1 else ''}"
