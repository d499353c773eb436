"""Tables of 1e7, 1e8 and 1e9 annotations as manifests and indexes without texts: what grows, and how fast?

    python benchmarks/simulated_sizes.py --sizes 1e7 1e8 1e9 --into FOLDER
    python benchmarks/simulated_sizes.py --groups 1e8 --into FOLDER

A data file stands for 32,000 annotations (a split of 64 MB) and is empty; its index is real. Each table gets eleven
versions. Every operation runs in a process of its own: seconds without imports, and the most resident memory beyond
what imports take. ``--groups`` instead measures the columns of a tokens table that a rank maps. 1e9 annotations take
8 GB of disk, 1e8 groups 8 GB while they are sorted; all is deleted afterwards.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pairwright.data.executor import LOCAL
from pairwright.data.id_index.id_index import IdSearch, search
from pairwright.data.id_index.index_files import distinct, hash_ranges, truncated, write_index_file
from pairwright.data.id_index.index_merges import IDS_PER_FILE, IndexMerger
from pairwright.data.table.inspect import format_inspection, inspect_version
from pairwright.data.table.manifest import DataFile, IdIndex, Manifest, Source
from pairwright.data.table.table import Table, version_path
from pairwright.data.table.vacuum import vacuum
from pairwright.data.table.version_log import restore, version_log
from pairwright.data.tokens.column_files import ColumnChunk, open_columns, write_columns
from pairwright.data.tokens.token_group import GroupColumns

ROWS_PER_FILE = 32_000
NUM_INCREMENTS = 10
NUM_NEW = 1000
GROUPS_PER_STEP = 512
NUM_STEPS = 1000
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[])
    parser.add_argument("--groups", type=float)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--operation", choices=list(OPERATIONS), help="used by the program itself")
    options = parser.parse_args()
    if options.operation:
        print(json.dumps(measured(OPERATIONS[options.operation], options.into)))
        return
    head = f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPUs shared with other work, Python "
    head += f"{platform.python_version()}, local disk; one run each."
    if options.sizes:
        sizes = [int(size) for size in options.sizes]
        save("simulated_sizes", table_report({size: measure_table(options.into, size) for size in sizes}, head))
    if options.groups:
        save(
            "mapped_columns",
            columns_report(int(options.groups), measure_columns(options.into, int(options.groups)), head),
        )


def save(name: str, text: str) -> None:
    print(text)
    (RESULTS / f"{name}_{os.cpu_count()}cpu_{datetime.now(UTC):%Y-%m-%d}.md").write_text(text)


# ---------------------------------------------------------------------------------------------------- tables


def measure_table(folder: Path, size: int) -> dict[str, Any]:
    """Make a table of so many annotations, and return what each operation on it took."""
    folder = folder / f"{size:.0e}"
    try:
        table = Table(str(folder / "table"), "annotations")
        files = data_files(table, -(-size // ROWS_PER_FILE))
        index = large_index(table, files)
        began = time.monotonic()
        commit(table, files, [index])
        found: dict[str, Any] = {"first commit": {"seconds": time.monotonic() - began, "memory_mb": None}}
        for number in range(NUM_INCREMENTS):
            add_increment(table, seed=number)
        newest = table.manifest()
        found["files"] = len(newest.files)
        found["manifest MB"] = (folder / "table" / version_path(newest.version)).stat().st_size / 1e6
        found["index MB"] = sum(file.bytes for file in newest.index_files) / 1e6
        for name in OPERATIONS:
            command = [sys.executable, __file__, "--operation", name, "--into", str(folder / "table")]
            found[name] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            print(size, name, found[name], flush=True)
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def data_files(table: Table, num: int) -> list[DataFile]:
    """Return data files that are named, and are there, but are empty."""
    folder = Path(table.url) / "data"
    folder.mkdir(parents=True, exist_ok=True)
    files = [DataFile(f"data/{os.urandom(16).hex()}.arrow", ROWS_PER_FILE, 64_000_000, "0" * 64) for _ in range(num)]
    for file in files:
        (Path(table.url) / file.path).touch()
    return files


def large_index(table: Table, files: list[DataFile]) -> IdIndex:
    """Return one index of random hashes for all files."""
    num_rows = sum(file.rows for file in files)
    ranges = hash_ranges(-(-num_rows // IDS_PER_FILE))
    rng = np.random.default_rng(0)
    parts = []
    for low, high in ranges:
        hashes = truncated(rng.integers(low, high, num_rows // len(ranges), dtype=np.uint64, endpoint=True))
        numbers = rng.integers(0, len(files), len(hashes), dtype=np.uint64)
        parts.append(write_index_file(table.url, np.sort(hashes | numbers)))
    return IdIndex([Path(file.path).stem for file in files], parts)


def commit(table: Table, files: list[DataFile], indexes: list[IdIndex]) -> None:
    """Add files and their indexes to a table."""

    def build(newest: Manifest | None) -> Manifest:
        every = [*(newest.files if newest else []), *files]
        number = newest.version + 1 if newest else 1
        source = Source(f"/data/{number}.jsonl", 1, "0", 1, 1, 0)
        known = [*(newest.indexes if newest else []), *indexes]
        return Manifest(
            kind="annotations", operation="ingest", files=every, quarantined_files=[],
            totals={"annotations": sum(file.rows for file in every)},
            sources=[*(newest.sources if newest else []), source], inputs=[], config={}, config_digest="",
            indexes=IndexMerger(table, LOCAL).next_indexes(every, known, NUM_NEW),
        )  # fmt: skip

    assert table.commit(build) is not None


def new_hashes(seed: int) -> np.ndarray:
    return distinct(truncated(np.random.default_rng(seed + 1).integers(0, 1 << 64, NUM_NEW, dtype=np.uint64)))


def add_increment(table: Table, seed: int) -> None:
    """Commit one small file with its index."""
    [file] = data_files(table, 1)
    file = msgspec.structs.replace(file, rows=NUM_NEW)
    entries = new_hashes(seed)
    commit(table, [file], [IdIndex([Path(file.path).stem], [write_index_file(table.url, entries)])])


def search_ids(table: Table) -> None:
    """Search 1,000 new ids, as an increment does."""
    newest = table.manifest()
    searched = IdSearch(table, newest.files, newest.indexes, table, LOCAL, [])
    assert not searched.search(new_hashes(99)).data_files


def search_batch(table: Table) -> None:
    """Search 1 million new ids in the largest index."""
    newest = table.manifest()
    hashes = distinct(truncated(np.random.default_rng(7).integers(0, 1 << 64, 1_000_000, dtype=np.uint64)))
    search(table.url, newest.indexes[0], hashes, {Path(file.path).stem for file in newest.files})


OPERATIONS: dict[str, Callable[[Table], object]] = {
    "read newest version": lambda table: table.manifest(),
    "commit of one file": lambda table: add_increment(table, seed=50),
    "search of 1,000 ids": search_ids,
    "search of 1,000,000 ids": search_batch,
    "inspect": lambda table: format_inspection(inspect_version(table.url, version=None, num_sample=0)),
    "log of 10 versions": lambda table: version_log(table.url, last=10),
    "restore, dry run": lambda table: restore(table.url, 2, is_dry_run=True),
    "vacuum, dry run": lambda table: vacuum(table.url, older_than=timedelta(), keep_versions=1, is_dry_run=True),
}


def measured(operation: Callable[[Table], object], folder: Path) -> dict[str, float]:
    """Return the seconds and the resident memory that an operation takes in this process."""
    table = Table(str(folder), "annotations")
    before, began = memory_mb("VmRSS"), time.monotonic()
    operation(table)
    return {"seconds": time.monotonic() - began, "memory_mb": memory_mb("VmHWM") - before}


def table_report(found: dict[int, dict[str, Any]], head: str) -> str:
    """Return the results as Markdown."""
    sizes = list(found)
    command = f"`python benchmarks/simulated_sizes.py --sizes {' '.join(f'{size:.0e}' for size in sizes)}`"
    lines = [
        f"# Tables of {', '.join(f'{size:.0e}' for size in sizes)} annotations without texts",
        "",
        f"{command}, {head} {ROWS_PER_FILE:,} annotations a file; 11 versions; memory is beyond that of the imports.",
        "",
        "| | " + " | ".join(f"{size:.0e}" for size in sizes) + " |",
        "|---" * (len(sizes) + 1) + "|",
        "| data files | " + " | ".join(f"{found[size]['files']:,}" for size in sizes) + " |",
        "| manifest, MB | " + " | ".join(f"{found[size]['manifest MB']:.2f}" for size in sizes) + " |",
        "| index, MB | " + " | ".join(f"{found[size]['index MB']:,.0f}" for size in sizes) + " |",
    ]
    for name in ["first commit", *OPERATIONS]:
        cells = [cell(found[size][name]) for size in sizes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def cell(found: dict[str, Any]) -> str:
    memory = "" if found["memory_mb"] is None else f", {found['memory_mb']:,.0f} MB"
    return f"{found['seconds']:.2f} s{memory}"


# --------------------------------------------------------------------------------------------------- columns


def chunks_of(num_groups: int) -> Iterator[ColumnChunk]:
    """Yield columns of random groups, 16,384 at a time, as a tokens table does."""
    rng = np.random.default_rng(0)
    for start in range(0, num_groups, 1 << 14):
        num = min(1 << 14, num_groups - start)
        columns = GroupColumns.empty(num)
        for column in columns:
            column[:] = rng.integers(2, 500, num)
        letters = np.frombuffer(rng.bytes(16 * num).hex().encode(), "S32")
        splits = np.where(rng.random(num) < 0.02, "validation", "train").astype(object)
        yield ColumnChunk(columns, letters, splits)


def memory_mb(name: str) -> float:
    """Return the resident memory of this process, with pages of mapped files: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e3


def measure_columns(folder: Path, num_groups: int) -> dict[str, float]:
    """Write and map the columns of a tokens table, and read the sizes of random global batches."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "columns"
    try:
        before, began = memory_mb("VmRSS"), time.monotonic()
        write_columns(path, num_groups, chunks_of(num_groups))
        found = {"write_seconds": time.monotonic() - began}
        found["write_mb"] = memory_mb("VmHWM") - before
        found["disk_mb"] = path.stat().st_size / 1e6
        before, began = memory_mb("VmRSS"), time.monotonic()
        mapped, most = open_columns(path), 0.0
        rows, rng = mapped.rows_of_split["train"], np.random.default_rng(1)
        for _ in range(NUM_STEPS):
            batch = rows[rng.integers(0, len(rows), GROUPS_PER_STEP)]
            mapped.columns.sizes_of(batch)
            mapped.columns.weight_G[batch].sum()
            most = max(most, memory_mb("VmRSS") - before)
        return found | {"step_ms": (time.monotonic() - began) / NUM_STEPS * 1e3, "rank_mb": most}
    finally:
        path.unlink(missing_ok=True)


def columns_report(num_groups: int, found: dict[str, float], head: str) -> str:
    """Return the results as Markdown."""
    return "\n".join(
        [
            f"# Columns of {num_groups:.0e} groups, memory-mapped",
            "",
            f"`python benchmarks/simulated_sizes.py --groups {num_groups:.0e}`, {head} Random columns and ids.",
            "",
            "| | |",
            "|---|---|",
            f"| file | {found['disk_mb']:,.0f} MB |",
            f"| written once a machine in | {found['write_seconds']:.0f} s, {found['write_mb']:.0f} MB of memory |",
            f"| resident memory of a rank over {NUM_STEPS:,} steps of {GROUPS_PER_STEP} random groups | at most "
            f"{found['rank_mb']:.1f} MB more than before; {34 * num_groups / 1e6:,.0f} MB if held in memory |",
            f"| sizes and weight of a global batch | {found['step_ms']:.1f} ms |",
            "",
        ]
    )


if __name__ == "__main__":
    main()
