"""When a group of ranks is taken to hang, and which rank is named."""

import dataclasses

import pytest

from pairwright.cluster.train.coordinator import Heartbeat
from pairwright.cluster.train.heartbeat import Hang, Watchdog
from pairwright.cluster.train.monitor import Activity, is_line_due
from pairwright.events import PhaseStarted, StepSkipped, WorkersLost, WorkersStarted
from pairwright.training.context import RankStatus

HANG_SECONDS = 10.0


class Ranks:
    """Two ranks that beat once a second, each doing what it was last told; time goes on second by second."""

    def __init__(self) -> None:
        self.watchdog = Watchdog(HANG_SECONDS)
        self.now = 100.0
        self.heartbeats: dict[int, Heartbeat] = {}

    def rank(self, number: int, *, count: int, doing: str = "training", attempt: str = "first") -> None:
        is_monitored = doing in ("training", "evaluating")
        moment = RankStatus(phase=doing, step=3, micro_batch=2, count=count, is_monitored=is_monitored)
        before = self.heartbeats.get(number)
        beat_number = 0 if before is None else before.number
        self.heartbeats[number] = Heartbeat(number, 2, attempt, beat_number, 4000 + number, "host", moment)

    def pass_seconds(self, seconds: int, *, stopped: tuple[int, ...] = ()) -> list[Hang]:
        found = []
        for _ in range(seconds):
            self.now += 1.0
            for number, beat in self.heartbeats.items():
                if number not in stopped:
                    self.heartbeats[number] = dataclasses.replace(beat, number=beat.number + 1)
            found += [hang for hang in [self.watchdog.check(list(self.heartbeats.values()), self.now)] if hang]
        return found


@pytest.fixture
def ranks() -> Ranks:
    ranks = Ranks()
    for count in (5, 6):
        for number in (0, 1):
            ranks.rank(number, count=count)
        ranks.pass_seconds(1)
    return ranks


def test_a_rank_that_falls_silent_while_the_other_waits_for_it_is_named_once(ranks: Ranks) -> None:
    assert not ranks.pass_seconds(9, stopped=(1,))
    (hang,) = ranks.pass_seconds(20, stopped=(1,))
    assert hang.attempt == "first"
    assert "rank 1 (process 4001 on host) has been silent" in hang.reason
    assert "training at step 3, micro-batch 2" in hang.reason
    assert "rank 0" not in hang.reason


def test_a_rank_that_beats_but_stays_behind_is_named(ranks: Ranks) -> None:
    ranks.rank(0, count=7)
    (hang,) = ranks.pass_seconds(20)
    assert "rank 1 (process 4001 on host) is behind the others" in hang.reason
    assert "rank 0" not in hang.reason


def test_where_all_stand_at_one_place_that_is_said(ranks: Ranks) -> None:
    (hang,) = ranks.pass_seconds(20)
    assert "all ranks are training at step 3" in hang.reason


def test_a_group_of_which_any_rank_goes_on_does_not_hang(ranks: Ranks) -> None:
    for count in range(7, 12):
        ranks.rank(0, count=count)
        assert not ranks.pass_seconds(9)


def test_waiting_for_storage_is_no_hang_however_long_but_falling_silent_there_is(ranks: Ranks) -> None:
    ranks.rank(0, count=7, doing="saving")
    assert not ranks.pass_seconds(1000)
    (hang,) = ranks.pass_seconds(20, stopped=(0,))
    assert "rank 0 (process 4000 on host) has been silent" in hang.reason


def test_slow_steps_are_waited_for_five_times_as_long_as_the_longest(ranks: Ranks) -> None:
    ranks.pass_seconds(8)
    ranks.rank(0, count=7)
    ranks.rank(1, count=7)
    assert not ranks.pass_seconds(40)
    assert ranks.pass_seconds(10)


def test_a_group_that_ended_or_is_being_replaced_is_not_looked_after_and_the_next_one_is(ranks: Ranks) -> None:
    ranks.watchdog.worker_group_ended()
    assert not ranks.pass_seconds(1000, stopped=(0, 1))
    ranks.rank(0, count=1, attempt="second")
    assert not ranks.pass_seconds(9, stopped=(1,))
    (hang,) = ranks.pass_seconds(9, stopped=(1,))
    assert hang.attempt == "second"
    assert "rank 1 has never sent a heartbeat" in hang.reason


def test_a_rank_that_has_done_its_part_is_not_silent(ranks: Ranks) -> None:
    ranks.heartbeats[1] = dataclasses.replace(ranks.heartbeats[1], is_last=True)
    assert not ranks.pass_seconds(1000, stopped=(1,))


def test_a_long_silence_is_told_as_what_is_being_done_and_how_fast() -> None:
    """ "no step for 60 s ... 0 of 2 CPUs free" was said of a healthy run that loaded its model."""
    activity = Activity(100.0)
    assert activity.line(130.0, 0) == "still starting workers, for 30 s"
    activity.add(PhaseStarted(phase="loading the model"), 140.0)
    activity.add(WorkersStarted(world_size=2), 150.0)
    assert activity.line(170.0, 0) == "still loading the model, for 30 s"
    activity.add(StepSkipped(step=4, num_skipped=1, reason="no"), 200.0)
    assert activity.line(260.0, 30) == "still taking step 5, for 60 s, 30 micro-batches begun, 2.0 s each"
    activity.add(WorkersLost(causes=("rank 0: gone",)), 300.0)
    assert activity.line(330.0, 30) == "still starting workers, for 30 s"


def test_what_the_cluster_has_is_told_only_of_a_start_that_takes_very_long() -> None:
    activity = Activity(100.0)
    assert not activity.is_long_start(219.0)
    assert activity.is_long_start(220.0)
    activity.add(PhaseStarted(phase="loading the model"), 221.0)
    assert not activity.is_long_start(900.0)


def test_the_slowest_rank_says_how_many_micro_batches_have_begun(ranks: Ranks) -> None:
    assert Watchdog(HANG_SECONDS).micro_batches() == 0
    assert ranks.watchdog.micro_batches() == 2


def test_steps_have_a_line_a_minute_however_many_are_left_out() -> None:
    shown = [step for step in range(1, 41) if is_line_due(step, 40, 25, seconds=10)]
    assert shown == [1, 25, 40]
    assert is_line_due(7, 40, 25, seconds=60)
