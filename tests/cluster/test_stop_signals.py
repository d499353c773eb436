"""A driver's signals before there are workers, and what a notice of preemption says."""

import signal
from collections.abc import Iterator

import pytest
from ray.train import PreemptionInfo

from pairwright.cluster.train.preemption import ShutdownSignals, describe_preemption


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Leave the handlers as they were; a suite in the background ignores Ctrl-C."""
    before = {which: signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for which, handler in before.items():
        signal.signal(which, handler)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_there_are_workers_ends_at_once_and_is_known(which: signal.Signals) -> None:
    signals = ShutdownSignals()
    with pytest.raises(KeyboardInterrupt), signals:
        signal.raise_signal(which)
    assert signals.received == which


def test_afterwards_signals_mean_what_they_meant_before() -> None:
    before = [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)]
    with ShutdownSignals():
        assert before != [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)]
    assert before == [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)]


def test_what_a_shell_set_to_be_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with ShutdownSignals() as signals:
        signal.raise_signal(signal.SIGINT)
    assert signals.received is None


def test_a_notice_names_nodes_ranks_and_the_time_that_is_left() -> None:
    known = PreemptionInfo(deadline_ms=1_700_000_090_000, preempted_node_to_ranks={"b" * 56: [2, 3], "a" * 56: [0]})
    assert describe_preemption(known, now=1_700_000_000.0) == (
        "node aaaaaaaaaaaa (rank 0), node bbbbbbbbbbbb (rank 2, 3) will be preempted at 22:14:50 UTC, in 90 s"
    )
    unknown = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"a" * 56: [0, 1]})
    assert "no deadline known" in describe_preemption(unknown, now=0.0)
