"""Records and figures of a run -> ``metrics-*.jsonl`` and TensorBoard's event files, through a disk that is full.

Nothing that is shown may end the run that it is about. So what a disk refuses is kept and written once it has room.
TensorBoard's writer dies of it, with a traceback from its thread; a new one begins once there is room, and misses the
steps between, which ``metrics-*.jsonl`` has.
"""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """The files that one command writes about its run.

    Args:
        directory: of the run, on this machine; made if need be.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        started = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self._directory = directory
        self._file = (directory / f"metrics-{started}.jsonl").open("ab", buffering=0)
        self._pending: list[bytes] = []
        self._refused = False
        self._writer: SummaryWriter | None = None

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record; written by the next ``flush``."""
        self._pending.append(json.dumps(record).encode() + b"\n")

    def add_scalars(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        """Show figures in TensorBoard, as ``prefix/name``."""
        if self._refused:
            return
        try:
            if self._writer is None:
                self._writer = SummaryWriter(str(self._directory / "tensorboard"))
            for name, value in values.items():
                self._writer.add_scalar(f"{prefix}/{name}", value, step)
        except OSError:
            self._close_writer()

    def flush(self, *, with_events: bool = False) -> str | None:
        """Write what was taken; return why that is refused, if it was not before.

        Args:
            with_events: TensorBoard's too, which writes by itself every two minutes.
        """
        end = self._file.seek(0, os.SEEK_END)
        refusal = None
        if self._pending:
            content = b"".join(self._pending)
            try:
                written = self._file.write(content)
                if written != len(content):
                    self._file.write(content[written:])  # says why
                self._pending.clear()
            except OSError as error:
                self._file.truncate(end)
                refusal = f"{self._file.name}: {error}"
        said, self._refused = self._refused, refusal is not None
        if with_events and self._writer is not None:
            try:
                self._writer.flush()
            except OSError:
                self._close_writer()
        return None if said else refusal

    def close(self) -> str | None:
        """Write what is left and close; return why it cannot be written."""
        self._refused = False
        refusal = self.flush(with_events=True)
        self._file.close()
        self._close_writer()
        return refusal

    def _close_writer(self) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError:
            pass  # what it could not write is in the metrics file
        self._writer = None
