"""What the driver tells every rank; apart from worker.py, so that the driver need not import DeepSpeed (5 s)."""

from dataclasses import dataclass
from typing import Any

from ray.actor import ActorProxy

from pairwright.cluster.train.coordinator import Board
from pairwright.config import TrainConfig
from pairwright.data.table.table import Manifest


@dataclass(frozen=True)
class WorkerTask:
    """What every rank is told."""

    config: TrainConfig
    run_digest: str
    run_url: str
    tokens_url: str
    tokens_manifest: Manifest
    board: ActorProxy[Board]


def start_worker(loop_config: dict[str, Any]) -> dict[str, Any]:
    """Run one rank; what Ray Train calls on every worker."""
    from pairwright.cluster.train.worker import train_worker

    return train_worker(loop_config["task"])
