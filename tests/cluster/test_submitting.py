"""``--address`` on a real cluster: a job's log and exit status are the command's own, whatever happens between."""

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from pairwright.data.synthetic import write_rankings
from pairwright.data.table.table import Table
from ray_head import RayHead, ray_head

pytestmark = [pytest.mark.ray, pytest.mark.slow]

JOB_SECONDS = 400.0


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with ray_head(tmp_path_factory.mktemp("head"), num_cpus=2) as head:
        wait_for_the_agent(head, tmp_path_factory.mktemp("first"))
        yield head


def wait_for_the_agent(head: RayHead, folder: Path) -> None:
    output, status = end(head.pairwright(folder, "formats"))
    assert status == 0, output


def end(process: subprocess.Popen[str]) -> tuple[str, int]:
    output, _ = process.communicate(timeout=JOB_SECONDS)
    return output, process.returncode


class Log(threading.Thread):
    """Reads what a command prints while it runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        super().__init__(daemon=True)
        self.text, self._process = "", process
        self.start()

    def run(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.text += line

    def wait_for(self, part: str) -> None:
        deadline = time.monotonic() + JOB_SECONDS
        while part not in self.text:
            assert time.monotonic() < deadline, f"{part} in\n{self.text}"
            assert self._process.poll() is None or part in self.text, self.text
            time.sleep(0.2)

    def end(self) -> int:
        self._process.wait(JOB_SECONDS)
        self.join()
        return self._process.returncode


def long_job(folder: Path) -> list[str]:
    """Return a verb that takes some twenty seconds of one core."""
    return ["synthesize", "--output", f"{folder}/many.jsonl", "--num-groups", "60000"]


def job_of(log: Log) -> str:
    found = re.search(r"job (\S+), submitted to", log.text)
    assert found is not None, log.text
    return found[1]


def details(head: RayHead, job: str) -> dict[str, object]:
    token = (Path.home() / ".ray" / "auth_token").read_text().strip()
    answer = requests.get(f"{head.address}/api/jobs/{job}", headers={"Authorization": f"Bearer {token}"}, timeout=30)
    return answer.json()


def drivers(folder: Path) -> list[psutil.Process]:
    """Return the drivers of jobs that work in a folder of this test."""
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if (
                "-m" in command
                and "pairwright" in command
                and "--address" not in command
                and str(folder) in str(command)
            ):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rankings(tmp_path / "rankings.jsonl", 20, seed=0)
    return tmp_path


def test_a_job_that_succeeds_prints_its_log_and_is_labelled(head: RayHead, folder: Path) -> None:
    process = head.pairwright(folder, "ingest", "rankings.jsonl", "--output", f"{folder}/annotations")
    log = Log(process)
    assert log.end() == 0, log.text
    assert "and refused 0 records of 1 source" in log.text
    assert log.text.count("version 1 of the table holds") == 1
    metadata = details(head, job_of(log))["metadata"]
    assert isinstance(metadata, dict)
    assert (metadata["stage"], metadata["output"]) == ("ingest", f"{folder}/annotations")
    assert Table.open(f"{folder}/annotations").versions() == [1]


def test_a_failing_job_ends_the_command_with_its_status_and_the_same_id_goes_on(head: RayHead, folder: Path) -> None:
    command = ["ingest", f"{folder}/later.jsonl", "--output", f"{folder}/annotations", "--submission-id", "again-1"]
    output, status = end(head.pairwright(folder, *command))
    assert status == 1, output
    assert "no such file" in output
    assert "Traceback" not in output
    (folder / "rankings.jsonl").rename(folder / "later.jsonl")
    output, status = end(head.pairwright(folder, *command))
    assert status == 0, output
    assert "job again-1 failed before, and is submitted again" in output
    assert "no such file" not in output, "the log of the first try is not printed twice"
    output, status = end(head.pairwright(folder, *command))
    assert status == 0
    assert "job again-1 succeeded before" in output
    output, status = end(head.pairwright(folder, "formats", "--submission-id", "again-1"))
    assert status == 1
    assert "the cluster has this id for another command" in output


def test_a_killed_driver_is_no_success(head: RayHead, folder: Path) -> None:
    log = Log(head.pairwright(folder, *long_job(folder)))
    log.wait_for("submitted to")
    deadline = time.monotonic() + JOB_SECONDS
    while not (found := drivers(folder)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for driver in found:
        driver.kill()
    assert log.end() not in (0, 130), log.text
    assert f"job {job_of(log)} failed" in log.text


def test_ctrl_c_ends_the_following_and_not_the_job(head: RayHead, folder: Path) -> None:
    process = head.pairwright(folder, *long_job(folder))
    log = Log(process)
    log.wait_for("submitted to")
    wait_until_running(head, job_of(log))
    process.send_signal(signal.SIGINT)
    assert log.end() == 130
    job = job_of(log)
    assert f"job {job} goes on; follow it by the same command with --submission-id {job}" in log.text
    assert "Traceback" not in log.text
    assert details(head, job)["status"] == "RUNNING"
    output, status = end(head.pairwright(folder, *long_job(folder), "--submission-id", job))
    assert status == 0, output
    assert f"job {job} runs already" in output
    assert output.count("of 60,000 groups") == 1


def test_no_wait_returns_at_once_and_the_job_ends_by_itself(head: RayHead, folder: Path) -> None:
    command = ["ingest", "rankings.jsonl", "--output", f"{folder}/annotations", "--submission-id", "later-1"]
    output, status = end(head.pairwright(folder, *command, "--no-wait"))
    assert status == 0, output
    assert "job later-1 is submitted; follow it by the same command" in output
    deadline = time.monotonic() + JOB_SECONDS
    while details(head, "later-1")["status"] in ("PENDING", "RUNNING"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert details(head, "later-1")["status"] == "SUCCEEDED"


def test_a_restarted_dashboard_is_asked_again_for_log_and_status(head: RayHead, folder: Path) -> None:
    """The last test of this module: the head of the others is not what it was."""
    log = Log(head.pairwright(folder, *long_job(folder)))
    log.wait_for("Running entrypoint")
    wait_until_running(head, job_of(log))
    with head.without_dashboard():
        time.sleep(8)
        assert log.is_alive(), f"the end of the stream is not the end of the job:\n{log.text}"
    assert log.end() == 0, log.text
    assert log.text.count("Running entrypoint") == 1, log.text
    assert log.text.count("of 60,000 groups") == 1, log.text


def wait_until_running(head: RayHead, job: str) -> None:
    deadline = time.monotonic() + JOB_SECONDS
    while details(head, job)["status"] != "RUNNING":
        assert time.monotonic() < deadline, json.dumps(details(head, job))
        time.sleep(0.5)
