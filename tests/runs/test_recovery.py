"""What a run's events add up to: restarts, resumes, world sizes, and each recovery."""

import msgspec

from pairwright.events import (
    CheckpointCommitted,
    CorruptCheckpoint,
    Event,
    HangDetected,
    Resumed,
    StepTaken,
    WorkersLost,
    WorkersStarted,
)
from pairwright.runs.recovery import RunHistory

RANK_0_DIED, RANK_1_DIED = WorkersLost(causes=("rank 0: died",)), WorkersLost(causes=("rank 1: died",))


def add(history: RunHistory, event: Event, *, at: float) -> str | None:
    return history.add(msgspec.structs.replace(event, time=at))


def step(number: int) -> StepTaken:
    others = ("epoch", "learning_rate", "seconds", "tokens_per_second", "accuracy", "reward_margin", "grad_norm")
    return StepTaken(step=number, num_steps=32, loss=1.0, num_tokens=1.0, **dict.fromkeys(others, 1.0))


def test_a_recovery_says_why_where_the_run_resumed_what_was_recomputed_and_how_long_it_took() -> None:
    history = RunHistory()
    assert add(history, step(11), at=5.0) is None
    add(history, HangDetected(reason="rank 1 is silent"), at=9.0)
    add(history, RANK_0_DIED, at=10.0)
    add(history, WorkersStarted(world_size=2), at=27.0)
    add(history, Resumed(step=8, num_steps=32), at=30.0)
    said = add(history, step(9), at=32.5)
    assert said == "recovered in 22 s (workers 17 s, checkpoint load 3 s); 3 steps recomputed"
    assert add(history, step(10), at=33.0) is None
    (found,) = history.recoveries
    assert found.causes == ["rank 1 is silent", "rank 0: died"]
    assert (found.restored_step, found.steps_redone, found.seconds) == (8, 3, 22.5)
    assert (found.workers_seconds, found.load_seconds) == (17.0, 3.0)


def test_a_loss_before_the_first_checkpoint_starts_over_and_one_in_a_restart_is_kept_without_a_time() -> None:
    history = RunHistory()
    add(history, step(5), at=5.0)
    add(history, RANK_0_DIED, at=10.0)
    add(history, RANK_1_DIED, at=20.0)
    add(history, step(1), at=30.0)
    add(history, step(9), at=35.0)
    add(history, RANK_0_DIED, at=40.0)
    first, second, last = history.recoveries
    assert (first.restored_step, first.steps_redone, first.seconds) == (0, 5, None)
    assert (second.causes, second.steps_redone, second.seconds) == (["rank 1: died"], 5, 10.0)
    assert (last.seconds, last.steps_redone) == (None, 9)


def test_losses_resumes_corrupt_checkpoints_and_world_sizes_are_counted_and_nothing_else() -> None:
    history = RunHistory()
    said = [
        add(history, event, at=float(number))
        for number, event in enumerate(
            [
                WorkersStarted(world_size=2),
                CheckpointCommitted(step=8),
                RANK_1_DIED,
                WorkersStarted(world_size=1),
                CorruptCheckpoint(name="step-00000008-abcabc", reason="a hash"),
                Resumed(step=4, num_steps=32),
                WorkersStarted(world_size=1),
            ]
        )
    ]
    assert said == [None, None, None, "the run has 1 workers now, 2 before", None, None, None]
    assert (history.num_restarts, history.num_resumes, history.num_corrupt_checkpoints) == (1, 1, 1)
    assert history.world_sizes == [2, 1, 1]
