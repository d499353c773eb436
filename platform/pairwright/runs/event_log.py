"""Records and figures of a run -> ``metrics-*.jsonl`` and TensorBoard's event files, through a disk that is full.

Nothing that is shown may end the run that it is about. So what a disk refuses waits in memory, and is written once it
has room. TensorBoard's own writer would die of it, in a thread of its own; only its format is used.
"""

import io
import json
import os
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] - generated
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar


class RunLog:
    """The files that one command writes about its run.

    Args:
        directory: of the run, on this machine; made if need be.
    """

    def __init__(self, directory: Path) -> None:
        now = time.time()
        started = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%S")
        self._metrics = _GrowingFile(directory / f"metrics-{started}.jsonl")
        name = f"events.out.tfevents.{now:.0f}.{socket.gethostname()}.{os.getpid()}"
        self._events = _GrowingFile(directory / "tensorboard" / name)
        self._add_event(Event(wall_time=now, file_version="brain.Event:2"))

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record; written by the next ``flush``."""
        self._metrics.add(json.dumps(record).encode() + b"\n")

    def add_scalars(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        """Take figures for TensorBoard, as ``prefix/name``; written by the next ``flush``."""
        for name, value in values.items():
            self._add_event(Event(wall_time=time.time(), step=step, summary=scalar(f"{prefix}/{name}", value)))

    def _add_event(self, event: Event) -> None:
        framed = io.BytesIO()
        RecordWriter(framed).write(event.SerializeToString())
        self._events.add(framed.getvalue())

    def flush(self) -> str | None:
        """Write what was taken; return why that is refused, if it was not before."""
        refusals = [self._metrics.flush(), self._events.flush()]
        return next((refusal for refusal in refusals if refusal is not None), None)


class _GrowingFile:
    """A file that parts are added to, each whole or not at all."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._pending: list[bytes] = []
        self._refused = False

    def add(self, part: bytes) -> None:
        self._pending.append(part)

    def flush(self) -> str | None:
        """Write all parts; return why not, if that was not said before."""
        if not self._pending:
            return None
        try:
            with self._path.open("ab", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                self._write(file, end)
        except OSError as error:
            said, self._refused = self._refused, True
            return None if said else f"{self._path}: {error.strerror}"
        self._refused = False
        return None

    def _write(self, file: io.FileIO, end: int) -> None:
        content = b"".join(self._pending)
        try:
            written = file.write(content)
            if written < len(content):
                file.write(content[written:])  # says why
        except OSError:
            file.truncate(end)
            raise
        self._pending.clear()
