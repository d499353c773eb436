"""Stops every running job of the head on this machine and waits until they have ended: a head's `preStop` hook.

A stopped training writes a checkpoint first: a job has as long for it as its RAY_JOB_STOP_WAIT_TIME_S says.
"""

import sys
import time

from ray.job_submission import JobSubmissionClient

POLL_SECONDS = 1.0


def main(address: str = "http://127.0.0.1:8265") -> None:
    """Stop the jobs of the head with this dashboard."""
    client = JobSubmissionClient(address)
    stopped = [job.submission_id for job in client.list_jobs() if job.submission_id and not job.status.is_terminal()]
    for job in stopped:
        client.stop_job(job)
    while not all(client.get_job_status(job).is_terminal() for job in stopped):
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
