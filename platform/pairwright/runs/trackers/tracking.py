"""Delivers a run's metrics to its trackers, each in a thread of its own, so that none can slow or end the run.

A start of a run first delivers what earlier starts recorded in ``metrics-*.jsonl`` and a tracker does not hold, then
what happens; a step that a tracker holds is never delivered again. So a curve has every step once, whatever killed the
driver. A tracker that fails is left alone until the next start; its error is one line of the log.
"""

import queue
import tempfile
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

import msgspec

from pairwright.addresses import without_credentials
from pairwright.config import TrainConfig
from pairwright.errors import StoppedError
from pairwright.events import Event, cause_of
from pairwright.records import UNREADABLE_JSON
from pairwright.runs.run_dir import RunFolder
from pairwright.runs.trackers.tracked_values import (
    Point,
    parameters_of,
    point_of,
    recorded_points,
)
from pairwright.runs.trackers.tracker_backends import TRACKERS, EndStatus, TrackedRun

if TYPE_CHECKING:
    from pairwright.runs.run_plan import RunPlan

TRACKING_NAME = "tracking.json"
FINISH_SECONDS = 60.0
"""How long the end of a run waits for all its trackers together."""
MAX_POINTS = 500
"""In one delivery."""
_STEPS_ARE_KEPT = "every step is in metrics-*.jsonl, and a resume delivers what it lacks"


class Tracking:
    """A run's trackers while a driver works on it; a context manager around the training.

    Args:
        names: of trackers.
        run: what they start with.
        recorded: what earlier starts of the run recorded.
        finish_seconds: how long the end waits for all of them.
        after_failure: what the log says of what a tracker has not taken.
    """

    def __init__(
        self,
        names: Sequence[str],
        run: TrackedRun,
        recorded: Sequence[Point],
        *,
        finish_seconds: float = FINISH_SECONDS,
        after_failure: str = _STEPS_ARE_KEPT,
    ) -> None:
        self._messages: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._artifacts: dict[str, bytes] = {}
        self._finish_seconds = finish_seconds
        self._deliveries = [_Delivery(name, run, recorded, self._messages, after_failure) for name in names]

    @classmethod
    def of(cls, config: TrainConfig, plan: "RunPlan", folder: RunFolder) -> "Tracking":
        """Return the trackers of a run, with the run id that its first start drew."""
        names = [name for name in dict.fromkeys(config.tracking) if name in TRACKERS]
        run = TrackedRun(
            run_id=tracked_run_id(folder) if names else "",
            name=folder.url.rpartition("/")[2],
            parameters=parameters_of(config, plan),
        )
        return cls(names, run, recorded_points(folder.metrics_files()) if names else [])

    def __enter__(self) -> "Tracking":
        for delivery in self._deliveries:
            delivery.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = isinstance(error, StoppedError | KeyboardInterrupt)
        self.finish("finished" if error is None else "stopped" if stopped else "failed")

    def add(self, event: Event) -> None:
        """Take an event; what is no step and no evaluation is not for trackers."""
        point = point_of(event.record) if self._deliveries else None
        if point is not None:
            for delivery in self._deliveries:
                delivery.add(point)

    def add_artifact(self, name: str, content: bytes) -> None:
        """Take a file that is kept with the run at its end."""
        self._artifacts[name] = content

    def messages(self) -> list[str]:
        """Return the lines for the log since the last call."""
        found = []
        with suppress(queue.Empty):
            while True:
                found.append(self._messages.get_nowait())
        return found

    def finish(self, status: EndStatus) -> None:
        """Deliver what is left, and close the run in every tracker."""
        if not self._deliveries:
            return
        with tempfile.TemporaryDirectory(prefix="pairwright-tracking-", ignore_cleanup_errors=True) as folder:
            for name, content in self._artifacts.items():
                (Path(folder) / name).write_bytes(content)
            for delivery in self._deliveries:
                delivery.end(status, [Path(folder) / name for name in self._artifacts])
            for delivery in self._deliveries:
                delivery.join(self._finish_seconds / len(self._deliveries))


class _End(msgspec.Struct, frozen=True):
    status: EndStatus
    artifacts: list[Path]


class _Delivery:
    """One tracker, its thread, and what waits for it."""

    def __init__(
        self,
        name: str,
        run: TrackedRun,
        recorded: Sequence[Point],
        messages: "queue.SimpleQueue[str]",
        after_failure: str,
    ) -> None:
        self._name, self._run, self._recorded = name, run, recorded
        self._messages, self._after_failure = messages, after_failure
        self._tracker = TRACKERS[name]()
        self._waiting: queue.SimpleQueue[Point | _End] = queue.SimpleQueue()
        self._state: Literal["working", "failed", "ended"] = "working"
        self._thread = threading.Thread(target=self._deliver_all, name=f"pairwright-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, point: Point) -> None:
        if self._state == "working":
            self._waiting.put(point)

    def end(self, status: EndStatus, artifacts: list[Path]) -> None:
        self._waiting.put(_End(status, artifacts))

    def join(self, timeout_seconds: float) -> None:
        """Wait for the tracker's end, and leave it alone after that time."""
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            self._messages.put(
                f"{self._name} has not taken everything within {timeout_seconds:.0f} s; {self._after_failure}"
            )

    def _deliver_all(self) -> None:
        try:
            started = self._tracker.start(self._run)
            self._last_steps = started.last_steps
            self._messages.put(f"tracked as {started.address}")
            self._deliver(self._recorded)
            while (end := self._next_delivery()) is None:
                pass
            for path in end.artifacts:
                self._tracker.log_artifact(path)
            self._tracker.finish(end.status)
            self._state = "ended"
        except (Exception, SystemExit) as error:  # whatever a tracker raises
            self._state = "failed"
            cause = without_credentials(f"{type(error).__name__}: {cause_of(error)}")[:300]
            self._messages.put(
                f"{self._name} failed and gets nothing more from this command ({cause}); {self._after_failure}"
            )

    def _next_delivery(self) -> _End | None:
        """Deliver what waits, and return the end once it comes."""
        points: list[Point] = []
        item = self._waiting.get()
        while isinstance(item, Point):
            points.append(item)
            if len(points) == MAX_POINTS or self._waiting.empty():
                break
            item = self._waiting.get()
        self._deliver(points)
        return None if isinstance(item, Point) else item

    def _deliver(self, points: Iterable[Point]) -> None:
        """Deliver points of steps that the tracker does not hold."""
        new = []
        for point in points:
            if point.step > self._last_steps.get(point.series, 0):
                new.append(point)
                self._last_steps[point.series] = point.step
        if new:
            self._tracker.log(new)


def tracked_run_id(folder: RunFolder) -> str:
    """Return the run id that trackers know a run by; the first start draws it, and writes ``tracking.json``."""
    content = folder.read(TRACKING_NAME)
    if content is not None:
        with suppress(KeyError, TypeError, *UNREADABLE_JSON):
            return str(msgspec.json.decode(content)["run_id"])
    run_id = uuid4().hex
    folder.local_directory.mkdir(parents=True, exist_ok=True)
    (folder.local_directory / TRACKING_NAME).write_bytes(msgspec.json.encode({"run_id": run_id}))
    folder.publish()
    return run_id
