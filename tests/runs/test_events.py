"""The events of a run: each survives its way between processes and into the log under a name of its own."""

import copy
import json
from typing import get_args

import msgspec
import pytest

from pairwright.events import (
    BestCheckpointFailed,
    BestCheckpointKept,
    CheckpointCommitted,
    CheckpointWritten,
    CorruptCheckpoint,
    Evaluated,
    Event,
    HangDetected,
    HeadInitialized,
    LayoutChosen,
    PhaseStarted,
    Preemption,
    Resumed,
    Retrying,
    RunEvent,
    SnapshotRepaired,
    StepSkipped,
    StepTaken,
    UncommittedRemoved,
    WholeModelRead,
    WorkersLost,
    WorkersStarted,
    cause_of,
)

STEP = StepTaken(
    step=3,
    num_steps=32,
    epoch=0.5,
    learning_rate=1e-3,
    seconds=0.25,
    tokens_per_second=4000.0,
    loss=0.5,
    accuracy=0.75,
    reward_margin=1.5,
    grad_norm=0.5,
    num_tokens=1000.0,
)
# Each event with its kind in metrics-*.jsonl, its line of the log, and the gauges that it sets.
EVENTS: list[tuple[Event, str, str | None, dict[str, float]]] = [
    (PhaseStarted(phase="loading the model"), "phase", None, {}),
    (WorkersStarted(world_size=2), "workers", None, {}),
    (
        HeadInitialized(ignored_heads=("v_head.weight",)),
        "new_head",
        "a new head is drawn, although the weights hold one under another name (v_head.weight), which is left out",
        {},
    ),
    (
        WholeModelRead(reason="its weights are quantized"),
        "whole_model",
        "every worker holds the whole model while it loads: its weights are quantized",
        {},
    ),
    (LayoutChosen(layout="shared", reason="it agrees"), "layout", "layout shared: it agrees", {}),
    (Resumed(step=8, num_steps=32), "resumed", "resumed from the checkpoint of step 8 of 32", {}),
    (
        HangDetected(reason="no progress for 9 s"),
        "hang",
        "the run hangs: no progress for 9 s; restarting all workers",
        {},
    ),
    (
        WorkersLost(causes=("rank 0: died", "rank 1: died")),
        "restart",
        "lost workers (rank 0: died; rank 1: died); starting new ones",
        {},
    ),
    (
        Preemption(step=4, reason="SIGTERM to rank 1: writing a checkpoint now"),
        "preemption",
        "after step 4: SIGTERM to rank 1: writing a checkpoint now",
        {},
    ),
    (
        STEP,
        "step",
        "step 3/32: loss 0.5000  accuracy 0.750  reward margin +1.500  grad norm 0.5  lr 0.001  4,000 tokens/s",
        {"step": 3, "loss": 0.5, "tokens_per_second": 4000.0},
    ),
    (
        StepSkipped(step=5, num_skipped=2, reason="step 5: the loss is not finite"),
        "skipped",
        "skipped step 5: the loss is not finite",
        {"step": 5, "skipped_steps": 2},
    ),
    (
        Evaluated(step=8, groups=2, pairs=3, weight=2.0, accuracy=0.5, log_loss=0.25, reward_margin=-1.0),
        "evaluation",
        "validation after step 8: log loss 0.2500  accuracy 0.500  reward margin -1.000",
        {},
    ),
    (
        CheckpointWritten(step=8, waited_seconds=0.5, written_seconds=0.25),
        "checkpoint_written",
        None,
        {"checkpoint_stall_seconds": 0.75},
    ),
    (CheckpointCommitted(step=8), "committed", None, {}),
    (
        BestCheckpointKept(step=8, accuracy=0.5, log_loss=0.25),
        "best",
        "the checkpoint of step 8 is the best so far: log loss 0.2500  accuracy 0.500",
        {},
    ),
    (BestCheckpointFailed(reason="no room"), "best_failed", "the best checkpoint is not kept yet: no room", {}),
    (Retrying(reason="no room", seconds=4.0), "retrying", "no room; retrying in 4 s", {}),
    (
        CorruptCheckpoint(name="step-00000008-abcabc", reason="a hash"),
        "corrupt",
        "checkpoint step-00000008-abcabc is corrupt and was moved to checkpoints-corrupt/: a hash",
        {},
    ),
    (SnapshotRepaired(reason="the list was cut short"), "repaired", "the list was cut short", {}),
    (
        UncommittedRemoved(num_checkpoints=2, bytes=1_500_000),
        "uncommitted_removed",
        "removed 2 uncommitted checkpoints (1.5 MB)",
        {},
    ),
]


def test_every_event_is_listed_here_and_has_a_kind_of_its_own() -> None:
    assert {type(event) for event, _, _, _ in EVENTS} == set(get_args(RunEvent))
    assert len({kind for _, kind, _, _ in EVENTS}) == len(EVENTS)


@pytest.mark.parametrize(("event", "kind", "line", "metrics"), EVENTS, ids=[kind for _, kind, _, _ in EVENTS])
def test_an_event_knows_its_kind_its_line_and_its_metrics(
    event: Event, kind: str, line: str | None, metrics: dict[str, float]
) -> None:
    assert event.record["kind"] == kind
    assert event.log_line == line
    assert event.metrics == metrics
    assert event.counts_as_restart == isinstance(event, WorkersLost)


@pytest.mark.parametrize("event", [event for event, _, _, _ in EVENTS], ids=[kind for _, kind, _, _ in EVENTS])
def test_an_event_survives_a_copy_as_between_processes_and_its_line_of_the_metrics(event: Event) -> None:
    timed = msgspec.structs.replace(event, time=1.5)
    assert copy.deepcopy(timed) == timed, "by the means of pickle"
    assert msgspec.convert(json.loads(json.dumps(timed.record)), type=RunEvent) == timed


def test_the_numbers_of_steps_and_evaluations_go_to_tensorboard_and_those_of_no_other_event() -> None:
    shown = {kind: sorted(event.scalars) for event, kind, _, _ in EVENTS if event.scalars}
    assert shown == {
        "step": sorted({*STEP.__struct_fields__} - {"step", "time", "num_steps", "epoch"}),
        "evaluation": ["accuracy", "groups", "log_loss", "pairs", "reward_margin", "weight"],
    }


def test_an_evaluation_without_weight_has_counts_alone() -> None:
    event = Evaluated(step=3, groups=2, pairs=0, weight=0.0)
    assert "accuracy" not in event.record
    assert sorted(event.scalars) == ["groups", "pairs", "weight"]


@pytest.mark.parametrize("record", [{"kind": "mended", "step": 0}, {"kind": "resumed", "step": 1}, {"step": 1}])
def test_a_record_that_is_no_event_is_an_error(record: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(record, type=RunEvent)


def test_the_cause_of_a_remote_error_is_its_last_line() -> None:
    assert cause_of(RuntimeError("Traceback:\n  File ...\nValueError: no room\n\n")) == "ValueError: no room"
    assert cause_of(RuntimeError("")) == "RuntimeError"
