"""A followed job: every character of its log once, and the status that the cluster gives, whatever the stream does."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs_api import Job, JobsApi, jobs_api
from pairwright.cluster.job_client import submit
from pairwright.cluster.job_request import JobRequest
from pairwright.errors import ClusterError, ConfigError

LOG = "".join(f"line {number} of the log\n" for number in range(40))


@pytest.fixture
def api() -> Iterator[JobsApi]:
    with jobs_api() as api:
        yield api


def started(api: JobsApi, folder: Path, name: str | None = "job-1", *, wait: bool = True, away: float = 30.0) -> int:
    request = JobRequest("python -m pairwright formats", folder, {"stage": "formats"})
    return submit(request, address=api.address, submission_id=name, wait=wait, give_up_seconds=away, poll_seconds=0.1)


def meanwhile(api: JobsApi, act: Callable[[Job], None], name: str = "job-1") -> threading.Thread:
    """Act on a job once it is there, while it is followed."""

    def wait_and_act() -> None:
        while name not in api.jobs:
            time.sleep(0.02)
        act(api.jobs[name])

    thread = threading.Thread(target=wait_and_act, daemon=True)
    thread.start()
    return thread


def end_as(status: str, code: int | None = None, message: str = "") -> Callable[[Job], None]:
    def end(job: Job) -> None:
        for position in range(0, len(LOG), 50):
            job.log += LOG[position : position + 50]
            time.sleep(0.01)
        job.exit_code, job.message, job.status = code, message, status

    return end


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 143, 143),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("STOPPED", None, 143),
    ],
)
def test_the_exit_status_is_the_jobs(
    api: JobsApi,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    status: str,
    code: int | None,
    expected: int,
) -> None:
    meanwhile(api, end_as(status, code, "it ended, last available logs (truncated): line 1"))
    assert started(api, tmp_path) == expected
    captured = capsys.readouterr()
    assert captured.out == LOG
    assert (f"job job-1 {status.lower()}: it ended\n" in captured.err) == (expected != 0)


@pytest.mark.parametrize("cut", [0, 1, 70, len(LOG)])
def test_a_stream_that_ends_before_the_job_proves_nothing(
    api: JobsApi, tmp_path: Path, capsys: pytest.CaptureFixture[str], cut: int
) -> None:
    api.streamed_characters = cut

    def fail_late(job: Job) -> None:
        end_as("RUNNING")(job)
        time.sleep(0.7)
        job.status, job.exit_code = "FAILED", 3

    meanwhile(api, fail_late)
    assert started(api, tmp_path) == 3
    assert api.num_streams >= 2, "it was opened again"
    assert capsys.readouterr().out == LOG


def test_a_restarted_dashboard_is_asked_again(api: JobsApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def restart(job: Job) -> None:
        job.log = LOG[:100]
        time.sleep(0.5)
        api.stop()
        job.log, job.status = LOG, "SUCCEEDED"
        time.sleep(1.0)
        api.start()

    meanwhile(api, restart).join(0)
    assert started(api, tmp_path) == 0
    assert capsys.readouterr().out == LOG


def test_a_dashboard_that_stays_away_ends_the_following_with_what_to_do(api: JobsApi, tmp_path: Path) -> None:
    thread = meanwhile(api, lambda _: (time.sleep(0.3), api.stop())[0])
    with pytest.raises(ClusterError, match=r"nobody knows how it ends; follow it by .*--submission-id job-1"):
        started(api, tmp_path, away=1.0)
    thread.join()
    api.start()


def test_a_head_that_was_started_anew_does_not_know_the_job(api: JobsApi, tmp_path: Path) -> None:
    meanwhile(api, lambda _: (time.sleep(0.3), api.jobs.clear())[0])
    with pytest.raises(ClusterError, match=r"job-1: .* no longer knows it.*submit the same command again"):
        started(api, tmp_path)


def test_the_same_id_goes_on_after_a_failure_and_is_left_alone_after_success(
    api: JobsApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meanwhile(api, end_as("FAILED", 1))
    assert started(api, tmp_path) == 1
    assert capsys.readouterr().out == LOG
    first = api.jobs["job-1"]

    def succeed(_: Job) -> None:
        while api.jobs.get("job-1", first) is first:
            time.sleep(0.02)
        end_as("SUCCEEDED")(api.jobs["job-1"])

    meanwhile(api, succeed)
    assert started(api, tmp_path) == 0
    captured = capsys.readouterr()
    assert captured.out == LOG, "only of the second try"
    assert "job job-1 failed before, and is submitted again" in captured.err
    second = api.jobs["job-1"]
    assert started(api, tmp_path) == 0
    assert api.jobs["job-1"] is second, "nothing was submitted"
    assert "job job-1 succeeded before" in capsys.readouterr().err
    second.entrypoint = "python -m pairwright inspect"
    with pytest.raises(ConfigError, match="has this id for another command"):
        started(api, tmp_path)


def test_a_job_brings_its_folder_and_the_package_and_has_time_to_stop(api: JobsApi, tmp_path: Path) -> None:
    (tmp_path / "train.toml").touch()
    assert started(api, tmp_path, None, wait=False) == 0
    [job] = api.jobs.values()
    assert job.metadata["stage"] == "formats"
    assert job.runtime_env["working_dir"].startswith("gcs://")
    assert len(job.runtime_env["py_modules"]) == 1
    assert int(job.runtime_env["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 300
