"""The event log of a run: ``metrics-*.jsonl`` and TensorBoard's event files, which survive a full disk.

A log must not end the run that it describes. So what cannot be written is buffered in memory and written once the disk
has room. TensorBoard's own writer would fail for good, in a thread of its own; only its format is used.
"""

import io
import json
import os
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event as ScalarEvent  # pyright: ignore[reportAttributeAccessIssue] - generated
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue] - generated
from tensorboard.summary.writer.record_writer import RecordWriter

from pairwright.events import Event


class EventLog:
    """The log files that one command writes about its run.

    Args:
        directory: of the run, on this machine; made if need be.
        with_tensorboard: write TensorBoard's event files too.
    """

    def __init__(self, directory: Path, *, with_tensorboard: bool = True) -> None:
        now = time.time()
        started = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%S")
        self._metrics = _AppendedFile(directory / f"metrics-{started}.jsonl")
        name = f"events.out.tfevents.{now:.0f}.{socket.gethostname()}.{os.getpid()}"
        self._events = _AppendedFile(directory / "tensorboard" / name) if with_tensorboard else None
        self._add_event(ScalarEvent(wall_time=now, file_version="brain.Event:2"))

    def add(self, event: Event) -> None:
        """Add an event, and its numbers for TensorBoard; written by the next ``flush``."""
        self._metrics.add(json.dumps(event.record).encode() + b"\n")
        if event.scalar_prefix is not None:
            self.add_scalars(event.scalar_prefix, event.scalars, event.step)

    def add_scalars(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        """Add numbers for TensorBoard, as ``prefix/name``; written by the next ``flush``."""
        for name, value in values.items():
            # As torch.utils.tensorboard writes it, which takes the seconds of torch to import.
            summary = Summary(value=[Summary.Value(tag=f"{prefix}/{name}", simple_value=value)])
            self._add_event(ScalarEvent(wall_time=time.time(), step=step, summary=summary))

    def _add_event(self, event: ScalarEvent) -> None:
        if self._events is None:
            return
        framed = io.BytesIO()
        RecordWriter(framed).write(event.SerializeToString())
        self._events.add(framed.getvalue())

    def flush(self) -> str | None:
        """Write what was added; return why that failed, once until a write succeeds again."""
        failures = [file.flush() for file in (self._metrics, self._events) if file is not None]
        return next((failure for failure in failures if failure is not None), None)


class _AppendedFile:
    """A file to which parts are appended, each as a whole or not at all."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._pending: list[bytes] = []
        self._failed = False

    def add(self, part: bytes) -> None:
        self._pending.append(part)

    def flush(self) -> str | None:
        """Write all parts; return why that failed, unless the write before failed too."""
        if not self._pending:
            return None
        try:
            with self._path.open("ab", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                self._write(file, end)
        except OSError as error:
            failed_before, self._failed = self._failed, True
            return None if failed_before else f"{self._path}: {error.strerror}"
        self._failed = False
        return None

    def _write(self, file: io.FileIO, end: int) -> None:
        content = b"".join(self._pending)
        try:
            written = file.write(content)
            if written < len(content):
                file.write(content[written:])  # raises the reason
        except OSError:
            file.truncate(end)
            raise
        self._pending.clear()
