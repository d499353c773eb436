"""The run behind a model: its learning curves from ``metrics-*.jsonl``, and its identity from ``run.json``.

Both lie beside the folder ``model`` of a run. A model that lies elsewhere has neither, and its page says so. Lines that
cannot be read are skipped: a log is no reason to lose an evaluation. A step that was taken again after a restart
counts as it was taken last.
"""

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import obstore
from obstore.exceptions import BaseError

from pairwright.data.storage.object_store import absolute_url, open_store
from pairwright.errors import StoreError
from pairwright.records import UNREADABLE_JSON

RUN_FILE, LOG_FILES = "run.json", "metrics-*.jsonl"


class RunFacts(msgspec.Struct, frozen=True):
    """What ``run.json`` says of a run."""

    pairs_url: str
    pairs_version: int
    model_digest: str
    tokens_digest: str
    config: dict[str, Any]
    pairs_digest: str = ""


class _Line(msgspec.Struct, frozen=True):
    """A line of the log, as far as the page needs it (pairwright/events.py)."""

    kind: str
    step: int = 0
    num_steps: int = 0
    loss: float | None = None
    accuracy: float | None = None
    log_loss: float | None = None
    learning_rate: float | None = None
    causes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunHistory:
    """A run, as its folder tells it.

    Attributes:
        facts: of ``run.json``; None where there is none.
        loss: (step, loss) of the training batches.
        accuracy: (step, accuracy) of them.
        validation_loss: (step, log loss) on the held-out pairs.
        validation_accuracy: (step, accuracy) on them.
        resumes: the steps that the run went on from.
        causes: why workers were lost, in order.
    """

    facts: RunFacts | None
    loss: list[tuple[float, float]]
    accuracy: list[tuple[float, float]]
    validation_loss: list[tuple[float, float]]
    validation_accuracy: list[tuple[float, float]]
    resumes: list[int]
    causes: list[str]


def read_history(model: str) -> RunHistory | None:
    """Return the history of the run whose folder a model lies in; None where no run is.

    Args:
        model: directory or URL of the model.
    """
    folder = absolute_url(model).rpartition("/")[0]
    try:
        store = open_store(folder)
        names = [file["path"] for file in obstore.list_with_delimiter(store)["objects"]]
        logs = sorted(name for name in names if fnmatch.fnmatch(name, LOG_FILES))
        if RUN_FILE not in names and not logs:
            return None
        read = {name: bytes(obstore.get(store, name).bytes()) for name in [*logs, RUN_FILE] if name in names}
    except (OSError, BaseError, StoreError):
        return None
    return history_of(read.get(RUN_FILE), [read[name] for name in logs])


def history_of(run: bytes | None, logs: Iterable[bytes]) -> RunHistory:
    """Return the history that files of a run tell, the logs in order of their start."""
    lines = [line for log in logs for content in log.splitlines() if (line := _decoded(content)) is not None]
    steps = {line.step: line for line in lines if line.kind == "step"}
    evaluated = {line.step: line for line in lines if line.kind == "evaluation"}
    return RunHistory(
        facts=None if run is None else _facts(run),
        loss=_curve(steps, "loss"),
        accuracy=_curve(steps, "accuracy"),
        validation_loss=_curve(evaluated, "log_loss"),
        validation_accuracy=_curve(evaluated, "accuracy"),
        resumes=[line.step for line in lines if line.kind == "resumed"],
        causes=[cause for line in lines if line.kind == "restart" for cause in line.causes],
    )


def _curve(lines: Mapping[int, _Line], name: Literal["loss", "accuracy", "log_loss"]) -> list[tuple[float, float]]:
    """Return a value by step, where it is a finite number."""
    found = ((step, msgspec.structs.asdict(line)[name]) for step, line in sorted(lines.items()))
    return [(step, value) for step, value in found if value is not None and math.isfinite(value)]


def _decoded(content: bytes) -> _Line | None:
    try:
        return msgspec.json.decode(content, type=_Line)
    except UNREADABLE_JSON:
        return None


def _facts(content: bytes) -> RunFacts | None:
    try:
        return msgspec.json.decode(content, type=RunFacts)
    except UNREADABLE_JSON:
        return None
