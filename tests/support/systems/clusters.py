"""Fixtures of one local Ray cluster, and of S3 servers, for every test that needs one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Start a local Ray with two CPUs for the whole test session."""
    import ray

    from pairwright.cluster.session import ray_session

    os.environ.pop("RAY_ADDRESS", None)
    with ray_session():
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield


@pytest.fixture(scope="module")
def s3_server() -> Iterator[subprocess.Popen[str]]:
    """Start an S3 server, point the environment at it, and return its process."""
    process = subprocess.Popen(
        [sys.executable, Path(__file__).parent / "s3_server.py"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        yield process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def s3_bucket(s3_server: subprocess.Popen[str]) -> str:
    """Make an empty bucket and return its URL."""
    import boto3  # a second, which most tests need not wait

    boto3.client("s3", region_name="us-east-1", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).create_bucket(
        Bucket="bucket"
    )
    return "s3://bucket"
