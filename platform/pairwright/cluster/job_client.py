"""Submits a job to a Ray cluster, follows its log, and ends as the job ends.

The end of a log's stream says nothing about the job: the dashboard may have been restarted, or the connection cut (ray
issues 57002 and 60665). So the status is asked for, again and again, and the stream is opened again where it was left.
"""

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

import pairwright
from pairwright.cluster.job_request import JobRequest
from pairwright.errors import ClusterError, ConfigError
from pairwright.terminal import encodable, escaped, one_per_line, say

POLL_SECONDS = 2.0
DRAIN_SECONDS = 5.0
"""How long the log's stream may take to end once the job has."""
LINE_SECONDS = 60.0
GIVE_UP_SECONDS = 1800.0
"""How long a dashboard may be away, before its job's end is no longer waited for."""
AGENT_SECONDS = 120.0
"""How long a head that answers may take to start the agent that starts jobs."""
STOP_SECONDS = 600
"""How long a job that is stopped has for its checkpoint; 3 by default."""
STOPPED_STATUS = 143
INTERRUPTED_STATUS = 130
_GONE = (OSError, RuntimeError, aiohttp.ClientError, requests.RequestException)
"""What a dashboard that is away, or on its way back, makes of a request."""
_NOT_FOUND = "does not exist"
_LOG_AGAIN = ", last available logs"
"""Behind which the message of a failed job has the end of its log, which was shown."""


@dataclass(frozen=True)
class Cluster:
    """A cluster to submit to; the address is that of its dashboard."""

    address: str
    client: JobSubmissionClient


def submit(
    request: JobRequest,
    *,
    address: str,
    submission_id: str | None,
    wait: bool,
    give_up_seconds: float = GIVE_UP_SECONDS,
    poll_seconds: float = POLL_SECONDS,
) -> int:
    """Submit a job, or find the one with that id, and return the exit status that its command ended with.

    A job that runs under the id is followed; one that succeeded is left as it is; one that failed is submitted again,
    and goes on from what it left. Ctrl-C ends the following alone, with status 130.

    Args:
        request: the job.
        address: of the cluster's dashboard.
        submission_id: of the job; Ray makes one if None.
        wait: whether to follow the job to its end; without it 0 is returned once it is submitted.
        give_up_seconds: how long the dashboard may be away.
        poll_seconds: between two questions for the status.

    Raises:
        ClusterError: if the cluster cannot be reached, or no longer knows the job.
        ConfigError: if the id is of another command, or the folder is too large.
    """
    cluster = _connected(address)
    with _explained(address):
        job, num_printed = _started(cluster, request, submission_id)
    if not wait:
        say(escaped(f"job {job} is submitted; {_advice(address, job)}"), to=sys.stderr)
        return 0
    following = _Following(cluster, job, num_printed, give_up_seconds, poll_seconds)
    try:
        details = asyncio.run(following.to_the_end())
    except KeyboardInterrupt:
        say(escaped(f"job {job} goes on; {_advice(address, job)}"), to=sys.stderr)
        return INTERRUPTED_STATUS
    status = exit_status(details)
    if status:
        said = (details.message or "no reason given").partition(_LOG_AGAIN)[0]
        say(escaped(f"job {job} {details.status.value.lower()}: {said}"), to=sys.stderr)
    return status


def exit_status(details: Any) -> int:
    """Return the exit status of an ended job's command; 128 and the signal's number where a signal killed it."""
    code = details.driver_exit_code
    match details.status:
        case JobStatus.SUCCEEDED:
            return 0
        case JobStatus.STOPPED:
            return STOPPED_STATUS
        case _ if code is None or code == 0:
            return 1
        case _:
            return 128 - code if code < 0 else code


def _connected(address: str) -> Cluster:
    # Ray's client takes the address from these, whatever it is given.
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    with _explained(address):
        return Cluster(address, JobSubmissionClient(address))


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn errors of Ray's client into ours."""
    try:
        yield
    except AuthenticationError:
        raise ClusterError(
            f"--address {address}: the cluster asks for a token, and this one is missing or wrong; put the cluster's "
            "into ~/.ray/auth_token and set RAY_AUTH_MODE=token (docs/cluster.md)"
        ) from None
    except (ConnectionError, requests.RequestException) as error:
        said = str(error).partition("\n")[0]
        raise ClusterError(
            f"--address {address}: no Ray dashboard answers ({said}); is the head up, and its port 8265 open to you?"
        ) from None
    except ValueError as error:
        if "exceeds the maximum size" not in str(error):
            raise
        raise ConfigError(
            f"{Path.cwd()}: too large to travel with a job ({str(error).partition('. ')[0]}): {_largest(Path.cwd())}; "
            "start the command in a folder that has only your configurations, or name the rest in its .gitignore"
        ) from None


def _largest(folder: Path) -> str:
    sizes = {
        entry.name: sum(file.stat().st_size for file in [entry, *entry.rglob("*")] if file.is_file())
        for entry in folder.iterdir()
    }
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    return ", ".join(f"{name} has {sizes[name] / 1e6:,.0f} MB" for name in largest)


def _started(cluster: Cluster, request: JobRequest, submission_id: str | None) -> tuple[str, int]:
    """Return the id of the job, submitted now or before, and how much of its log is of an earlier try."""
    found = None if submission_id is None else _found(cluster, submission_id)
    if submission_id is None or found is None:
        return _submitted(cluster, request, submission_id), 0
    if found.entrypoint != request.entrypoint:
        raise ConfigError(
            f"--submission-id {submission_id}: the cluster has this id for another command ({found.entrypoint}); "
            "choose another id"
        )
    if not found.status.is_terminal() or found.status == JobStatus.SUCCEEDED:
        state = "succeeded before" if found.status == JobStatus.SUCCEEDED else "runs already"
        say(escaped(f"job {submission_id} {state}; its log so far:"), to=sys.stderr)
        return submission_id, 0
    say(escaped(f"job {submission_id} {found.status.value.lower()} before, and is submitted again"), to=sys.stderr)
    num_printed = 0
    with suppress(RuntimeError):  # it may have failed before it had a log
        num_printed = len(cluster.client.get_job_logs(submission_id))  # the log of all tries is one file
    cluster.client.delete_job(submission_id)
    return _submitted(cluster, request, submission_id), num_printed


def _found(cluster: Cluster, job: str) -> Any:
    try:
        return cluster.client.get_job_info(job)
    except RuntimeError as error:
        if _NOT_FOUND in str(error):
            return None
        raise


def _submitted(cluster: Cluster, request: JobRequest, submission_id: str | None) -> str:
    runtime_env = {
        "working_dir": str(request.folder),
        "py_modules": [str(Path(pairwright.__file__).parent)],
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
    }
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            job = cluster.client.submit_job(
                entrypoint=request.entrypoint,
                submission_id=submission_id,
                runtime_env=runtime_env,
                metadata=request.metadata,
            )
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                said = str(error).strip().splitlines()
                raise ClusterError(["the cluster did not take the job", *said[-5:]]) from None
            time.sleep(POLL_SECONDS)
        else:
            say(escaped(f"job {job}, submitted to {cluster.address}: {request.entrypoint}"), to=sys.stderr)
            return job


def _advice(address: str, job: str) -> str:
    return (
        f"follow it by the same command with --submission-id {job}, or end it with "
        f"`ray job stop --address {address} {job}`"
    )


class _Following:
    """Follows a job: prints its log as it grows, and asks for its status."""

    def __init__(
        self, cluster: Cluster, job: str, num_printed: int, give_up_seconds: float, poll_seconds: float
    ) -> None:
        self._cluster, self._job = cluster, job
        self._num_printed = num_printed
        self._give_up_seconds, self._poll_seconds = give_up_seconds, poll_seconds
        self._answered = self._spoke = time.monotonic()

    async def to_the_end(self) -> Any:
        """Return the details of the ended job, its log printed to the last character."""
        tail = asyncio.create_task(self._print_log())
        try:
            while True:
                await asyncio.wait({tail}, timeout=self._poll_seconds)
                details = await self._details()
                if details is not None and details.status.is_terminal():
                    await asyncio.wait({tail}, timeout=DRAIN_SECONDS)
                    break
                self._say_what_is_waited_for(details)
                if tail.done():
                    await asyncio.sleep(self._poll_seconds)
                    tail = asyncio.create_task(self._print_log())
        finally:
            tail.cancel()
        with suppress(*_GONE):  # of what the stream did not bring; the job has ended as it has
            self._print(await asyncio.to_thread(self._cluster.client.get_job_logs, self._job), begins=0)
        return details

    async def _print_log(self) -> None:
        position = 0
        with suppress(*_GONE):
            async for text in self._cluster.client.tail_job_logs(self._job):
                self._print(text, begins=position)
                position += len(text)

    def _print(self, text: str, *, begins: int) -> None:
        """Print what is new of a part of the log."""
        new = text[max(0, self._num_printed - begins) :]
        if new:
            sys.stdout.write(encodable(one_per_line(new.split("\n")), sys.stdout))
            sys.stdout.flush()
            self._num_printed = begins + len(text)
            self._spoke = time.monotonic()

    async def _details(self) -> Any:
        """Return the job's details, or None where the dashboard does not answer.

        Raises:
            ClusterError: if it has not answered for too long, or no longer knows the job.
        """
        try:
            details = await asyncio.to_thread(self._cluster.client.get_job_info, self._job)
        except _GONE as error:
            if _NOT_FOUND in str(error):
                raise ClusterError(
                    f"job {self._job}: the cluster at {self._cluster.address} no longer knows it, so its head was "
                    "started anew; submit the same command again, and it goes on from what the job left"
                ) from None
            if time.monotonic() - self._answered > self._give_up_seconds:
                raise ClusterError(
                    f"job {self._job}: no dashboard has answered at {self._cluster.address} for "
                    f"{self._give_up_seconds:.0f} s, so nobody knows how it ends; "
                    f"{_advice(self._cluster.address, self._job)}"
                ) from None
            return None
        self._answered = time.monotonic()
        return details

    def _say_what_is_waited_for(self, details: Any) -> None:
        """Say once a minute what a job waits for that has not started, or that nobody can be asked."""
        if time.monotonic() - self._spoke < LINE_SECONDS:
            return
        if details is None:
            away = time.monotonic() - self._answered
            what = f"the dashboard has not answered for {away:.0f} s; the job may go on all the same"
        elif details.status == JobStatus.PENDING:
            what = details.message or "it has not started"
        else:
            return
        say(escaped(f"job {self._job}: {what}"), to=sys.stderr)
        self._spoke = time.monotonic()
