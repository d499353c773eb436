"""Implements the training loop's ``RunContext`` on Ray Train: rank, newest checkpoint, local scratch directory, upload.

Where all ranks must act alike, as when they give up, they agree here, so that none waits for one that has left.
"""

import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast

import ray
import ray.train
import ray.train.torch
import torch.distributed as dist
from ray.actor import ActorProxy
from ray.train import CheckpointUploadMode

from pairwright.cluster.train.checkpoint_upload import CheckpointUploader, LocalCheckpointDir
from pairwright.cluster.train.coordinator import RunCoordinator
from pairwright.cluster.train.preemption import PreemptionMonitor
from pairwright.cluster.train.ray_workarounds import StorageContext
from pairwright.data.storage.backoff import backoff_delays
from pairwright.errors import CheckpointError, PairwrightError
from pairwright.events import Retrying, RunEvent, cause_of
from pairwright.training.collectives import all_gather_object, first_error, raise_on_all_ranks
from pairwright.training.context import StatusTracker

AGREE_SECONDS = 5.0
"""How often ranks that wait for an upload exchange whether theirs are done."""


class RayRunContext:
    """This rank of the run, as Ray Train sees it; the loop's ``RunContext``."""

    def __init__(self, coordinator: ActorProxy[RunCoordinator], *, retry_seconds: float) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.attempt = _agreed_token()
        self.status = StatusTracker()
        self._preemption = PreemptionMonitor(coordinator, self.rank)
        self._local_dir = _local_dir_on_all_ranks()
        self._retry_seconds = retry_seconds
        storage = cast("StorageContext", context.get_storage())
        self._uploader = CheckpointUploader(storage, retry_seconds=retry_seconds, on_retry=self.log_retry)

    def __enter__(self) -> "RayRunContext":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Any other exception must reach Ray at once; the next process on this node removes what this one leaves.
        if error is None or isinstance(error, PairwrightError):
            self._uploader.wait()
            self._local_dir.remove()

    def latest_checkpoint(self) -> AbstractContextManager[Path] | None:
        # Ray gave every rank the same when it started the group.
        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else self._fetched(checkpoint)

    @contextmanager
    def _fetched(self, checkpoint: ray.train.Checkpoint) -> Iterator[Path]:
        """Yield a checkpoint as a local folder; where the storage fails on a rank, all ranks retry together.

        Raises:
            CheckpointError: if all retries failed, which says nothing of what is stored there.
        """
        for pause in [*backoff_delays(self._retry_seconds), None]:
            with ExitStack() as stack:
                directory: str | None = None
                error: CheckpointError | None = None
                try:
                    directory = stack.enter_context(checkpoint.as_directory())
                except OSError as found:
                    error = CheckpointError(f"rank {self.rank} cannot read {checkpoint.path}: {cause_of(found)}")
                if (first := first_error(error)) is None:
                    assert directory is not None
                    yield Path(directory)
                    return
            if pause is None:
                raise first
            if error is not None:
                self.log_retry(str(error).removeprefix(f"rank {self.rank} "), pause)
            time.sleep(pause)

    def staging_folder(self, name: str) -> Path:
        return self._local_dir.new_folder(name)

    def wait_for_upload(self) -> None:
        while True:
            idle = self._uploader.wait(AGREE_SECONDS)
            ranks = all_gather_object((idle, self._uploader.failure))
            failures = [f"rank {rank}: {failure}" for rank, (_, failure) in enumerate(ranks) if failure is not None]
            if failures:
                self._uploader.cancel()
                raise CheckpointError(
                    f"{'; '.join(failures)}; tried for training.storage_retry_seconds = {self._retry_seconds:g}. "
                    "When the storage works again, the same command resumes from the newest committed checkpoint"
                )
            if all(idle for idle, _ in ranks):
                return

    def save_checkpoint(self, metrics: dict[str, Any], directory: Path, name: str) -> None:
        self._uploader.begin()
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(directory),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=self._uploader.upload,
        )

    def log_event(self, event: RunEvent) -> None:
        """Send an event to the driver."""
        self._preemption.push(event)

    def poll_control(self, steps_taken: int) -> Literal["save", "stop"] | None:
        return self._preemption.poll(steps_taken)

    def log_retry(self, reason: str, delay: float) -> None:
        """Log the error of a disk or a storage, and in how many seconds the next try follows."""
        self.log_event(Retrying(reason=f"rank {self.rank}: {reason}", seconds=delay))


def _local_dir_on_all_ranks() -> LocalCheckpointDir:
    """Return this rank's local directory once every rank has its own, or raise the first rank's error on all."""
    local_dir: LocalCheckpointDir | None = None
    error: PairwrightError | None = None
    try:
        local_dir = LocalCheckpointDir()
    except PairwrightError as found:
        error = found
    raise_on_all_ranks(error)
    assert local_dir is not None
    return local_dir


def _agreed_token() -> str:
    """Return a token that rank 0 drew, the same on every rank."""
    tokens = [secrets.token_hex(3)]
    dist.broadcast_object_list(tokens, src=0)
    return tokens[0]
