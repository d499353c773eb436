"""Add 1,000 new records to tables of 0.1, 1 and 10 million annotations: does an increment cost what it adds?

    python benchmarks/increments.py --sizes 100000 1000000 10000000 --repeats 3 --into FOLDER [--before CHECKOUT]

Tables are made by the store's own writer, 50,000 short annotations a file, with indexes as an ingestion makes them.
Each increment is a whole `pairwright ingest` of 1,000 records under new ids; peak memory is the PSS of all its
processes, and Ray counts as started where a process of it ran. ``--before`` does the same with the code of another
checkout, which ignores the indexes. Tables are deleted afterwards.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pyarrow as pa
import simulated_sizes
from simulated_sizes import commit, data_files, large_index

from pairwright.data.executor import LOCAL
from pairwright.data.id_index.id_index import write_indexed
from pairwright.data.id_index.index_merges import IndexMerger
from pairwright.data.table.manifest import Manifest
from pairwright.data.table.table import Table
from pairwright.records import ANNOTATIONS_SCHEMA

ROWS_PER_FILE = 50_000
NUM_NEW = 1000
SAMPLE_SECONDS = 0.2
MOST = 1.5
"""An increment into the largest table may take this many times as long as into the smallest."""


@dataclass(frozen=True)
class Run:
    """What one increment took."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    used_ray: bool
    is_done: bool = True
    """False where it was ended after ``--limit`` seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--into", type=Path, required=True, help="folder for tables; they are deleted")
    parser.add_argument("--without-texts", action="store_true", help="empty data files, with real indexes")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which an increment is ended")
    parser.add_argument("--before", type=Path, help="another checkout, whose code is measured too")
    options = parser.parse_args()
    checkouts = {"now": Path(__file__).parents[1]} | ({"before": options.before} if options.before else {})
    runs: dict[tuple[int, str], list[Run]] = {}
    notes: list[str] = []
    for size in options.sizes:
        folder = options.into / str(size)
        try:
            notes.append((write_index if options.without_texts else write_table)(folder / "table", size))
            for name, checkout in checkouts.items():  # the code before drops the indexes, so it comes last
                for repeat in range(-1, options.repeats):  # the first warms caches
                    source = write_increment(folder / f"{name}{repeat}.jsonl")
                    run = increment(source, folder / "table", checkout, options.limit)
                    print(size, name, run, flush=True)
                    if repeat >= 0 or not run.is_done:
                        runs.setdefault((size, name), []).append(run)
                    if not run.is_done:
                        break
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    text = report(runs, notes, options)
    print(text)
    kind = "_without_texts" if options.without_texts else ""
    name = f"increments{kind}_{os.cpu_count()}cpu_{datetime.now(UTC):%Y-%m-%d}.md"
    (Path(__file__).parent / "results" / name).write_text(text)


def write_table(folder: Path, size: int) -> str:
    """Write a table of so many annotations; return a line on it."""
    began = time.monotonic()
    table = Table(str(folder), "annotations")
    starts = range(0, size, ROWS_PER_FILE)
    written = [write_indexed(table, annotations(start, min(start + ROWS_PER_FILE, size))) for start in starts]
    files = [file for file, _ in written]
    merger = IndexMerger(table, LOCAL)
    indexes = merger.next_indexes(files, [index for _, index in written if index is not None], size)
    manifest = Manifest(
        kind="annotations", operation="ingest", files=files, quarantined_files=[], totals={"annotations": size},
        sources=[], inputs=[], config={}, config_digest="", indexes=indexes,
    )  # fmt: skip
    committed = table.commit(lambda _: manifest)
    assert committed is not None
    table.delete([file for _, index in written if index is not None and index not in indexes for file in index.files])
    stored, indexed = sum(file.bytes for file in files), sum(file.bytes for file in committed.index_files)
    return (
        f"{size:,} annotations: {stored / 1e6:,.0f} MB in {len(files)} files, index {indexed / 1e6:,.1f} MB in "
        f"{len(committed.index_files)} files, manifest {len(msgspec.json.encode(committed)) / 1e3:,.0f} kB; "
        f"written in {time.monotonic() - began:.0f} s"
    )


def write_index(folder: Path, size: int) -> str:
    """Write a table of so many annotations whose data files are empty, with a real index; return a line on it."""
    table = Table(str(folder), "annotations")
    files = data_files(table, -(-size // simulated_sizes.ROWS_PER_FILE))
    index = large_index(table, files)
    commit(table, files, [index])
    return f"{size:,} annotations: {len(files)} empty files, index {sum(f.bytes for f in index.files) / 1e6:,.1f} MB"


def annotations(start: int, end: int) -> pa.Table:
    """Return short annotations with the ids of a range of numbers, and the texts of every other such range."""
    num = end - start
    same = _texts(num)
    arrays = {"id": pa.array([f"a{n}" for n in range(start, end)]), "line": pa.array(np.arange(start, end))}
    return pa.table([arrays.get(name, same[name]) for name in same.schema.names], schema=ANNOTATIONS_SCHEMA)


@cache
def _texts(num: int) -> pa.Table:
    noise = np.random.default_rng(num).integers(0, 1 << 63, (num, 3)).astype("<u8")
    texts = pa.array([f"{a:x}{b:x}" for a, b, _ in noise.tolist()])
    hashes = pa.array([f"{c:032x}" for _, _, c in noise.tolist()])
    offsets = pa.array(np.arange(num + 1, dtype=np.int32))
    nothing = {name: pa.nulls(2 * num, pa.string()) for name in ("model", "extra")}
    completion_type = ANNOTATIONS_SCHEMA.field("completions").type
    prompt_type = ANNOTATIONS_SCHEMA.field("prompt").type
    completions = pa.StructArray.from_arrays(
        [pa.array(["0", "1"] * num), texts.take(pa.array(np.arange(2 * num) // 2)), *nothing.values()],
        fields=list(completion_type.value_type),
    )
    prompts = pa.StructArray.from_arrays(
        [pa.array(["user"] * num), texts, pa.nulls(num, pa.string())], fields=list(prompt_type.value_type)
    )
    columns = {
        "id": pa.array([""] * num),
        "group_id": hashes,
        "prompt_id": hashes,
        "prompt": pa.ListArray.from_arrays(offsets, prompts, type=prompt_type),
        "completions": pa.ListArray.from_arrays(
            pa.array(np.arange(num + 1, dtype=np.int32) * 2), completions, type=completion_type
        ),
        "ranks": pa.array([[1, 2]] * num, pa.list_(pa.int32())),
        "source": pa.array(["/data/a.jsonl"] * num),
        "line": pa.array(np.arange(num)),
    }
    arrays = [columns[f.name] if f.name in columns else pa.nulls(num, f.type) for f in ANNOTATIONS_SCHEMA]
    return pa.table(arrays, schema=ANNOTATIONS_SCHEMA)


def write_increment(path: Path) -> Path:
    """Write records under ids that no table has."""
    records = [
        {"id": f"{path.stem}-{n}", "prompt": f"q{n}", "completions": [{"text": "x"}, {"text": "y"}], "ranks": [1, 2]}
        for n in range(NUM_NEW)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def increment(source: Path, table: Path, checkout: Path, limit: float) -> Run:
    """Run one `pairwright ingest` and watch its processes."""
    command = [sys.executable, "-m", "pairwright", "ingest", str(source), "--output", str(table), "--json"]
    environment = os.environ | {"PYTHONPATH": str(checkout / "platform")}
    began = time.monotonic()
    peak, cpu_seconds, used_ray = 0, 0.0, False
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while process.poll() is None:
            found = list(processes_of(process.pid))
            peak = max(peak, sum(memory_of(one) for one in found))
            cpu_seconds = max(cpu_seconds, sum(cpu_of(one) for one in found))
            used_ray = used_ray or len(found) > 1
            if time.monotonic() - began > limit:
                for one in reversed(found):
                    one.kill()
                return Run(limit, cpu_seconds, peak, used_ray, is_done=False)
            time.sleep(SAMPLE_SECONDS)
        seconds = time.monotonic() - began
        assert process.stdout is not None
        summary = json.loads(process.stdout.read())
    assert summary["sources"][0]["accepted"] == NUM_NEW, summary
    return Run(seconds, cpu_seconds, peak, used_ray)


def cpu_of(process: psutil.Process) -> float:
    """Return the seconds of CPU that a process took, 0 where it has ended."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


def processes_of(pid: int) -> list[psutil.Process]:
    """Return a process and all that it started."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def memory_of(process: psutil.Process) -> int:
    """Return the PSS of a process, 0 where it has ended."""
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


def spread(values: list[float]) -> str:
    """Return the median of some values, with least and most."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def report(runs: dict[tuple[int, str], list[Run]], notes: list[str], options: argparse.Namespace) -> str:
    """Return the results as Markdown."""
    names = list(dict.fromkeys(name for _, name in runs))
    lines = [
        f"# {NUM_NEW:,} new records into tables of {', '.join(f'{size:,}' for size in options.sizes)} annotations",
        "",
        f"`python benchmarks/increments.py --sizes {' '.join(map(str, options.sizes))} --repeats {options.repeats}"
        f"{' --without-texts' if options.without_texts else ''}`, "
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPUs shared with other work, Python "
        f"{platform.python_version()}, pyarrow {version('pyarrow')}. Whole commands of fresh processes, on a local "
        "disk; median after one run that warms caches, with least and most; peak memory is the PSS of all "
        "processes every 0.2 s.",
        "",
        "| annotations | code | seconds | CPU seconds | peak MB | Ray started |",
        "|---|---|---|---|---|---|",
    ]
    for size in options.sizes:
        for name in names:
            some = runs[size, name]
            used_ray = "yes" if any(run.used_ray for run in some) else "no"
            ended = "" if all(run.is_done for run in some) else "ended after "
            lines.append(
                f"| {size:,} | {name} | {ended}{spread([run.seconds for run in some])} | "
                f"{spread([run.cpu_seconds for run in some])} | "
                f"{max(run.peak_bytes for run in some) / 1e6:,.0f} | {used_ray} |"
            )
    lines.append("")
    for name in names:
        first, last = (
            statistics.median(run.cpu_seconds for run in runs[size, name])
            for size in (options.sizes[0], options.sizes[-1])
        )
        verdict = "within" if last <= MOST * first else "over"
        lines.append(f"- {name}: largest table {last / first:.2f} times the smallest in CPU ({verdict} {MOST:g})")
    return "\n".join([*lines, *(f"- {note}" for note in notes), ""])


if __name__ == "__main__":
    main()
