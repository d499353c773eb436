"""Free resources of the cluster -> word that a run is about to grow, so that it saves before Ray starts it anew.

Ray looks every ``workers.resize_interval_seconds`` whether there is room for more workers, and then starts all of them
anew from the newest checkpoint, without a word before. What would be taken again is so bounded by that time, not by the
steps between two checkpoints.
"""

import ray

from pairwright.config import WorkersConfig


class Growth:
    """Follows one run.

    Args:
        workers: of the run.
    """

    def __init__(self, workers: WorkersConfig) -> None:
        self._workers = workers
        self._world_size: int | None = None

    def started(self, world_size: int) -> None:
        """Take note of new workers."""
        self._world_size = world_size

    def expected(self) -> str | None:
        """Return why the run will grow; once for each start of workers."""
        if self._world_size is None or self._world_size >= self._workers.most:
            return None
        free = ray.available_resources()
        room = free.get("CPU", 0.0) // self._workers.cpus_per_worker
        if self._workers.use_gpu:
            room = min(room, free.get("GPU", 0.0))
        if room < 1:
            return None
        more = min(int(room), self._workers.most - self._world_size)
        self._world_size = None
        return f"room for {more} more worker{'s' if more > 1 else ''}"
