"""Spoilt records by the million and files by the thousand -> classes of outcomes, tracebacks, hangs, peak memory.

    python benchmarks/fuzz_sources.py --records 1000000 --files 16000 [--write]

Everything is made from one seed by the mutations of the tests (tests/support/fuzz/mutations.py,
tests/data/ingest/test_fuzz*.py), and what becomes of each source is held to what every source is promised
(tests/support/fuzz/spoilt_sources.py). Batches run in processes of their own, one after the other: one that says
nothing for two minutes is a hang, one that ends early a crash.
"""

import argparse
import csv
import io
import json
import os
import platform
import random
import re
import resource
import selectors
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [
    str(TESTS / folder) for folder in ("support/builders", "support/fuzz", "support/oracles", "data/ingest")
]

SEED = 20261128
HANG_SECONDS = 120.0
"""Without a word; the machine may be busy."""
FILES_IN_BATCH = 250
RECORDS_IN_BATCH = 20_000
RECORDS_IN_FILE = 2_000
_QUOTED = re.compile(r"`[^`]*`|'[^']*'|\"[^\"]*\"|\d[\d,.]*|0x[0-9a-f]+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=16_000)
    parser.add_argument("--write", action="store_true", help="write the table to benchmarks/results/")
    parser.add_argument("--batch", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batch is not None:
        kind, name, number = options.batch
        (run_records if kind == "records" else run_files)(name, int(number))
        return
    began = time.perf_counter()
    results = Results()
    for kind, name, number in batches(options.records, options.files):
        results.add(kind, name, run_batch(kind, name, number))
        print(f"{kind} {name} {number}: {results.line()}", flush=True)
    text = results.report(options, time.perf_counter() - began)
    print(text)
    if options.write:
        name = f"fuzz_{os.cpu_count()}cpu_{datetime.now(UTC):%Y-%m-%d}.md"
        (Path(__file__).parent / "results" / name).write_text(text)


def batches(num_records: int, num_files: int) -> Iterator[tuple[str, str, int]]:
    """Yield what each process does; the native format gets half of the records."""
    foreign = import_module("test_fuzz_formats").FOREIGN

    formats = ["native" if index % 2 else foreign[index // 2 % len(foreign)] for index in range(2 * len(foreign))]
    for number in range(-(-num_records // RECORDS_IN_BATCH)):
        yield "records", formats[number % len(formats)], number
    for number in range(-(-num_files // FILES_IN_BATCH)):
        yield "files", list(LAYOUTS)[number % len(LAYOUTS)], number


class Results:
    """What became of everything."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str], Counter[str]] = {}
        self.reasons: Counter[str] = Counter()
        self.found: list[str] = []
        self.num_hangs = 0
        self.peak_bytes = 0
        self.slowest = 0.0

    def add(self, kind: str, name: str, batch: dict[str, Any]) -> None:
        self.outcomes.setdefault((kind, name), Counter()).update(batch["outcomes"])
        self.reasons.update(batch["reasons"])
        self.found += batch["tracebacks"]
        self.num_hangs += batch["hangs"]
        self.peak_bytes = max(self.peak_bytes, batch["peak"])
        self.slowest = max(self.slowest, batch["slowest"])

    def line(self) -> str:
        return f"{len(self.found)} tracebacks, {self.num_hangs} hangs, peak {self.peak_bytes / 1e6:,.0f} MB"

    def report(self, options: argparse.Namespace, seconds: float) -> str:
        lines = [
            "# Fuzzing of sources",
            "",
            f"`python benchmarks/fuzz_sources.py --records {options.records} --files {options.files} --write`, "
            f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPUs, Python {platform.python_version()}, pyarrow "
            f"{version('pyarrow')}, msgspec {version('msgspec')}; seed {SEED}, {seconds:,.0f} s.",
            "",
            f"Tracebacks and crashes: {len(self.found)}. Hangs ({HANG_SECONDS:g} s without a word): {self.num_hangs}. "
            f"Peak memory of a process: {self.peak_bytes / 1e6:,.0f} MB. Slowest source: {self.slowest:.1f} s.",
            "",
            "| what | outcome | number |",
            "|---|---|---|",
        ]
        for (kind, name), counts in sorted(self.outcomes.items()):
            lines += [f"| {kind}, {name} | {outcome} | {count:,} |" for outcome, count in sorted(counts.items())]
        lines += [
            "",
            f"{len(self.reasons)} classes of reasons; the most frequent:",
            "",
            "| reason | number |",
            "|---|---|",
        ]
        lines += [
            f"| {reason.replace('|', chr(92) + '|')} | {count:,} |" for reason, count in self.reasons.most_common(60)
        ]
        lines += ["", *(f"```\n{found}\n```" for found in self.found[:20])]
        return "\n".join([*lines, ""])


def run_batch(kind: str, name: str, number: int) -> dict[str, Any]:
    """Run one batch in a process of its own, and notice if it says nothing any more."""
    command = [sys.executable, __file__, "--batch", kind, name, str(number)]
    result: dict[str, Any] = {"outcomes": {}, "reasons": {}, "tracebacks": [], "hangs": 0, "peak": 0, "slowest": 0.0}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said, selector = b"", selectors.DefaultSelector()
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(HANG_SECONDS):
                process.kill()
                return result | {"hangs": 1, "tracebacks": [f"{kind} {name} {number}: hangs after {said[-500:]!r}"]}
            block = os.read(process.stdout.fileno(), 1 << 16)
            if not block:
                break
            said += block
        errors = process.stderr.read().decode(errors="replace")
    last = said.splitlines()[-1] if said else b""
    if process.returncode or not last.startswith(b"{"):
        told = f"{kind} {name} {number}: ended with {process.returncode} after {said[-200:]!r}: {errors[-3000:]}"
        return result | {"tracebacks": [told]}
    return json.loads(last)


# ------------------------------------------------------------------------------------------- in the process


class Batch:
    """The outcomes of one batch, printed as its last line."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.tracebacks: list[str] = []
        self.slowest = 0.0
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-sources-"))

    def look(self, path: Path, work: Callable[[], Any], limits: dict[str, int]) -> None:
        """Ingest a spoilt source and count what became of it; whatever is raised is kept with the seed."""
        from pairwright.data.table.table import Table
        from spoilt_sources import ingested

        began = time.perf_counter()
        try:
            outcome = ingested(path, Table(str(self.folder / "table"), "annotations"), work(), limits)
        except Exception:
            kept = path.read_bytes()
            self.tracebacks.append(f"{path.name} ({len(kept)} bytes): {traceback.format_exc()[-2500:]}")
            self.outcomes["traceback"] += 1
        else:
            self.outcomes["sources failed with one reason" if outcome.errors else "sources read to their end"] += 1
            self.outcomes["records accepted"] += len(outcome.rows)
            self.outcomes["records refused"] += len(outcome.refused)
            self.outcomes["blank lines"] += outcome.blank
            self.reasons.update(outcome.reasons)
            self.reasons.update(reason_class(error, path) for error in outcome.errors)
        self.slowest = max(self.slowest, time.perf_counter() - began)
        path.unlink()
        print(".", end="", flush=True)

    def finish(self) -> None:
        import shutil

        shutil.rmtree(self.folder, ignore_errors=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        told = {"outcomes": self.outcomes, "reasons": self.reasons, "tracebacks": self.tracebacks, "hangs": 0}
        print("\n" + json.dumps(told | {"peak": peak, "slowest": self.slowest}), flush=True)


def reason_class(error: str, path: Path) -> str:
    """Return a failure without its source, numbers and names, so that alike ones count together."""
    return _QUOTED.sub("_", error.removeprefix(f"{path}: "))[:160]


def run_records(name: str, number: int) -> None:
    """Spoil one batch of records of a format."""
    test_fuzz = import_module("test_fuzz")
    test_fuzz_formats = import_module("test_fuzz_formats")

    from mutations import mutated_lines
    from pairwright.config import IngestConfig

    rng = random.Random(f"{SEED} records {name} {number}")
    seeds = test_fuzz.SEEDS if name == "native" else test_fuzz_formats.seeds_of(name)
    fields = test_fuzz_formats.FIELDS if name == "fields" else None
    limits = test_fuzz_formats.LIMITS
    stream = mutated_lines(seeds, rng, longest=limits["max_characters"])
    batch = Batch()
    for index in range(RECORDS_IN_BATCH // RECORDS_IN_FILE):
        path = batch.folder / f"{name}-{number}-{index}.jsonl"
        path.write_bytes(b"{}\n" + b"\n".join(islice(stream, RECORDS_IN_FILE)))
        values = {
            "format": name,
            "fields": fields,
            "split_bytes": rng.choice([100_000, 1_000_000, 10_000_000]),
        } | limits
        batch.look(path, lambda values=values: IngestConfig.model_validate(values), limits)
    batch.finish()


def run_files(layout: str, number: int) -> None:
    """Spoil one batch of files of a layout."""
    test_fuzz_layouts = import_module("test_fuzz_layouts")

    from pairwright.config import IngestConfig

    rng = random.Random(f"{SEED} files {layout} {number}")
    ending, make = LAYOUTS[layout]
    limits = test_fuzz_layouts.LIMITS
    batch = Batch()
    for index in range(FILES_IN_BATCH):
        records = [rng.choice(test_fuzz_layouts.SEEDS) | {"id": f"{number}-{index}-{i}"} for i in range(60)]
        path = batch.folder / f"{number}-{index}{ending}"
        content = make(records, path, rng)
        if rng.random() < 0.4:
            content = flipped(content, rng)
        else:
            for _ in range(rng.choice([1, 1, 1, 2, 5])):
                content = test_fuzz_layouts.spoilt_bytes(content, rng) if content else content
        path.write_bytes(content)
        ranges = {"split_bytes": rng.choice([8192, 1_000_000]), "format": rng.choice(["native", "auto"])}
        batch.look(path, lambda ranges=ranges: IngestConfig.model_validate(ranges | limits), limits)
    batch.finish()


def flipped(content: bytes, rng: random.Random) -> bytes:
    """Return a file with a few bits changed, anywhere or where its metadata are: what gets furthest into a reader."""
    spoilt = bytearray(content)
    last = rng.choice([len(spoilt), min(200, len(spoilt)), 2000])
    for _ in range(rng.choice([1, 1, 2, 4])):
        place = len(spoilt) - 1 - rng.randrange(min(last, len(spoilt)))
        spoilt[place] = rng.choice([spoilt[place] ^ (1 << rng.randrange(8)), rng.randrange(256), 0xFF, 0])
    return bytes(spoilt)


# ------------------------------------------------------------------------------------------------- layouts


def _text(records: list[dict[str, Any]], path: Path, rng: random.Random) -> bytes:
    test_fuzz_layouts = import_module("test_fuzz_layouts")

    return test_fuzz_layouts.file_of(records, {".tsv": ".csv"}.get(path.suffix, path.suffix), path.parent)


def _tsv(records: list[dict[str, Any]], path: Path, rng: random.Random) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t").writerows(csv.reader(io.StringIO(_text(records, path, rng).decode(), newline="")))
    return text.getvalue().encode()


def _gzip(records: list[dict[str, Any]], path: Path, rng: random.Random) -> bytes:
    import gzip

    text = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    return gzip.compress(text, rng.choice([0, 6]))


def _zstd(records: list[dict[str, Any]], path: Path, rng: random.Random) -> bytes:
    import zstandard

    text = json.dumps(records).encode() if path.name.endswith(".json.zst") else _gzip_text(records)
    return zstandard.ZstdCompressor(level=rng.choice([1, 19]), write_checksum=rng.random() < 0.5).compress(text)


def _gzip_text(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _parquet(records: list[dict[str, Any]], path: Path, rng: random.Random) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    test_fuzz_layouts = import_module("test_fuzz_layouts")

    table = pa.Table.from_pylist(records, schema=test_fuzz_layouts.TABLE_SCHEMA)
    pq.write_table(
        table,
        path,
        row_group_size=rng.choice([7, 20, 1000]),
        compression=rng.choice(["none", "none", "snappy", "zstd", "gzip"]),
        use_dictionary=rng.random() < 0.5,
        data_page_version=rng.choice(["1.0", "2.0"]),
        data_page_size=rng.choice([200, 1_000_000]),
        store_schema=rng.random() < 0.5,
        write_page_checksum=rng.random() < 0.2,
    )
    return path.read_bytes()


def _arrow(records: list[dict[str, Any]], path: Path, rng: random.Random, *, stream: bool = False) -> bytes:
    import pyarrow as pa

    test_fuzz_layouts = import_module("test_fuzz_layouts")

    table = pa.Table.from_pylist(records, schema=test_fuzz_layouts.TABLE_SCHEMA)
    if rng.random() < 0.3:
        table = table.set_column(1, "prompt", table.column("prompt").dictionary_encode())
    if rng.random() < 0.2:
        table = table.set_column(0, "id", table.column("id").cast(pa.string_view()))
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    options = pa.ipc.IpcWriteOptions(compression=rng.choice([None, None, "zstd", "lz4"]))
    with make(path, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rng.choice([7, 20, 1000]))
    return path.read_bytes()


def _stream(records: list[dict[str, Any]], path: Path, rng: random.Random) -> bytes:
    return _arrow(records, path, rng, stream=True)


LAYOUTS: dict[str, tuple[str, Callable[[list[dict[str, Any]], Path, random.Random], bytes]]] = {
    "JSON Lines": (".jsonl", _text),
    "JSON array": (".json", _text),
    "CSV": (".csv", _text),
    "TSV": (".tsv", _tsv),
    "gzip": (".jsonl.gz", _gzip),
    "zstd": (".jsonl.zst", _zstd),
    "zstd of an array": (".json.zst", _zstd),
    "Parquet": (".parquet", _parquet),
    "Arrow file": (".arrow", _arrow),
    "Arrow stream": (".ipc", _stream),
    "more Parquet": (".parquet", _parquet),
    "more Arrow": (".feather", _arrow),
}


if __name__ == "__main__":
    main()
