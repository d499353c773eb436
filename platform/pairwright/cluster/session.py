"""Where Ray comes from: the cluster that a job runs on, or one started here for this command.

``ray.init()`` alone would attach to any cluster that happens to run on this machine; only ``RAY_ADDRESS``, which
``ray job submit`` sets, says that one is meant.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.data


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to the job's cluster, or start a local one that ends with the block; nested uses share the outer one."""
    if ray.is_initialized():
        yield
        return
    # Says at every start that authentication is on, which is as it should be.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    # Ray Data's own log has eight lines a dataset before the first of progress; cluster/progress.py counts instead.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # What workers print stays in Ray's log files: what a person should read comes to the driver as a record. The
    # dashboard stays on: without it Ray 2.60 floods the log with failed exports.
    address = os.environ.get("RAY_ADDRESS", "local")
    ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()
