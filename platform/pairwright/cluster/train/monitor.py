"""What the workers do -> what a person sees: records travel from rank 0 to the driver through one small actor.

The driver writes them to TensorBoard and to ``metrics-*.jsonl``, draws a bar in a terminal and prints lines
elsewhere, so that a job's log reads well and no worker's prefix stands before every line.
"""

import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorProxy
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pairwright.cluster.train.coordinator import Board
from pairwright.cluster.train.heartbeat import Watchdog, beat_seconds
from pairwright.cluster.train.run_metrics import Health
from pairwright.cluster.train.scale_up import Growth
from pairwright.config import WorkersConfig
from pairwright.errors import StoreError
from pairwright.runs.event_log import RunLog
from pairwright.runs.recovery import Recoveries
from pairwright.runs.repair import Mended, Swept
from pairwright.runs.run_log_lines import event_line, format_figures, last_line
from pairwright.terminal import encodable, escaped, say

POLL_SECONDS = 0.5
PUBLISH_SECONDS = 60.0
SILENCE_SECONDS = 60.0
HEALTH_FIGURES = ("restarts", "skipped_steps", "checkpoint_age_seconds", "checkpoint_stall_seconds")
NOT_FIGURES = frozenset({"kind", "step", "num_steps", "epoch", "time"})


class RestartNotice(UserCallback):
    """Tells the driver of lost workers and of committed checkpoints; Ray Train calls it on its controller."""

    def __init__(self, board: ActorProxy[Board]) -> None:
        self._board = board

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if checkpoint is not None:
            self._board.put.remote({"kind": "committed", "step": metrics[0]["step"]})

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        causes = [f"rank {rank}: {last_line(error)}" for rank, error in sorted(worker_exceptions.items())]
        self._board.put.remote({"kind": "restart", "step": 0, "causes": causes})


class Watcher:
    """Shows a run's records while the driver waits for it; a context manager around ``trainer.fit()``.

    Args:
        directory: local folder for the event files; the run's own where that is local.
        run: the run's output, by which its metrics are told apart.
        log_every_steps: steps between two printed lines.
        workers: of the run.
        publish: called every minute and at the end, to copy the folder to where the run's output lives.
    """

    def __init__(
        self, directory: Path, *, run: str, log_every_steps: int, workers: WorkersConfig, publish: Callable[[], None]
    ) -> None:
        # Beside the driver, which it is of no use without: anywhere else, a lost node would take it along.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.board = ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote()
        self.num_restarts = 0
        self.num_resumes = 0
        self.num_damaged = 0
        self.world_sizes: list[int] = []
        self.last_step = 0
        self.recoveries = Recoveries()
        self.health = Health(run)
        self.on_commit: Callable[[], None] | None = None
        """Called, soon, once a checkpoint is committed."""
        self._watchdog = Watchdog(workers.hang_timeout_seconds)
        self._growth = Growth(workers)
        # Several times between two of Ray's looks for room: whoever sees it first decides what is saved.
        self._look_seconds = min(beat_seconds(workers.hang_timeout_seconds), workers.resize_interval_seconds / 4)
        self._log_every_steps = log_every_steps
        self._publish = publish
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pairwright-progress", daemon=True)
        self._log = RunLog(directory)
        self._console = Console()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
        )
        self._task = self._bar.add_task("training", total=None, note="starting workers")

    def __enter__(self) -> "Watcher":
        if self._console.is_terminal:
            self._bar.start()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(timeout=60)
        if self._console.is_terminal:
            self._bar.stop()
        self._say_refused(self._log.flush())
        self._publish_all()

    def say(self, record: dict[str, Any]) -> None:
        """Show a record of the driver's own, in its turn."""
        self.board.put.remote(record)

    def mended(self, mended: Mended) -> None:
        """Show, and count, what the driver put in order before it starts workers."""
        if mended.list_written_anew is not None:
            self.say({"kind": "mended", "step": 0, "what": mended.list_written_anew})
        for name, reason in mended.set_aside.items():
            self.say({"kind": "damaged", "step": 0, "name": name, "reason": reason})

    def swept(self, swept: Swept) -> None:
        """Show what was removed of uploads that never ended."""
        if swept.num_folders:
            what = f"removed {swept.num_folders} checkpoints that were never committed ({swept.bytes / 1e6:,.1f} MB)"
            self.say({"kind": "mended", "step": 0, "what": what})

    def _watch(self) -> None:
        published = heard = looked = time.monotonic()
        while True:
            stopping = self._stop.wait(POLL_SECONDS)
            records = self._taken()
            for record in records:
                self._show(record)
            self._say_refused(self._log.flush())
            if records:
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENCE_SECONDS:
                self._print(
                    f"no step for {SILENCE_SECONDS:.0f} s ({self._watchdog.doing() or 'no rank has started'}); the "
                    f"cluster has {_free_resources()}"
                )
                heard = time.monotonic()
            if time.monotonic() - looked > self._look_seconds:
                self._look_for_hang()
                self._look_for_growth()
                self.health.tell()
                looked = time.monotonic()
            if stopping:
                self.health.tell()  # the last step too
                return
            if time.monotonic() - published > PUBLISH_SECONDS:
                self._publish_all()
                published = time.monotonic()

    def _look_for_hang(self) -> None:
        try:
            beats = ray.get(self.board.beats.remote(), timeout=30)
        except (RayActorError, GetTimeoutError):
            return
        hang = self._watchdog.look(beats, time.monotonic())
        if hang is not None:
            self.say({"kind": "hang", "step": self.last_step, "reason": hang.reason})
            self.board.end.remote(hang.attempt)

    def _look_for_growth(self) -> None:
        if (reason := self._growth.expected()) is not None:
            self.board.ask_to_save.remote(reason)

    def _taken(self) -> list[dict[str, Any]]:
        try:
            return ray.get(self.board.take.remote(), timeout=30)
        except (RayActorError, GetTimeoutError):
            # The cluster is going down; training says why, and the figures shown so far are already written.
            return []

    def _show(self, record: dict[str, Any]) -> None:
        self._log.add(record)
        self.health.take(record)
        if record["kind"] in ("step", "evaluation"):
            self._show_figures(record)
            return
        self._count(record)
        if (line := event_line(record)) is not None:
            self._print(line)

    def _count(self, record: dict[str, Any]) -> None:
        match record["kind"]:
            case "resumed":
                self.num_resumes += 1
                self.recoveries.resumed(record["step"], now=record["time"])
            case "hang":
                self.recoveries.hangs(record["reason"])
            case "restart":
                self.num_restarts += 1
                self._watchdog.group_is_gone()
                self.recoveries.lost(record["causes"], last_step=self.last_step, now=record["time"])
            case "damaged":
                self.num_damaged += 1
            case "committed" if self.on_commit is not None:
                self.on_commit()
            case "workers":
                self.recoveries.started(record["time"])
                self._count_workers(record["world_size"])

    def _count_workers(self, world_size: int) -> None:
        self._growth.started(world_size)
        if self.world_sizes and self.world_sizes[-1] != world_size:
            self._print(f"{world_size} workers now; there were {self.world_sizes[-1]}")
        self.world_sizes.append(world_size)

    def _show_figures(self, record: dict[str, Any]) -> None:
        kind, step = record["kind"], record["step"]
        prefix = "train" if kind == "step" else "validation"
        figures = {name: value for name, value in record.items() if name not in NOT_FIGURES and value is not None}
        self._log.add_scalars(prefix, figures, step)
        if kind == "evaluation":
            self._print(f"validation after step {step}: {format_figures(record)}")
            return
        self._log.add_scalars("health", {name: self.health.figures[name] for name in HEALTH_FIGURES}, step)
        if (line := self.recoveries.stepped(record["time"])) is not None:
            self._print(line)
        self.last_step = step
        if self._console.is_terminal:
            self._bar.update(
                self._task, completed=step, total=record["num_steps"], note=f"loss {record['loss']:.4f}", refresh=True
            )
        if step == 1 or step % self._log_every_steps == 0 or step == record["num_steps"]:
            self._print(f"step {step}/{record['num_steps']}: {format_figures(record)}")

    def _publish_all(self) -> None:
        try:
            self._publish()
        except StoreError as error:
            self._print(f"metrics are not where the run's output lives yet: {error}")

    def _say_refused(self, reason: str | None) -> None:
        if reason is not None:
            self._print(f"metrics cannot be written, and wait in memory: {reason}")

    def _print(self, line: str) -> None:
        text = escaped(f"{datetime.now(UTC):%H:%M:%S} {line}")
        if self._console.is_terminal:
            self._console.print(encodable(text, sys.stdout), markup=False, emoji=False, highlight=False)
        else:
            say(text)


def _free_resources() -> str:
    total, free = ray.cluster_resources(), ray.available_resources()
    parts = [f"{free.get(name, 0):.0f} of {total.get(name, 0):.0f} {name}s free" for name in ("CPU", "GPU")]
    return f"{', '.join(parts)} on {len(ray.nodes())} nodes"
