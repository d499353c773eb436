"""One local Ray cluster for every integration test that needs one."""

import os
from collections.abc import Iterator

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
