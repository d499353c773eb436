"""Connects to the Ray cluster that a job runs on, or starts a local one for this command.

``ray.init()`` alone would attach to any cluster that happens to run on this machine; only ``RAY_ADDRESS``, which
``ray job submit`` sets, says that one is meant.
"""

import logging
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

import ray
import ray.data
from ray._private import auto_init_hook
from ray.exceptions import RayError

from pairwright.addresses import shown_address, without_credentials
from pairwright.cluster.local_ray import logs_folder, start_local_ray
from pairwright.cluster.node_pools import pool_labels, pool_sizes
from pairwright.errors import ClusterError
from pairwright.terminal import counted

MAX_TRACEBACK_LINES = 60
JOIN_SECONDS = 2.0
_DATA_THREADS = ("StreamingExecutor", "iter_threaded", "ray-data", "data-usage", "map_tp")
"""Beginnings of the names of Ray Data's threads."""
ValueT = TypeVar("ValueT")
_generators: WeakSet[Generator[Any]] = WeakSet()
# Else what is left of a session calls `ray.init()` once the session has ended, which nothing keeps on loopback.
auto_init_hook.enable_auto_connect = False
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to the job's cluster, or start a local one that ends with the block; nested uses share the outer one.

    Raises:
        ClusterError: if Ray cannot be started or reached; if a task fails in a way that nobody foresaw, or Ray gives
            up, with the task's own traceback, without the many lines of Ray's that lie between it and here.
    """
    if ray.is_initialized():
        with _explained():
            yield
        return
    # Says at every start that authentication is on, which is as it should be.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    # Ray Data's own log has eight lines a dataset before the first of progress; progress_bar.py counts instead.
    # What fails it says a second time, and worse, before it raises: see _explained.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # What workers print stays in Ray's log files: what a person should read comes to the driver as a record. The
    # dashboard stays on: without it Ray 2.60 floods the log with failed exports.
    address = os.environ.get("RAY_ADDRESS", "local")
    options = {"logging_level": logging.WARNING, "log_to_driver": False}
    try:
        start_local_ray(**options) if address == "local" else ray.init(address=address, **options)
    except (OSError, ValueError) as error:  # a ConnectionError is one of the first
        raise ClusterError(_why_not_started(address, error)) from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.label_selector = pool_labels("data")
    with ExitStack() as end:
        end.callback(ray.shutdown)
        try:
            with _explained():
                yield
        except KeyboardInterrupt:
            end.enter_context(_quiet())  # left after Ray has ended
            end.callback(ray.shutdown)
            raise
        finally:
            _close_generators()


def ended_with_session(generator: Generator[ValueT]) -> Generator[ValueT]:
    """Return a generator that calls Ray when it is closed; the session closes it before it ends.

    What an error or Ctrl-C leaves open would be closed once nobody refers to it, and Ray 2.60 then starts, or looks
    for, another cluster, for minutes.
    """
    _generators.add(generator)
    return generator


def _close_generators() -> None:
    for generator in list(_generators):
        with suppress(Exception):  # of a cluster that is going down
            generator.close()
    # A thread of Ray Data that calls Ray once it has ended takes the process along.
    deadline = time.monotonic() + JOIN_SECONDS
    for thread in threading.enumerate():
        if thread.name.startswith(_DATA_THREADS):
            thread.join(timeout=max(0.0, deadline - time.monotonic()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what is written to standard error: Ray's own lines on each task that Ctrl-C ends are no errors."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def ray_resources() -> str:
    """Return what the cluster has free and in all, for a person."""
    total, free = ray.cluster_resources(), ray.available_resources()
    parts = [f"{free.get(name, 0):.0f} of {total.get(name, 0):.0f} {name}s free" for name in ("CPU", "GPU")]
    num_nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    return f"{' and '.join(parts)} on {counted(num_nodes, 'node')}{pool_sizes()}"


def _why_not_started(address: str, error: Exception) -> str:
    shown = shown_address(address)
    said = without_credentials(str(error).strip().partition("\n")[0].replace(address, shown))
    if "AF_UNIX path length" in said:
        return (
            f"Ray cannot start: its sockets lie below TMPDIR ({tempfile.gettempdir()}), and their paths may "
            "have no more than 107 characters; set TMPDIR to a folder with a shorter path"
        )
    if isinstance(error, UnicodeEncodeError):
        return (
            f"Ray cannot start: it takes no path outside UTF-8; the command was started in "
            f"{str(Path.cwd())!r}, and TMPDIR is {tempfile.gettempdir()!r}: take another folder"
        )
    if address == "local":
        return f"Ray cannot start on this machine: {said}"
    return (
        f"no Ray cluster answers at RAY_ADDRESS={shown} ({said}); correct it, or unset it to work on this machine; a "
        "cluster with a token needs RAY_AUTH_MODE=token and its token in ~/.ray/auth_token (docs/cluster.md)"
    )


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RayError as error:
        lines = without_credentials(_COLOUR.sub("", str(error))).strip().splitlines()
        cut = [f"... ({len(lines) - MAX_TRACEBACK_LINES} lines)"] if len(lines) > MAX_TRACEBACK_LINES else []
        raise ClusterError(
            [
                "a task failed in a way that Pairwright did not foresee: a bug, or something about the machines",
                *(f"  {line}" for line in [*cut, *lines[-MAX_TRACEBACK_LINES:]]),
                f"What each process wrote is in Ray's logs, {logs_folder()} on every node. The command "
                "can be run again: nothing half done counts. If it fails again, report the lines above",
            ]
        ) from error
