"""Ingest and expand 1, 2, 4 and 8 GB of JSON Lines: is peak memory flat, and are seconds per GB?

    python benchmarks/ingest_memory.py --gigabytes 1 2 4 8 --repeats 3 --into FOLDER

Each command is a process with a session of its own; every half second the memory of all processes of that session is
added up as PSS (a page that several share counts once: Ray's object store is such pages). One annotation in
ten has a second one of the same group by another annotator, in a source of its own, so that expanding has to bring
groups together. Input and tables are deleted afterwards.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil
from annotation_files import write_annotations

SAMPLE_SECONDS = 0.5
SECOND_EVERY = 10
STAGES = ("ingest", "expand")
FLAT = 0.15


@dataclass(frozen=True)
class Run:
    """What one command took."""

    seconds: float
    peak_bytes: int
    """Most PSS of all its processes together."""
    peak_processes: int
    """Most processes at once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1.0, 2.0, 4.0, 8.0])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--into", type=Path, required=True, help="folder for input and tables; they are deleted")
    options = parser.parse_args()
    runs: dict[tuple[float, str], list[Run]] = {}
    sizes: dict[float, int] = {}
    for _ in range(options.repeats):
        for gigabytes in options.gigabytes:
            folder = options.into / f"{gigabytes:g}GB"
            try:
                sizes[gigabytes] = write_input(folder / "sources", gigabytes)
                for stage, run in run_stages(folder).items():
                    runs.setdefault((gigabytes, stage), []).append(run)
                    print(f"{gigabytes:g} GB {stage}: {run.seconds:.1f} s, {run.peak_bytes / 1e9:.2f} GB", flush=True)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    text = report(runs, sizes, options)
    print(text)
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    name = f"ingest_memory_{os.cpu_count()}cpu_{datetime.now(UTC):%Y-%m-%d}.md"
    (results / name).write_text(text)


def write_input(folder: Path, gigabytes: float) -> int:
    """Write sources of about a gigabyte and one of second opinions on every tenth record; return their bytes."""
    folder.mkdir(parents=True)
    num_files = max(1, round(gigabytes))
    with (folder / "second.jsonl").open("wb") as second:
        for index in range(num_files):
            path = folder / f"{index:02}.jsonl"
            write_annotations(path, int(gigabytes * 1e9 / num_files / (1 + 1 / SECOND_EVERY)), seed=index)
            with path.open("rb") as lines:
                for number, line in enumerate(lines):
                    if number % SECOND_EVERY == 0:
                        record = json.loads(line)
                        other = {"id": f"{record['id']}-b", "annotator": "second", "ranks": record["ranks"][::-1]}
                        second.write(json.dumps(record | other).encode() + b"\n")
    return sum(path.stat().st_size for path in folder.iterdir())


def run_stages(folder: Path) -> dict[str, Run]:
    annotations, pairs = str(folder / "annotations"), str(folder / "pairs")
    arguments = {
        "ingest": ["ingest", str(folder / "sources"), "--output", annotations],
        "expand": ["expand", annotations, "--output", pairs],
    }
    return {stage: measured(arguments[stage]) for stage in STAGES}


def measured(arguments: list[str]) -> Run:
    """Run a command to its end, and look at the memory of all of its processes meanwhile."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "pairwright", *arguments], stdout=subprocess.DEVNULL, start_new_session=True
    )
    samples: list[tuple[int, int]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            samples.append(session_memory(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    seconds = time.perf_counter() - began
    ended.set()
    watcher.join()
    if status != 0:
        raise SystemExit(f"pairwright {' '.join(arguments)} ended with status {status}")
    return Run(seconds, max(memory for memory, _ in samples), max(number for _, number in samples))


def session_memory(session: int) -> tuple[int, int]:
    """Return the PSS of all processes of a session together, and how many there are."""
    total = number = 0
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == session:
                total += psutil.Process(pid).memory_full_info().pss
                number += 1
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return total, number


# ----------------------------------------------------------------------------------------------- report


def report(runs: dict[tuple[float, str], list[Run]], sizes: dict[float, int], options: argparse.Namespace) -> str:
    asked = " ".join(f"{gigabytes:g}" for gigabytes in options.gigabytes)
    memory = psutil.virtual_memory().total
    lines = [
        f"# Memory and time of ingest and expand, {asked} GB of JSON Lines",
        "",
        f"`python benchmarks/ingest_memory.py --gigabytes {asked} --repeats {options.repeats}`, "
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPUs, {memory / 1e9:.0f} GB of memory, Python "
        f"{platform.python_version()}, ray {version('ray')}, pyarrow {version('pyarrow')}. Whole commands, with "
        f"the start of Ray; memory is the PSS of all its processes every {SAMPLE_SECONDS} s; one annotation in "
        f"{SECOND_EVERY} has a second one of its group. Median, with least and most.",
        "",
        "| input GB | stage | seconds | seconds per GB | peak GB | processes |",
        "|---|---|---|---|---|---|",
    ]
    for (gigabytes, stage), each in runs.items():
        size = sizes[gigabytes] / 1e9
        seconds, peaks = [run.seconds for run in each], [run.peak_bytes / 1e9 for run in each]
        per_gigabyte = spread([taken / size for taken in seconds], 1)
        processes = max(run.peak_processes for run in each)
        lines.append(
            f"| {size:.2f} | {stage} | {spread(seconds, 1)} | {per_gigabyte} | {spread(peaks, 2)} | {processes} |"
        )
    return "\n".join([*lines, "", *(verdict(runs, sizes, stage) for stage in STAGES), ""])


def spread(values: list[float], digits: int) -> str:
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def verdict(runs: dict[tuple[float, str], list[Run]], sizes: dict[float, int], stage: str) -> str:
    """Return how far memory and the time of one more GB move from the smallest input to the largest."""
    smallest, largest = min(sizes), max(sizes)
    peaks = [statistics.median(run.peak_bytes for run in runs[size, stage]) for size in sorted(sizes)]
    growth = max(peaks) / peaks[0] - 1
    small, large = (statistics.median(run.seconds for run in runs[size, stage]) for size in (smallest, largest))
    more = (large - small) / max((sizes[largest] - sizes[smallest]) / 1e9, 1e-9)
    is_flat = "within" if growth <= FLAT else "NOT within"
    return (
        f"- {stage}: peak memory at most {growth:+.0%} from {smallest:g} to {largest:g} GB ({is_flat} {FLAT:.0%}); "
        f"{more:.1f} s for each GB more, the first {smallest:g} GB {small:.1f} s"
    )


if __name__ == "__main__":
    main()
