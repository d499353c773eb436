"""Ingest and expand JSON Lines: Pairwright on Ray, a plain 2-process pool, and `datasets.map`, in turn.

    python benchmarks/ingest_throughput.py --gigabytes 4 --repeats 3 --into FOLDER

Every peer starts as a process of its own, and its whole life counts. The pool calls Pairwright's own functions over the
same ranges (parse, validation and write; then read, expand and write), without Ray, without hashing the sources,
without counting lines, without looking for repeated ids and without a commit: it is the floor. `datasets` reads the
JSON with its own loader and maps the same checks over batches, to pairs as indices or, as trainers of pairs want them,
to flat rows with their texts; it refuses nothing and accounts for nothing.
"""

import argparse
import json
import logging
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import ray
from annotation_files import write_annotations

PROCESSES = 2
RANGE_BYTES = 64 * 1024 * 1024
STAGES = ("ingest", "expand")
PEERS = ["pool", "pairwright", "pairwright-cluster", "datasets", "datasets-flat"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--into", type=Path, required=True, help="folder for input and tables; emptied at the end")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument(
        "--peer", choices=["pool", "datasets", "datasets-flat"], help="run one peer (for the benchmark itself)"
    )
    options = parser.parse_args()
    if options.peer:
        if options.peer == "pool":
            run_pool(options.into)
        else:
            run_datasets(options.into, is_flat=options.peer == "datasets-flat")
        return
    options.into.mkdir(parents=True, exist_ok=True)
    sources = _sources(options.into)
    num_bytes = _write_input(options.into, options.gigabytes)
    seconds: dict[str, list[float]] = {}
    for repeat in range(options.repeats):
        for name, run in [(name, run) for name, run in _peers(options.into).items() if name in options.peers]:
            for stage, spent in run().items():
                seconds.setdefault(f"{name} {stage}", []).append(spent)
                print(f"repeat {repeat + 1}: {name} {stage} {spent:.1f} s", flush=True)
    report = _report(seconds, num_bytes, options)
    print(report)
    name = f"ingest_throughput_{os.cpu_count()}cpu_{datetime.now(UTC):%Y-%m-%d}.md"
    (Path(__file__).parent / "results" / name).write_text(report)
    shutil.rmtree(sources)


def _peers(into: Path) -> dict[str, Callable[[], dict[str, float]]]:
    return {
        "pool": lambda: _run_peer("pool", into),
        "pairwright": lambda: _run_pairwright(into, os.environ),
        "pairwright-cluster": lambda: _run_on_cluster(into),
        "datasets": lambda: _run_peer("datasets", into),
        "datasets-flat": lambda: _run_peer("datasets-flat", into),
    }


def _sources(into: Path) -> Path:
    return into / "sources"


def _write_input(into: Path, gigabytes: float) -> int:
    _sources(into).mkdir(exist_ok=True)
    num_files = max(1, round(gigabytes))
    for index in range(num_files):
        path = _sources(into) / f"{index:02}.jsonl"
        write_annotations(path, int(gigabytes * 1e9 / num_files), seed=index)
    return sum(path.stat().st_size for path in _sources(into).iterdir())


# ------------------------------------------------------------------------------------------- pairwright


def _run_on_cluster(into: Path) -> dict[str, float]:
    """Run the same commands where a Ray of this machine's CPUs is up already, as submitted jobs find one."""
    ray.init(address="local", logging_level=logging.ERROR, log_to_driver=False)
    try:
        return _run_pairwright(into, {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address})
    finally:
        ray.shutdown()


def _run_pairwright(into: Path, environment: Mapping[str, str]) -> dict[str, float]:
    tables = {"annotations": into / "annotations", "pairs": into / "pairs"}
    for table in tables.values():
        shutil.rmtree(table, ignore_errors=True)
    verb = [sys.executable, "-m", "pairwright"]
    return {
        "ingest": _timed([*verb, "ingest", str(_sources(into)), "--output", str(tables["annotations"])], environment),
        "expand": _timed([*verb, "expand", str(tables["annotations"]), "--output", str(tables["pairs"])], environment),
    }


def _timed(command: list[str], environment: Mapping[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start


def _run_peer(name: str, into: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--peer", name, "--into", str(into)]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    spent = time.perf_counter() - start
    stages = json.loads(done.stdout.splitlines()[-1])
    # What the process took beside its stages (its start) belongs to the first.
    first = next(iter(stages))
    return stages | {first: stages[first] + spent - sum(stages.values())}


# ------------------------------------------------------------------------------------------------- pool


def run_pool(into: Path) -> None:
    """Parse, validate and write; then read, expand and write: two processes, no Ray."""
    tables = [into / "pool annotations", into / "pool pairs"]
    for table in tables:
        shutil.rmtree(table, ignore_errors=True)
    ranges = [
        (str(path), start, min(start + RANGE_BYTES, path.stat().st_size), str(tables[0]))
        for path in sorted(_sources(into).iterdir())
        for start in range(0, path.stat().st_size, RANGE_BYTES)
    ]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        start = time.perf_counter()
        files = [path for paths in pool.imap_unordered(_pool_ingest, ranges) for path in paths]
        middle = time.perf_counter()
        pool.map(_pool_expand, [(file, str(tables[0]), str(tables[1])) for file in files], chunksize=1)
        print(json.dumps({"ingest": middle - start, "expand": time.perf_counter() - middle}))
    for table in tables:
        shutil.rmtree(table)


def _pool_ingest(job: tuple[str, int, int, str]) -> list[tuple[str, int, int, str]]:
    from pairwright.config import IngestConfig
    from pairwright.data.ingest.shards import write_shards
    from pairwright.data.ingest.sources.listing import list_sources
    from pairwright.data.ingest.sources.splits import InputSplit
    from pairwright.data.table.table import Table

    path, start, end, into = job
    unit = InputSplit(list_sources([path])[0], start, end, 0)
    parts = write_shards(0, unit, Table(into, "annotations"), IngestConfig())
    return [(part.data.path, part.data.rows, part.data.bytes, part.data.sha256) for part in parts if part.data]


def _pool_expand(job: tuple[tuple[str, int, int, str], str, str]) -> int:
    from pairwright.config import ExpandConfig
    from pairwright.data.pairs.build_pairs import expand_groups
    from pairwright.data.table.table import DataFile, Table

    file, annotations, pairs = job
    rows = Table(annotations, "annotations").read_file(DataFile(*file))
    table, _ = expand_groups(rows, ExpandConfig())
    return Table(pairs, "pairs").write_data(table).rows


# --------------------------------------------------------------------------------------------- datasets


def run_datasets(into: Path, *, is_flat: bool) -> None:
    """Load the JSON and map the same checks and pairs over it with two processes, as a user of `datasets` would.

    Args:
        into: where the input is, and the cache goes.
        is_flat: write a row a pair with its texts, which is what trainers of pairs take, not indices of completions.
    """
    import datasets

    cache = into / "datasets cache"
    shutil.rmtree(cache, ignore_errors=True)
    datasets.disable_progress_bars()
    start = time.perf_counter()
    files = [str(path) for path in sorted(_sources(into).iterdir())]
    rows = datasets.load_dataset(
        "json", data_files=files, split="train", cache_dir=str(cache), num_proc=PROCESSES, trust_remote_code=False
    )
    middle = time.perf_counter()
    if is_flat:
        rows.map(_flat_pairs, batched=True, batch_size=100, num_proc=PROCESSES, remove_columns=rows.column_names)
    else:
        rows.map(_checked_pairs, batched=True, num_proc=PROCESSES)
    print(json.dumps({"ingest": middle - start, "expand": time.perf_counter() - middle}))
    shutil.rmtree(cache)


def _checked_pairs(batch: dict) -> dict:
    from pairwright.config import IngestConfig
    from pairwright.data.ingest.rules import validate_annotation
    from pairwright.records import Annotation, Completion

    config, groups, pairs = IngestConfig(), [], []
    for name, prompt, completions, ranks in zip(
        batch["id"], batch["prompt"], batch["completions"], batch["ranks"], strict=True
    ):
        texts = [Completion(text=c["text"], model=c["model"]) for c in completions]
        checked = validate_annotation(
            Annotation(id=name, prompt=prompt, completions=texts, ranks=ranks), config, "json", 1
        )
        groups.append(checked.group_id)
        r = checked.ranks
        pairs.append([[i, j] for i in range(len(r)) for j in range(len(r)) if r[i] < r[j]])
    return {"group_id": groups, "pairs": pairs}


def _flat_pairs(batch: dict) -> dict:
    pairs = _checked_pairs(batch)["pairs"]
    rows = [
        (prompt, completions[chosen]["text"], completions[rejected]["text"])
        for prompt, completions, found in zip(batch["prompt"], batch["completions"], pairs, strict=True)
        for chosen, rejected in found
    ]
    prompts, chosen, rejected = zip(*rows, strict=True)
    return {"prompt": list(prompts), "chosen": list(chosen), "rejected": list(rejected)}


# ----------------------------------------------------------------------------------------------- report


def _report(seconds: dict[str, list[float]], num_bytes: int, options: argparse.Namespace) -> str:
    lines = [
        f"# Ingest and expand {num_bytes / 1e9:.1f} GB of JSON Lines",
        "",
        f"`python benchmarks/ingest_throughput.py --gigabytes {options.gigabytes:g} --repeats {options.repeats} "
        f"--peers {' '.join(options.peers)}`, "
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPUs, Python {platform.python_version()}, ray "
        f"{version('ray')}, pyarrow {version('pyarrow')}, datasets {version('datasets')}. Wall-clock of whole "
        "processes, in turn; median, with least and most.",
        "",
        "| who | stage | seconds | MB/s |",
        "|---|---|---|---|",
    ]
    names = list(dict.fromkeys(key.partition(" ")[0] for key in seconds))
    totals = {name: [sum(run) for run in zip(*(seconds[f"{name} {s}"] for s in STAGES), strict=True)] for name in names}
    for name in names:
        for stage, runs in [*((s, seconds[f"{name} {s}"]) for s in STAGES), ("both", totals[name])]:
            middle = statistics.median(runs)
            rate = num_bytes / 1e6 / middle
            lines.append(f"| {name} | {stage} | {middle:.1f} ({min(runs):.1f} to {max(runs):.1f}) | {rate:.0f} |")
    lines += ["", "| speed of | over | ingest | ingest + expand |", "|---|---|---|---|"]
    ours = [name for name in names if name.startswith("pairwright")]
    for mine in ours:
        for name in [name for name in names if name not in ours]:
            ingest = _ratio(seconds[f"{name} ingest"], seconds[f"{mine} ingest"])
            lines.append(f"| {mine} | {name} | {ingest} | {_ratio(totals[name], totals[mine])} |")
    if not {"pool", "pairwright"} <= set(names):
        return "\n".join([*lines, ""])
    floor = _ratio(seconds["pool ingest"], totals["pairwright"])
    lines += ["", f"Pairwright's ingest + expand over the pool's ingest alone: {floor}.", ""]
    return "\n".join(lines)


def _ratio(peer: Sequence[float], ours: Sequence[float]) -> str:
    ratios = [theirs / mine for theirs, mine in zip(peer, ours, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
