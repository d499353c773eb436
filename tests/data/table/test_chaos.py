"""Accidents on purpose: kill -9 at any moment, and the same command again; the table is as if nothing had happened."""

import gzip
import json
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import obstore
import pytest

from killed_commands import (
    Command,
    Content,
    Reader,
    newest_content,
    reading,
    scratch_files,
    unnamed_files,
    wait_for_first_file,
)
from pairwright.data.table.table import Table, open_store
from pairwright.data.table.vacuum import vacuum

SEED = 20261121
NUM_KILLS = 25
RANGE_BYTES = "split_bytes=131072"
STRETCH_BYTES = "partition_bytes=500000"
"""Groups are then spread over several stretches, and exchanged; in one process there is one stretch."""
PLACES = [
    pytest.param("local", "ray", id="local on Ray"),
    pytest.param("s3", "ray", id="s3 on Ray"),
    pytest.param("local", "one process", id="local in one process"),
]

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1500)]


@dataclass(frozen=True)
class Work:
    """A command to disturb, how long it takes undisturbed, and what it makes then."""

    name: str
    arguments: list[str]
    seconds: float
    writing_seconds: float
    """From its first file to its end."""
    content: Content


@pytest.fixture
def ray_environment(monkeypatch: pytest.MonkeyPatch, where: str) -> Iterator[dict[str, str]]:
    """Give Ray a folder of its own, which goes when the test ends: a killed Ray leaves its logs and sockets."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder = tempfile.mkdtemp(prefix="pw-", dir="/tmp")  # a short name: sockets below it have at most 107 characters
    # So little input would start no Ray; an address that says to start one does.
    yield {"RAY_TMPDIR": folder} | ({"RAY_ADDRESS": "local"} if where == "ray" else {})
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(("place", "where"), PLACES)
def test_what_was_killed_at_any_moment_and_run_again_leaves_the_table_of_an_undisturbed_run(
    place: str,
    where: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    ray_environment: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = str(tmp_path) if place == "local" else request.getfixturevalue("s3_bucket")
    sources = put_sources(base, num_records=10_000)
    works = undisturbed(base, sources, tmp_path, ray_environment, in_stretches=where == "ray")
    rng = random.Random(SEED)
    lines = [
        f"seed {SEED}, {place}, {where}: "
        + " and ".join(
            f"{work.name} takes {work.seconds:.1f} s undisturbed, {work.writing_seconds:.1f} s after its first file"
            for work in works
        )
    ]
    with reading() as reader:
        for number in range(NUM_KILLS):
            work = works[number % len(works)]
            name, log = f"{base}/disturbed-{number}", tmp_path / f"{number}.log"
            line = accident(work, name, draw(rng, number, work), log, reader, ray_environment)
            lines.append(f"{number + 1:>3} {line}")
    with capsys.disabled():
        print("\n" + "\n".join(lines))


@dataclass(frozen=True)
class Kill:
    """When to kill, and what."""

    seconds: float
    after_first_file: bool
    driver_only: bool

    def __str__(self) -> str:
        since = "after its first file" if self.after_first_file else "after its start"
        what = "its driver" if self.driver_only else "every process"
        return f"{self.seconds:>5.2f} s {since:<20} kill -9 of {what:<13}"


def draw(rng: random.Random, number: int, work: Work) -> Kill:
    """Return when to kill: two of three spread over the whole run, one of three while files are written."""
    after_first_file = number % 3 == 2
    seconds = (
        work.writing_seconds * rng.random() if after_first_file else work.seconds * (number + rng.random()) / NUM_KILLS
    )
    return Kill(seconds, after_first_file, driver_only=rng.random() < 0.3)


def undisturbed(
    base: str, sources: list[str], folder: Path, environment: dict[str, str], *, in_stretches: bool
) -> list[Work]:
    """Run both commands to their end and return them with what they made."""
    annotations, pairs = f"{base}/annotations", f"{base}/pairs"
    commands = {
        "ingest": (["ingest", *sources, "--set", RANGE_BYTES], annotations),
        "expand": (["expand", annotations, *(["--set", STRETCH_BYTES] if in_stretches else [])], pairs),
    }
    works = []
    for name, (arguments, into) in commands.items():
        began = time.monotonic()
        command = Command([*arguments, "--output", into], folder / f"{name}.log", environment)
        wait_for_first_file(into, command)
        writing_seconds = command.wait()
        works.append(Work(name, arguments, time.monotonic() - began, writing_seconds, newest_content(into)))
    assert works[0].content.refused
    assert works[1].content.rows
    return works


def accident(work: Work, url: str, kill: Kill, log: Path, reader: Reader, environment: dict[str, str]) -> str:
    """Kill a command, run it again to its end, compare; return a line for the table of accidents."""
    arguments = [*work.arguments, "--output", url]
    reader.look_at(url)
    first = Command(arguments, log, environment)
    try:
        if kill.after_first_file:
            wait_for_first_file(url, first)
        ended = first.has_ended(kill.seconds)
        if kill.driver_only:
            first.kill_driver()
        else:
            first.end()
        versions, unnamed = Table(url, "annotations").versions(), unnamed_files(url)
        seconds = Command(arguments, log.with_suffix(".again.log"), environment).wait()
    finally:
        first.end()
    looks, contents = reader.seen()
    assert contents <= {work.content}, "a reader saw something else than the whole version"
    assert newest_content(url) == work.content
    assert Table(url, "annotations").versions() == [1]
    leftovers = unnamed_files(url)
    vacuum(url, older_than=timedelta(0), keep_versions=None, is_dry_run=False)
    assert (unnamed_files(url), scratch_files(url), newest_content(url)) == (0, set(), work.content)
    left = "it had ended" if ended else f"{len(versions)} versions, {unnamed:>3} unnamed files"
    return (
        f"{work.name} {kill}: {left:<28}; again {seconds:>4.1f} s, {leftovers:>3} unnamed files vacuumed; "
        f"{looks:>3} looks saw {len(contents)} content"
    )


# ----------------------------------------------------------------------------------------------- sources


def put_sources(base: str, *, num_records: int) -> list[str]:
    """Write three sources: a plain one of many ranges, a compressed one, and one that repeats ids of the first."""
    rng = random.Random(SEED)
    contents = {
        "in/plain.jsonl": b"".join(line(rng, f"p{number}") for number in range(num_records)),
        "in/packed.jsonl.gz": gzip.compress(
            b"".join(line(rng, f"z{number}") for number in range(num_records // 4)), compresslevel=1
        ),
        "in/repeats.jsonl": b"".join(
            line(rng, f"p{number}" if number % 7 == 0 else f"r{number}") for number in range(num_records // 4)
        ),
    }
    for name, content in contents.items():
        if "://" in base:
            obstore.put(open_store(base), name, content)
        else:
            (Path(base) / name).parent.mkdir(exist_ok=True)
            (Path(base) / name).write_bytes(content)
    return [f"{base}/{name}" for name in contents]


def line(rng: random.Random, name: str) -> bytes:
    """Return one record of about 1 kB; in one of fifty the ranks do not fit, and a few prompts stand twice."""
    num_completions = rng.randint(2, 6)
    number = name[1:] if rng.random() < 0.02 else name
    record = {
        "id": name,
        "prompt": f"What is known of {number}? " * 4,
        "completions": [{"text": f"{rng.getrandbits(64):x} " * 12, "model": f"m{i}"} for i in range(num_completions)],
        "ranks": [rng.randint(1, 4) for _ in range(num_completions - (rng.random() < 0.02))],
        "annotator": f"w{rng.randrange(40)}",
    }
    return json.dumps(record).encode() + b"\n"
