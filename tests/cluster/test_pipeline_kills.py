"""A pipeline on a cluster ends in the same digests, whatever part of the cluster is killed, and wherever its files lie.

    PAIRWRIGHT_KILLS=15 PAIRWRIGHT_SEED=1 pytest -m slow -s tests/cluster/test_pipeline_kills.py

kills so many times on a disk and so many on S3. `test_pipeline.py` kills pipelines that have a Ray of their own.
"""

import itertools
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster_kills import PARTS, KilledCluster, killed_cluster
from killed_commands import Command
from pipeline_files import copy_of, digests, make_sources, write_pipeline

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(5400)]

NUM_KILLS = int(os.environ.get("PAIRWRIGHT_KILLS", "4"))
SEED = int(os.environ.get("PAIRWRIGHT_SEED", "19"))
PIPELINE_SECONDS = 600.0
MOST_STARTS = 12
"""Of one pipeline: more than its kills can explain are a fault."""


@pytest.fixture
def cluster(tmp_path: Path, s3_bucket: str) -> Iterator[KilledCluster]:
    """A cluster that knows the S3 server."""
    with killed_cluster(tmp_path, random.Random(SEED)) as cluster:
        yield cluster


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_a_pipeline_on_a_cluster_ends_in_the_same_digests_whatever_is_killed(
    cluster: KilledCluster, s3_bucket: str, tmp_path: Path, place: str
) -> None:
    make_sources(tmp_path / "given")
    undisturbed = write_pipeline(tmp_path / "given", tmp_path / "undisturbed")
    seconds = start(cluster, undisturbed).wait(PIPELINE_SECONDS)
    expected = digests(tmp_path / "undisturbed")
    assert len(expected) == 5
    print(f"\n{place}, seed {SEED}; undisturbed: {seconds:.0f} s")
    rng, left = random.Random(SEED), NUM_KILLS
    parts = [PARTS[number % len(PARTS)] for number in range(NUM_KILLS)]
    rng.shuffle(parts)
    names = (f"{place}-{number}" for number in itertools.count())
    while left:
        outputs = tmp_path / next(names)
        url = None if place == "disk" else f"{s3_bucket}/{outputs.name}"
        file = write_pipeline(tmp_path / "given", outputs, url=url)
        left -= walk(cluster, file, parts[NUM_KILLS - left :], seconds=seconds, rng=rng)
        found = digests(outputs if url is None else copy_of(url, outputs / "copy"))
        assert found == expected, f"{outputs.name}, seed {SEED}"
        shutil.rmtree(outputs)


def walk(cluster: KilledCluster, file: Path, parts: list[str], *, seconds: float, rng: random.Random) -> int:
    """Run a pipeline to its end, killing these parts in turn as long as it works, and return how many were killed."""
    killed = 0
    for _ in range(MOST_STARTS):
        began, started = time.monotonic(), start(cluster, file)
        while killed < len(parts) and not started.has_ended(rng.uniform(0.1, seconds)):
            part, moment, at_work = parts[killed], time.monotonic() - began, last_line(started)
            if not cluster.kill(part, started):
                continue
            killed += 1
            print(f"killed {part} after {moment:.0f} s, at: {at_work}")
            if part == "driver":
                break
        if started.process.poll() is None:
            started.has_ended(PIPELINE_SECONDS)
        status = started.process.poll()
        started.end()
        print(f"  ended with {status} after {time.monotonic() - began:.0f} s: {last_line(started)}")
        assert "Traceback" not in started.log.read_text(), started.log.read_text()[-5000:]
        if status == 0:
            return killed
        assert status is not None, f"still at work:\n{started.log.read_text()[-5000:]}"
    pytest.fail(f"{file}: did not end in {MOST_STARTS} starts")


def start(cluster: KilledCluster, file: Path) -> Command:
    number = len(list(file.parent.glob("*.log")))
    return Command(["run", str(file)], file.parent / f"{number}.log", cluster.environment)


def last_line(command: Command) -> str:
    lines = command.log.read_text().splitlines()
    return next((line for line in reversed(lines) if line.strip()), "the start")[:160]
