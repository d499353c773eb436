"""A pass where it is cheapest: in this process while there is little to read, on Ray from there on.

Starting Ray takes about five seconds, in which one process goes through 400 MB of text: a command should not take
longer to start than to do its work. Where a cluster runs already (a submitted job, an open session) it is used.
"""

import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from pairwright.errors import PairwrightError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

SMALL_BYTES = 64 * 1024 * 1024
"""Of text, or stored data: one to three seconds' work in one process."""


@contextmanager
def sized_session(num_bytes: int) -> Iterator[None]:
    """Hold one Ray session for the passes of the block, if they are of a size to use one or a cluster is named."""
    if num_bytes <= SMALL_BYTES and "RAY_ADDRESS" not in os.environ:
        yield
        return
    from pairwright.cluster.session import ray_session  # seconds, which a small table need not wait

    with ray_session():
        yield


def sized_pass(
    work: Callable[[ItemT], Iterable[ResultT]],
    items: Sequence[ItemT],
    sizes: Sequence[int],
    result: type[ResultT],
    *,
    what: str,
) -> Iterator[ResultT]:
    """Yield what ``work`` yields for each item, as ``passes.run_pass`` does; without Ray where little is to do."""
    if sum(sizes) <= SMALL_BYTES:
        for item in items:
            yield from work(item)
        return
    from pairwright.cluster.passes import run_pass

    with sized_session(sum(sizes)):
        yield from run_pass(work, items, sizes, result, what=what)


def on_every_node(work: Callable[[], ResultT], *, seconds: float) -> list[tuple[str, ResultT | str]]:
    """Return the name of each machine of the session, with what ``work`` returned there or why it did not.

    Without Ray that is this machine alone; with it, each node that is up, which has ``seconds`` to answer.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        from pairwright.cluster.passes import run_on_every_node

        return run_on_every_node(work, seconds=seconds)
    try:
        return [(socket.gethostname(), work())]
    except PairwrightError as error:
        return [(socket.gethostname(), str(error))]
