"""MLflow, Weights & Biases and Trackio behind one protocol.

Each finds the run of an earlier start by the run id, and says which steps it holds already where it can. Where a
tracker keeps its data, and its credentials, are its own environment variables; nothing of it is in a configuration.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from pairwright.addresses import without_credentials
from pairwright.config import TrainConfig
from pairwright.errors import ConfigError
from pairwright.runs.trackers.tracked_values import Parameter, Point, Series
from pairwright.runs.trackers.wandb_offline import offline_maximum

PROJECT = "pairwright"
"""Where the tracker's own environment variable names no project."""
_RUN_ID_TAG = "pairwright.run_id"
_METRIC_OF: Mapping[Series, str] = {"train": "train/loss", "eval": "eval/accuracy"}
"""Series -> the metric that each of its points has."""
_WANDB_STEPS: Mapping[Series, str] = {"train": "train/global_step", "eval": "eval/global_step"}
"""Series -> the metric that holds its step; the first is the axis of all curves, as in transformers."""

EndStatus: TypeAlias = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is started with."""

    run_id: str
    """One for all starts of a run."""
    name: str
    parameters: Mapping[str, Parameter]


class Started(NamedTuple):
    """What a tracker says after its start."""

    address: str
    """Of the run, for a person."""
    last_steps: dict[Series, int]
    """The last step of each series that it holds."""


class Tracker(Protocol):
    """A tracker; every call is made in one thread."""

    def start(self, run: TrackedRun) -> Started:
        """Create the run, or continue that of an earlier start."""
        ...

    def log(self, points: Sequence[Point]) -> None:
        """Take the metrics of steps that it does not hold yet."""
        ...

    def log_artifact(self, path: Path) -> None:
        """Keep a file with the run."""
        ...

    def finish(self, status: EndStatus) -> None:
        """Deliver what is buffered, and close the run; a later start may continue it."""
        ...


class MlflowTracker:
    """MLflow, by its client alone: no run of the process, no tags that name the user or the command."""

    def start(self, run: TrackedRun) -> Started:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._entities: Any = import_module("mlflow.entities")
        self._client: Any = import_module("mlflow").MlflowClient()
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(project)
        experiment_id = self._client.create_experiment(project) if experiment is None else experiment.experiment_id
        found = self._client.search_runs([experiment_id], f"tags.`{_RUN_ID_TAG}` = '{run.run_id}'")
        kept = found[0] if found else None
        tags = {_RUN_ID_TAG: run.run_id}
        self._id = (kept or self._client.create_run(experiment_id, run_name=run.name, tags=tags)).info.run_id
        self._client.update_run(self._id, status="RUNNING")
        self._log_parameters(run.parameters, {} if kept is None else kept.data.params)
        last_steps: dict[Series, int] = {series: self._last_step(metric) for series, metric in _METRIC_OF.items()}
        where = f"mlflow run {self._id} in experiment {project} at {self._client.tracking_uri}"
        return Started(without_credentials(where), last_steps)

    def _last_step(self, metric: str) -> int:
        return max((one.step for one in self._client.get_metric_history(self._id, metric)), default=0)

    def _log_parameters(self, parameters: Mapping[str, Parameter], kept: Mapping[str, str]) -> None:
        """Log parameters; MLflow's never change, so one that a later start has changed becomes a tag."""
        now = {key: str(value) for key, value in parameters.items()}
        new = [self._entities.Param(key, value) for key, value in now.items() if key not in kept]
        changed = [
            self._entities.RunTag(f"resumed.{key}", value)
            for key, value in now.items()
            if kept.get(key, value) != value
        ]
        for start in range(0, len(new), 100):  # MLflow's limit
            self._client.log_batch(self._id, params=new[start : start + 100])
        self._client.log_batch(self._id, tags=changed)

    def log(self, points: Sequence[Point]) -> None:
        metrics = [
            self._entities.Metric(name, value, int(point.time * 1000), point.step)
            for point in points
            for name, value in point.values.items()
        ]
        for start in range(0, len(metrics), 1000):  # MLflow's limit
            self._client.log_batch(self._id, metrics=metrics[start : start + 1000])

    def log_artifact(self, path: Path) -> None:
        self._client.log_artifact(self._id, str(path))

    def finish(self, status: EndStatus) -> None:
        statuses = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
        self._client.set_terminated(self._id, statuses[status])


class WandbTracker:
    """Weights & Biases. Of the machine, the command line and the code it is sent nothing."""

    def start(self, run: TrackedRun) -> Started:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        wandb: Any = import_module("wandb")
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            host="-",
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        if os.environ.get("WANDB_MODE", "online") in ("online", "shared") and not wandb.login(prompt=False):
            raise ConfigError("no API key: set WANDB_API_KEY, or WANDB_MODE=offline")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.run_id,
            name=run.name,
            resume="allow",
            settings=settings,
        )
        self._run.config.update(dict(run.parameters), allow_val_change=True)
        # As transformers does: W&B's own step must never fall, not even by an evaluation that is delivered late.
        self._run.define_metric("train/global_step")
        self._run.define_metric("*", step_metric="train/global_step", step_sync=True)
        return Started(f"wandb run {run.run_id}: {self._run.url or self._run.dir}", self._last_steps())

    def _last_steps(self) -> dict[Series, int]:
        """Return the last steps of a resumed run: the server's, and those of folders that wait for `wandb sync`."""
        files = Path(self._run.settings.wandb_dir).glob(f"offline-run-*-{self._run.id}/run-*.wandb")
        waiting = offline_maximum(files, _WANDB_STEPS.values())
        return {
            series: max(waiting[metric], int(self._run.summary.get(metric) or 0))
            for series, metric in _WANDB_STEPS.items()
        }

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            steps = {_WANDB_STEPS["train"]: point.step, _WANDB_STEPS[point.series]: point.step}
            self._run.log(point.values | steps)

    def log_artifact(self, path: Path) -> None:
        self._run.log_artifact(str(path), name=f"{path.stem}-{self._run.id}", type="summary")

    def finish(self, status: EndStatus) -> None:
        self._run.finish(exit_code=0 if status == "finished" else 1)


class TrackioTracker:
    """Trackio: a local SQLite file unless its own variables name a Space or a server."""

    def start(self, run: TrackedRun) -> Started:
        trackio: Any = import_module("trackio")
        project, name = os.environ.get("TRACKIO_PROJECT", PROJECT), f"{run.name}-{run.run_id[:8]}"
        remote = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")
        with redirect_stdout(sys.stderr):  # standard output may be JSON
            self._run: Any = trackio.init(
                project=project,
                name=name,
                resume="allow",
                config=dict(run.parameters),
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        where = f"trackio run {name} in project {project}{f' at {remote}' if remote else ''}"
        return Started(without_credentials(where), self._last_steps(project, name, is_remote=remote is not None))

    def _last_steps(self, project: str, name: str, *, is_remote: bool) -> dict[Series, int]:
        if is_remote:  # which says the last step of all metrics alone
            last: int = self._run._next_step - 1
            return dict.fromkeys(_METRIC_OF, last)
        store: Any = import_module("trackio.sqlite_storage").SQLiteStorage
        rows: list[dict[str, Any]] = store.get_logs(project, name, run_id=self._run.id)
        return {
            series: max((row["step"] for row in rows if metric in row), default=0)
            for series, metric in _METRIC_OF.items()
        }

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._run.log(dict(point.values), step=point.step)

    def log_artifact(self, path: Path) -> None:
        self._run.log_artifact(str(path), name=f"{path.stem}-{self._run.id[:8]}", type="summary")

    def finish(self, status: EndStatus) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish()


TRACKERS: Mapping[str, Callable[[], Tracker]] = {
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
}


def check_trackers(config: TrainConfig) -> None:
    """Refuse a tracker whose package is not installed; nothing is imported.

    Raises:
        ConfigError: naming the extra that installs it.
    """
    check_installed([name for name in config.tracking if name in TRACKERS])


def check_installed(names: Sequence[str]) -> None:
    """Refuse trackers whose package is not installed; raises as ``check_trackers``."""
    for name in names:
        spec = find_spec(name)
        # A folder such as W&B's own ./wandb passes for a package without an origin.
        if spec is None or spec.origin is None:
            raise ConfigError(
                f'tracking names "{name}", whose package is not installed here; install it with '
                f"`pip install pairwright[{name}]`, or take {name} out of tracking"
            )
