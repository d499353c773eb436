"""The files that a command writes about its run, where the disk has no room for a while."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pairwright.data.storage.backoff import retry_with_backoff
from pairwright.errors import StoreError
from pairwright.events import StepTaken
from pairwright.runs.event_log import EventLog


def scalars(directory: Path) -> list[tuple[int, float]]:
    """Return step and loss as TensorBoard itself reads them."""
    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


@contextmanager
def no_file_over(num_bytes: int) -> Iterator[None]:
    """Let the kernel cut short and refuse what would make a file longer, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def steps(directory: Path) -> list[int]:
    (file,) = directory.glob("metrics-*.jsonl")
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


def step_taken(step: int) -> StepTaken:
    others = ("epoch", "learning_rate", "seconds", "tokens_per_second", "accuracy", "reward_margin", "grad_norm")
    return StepTaken(step=step, num_steps=4, loss=1 / step, num_tokens=1.0, **dict.fromkeys(others, 1.0))


def test_what_a_full_disk_refuses_is_said_once_and_written_whole_once_there_is_room(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.add(step_taken(1))
    assert log.flush() is None
    before = steps(tmp_path), scalars(tmp_path)
    assert before == ([1], [(1, 1.0)])
    with no_file_over(20):
        log.add(step_taken(2))
        refusal = log.flush()
        assert refusal is not None
        assert refusal.endswith(".jsonl: File too large")
        log.add(step_taken(3))
        assert log.flush() is None, "it was said"
        assert (steps(tmp_path), scalars(tmp_path)) == before, "nothing is cut short"
    log.add(step_taken(4))
    assert log.flush() is None
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert scalars(tmp_path) == [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4)]


def test_a_storage_that_refuses_is_asked_until_the_patience_is_over(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    tries: list[int] = []

    def store() -> None:
        tries.append(1)
        (tmp_path / "missing" / "file").write_bytes(b"")

    with pytest.raises(StoreError, match="No such file"):
        retry_with_backoff(store, 1.0, lambda reason, pause: told.append((reason, pause)))
    assert len(tries) == 2
    (only,) = told
    assert "No such file" in only[0]
    assert only[1] == 1.0
