"""Eight processes that commit to one table over and over, three of them killed meanwhile, while another reads it."""

import json
import multiprocessing
import random
import time
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from pathlib import Path

from annotation_tables import annotation_row, annotations_table, manifest
from pairwright.data.table.table import DataFile, Manifest, Table

SEED = 20261121
NUM_WRITERS = 8
NUM_KILLED = 3
NUM_COMMITS = 12


def test_every_acknowledged_commit_of_eight_processes_is_there_once_though_three_were_killed(tmp_path: Path) -> None:
    url = str(tmp_path / "table")
    rng = random.Random(SEED)
    spawn = multiprocessing.get_context("spawn")
    writers = [
        spawn.Process(target=write, args=(url, writer, str(tmp_path / f"acknowledged-{writer}")))
        for writer in range(NUM_WRITERS)
    ]
    for writer in writers:
        writer.start()
    seen = read_while(url, writers, [(rng.uniform(0, 0.5), writer) for writer in writers[:NUM_KILLED]])
    assert all(writer.exitcode == 0 for writer in writers[NUM_KILLED:])
    table = Table.open(url, "annotations")
    ids = [name for rows in table.read(table.manifest()) for name in rows["id"].to_pylist()]
    assert len(ids) == len(set(ids))
    assert table.versions() == list(range(1, len(ids) + 1))
    acknowledged = [
        name for path in tmp_path.glob("acknowledged-*") for name in map(json.loads, path.read_text().splitlines())
    ]
    assert set(acknowledged) <= set(ids)
    assert len(ids) - len(acknowledged) <= NUM_KILLED  # killed between the commit and the note of it
    assert len(acknowledged) >= (NUM_WRITERS - NUM_KILLED) * NUM_COMMITS
    assert all(num_rows == version for version, num_rows in seen)
    print(
        f"seed {SEED}: {len(ids)} commits, {NUM_KILLED} writers killed, {len(seen)} looks at {len(set(seen))} versions"
    )


def read_while(
    url: str,
    writers: list[SpawnProcess],
    kills: list[tuple[float, SpawnProcess]],
) -> list[tuple[int, int]]:
    """Read the newest version until nobody writes any more, and kill some after the first commit; (version, rows)."""
    seen = []
    began: float | None = None
    while any(writer.is_alive() for writer in writers):
        newest = Table(url, "annotations").latest()
        if newest is None:
            time.sleep(0.01)
            continue
        began = began or time.monotonic()
        seen.append((newest.version, sum(rows.num_rows for rows in Table(url, "annotations").read(newest))))
        for seconds, writer in kills:
            if time.monotonic() - began > seconds:
                writer.kill()
    return seen


def write(url: str, writer: int, notes: str) -> None:
    """Commit one row at a time, and note each once the commit has returned."""
    table = Table(url, "annotations")
    with Path(notes).open("w") as acknowledged:
        for number in range(NUM_COMMITS):
            name = f"{writer}-{number}"
            table.commit(adding(table.write_data(annotations_table([annotation_row(name, ["a", "b"], [1, 2])]))))
            print(json.dumps(name), file=acknowledged, flush=True)


def adding(file: DataFile) -> Callable[[Manifest | None], Manifest]:
    def build(newest: Manifest | None) -> Manifest:
        return manifest(kind="annotations", files=[*(newest.files if newest else []), file])

    return build
