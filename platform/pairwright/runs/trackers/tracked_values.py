"""What a tracker gets of a run: metrics under the names of TRL's RewardTrainer, and flat parameters.

A metric has TRL's name only where it means the same there; docs/training.md has the table.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import msgspec

from pairwright import __version__
from pairwright.addresses import without_credentials
from pairwright.config import TrainConfig
from pairwright.records import UNREADABLE_JSON
from pairwright.runs.run_identity import flat_keys

if TYPE_CHECKING:
    from pairwright.runs.run_plan import RunPlan  # imports torch, and an early check imports this

MAX_CHARACTERS = 500
"""Of a parameter; MLflow refuses one of more than 6,000."""

Series: TypeAlias = Literal["train", "eval"]
Parameter: TypeAlias = str | int | float | bool
_NAMES: Mapping[str, tuple[Series, Mapping[str, str]]] = {
    "step": (
        "train",
        {
            "loss": "loss",
            "accuracy": "accuracy",
            "reward_margin": "margin",
            "grad_norm": "grad_norm",
            "learning_rate": "learning_rate",
            "epoch": "epoch",
            "num_tokens": "step_tokens",
            "tokens_per_second": "tokens_per_second",
            "seconds": "step_seconds",
        },
    ),
    "evaluation": ("eval", {"accuracy": "accuracy", "reward_margin": "margin", "log_loss": "log_loss"}),
}
"""Kind of an event -> its series, and the names of its numbers below it."""


class Point(NamedTuple):
    """The metrics of one step, or of the evaluation after it."""

    series: Series
    step: int
    time: float
    """When the step was taken, in seconds since 1970."""
    values: dict[str, float]
    """Such as ``train/loss``; finite or not."""


def point_of(record: Mapping[str, Any]) -> Point | None:
    """Return the metrics of an event, a line of ``metrics-*.jsonl``; None for one that has none."""
    if (named := _NAMES.get(record.get("kind", ""))) is None:
        return None
    series, names = named
    values = {f"{series}/{name}": float(record[key]) for key, name in names.items() if record.get(key) is not None}
    return Point(series, record["step"], record["time"], values)


def recorded_points(metrics_files: Iterable[bytes]) -> list[Point]:
    """Return what earlier commands of a run recorded, without a line that a crash cut short."""
    return [point for content in metrics_files for point in _points(content)]


def _points(content: bytes) -> Iterator[Point]:
    for line in content.splitlines():
        try:
            point = point_of(msgspec.json.decode(line))
        except (AttributeError, KeyError, *UNREADABLE_JSON):
            continue
        if point is not None:
            yield point


def parameters_of(config: TrainConfig, plan: "RunPlan") -> dict[str, Parameter]:
    """Return the configuration as flat keys, with the data's version and the digests of all that decides the run."""
    identity = plan.identity
    resolved = {
        "data.version": plan.pairs.version,
        "data.digest": plan.pairs.digest,
        "tokens.digest": plan.tokens_manifest.digest,
        "model.digest": identity.model_digest,
        "run.digest": identity.digest,
        "run.steps": plan.schedule.num_steps,
        "pairwright": __version__,
    }
    return {key: _plain(value) for key, value in (flat_keys(config.model_dump(mode="json")) | resolved).items()}


def _plain(value: Any) -> Parameter:
    """Return a value as trackers take it: short, and an address without what could be a secret in it."""
    if isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else "not set" if value is None else json.dumps(value, ensure_ascii=False)
    shown = without_credentials(text)
    return shown if len(shown) <= MAX_CHARACTERS else f"{shown[:MAX_CHARACTERS]}..."
