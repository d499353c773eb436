"""Keeps the page of an evaluation with the run of its model, in the trackers that the run went to."""

from contextlib import suppress
from typing import Any

import msgspec

from pairwright.data.storage.object_store import absolute_url
from pairwright.errors import ConfigError
from pairwright.records import UNREADABLE_JSON
from pairwright.runs.run_dir import SUMMARY_NAME, RunFolder
from pairwright.runs.trackers.tracked_values import recorded_points
from pairwright.runs.trackers.tracker_backends import TRACKERS, TrackedRun, check_installed
from pairwright.runs.trackers.tracking import TRACKING_NAME, Tracking, tracked_run_id


def check_page_trackers(model: str) -> None:
    """Refuse a model that is not in the folder of a finished run with trackers, or whose trackers are not installed.

    Args:
        model: directory or URL of the model.

    Raises:
        ConfigError: if so.
    """
    check_installed(_trackers_of(_run_folder(model)))


def track_page(model: str, name: str, page: bytes) -> list[str]:
    """Put a page into every tracker of a model's run, and return what they say, a line each.

    Args:
        model: directory or URL of the model, in the folder of its run.
        name: of the file, such as ``report.html``.
        page: its content.

    Raises:
        ConfigError: as ``check_page_trackers``.
    """
    folder = _run_folder(model)
    run = TrackedRun(tracked_run_id(folder), folder.url.rpartition("/")[2], {})
    points, missing = recorded_points(folder.metrics_files()), f"it may lack {name}; `evaluate --track` again adds it"
    with Tracking(_trackers_of(folder), run, points, after_failure=missing) as tracking:
        tracking.add_artifact(name, page)
    return tracking.messages()


def _run_folder(model: str) -> RunFolder:
    return RunFolder(absolute_url(model).rpartition("/")[0])


def _trackers_of(folder: RunFolder) -> list[str]:
    summary: dict[str, Any] = {}
    with suppress(*UNREADABLE_JSON):
        summary = msgspec.json.decode(folder.read(SUMMARY_NAME) or b"{}", type=dict[str, Any])
    named = summary.get("config", {}).get("tracking", ())
    found = [name for name in named if name in TRACKERS]
    if not found or folder.read(TRACKING_NAME) is None:
        raise ConfigError(
            f"{folder.url}: no finished run that went to a tracker, which --track needs; give a model in the folder of "
            'a run whose tracking names "mlflow", "wandb" or "trackio", or leave --track out'
        )
    return found
