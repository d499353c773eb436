"""Ten jobs at once on a head of two CPUs: all end, none waits for ever, and each table holds what it should."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from killed_commands import newest_content
from pairwright.config import ExpandConfig, IngestConfig
from pairwright.data.ingest.ingest import ingest
from pairwright.data.pairs.expand import expand
from pairwright.data.synthetic import write_rankings
from ray_head import RayHead, ray_head

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_JOBS = 10
MOST_SECONDS = 900.0


@pytest.fixture
def head(tmp_path: Path) -> Iterator[RayHead]:
    with ray_head(tmp_path, num_cpus=2) as head:
        yield head


def write_pipeline(folder: Path, name: str) -> Path:
    file = folder / f"{name}.toml"
    file.write_text(f"""
[ingest]
sources = ["{folder}/sources/"]
output = "{folder}/{name}/annotations"

[expand]
output = "{folder}/{name}/pairs"
""")
    return file


@pytest.mark.timeout(1800)
def test_ten_jobs_at_once_all_end_and_their_tables_are_those_of_one_alone(head: RayHead, tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    for number in range(4):
        write_rankings(tmp_path / "sources" / f"{number}.jsonl", 50, seed=number)
    alone = str(tmp_path / "alone")
    ingest([f"{tmp_path}/sources/"], f"{alone}-annotations", IngestConfig())
    expand(f"{alone}-annotations", f"{alone}-pairs", ExpandConfig(), version=None)
    (tmp_path / "files").mkdir()
    names = [f"job-{number}" for number in range(NUM_JOBS)]
    began = time.monotonic()
    jobs = {
        name: head.pairwright(tmp_path / "files", "run", str(write_pipeline(tmp_path, name)), "--submission-id", name)
        for name in names
    }
    seconds: dict[str, float] = {}
    while len(seconds) < NUM_JOBS:
        assert time.monotonic() - began < MOST_SECONDS, f"still at work: {sorted(jobs.keys() - seconds.keys())}"
        for name, job in jobs.items():
            if name not in seconds and job.poll() is not None:
                seconds[name] = time.monotonic() - began
        time.sleep(0.5)
    print(
        f"seconds to the end of each of {NUM_JOBS} jobs: {', '.join(f'{one:.0f}' for one in sorted(seconds.values()))}"
    )
    for name, job in jobs.items():
        output, _ = job.communicate()
        assert job.returncode == 0, f"{name}:\n{output[-3000:]}"
        for kind in ("annotations", "pairs"):
            assert newest_content(f"{tmp_path}/{name}/{kind}").digest == newest_content(f"{alone}-{kind}").digest
