"""What the loop needs on one rank -> Ray Train: its place, the newest checkpoint, a disk to write to, a way to storage.

Where all ranks have to do the same, as in giving up, they agree here, so that none waits for one that is gone.
"""

import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast

import ray
import ray.train
import ray.train.torch
import torch.distributed as dist
from ray.actor import ActorProxy
from ray.train import CheckpointUploadMode

from pairwright.cluster.train.checkpoint_dir import Staging
from pairwright.cluster.train.checkpoint_upload import Uploads
from pairwright.cluster.train.coordinator import Board
from pairwright.cluster.train.preemption import RankNotices
from pairwright.data.storage.backoff import backoff_delays
from pairwright.errors import CheckpointError, PairwrightError
from pairwright.runs.run_log_lines import last_line
from pairwright.training.collectives import first_error, gathered, raise_together
from pairwright.training.rank_status import Pulse

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.storage import StorageContext

AGREE_SECONDS = 5.0
"""Between two times that ranks tell each other whether their uploads are done, where one of them waits."""


class RayTrainHost:
    """This rank's place in the run, as Ray Train sees it; the loop's ``Host``."""

    def __init__(self, board: ActorProxy[Board], *, patience_seconds: float) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.attempt = _agreed_token()
        self.pulse = Pulse()
        self._notices = RankNotices(board, self.rank)
        self._staging = _staging_of_every_rank()
        self._patience_seconds = patience_seconds
        storage = cast("StorageContext", context.get_storage())
        self._uploads = Uploads(storage, patience_seconds=patience_seconds, refused=self.refused)

    def __enter__(self) -> "RayTrainHost":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What no message explains has to reach Ray at once; the next process here removes what this one leaves.
        if error is None or isinstance(error, PairwrightError):
            self._uploads.wait()
            self._staging.remove()

    def newest_checkpoint(self) -> AbstractContextManager[Path] | None:
        # Ray gave every rank the same when it started the group.
        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else self._fetched(checkpoint)

    @contextmanager
    def _fetched(self, checkpoint: ray.train.Checkpoint) -> Iterator[Path]:
        """Give a checkpoint as a local folder; a storage that does not answer is asked again by all ranks together.

        Raises:
            CheckpointError: if the patience is over, which says nothing of what is stored there.
        """
        for pause in [*backoff_delays(self._patience_seconds), None]:
            with ExitStack() as stack:
                directory: str | None = None
                error: CheckpointError | None = None
                try:
                    directory = stack.enter_context(checkpoint.as_directory())
                except OSError as found:
                    error = CheckpointError(f"rank {self.rank} cannot read {checkpoint.path}: {last_line(found)}")
                if (first := first_error(error)) is None:
                    assert directory is not None
                    yield Path(directory)
                    return
            if pause is None:
                raise first
            if error is not None:
                self.refused(str(error).removeprefix(f"rank {self.rank} "), pause)
            time.sleep(pause)

    def staging_folder(self, name: str) -> Path:
        return self._staging.new_folder(name)

    def wait_for_upload(self) -> None:
        while True:
            idle = self._uploads.wait(AGREE_SECONDS)
            ranks = gathered((idle, self._uploads.failure))
            failures = [f"rank {rank}: {failure}" for rank, (_, failure) in enumerate(ranks) if failure is not None]
            if failures:
                self._uploads.abandon()
                raise CheckpointError(
                    f"{'; '.join(failures)}; tried for training.storage_patience_seconds = {self._patience_seconds:g}. "
                    "When the storage takes it again, the same command goes on from the newest committed checkpoint"
                )
            if all(idle for idle, _ in ranks):
                return

    def save_checkpoint(self, metrics: dict[str, Any], directory: Path, name: str) -> None:
        self._uploads.expect()
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(directory),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=self._uploads.store,
        )

    def progress(self, record: dict[str, Any]) -> None:
        self._notices.put(record)

    def asked(self, steps_taken: int) -> Literal["save", "stop"] | None:
        return self._notices.agreed(steps_taken)

    def refused(self, reason: str, pause: float) -> None:
        """Show that a disk or a storage refused something, and when it is tried again, in seconds."""
        self.progress({"kind": "refused", "step": 0, "reason": f"rank {self.rank}: {reason}", "seconds": pause})


def _staging_of_every_rank() -> Staging:
    """Return this rank's staging folder once every rank has its own, or raise on all what one of them found."""
    staging: Staging | None = None
    error: PairwrightError | None = None
    try:
        staging = Staging()
    except PairwrightError as found:
        error = found
    raise_together(error)
    assert staging is not None
    return staging


def _agreed_token() -> str:
    """Return a token that rank 0 drew, the same on every rank."""
    tokens = [secrets.token_hex(3)]
    dist.broadcast_object_list(tokens, src=0)
    return tokens[0]
