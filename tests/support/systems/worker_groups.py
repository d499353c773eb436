"""Groups of tests that one worker of pytest-xdist runs in one piece, and the scheduler that deals them out.

A group is a module, so that no fixture is made twice. All modules that start Ray are one group, so that a session has
one cluster up at a time; all that read the runs of the DeepSpeed ranks are one, since those take a minute and are made
once. Both come first: what is short fills up the other worker, and the two end together.

pytest-xdist's own marks for this (`--dist loadgroup`) do nothing since pytest 9.2: version 3.8.0 writes the group into
``item._nodeid``, which is no longer read. tests/contracts/test_worker_groups.py fails once they do.
"""

from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[3]
SHARED = {"ray": ("mark.ray", "ray_cluster"), "ranks": ("from zero_runs import",)}
"""Group of several modules -> what stands in each of them; the first that fits."""


@cache
def _text(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def group_of(nodeid: str) -> str:
    """Return the group of a test."""
    file = nodeid.partition("::")[0]
    return next((name for name, words in SHARED.items() if any(word in _text(file) for word in words)), file)


def rank_of(nodeid: str) -> int:
    """Return where a test comes: shared groups first, and of Ray's those that start a cluster of their own."""
    group = group_of(nodeid)
    if group == "ray":
        return int("ray_cluster" in _text(nodeid.partition("::")[0]))
    return 2 if group in SHARED else 3


class GroupScheduling(LoadScopeScheduling):
    """Gives a worker all tests of a group, and the next group before it runs out of work."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
