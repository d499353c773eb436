"""Where Ray comes from: the cluster that a job runs on, or one started here for this command.

``ray.init()`` alone would attach to any cluster that happens to run on this machine; only ``RAY_ADDRESS``, which
``ray job submit`` sets, says that one is meant.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to the job's cluster, or start a local one that ends with the block; nested uses share the outer one."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    # The dashboard stays on: without it Ray 2.60 floods the log with failed exports.
    ray.init(address=address, logging_level=logging.WARNING, log_to_driver=True)
    _quiet_data_progress()
    try:
        yield
    finally:
        ray.shutdown()


def _quiet_data_progress() -> None:
    """Keep Ray Data to one line of progress every ten seconds where no terminal shows a bar."""
    context = ray.data.DataContext.get_current()
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
