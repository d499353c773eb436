"""Trackers on their real local stores: one run and one curve whatever killed the driver, and no failure that counts."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pairwright.config import TrainConfig
from pairwright.errors import ConfigError
from pairwright.runs.run_dir import RunFolder
from pairwright.runs.trackers.tracked_page import check_page_trackers
from pairwright.runs.trackers.tracked_values import MAX_CHARACTERS, point_of, recorded_points
from pairwright.runs.trackers.tracker_backends import TRACKERS, check_trackers
from pairwright.runs.trackers.tracking import tracked_run_id
from tracker_stores import STORES, artifact, needs, store_variables

NUM_STEPS = 8
KILLED_AFTER = 6
CHECKPOINT = 4

DRIVER = """
import os, signal, sys, time
from pathlib import Path
from pairwright.events import Evaluated, StepTaken
from pairwright.runs.event_log import EventLog
from pairwright.runs.run_dir import RunFolder
from pairwright.runs.trackers.tracked_values import recorded_points
from pairwright.runs.trackers.tracker_backends import TrackedRun
from pairwright.runs.trackers.tracking import Tracking, tracked_run_id

name, first, last, killed = sys.argv[1], *map(int, sys.argv[2:5])
finish_seconds = float(os.environ.get("FINISH_SECONDS", 60))
folder = RunFolder("run")
parameters = {"optimizer.learning_rate": 0.1, "workers.num_workers": first}
run = TrackedRun(run_id=tracked_run_id(folder), name="run", parameters=parameters)
others = dict.fromkeys(("epoch", "learning_rate", "seconds", "tokens_per_second", "reward_margin", "grad_norm"), 1.0)
recorded = recorded_points(folder.metrics_files())
with Tracking([name], run, recorded, finish_seconds=finish_seconds) as tracking:
    log = EventLog(folder.local_directory)
    for step in range(first, last + 1):
        about = {"step": step, "time": time.time()}
        events = [StepTaken(**about, num_steps=9, loss=1 / step, accuracy=0.5, num_tokens=7.0, **others)]
        if step % 2 == 0:
            events.append(Evaluated(**about, groups=1, pairs=1, weight=1.0, accuracy=step / 10))
        for event in events:
            log.add(event)
            tracking.add(event)
        log.flush()
        time.sleep(0.3 if step > 1 else 0)
    if killed:
        deadline = time.time() + 120
        while not (lines := tracking.messages()) and time.time() < deadline:
            time.sleep(0.1)
        print(lines)
        time.sleep(killed / 10)
        os.kill(os.getpid(), signal.SIGKILL)
    tracking.add_artifact("summary.json", b"{}")
print(tracking.messages())
"""


def run_script(
    folder: Path, *arguments: str, timeout: float = 200, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program beside the local stores of all trackers, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", *arguments],
        cwd=folder,
        env=os.environ | store_variables(folder) | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def drive(folder: Path, name: str, first: int, last: int, *, killed: int = 0) -> str:
    """Drive a tracker as a run does, in a process of its own."""
    ended = run_script(folder, DRIVER, name, str(first), str(last), str(killed))
    assert ended.returncode == (-signal.SIGKILL if killed else 0), ended.stderr
    return ended.stdout


@pytest.mark.parametrize("name", STORES)
def test_a_run_whose_driver_is_killed_is_one_run_with_every_step_once(name: str, tmp_path: Path) -> None:
    needs(name)
    drive(tmp_path, name, 1, KILLED_AFTER, killed=20)
    runs, curves = STORES[name](tmp_path)
    assert runs == 1
    # W&B keeps 32 kB in memory; the others have it by now.
    assert name == "wandb" or curves["train/loss"][-1] == (KILLED_AFTER, pytest.approx(1 / KILLED_AFTER))
    # Steps 5 and 6 are computed again.
    said = drive(tmp_path, name, CHECKPOINT + 1, NUM_STEPS)
    runs, curves = STORES[name](tmp_path)
    assert runs == 1, said
    steps = range(1, NUM_STEPS + 1)
    assert curves["train/loss"] == [(step, pytest.approx(1 / step)) for step in steps], said
    assert curves["eval/accuracy"] == [(step, step / 10) for step in steps if step % 2 == 0], said


@pytest.mark.parametrize("name", STORES)
def test_what_a_killed_driver_recorded_and_did_not_deliver_is_delivered_by_the_next(name: str, tmp_path: Path) -> None:
    needs(name)
    drive(tmp_path, name, 1, 2)
    lines = "".join(
        json.dumps({"kind": "step", "step": step, "time": time.time(), "loss": 1 / step}) + "\n" for step in (1, 2, 3)
    )
    (tmp_path / "run" / "metrics-9.jsonl").write_text(lines + '{"kind": "step", "st')
    said = drive(tmp_path, name, 4, NUM_STEPS)
    runs, curves = STORES[name](tmp_path)
    assert (runs, [step for step, _ in curves["train/loss"]]) == (1, list(range(1, NUM_STEPS + 1))), said


def test_mlflow_holds_the_parameters_of_the_first_start_and_the_changes_of_later_ones(tmp_path: Path) -> None:
    needs("mlflow")
    drive(tmp_path, "mlflow", 1, 2)
    drive(tmp_path, "mlflow", 3, 4)
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        parameters = dict(store.execute("select key, value from params").fetchall())
        tags = dict(store.execute("select key, value from tags").fetchall())
        ((status, artifacts),) = store.execute("select status, artifact_uri from runs").fetchall()
    assert parameters == {"optimizer.learning_rate": "0.1", "workers.num_workers": "1"}
    assert tags["resumed.workers.num_workers"] == "3"
    assert status == "FINISHED"
    assert (Path(artifacts) / "summary.json").read_bytes() == b"{}"


def test_a_tracker_that_fails_is_one_line_and_the_run_goes_on(tmp_path: Path) -> None:
    needs("mlflow")
    file = tmp_path / "a file"
    file.write_text("")
    began = time.monotonic()
    ended = run_script(
        tmp_path, DRIVER, "mlflow", "1", str(NUM_STEPS), "0", MLFLOW_TRACKING_URI=f"sqlite:///{file}/mlflow.db"
    )
    assert ended.returncode == 0, ended.stderr
    (line,) = eval(ended.stdout)
    assert line.startswith("mlflow failed and gets nothing more from this command (")
    assert "every step is in metrics-*.jsonl" in line
    assert len(recorded_points(RunFolder(str(tmp_path / "run")).metrics_files())) == NUM_STEPS + NUM_STEPS // 2
    assert time.monotonic() - began < 60


def test_a_tracker_that_does_not_answer_is_left_alone_at_the_end(tmp_path: Path) -> None:
    needs("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections, and says nothing
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        ended = run_script(
            tmp_path,
            *(DRIVER, "mlflow", "1", "2", "0"),
            timeout=100,
            MLFLOW_TRACKING_URI=address,
            NO_PROXY="127.0.0.1",
            FINISH_SECONDS="2",
        )
    assert ended.returncode == 0, ended.stderr
    (line,) = eval(ended.stdout)
    assert line.startswith("mlflow has not taken everything within 2 s; every step is in metrics-*.jsonl")


PAGE = """
from pairwright.runs.trackers.tracked_page import track_page
print(track_page("run/model", "report.html", b"<!doctype html>a page"))
"""


@pytest.mark.parametrize("name", STORES)
def test_the_page_of_an_evaluation_is_kept_with_the_run_of_its_model(name: str, tmp_path: Path) -> None:
    needs(name)
    drive(tmp_path, name, 1, 2)
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"config": {"tracking": ["tensorboard", name]}}))
    ended = run_script(tmp_path, PAGE)
    assert ended.returncode == 0, ended.stderr
    (line,) = eval(ended.stdout)
    assert line.startswith("tracked as ")
    runs, curves = STORES[name](tmp_path)
    assert (runs, [step for step, _ in curves["train/loss"]]) == (1, [1, 2])
    assert artifact(name, tmp_path) == b"<!doctype html>a page"


@pytest.mark.parametrize("summary", [None, b"{", b'{"config": {"tracking": ["tensorboard"]}}'])
def test_a_page_of_a_run_without_trackers_is_refused_and_says_what_to_do(summary: bytes | None, tmp_path: Path) -> None:
    tracked_run_id(RunFolder(str(tmp_path)))
    if summary is not None:
        (tmp_path / "summary.json").write_bytes(summary)
    with pytest.raises(ConfigError, match=r"no finished run that went to a tracker, which --track needs; give"):
        check_page_trackers(str(tmp_path / "model"))


# ------------------------------------------------------------------------------------------- without a package


def test_metrics_have_trls_names_where_they_mean_the_same() -> None:
    step: dict[str, Any] = {"kind": "step", "step": 3, "time": 1.5, "loss": 0.6, "reward_margin": 1.0, "num_tokens": 9}
    point = point_of(step)
    assert point is not None
    assert (point.series, point.step, point.time) == ("train", 3, 1.5)
    assert point.values == {"train/loss": 0.6, "train/margin": 1.0, "train/step_tokens": 9.0}
    assert point_of({"kind": "committed", "step": 3, "time": 1.5}) is None


def test_a_run_id_is_drawn_once_wherever_the_run_lies(tmp_path: Path, s3_bucket: str) -> None:
    ids = []
    for url in (str(tmp_path / "run"), f"{s3_bucket}/{tmp_path.name}/run"):
        ids += [tracked_run_id(RunFolder(url)) for _ in range(2)]  # each start has no folder of an earlier one at hand
    assert ids[0] == ids[1] != ids[2] == ids[3]


def config(**others: Any) -> TrainConfig:
    return TrainConfig.model_validate({"output": "o", "model": {"path": "m"}, "data": {"pairs": "p"}} | others)


def test_a_tracker_that_is_not_installed_is_refused_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check_trackers(config())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "wandb").mkdir()  # W&B's own folder of offline runs is no package
    for name in TRACKERS:
        monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(ConfigError, match=rf"pip install pairwright\[{name}\]"):
            check_trackers(config(tracking=["tensorboard", name]))


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(ValueError, match="tensorboard"):
        config(tracking=["tensorbord"])


def test_parameters_hold_no_password_and_are_short() -> None:
    from pairwright.runs.trackers.tracked_values import _plain

    assert "hunter2" not in str(_plain("s3://user:hunter2@bucket/x?sig=hunter2"))
    assert len(str(_plain("x" * 9000))) == MAX_CHARACTERS + 3
    assert (_plain(None), _plain([1, 2]), _plain(0.5)) == ("not set", "[1, 2]", 0.5)
