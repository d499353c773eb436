"""The table of a sweep: a row for each setting, with the spread of its seeds.

A difference between settings that is smaller than the spread of seeds says nothing about the settings.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec

from pairwright import __version__
from pairwright.evaluation.reports.comparison import Spread, spread_of
from pairwright.records import UNREADABLE_JSON
from pairwright.terminal import escaped, one_per_line


class SweepRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a sweep, and its evaluation."""

    name: str
    setting: Annotated[dict[str, Any], msgspec.Meta(description="varied key -> value")]
    seed: int
    output: str
    state: Literal["finished", "failed"]
    accuracy: float | None = None
    log_loss: float | None = None
    report: Annotated[str | None, msgspec.Meta(description="where its report lies")] = None
    error: Annotated[str | None, msgspec.Meta(description="why it failed")] = None


class SweepSetting(msgspec.Struct, frozen=True, kw_only=True):
    """The finished runs of one setting, which differ in their seed alone."""

    setting: dict[str, Any]
    accuracy: Spread | None
    log_loss: Spread | None


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep: its settings, best mean accuracy first, and its runs."""

    format_version: Literal[1] = 1
    created_at: str
    code_version: str
    sweep_digest: Annotated[str, msgspec.Meta(description="of the configurations of all its runs")]
    settings: list[SweepSetting]
    runs: list[SweepRun]


def sweep_of(runs: Sequence[SweepRun], digest: str) -> Sweep:
    """Return the sweep of runs that have ended, finished or failed."""
    of_setting: dict[bytes, list[SweepRun]] = {}
    for run in runs:
        of_setting.setdefault(msgspec.json.encode(run.setting), []).append(run)
    settings = [
        SweepSetting(
            setting=of_one[0].setting,
            accuracy=_spread_of(run.accuracy for run in of_one),
            log_loss=_spread_of(run.log_loss for run in of_one),
        )
        for of_one in of_setting.values()
    ]
    return Sweep(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=__version__,
        sweep_digest=digest,
        settings=sorted(settings, key=lambda one: -1.0 if one.accuracy is None else one.accuracy.mean, reverse=True),
        runs=list(runs),
    )


def is_sweep(content: bytes) -> bool:
    """Return whether a file's content is a sweep, which a newer one may replace."""
    return read_sweep(content) is not None


def read_sweep(content: bytes) -> Sweep | None:
    """Return the sweep in a file, or None where there is another thing."""
    try:
        return msgspec.json.decode(content, type=Sweep)
    except UNREADABLE_JSON:
        return None


def setting_text(setting: dict[str, Any]) -> str:
    """Return a setting as a person reads it."""
    return ", ".join(f"{key} = {value}" for key, value in setting.items()) or "the configuration as it is"


def format_sweep(sweep: Sweep) -> str:
    """Return the table as plain text."""
    return one_per_line(_lines(sweep))


def _spread_of(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return spread_of(known) if known else None


def _lines(sweep: Sweep) -> Iterator[str]:
    yield f"{'accuracy (least to most)':<27}{'log loss (least to most)':<31}runs  setting"
    for one in sweep.settings:
        runs = 0 if one.accuracy is None else one.accuracy.runs
        accuracy, log_loss = _shown(one.accuracy, 100, 1, " %"), _shown(one.log_loss, 1, 4, "")
        yield f"{accuracy:<27}{log_loss:<31}{runs:<6}{escaped(setting_text(one.setting))}"
    if note := _note([one.accuracy for one in sweep.settings if one.accuracy is not None]):
        yield note
    for run in sweep.runs:
        if run.error is not None:
            yield escaped(f"failed: {run.name}: {run.error}")


def _shown(spread: Spread | None, scale: int, digits: int, unit: str) -> str:
    if spread is None:
        return "-"
    mean, least, most = (f"{scale * value:.{digits}f}" for value in (spread.mean, spread.lowest, spread.highest))
    return f"{mean}{unit} ({least} to {most})"


def _note(spreads: Sequence[Spread]) -> str | None:
    """Return how the difference of the two best settings compares with that of seeds."""
    if len(spreads) < 2 or max(spread.runs for spread in spreads) < 2:
        return None
    ahead = 100 * (spreads[0].mean - spreads[1].mean)
    of_seeds = 100 * max(spread.highest - spread.lowest for spread in spreads)
    return f"the best two settings differ by {ahead:.1f} points, seeds of one setting by up to {of_seeds:.1f}"
