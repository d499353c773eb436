"""Small sources that unpack to gigabytes, or take a parser hours -> what a command makes of each, in time and memory.

    python benchmarks/hostile_sources.py [--only NAME ...] [--verbs ingest validate score] [--write]

Each source is written into a temporary folder and given to a process of its own; its memory and that of its children is
added up every 20 ms, and a process above 3 GiB or 120 s is killed. The aim is 1 GB and 10 s of CPU for each.
"""

import argparse
import json
import os
import platform
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

MAX_BYTES = 3 << 30
MAX_SECONDS = 120.0
AIM_BYTES, AIM_SECONDS = 10**9, 10.0
GOOD = {"id": "1", "prompt": "p", "completions": [{"text": "a"}, {"text": "b"}], "ranks": [1, 2], "annotator": "x"}
CHAT = pa.list_(pa.struct([("text", pa.string())]))


def line(**changes: Any) -> bytes:
    return json_line(GOOD | changes)


def json_line(record: Any) -> bytes:
    return json.dumps(record).encode() + b"\n"


def gzipped(pieces: Iterable[bytes]) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([packer.compress(piece) for piece in pieces] + [packer.flush()])


def zstd(pieces: Iterable[bytes]) -> bytes:
    packer = zstandard.ZstdCompressor(level=3).compressobj()
    return b"".join([packer.compress(piece) for piece in pieces] + [packer.flush()])


def repeated(piece: bytes, times: int) -> Iterator[bytes]:
    return (piece for _ in range(times))


# ------------------------------------------------------------------------------------------------ text


def refused_gz(path: Path) -> None:
    path.write_bytes(gzipped(repeated(b"1\n" * 500_000, 64)))


def refused_plain(path: Path) -> None:
    path.write_bytes(b"1\n" * 100_000)


def refused_8mb(path: Path) -> None:
    path.write_bytes(b"1\n" * 4_000_000)


def refused_tasks(path: Path) -> None:
    """One Label Studio task with 200,000 skipped annotations."""
    skipped = {"id": 1, "result": [], "was_cancelled": True}
    path.write_bytes(gzipped([json_line({"id": 1, "data": {"prompt": "p"}, "annotations": [skipped] * 200_000})]))


def texts_tasks(path: Path) -> None:
    """One task of a long text and 1,000 annotations, each of which becomes a row with that text."""
    result = {"type": "pairwise", "value": {"selected": "left"}, "to_name": "a,b"}
    data = {"prompt": "p" * 900_000, "a": "x", "b": "y"}
    made = [{"id": n, "result": [result]} for n in range(1000)]
    path.write_bytes(gzipped([json_line({"id": 1, "data": data, "annotations": made})]))


def reasons(path: Path) -> None:
    """Each refusal stands at a path of its own."""
    records = (
        {"id": i, "fields": {"a": "x"}, "responses": {f"q{i}-{k}": [{"status": "draft"}] for k in range(20)}}
        for i in range(1000)
    )
    path.write_bytes(gzipped(json_line(record) for record in records))


def good_gz(path: Path) -> None:
    """Good records by the ten thousand."""
    path.write_bytes(
        gzipped(b"".join(line(id=str(n)) for n in range(start, start + 1000)) for start in range(0, 70_000, 1000))
    )


def same_gz(path: Path) -> None:
    path.write_bytes(gzipped(repeated(line() * 1000, 300)))


def blank_zst(path: Path) -> None:
    path.write_bytes(zstd(repeated(b"\n" * 1_000_000, 4000)))


def one_line_gz(path: Path) -> None:
    path.write_bytes(gzipped(repeated(b"x" * 1_000_000, 190)))


def one_text_gz(path: Path) -> None:
    path.write_bytes(gzipped([b'{"id":"1","prompt":"', *repeated(b"x" * 1_000_000, 120), b'"}\n']))


def long_labels(path: Path) -> None:
    big = "x" * 8_000_000
    records = [line(id=big), line(id="2", annotator=big), line(id="3", subset=big), line(id="4", metadata={"a": big})]
    records += [
        line(id="5", prompt=[{"role": big, "content": "p"}]),
        line(id="6", metadata={f"k{n}": "" for n in range(500_000)}),
    ]
    records += [line(id="7", prompt=[{"role": "u", "content": ""}] * 300_000 + [{"role": "u", "content": "p"}])]
    path.write_bytes(gzipped(iter(records)))


def nested(path: Path) -> None:
    depths = [*range(500, 1500, 5), 100_000, 5_000_000]
    path.write_bytes(gzipped(b"[" * depth + b"1" + b"]" * depth + b"\n" for depth in depths))


def empty_objects(path: Path) -> None:
    """What costs most memory for its text: a record of millions of empty objects."""
    path.write_bytes(gzipped([b'{"id":[', *repeated(b"{}," * 100_000, 100), b"{}]}\n"] * 2))


def keys(path: Path) -> None:
    pieces = (b"".join(b'"%d":1,' % n for n in range(start, start + 10_000)) for start in range(0, 1_000_000, 10_000))
    path.write_bytes(gzipped([b"{", *pieces, b'"x":1}\n']))


def integers(path: Path) -> None:
    path.write_bytes(gzipped(b'{"id":"1","prompt":"p","ranks":[' + b"9" * 1_000_000 + b"]}\n" for _ in range(30)))


def array_items(path: Path) -> None:
    """Items of one character each, and one of a hundred megabytes."""
    path.write_bytes(gzipped([b"[", *repeated(b"1," * 500_000, 30), b'"', *repeated(b"x" * 1_000_000, 100), b'"]']))


def digits(path: Path) -> None:
    """A tag whose name is a million digits and a letter: quadratic in a pattern that looks for the last digits."""
    tag = "1" * 1_000_000 + "x"
    result = {"type": "pairwise", "value": {"selected": "left"}, "to_name": f"{tag},{tag}y"}
    task = {"id": 1, "data": {"prompt": "p", "a": "x"}, "annotations": [{"id": 1, "result": [result]}]}
    path.write_bytes(gzipped([json_line(task)]))


def tags(path: Path) -> None:
    """A task of 40,000 fields whose 1,000 annotations each look for the one that a tag shows."""
    data = {f"text{n}": "x" for n in range(40_000)}
    result = {"type": "pairwise", "value": {"selected": "left"}, "to_name": "a-40001,b-40002"}
    made = [{"id": n, "result": [result]} for n in range(1000)]
    path.write_bytes(gzipped([json_line({"id": 1, "data": data, "annotations": made})]))


def questions(path: Path) -> None:
    """An Argilla record of 40,000 fields and 2,000 answers to each of which every field is compared."""
    fields = {f"f{n}": "x" for n in range(40_000)}
    answers = {f"q{n}": [{"value": [{"value": "f1", "rank": 1}, {"value": "f2", "rank": 2}]}] for n in range(2000)}
    path.write_bytes(gzipped([json_line({"id": 1, "fields": fields, "responses": answers})]))


# ------------------------------------------------------------------------------------------------- CSV


def commas(path: Path) -> None:
    path.write_bytes(gzipped([b"id,prompt\n", *repeated(b"," * 1_000_000, 190)]))


def header(path: Path) -> None:
    path.write_text(",".join(f"c{n}" for n in range(40_000)) + "\n")


def same_header(path: Path) -> None:
    path.write_text(",".join(["a"] * 100_000) + "\n")


def open_quote(path: Path) -> None:
    path.write_bytes(gzipped([b'id,prompt\n1,"', *repeated(b"x\n" * 500_000, 150)]))


def short_rows(path: Path) -> None:
    path.write_bytes(gzipped([b"id,prompt\n", *repeated(b"x\n" * 500_000, 30)]))


# ---------------------------------------------------------------------------------------- Parquet, Arrow


def table_of(prompts: list[Any] | pa.Array, **more: Any) -> pa.Table:
    num_rows = len(prompts)
    columns = {"id": pa.array([str(n) for n in range(num_rows)]), "prompt": prompts}
    columns["completions"] = pa.array([[{"text": "a"}, {"text": "b"}]] * num_rows, CHAT)
    return pa.table(columns | {"ranks": [[1, 2]] * num_rows} | more)


def dictionary_parquet(path: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 4096, pa.int16()), pa.array(["x" * 1_000_000]))
    pq.write_table(table_of(texts), path, compression="zstd")


def late_parquet(path: Path) -> None:
    """The same behind a few thousand short ones, in one row group."""
    indices = pa.array([0] * 5000 + [1] * 1000, pa.int16())
    texts = pa.DictionaryArray.from_arrays(indices, pa.array(["y", "x" * 1_000_000]))
    pq.write_table(table_of(texts), path, compression="zstd")


def nested_parquet(path: Path) -> None:
    values = pa.array(["x" * 1_000_000] * 1024)
    lists = pa.ListArray.from_arrays(pa.array([0, 1024], pa.int32()), values)
    pq.write_table(table_of(pa.array(["p"]), texts=lists), path, compression="zstd")


def text_parquet(path: Path) -> None:
    pq.write_table(table_of(pa.array(["x" * 500_000_000])), path, compression="zstd", use_dictionary=False)


def lying_parquet(path: Path) -> None:
    """The same, whose footer says that the column is small."""
    text_parquet(path)
    group = pq.ParquetFile(path).metadata.row_group(0)
    content = path.read_bytes()
    for size in (group.column(1).total_uncompressed_size, group.total_byte_size):
        true = varint(2 * size)
        assert true in content
        content = content.replace(true, bytes([0xE8] + [0x80] * (len(true) - 2) + [0x00]))  # 52, in as many bytes
    path.write_bytes(content)


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def delta_parquet(path: Path) -> None:
    """A text, and 400 times "the same again"."""
    texts = pa.array(["x" * 1_000_000] * 400)
    encodings: Any = {"prompt": "DELTA_BYTE_ARRAY"}
    pq.write_table(table_of(texts), path, compression="zstd", use_dictionary=False, column_encoding=encodings)


def wide_parquet(path: Path) -> None:
    schema = pa.schema([(f"c{n}", pa.int8()) for n in range(3000)])
    pq.write_table(pa.table([pa.array([1], pa.int8())] * 3000, schema=schema), path, write_statistics=False)


def groups_parquet(path: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([1] * 2500, pa.int8())}), path, row_group_size=1, write_statistics=False)


def rows_parquet(path: Path) -> None:
    """A hundred million rows of nothing but null."""
    pq.write_table(pa.table({"a": pa.nulls(100_000_000, pa.int8()), "b": pa.nulls(100_000_000, pa.int8())}), path)


def names_parquet(path: Path) -> None:
    """A column's name of 100,000 characters in each of a million rows."""
    pq.write_table(pa.table({"x" * 100_000: pa.array([1] * 1_000_000, pa.int8())}), path)


def text_arrow(path: Path, *, stream: bool = False) -> None:
    batch = table_of(pa.array(["x" * 1_000_000_000], pa.large_string()))
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(path, batch.schema, options=options) as writer:
        writer.write_table(batch)


def text_stream(path: Path) -> None:
    text_arrow(path, stream=True)


def dictionary_arrow(path: Path) -> None:
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int8()), pa.array(["x" * 1_000_000]))
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    table = table_of(values)
    with pa.ipc.new_file(path, table.schema, options=options) as writer:
        writer.write_table(table)


def lists_arrow(path: Path) -> None:
    """A hundred thousand rows that all show the same megabyte."""
    child = pa.array(["x" * 1_000_000])
    zeros = pa.array([0] * 100_000, pa.int32())
    values = pa.ListViewArray.from_arrays(zeros, pa.array([1] * 100_000, pa.int32()), child)
    table = table_of(pa.array(["p"] * 100_000), texts=values)
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)


def views_arrow(path: Path) -> None:
    text = pa.array(["x" * 1_000_000], pa.string_view())
    buffers = text.buffers()
    assert buffers[1] is not None
    views = pa.py_buffer(bytes(buffers[1]) * 100_000)
    values = pa.Array.from_buffers(pa.string_view(), 100_000, [None, views, *buffers[2:]])
    table = table_of(values)
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)


def runs_arrow(path: Path) -> None:
    values = pa.RunEndEncodedArray.from_arrays(pa.array([100_000], pa.int32()), pa.array(["x" * 1_000_000]))
    table = table_of(values)
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)


def nulls_arrow(path: Path) -> None:
    """A billion rows of a type that takes no room."""
    batch = pa.RecordBatch.from_arrays([pa.nulls(1_000_000_000)], names=["a"])
    with pa.ipc.new_file(path, batch.schema) as writer:
        writer.write_batch(batch)


def unions_arrow(path: Path) -> None:
    child = pa.array(["x" * 1_000_000])
    zeros = pa.array([0] * 100_000, pa.int32())
    values = pa.UnionArray.from_dense(pa.array([0] * 100_000, pa.int8()), zeros, [child])
    table = table_of(pa.array(["p"] * 100_000), texts=values)
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)


def feather_v1(path: Path) -> None:
    path.write_bytes(b"FEA1" + struct.pack("<I", 0x7FFFFFFF) * 20_000 + b"FEA1")


# ------------------------------------------------------------------------------------------------- score


def score_long(path: Path) -> None:
    path.write_bytes(json_line({"prompt": "p", "completion": "word " * 1_600_000}))


def score_long_gz(path: Path) -> None:
    path.write_bytes(gzipped([json_line({"prompt": "p", "completion": "word " * 1_600_000})] * 2))


def score_largest(path: Path) -> None:
    """As much as a record may hold: sixteen completions just below the limit."""
    record = {"prompt": "p", "completions": ["word " * 199_000 + str(n) for n in range(16)]}
    path.write_bytes(gzipped([json_line(record)]))


def score_many(path: Path) -> None:
    path.write_bytes(json_line({"prompt": "p", "completions": [str(n) for n in range(20_000)]}))


def score_good(path: Path) -> None:
    path.write_bytes(line())


BOTH = ("ingest", "validate")
SOURCES: list[tuple[str, Callable[[Path], None], tuple[str, ...]]] = [
    ("good.jsonl", score_good, (*BOTH, "score")),
    ("refused.jsonl.gz", refused_gz, (*BOTH, "score")),
    ("refused_plain.jsonl", refused_plain, BOTH),
    ("refused_8mb.jsonl", refused_8mb, BOTH),
    ("refused_tasks.jsonl.gz", refused_tasks, BOTH),
    ("texts_tasks.jsonl.gz", texts_tasks, BOTH),
    ("reasons.jsonl.gz", reasons, BOTH),
    ("good.jsonl.gz", good_gz, BOTH),
    ("same.jsonl.gz", same_gz, BOTH),
    ("blank.jsonl.zst", blank_zst, BOTH),
    ("line.jsonl.gz", one_line_gz, (*BOTH, "score")),
    ("text.jsonl.gz", one_text_gz, BOTH),
    ("labels.jsonl.gz", long_labels, BOTH),
    ("nested.jsonl.gz", nested, BOTH),
    ("objects.jsonl.gz", empty_objects, BOTH),
    ("keys.jsonl.gz", keys, BOTH),
    ("integers.jsonl.gz", integers, BOTH),
    ("items.json.gz", array_items, BOTH),
    ("digits.jsonl.gz", digits, BOTH),
    ("tags.jsonl.gz", tags, BOTH),
    ("questions.jsonl.gz", questions, BOTH),
    ("commas.csv.gz", commas, BOTH),
    ("header.csv", header, BOTH),
    ("same_header.csv", same_header, BOTH),
    ("quote.csv.gz", open_quote, BOTH),
    ("rows.csv.gz", short_rows, BOTH),
    ("dictionary.parquet", dictionary_parquet, (*BOTH, "score")),
    ("late.parquet", late_parquet, BOTH),
    ("nested.parquet", nested_parquet, BOTH),
    ("text.parquet", text_parquet, BOTH),
    ("lying.parquet", lying_parquet, BOTH),
    ("delta.parquet", delta_parquet, BOTH),
    ("wide.parquet", wide_parquet, BOTH),
    ("groups.parquet", groups_parquet, BOTH),
    ("rows.parquet", rows_parquet, BOTH),
    ("names.parquet", names_parquet, BOTH),
    ("text.arrow", text_arrow, (*BOTH, "score")),
    ("stream.arrow", text_stream, BOTH),
    ("dictionary.arrow", dictionary_arrow, BOTH),
    ("lists.arrow", lists_arrow, BOTH),
    ("views.arrow", views_arrow, BOTH),
    ("runs.arrow", runs_arrow, BOTH),
    ("nulls.arrow", nulls_arrow, BOTH),
    ("unions.arrow", unions_arrow, BOTH),
    ("v1.feather", feather_v1, BOTH),
    ("score_long.jsonl", score_long, ("score",)),
    ("score_long.jsonl.gz", score_long_gz, ("score",)),
    ("score_largest.jsonl.gz", score_largest, ("score",)),
    ("score_many.jsonl", score_many, ("score",)),
]


@dataclass(frozen=True)
class Run:
    """What became of a command."""

    status: str
    said: str
    seconds: float
    cpu_seconds: float
    """Of all its processes: the machine may have other work to do."""
    peak_bytes: int


NOTHING = Run("", "", 0.0, 0.0, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of sources; all if not given")
    parser.add_argument("--verbs", nargs="*", default=["ingest", "validate", "score"])
    parser.add_argument("--write", action="store_true", help="write the table to benchmarks/results/")
    options = parser.parse_args()
    rows: list[str] = []
    bases: dict[str, Run] = {}
    with tempfile.TemporaryDirectory(prefix="hostile-sources-") as name:
        folder = Path(name)
        for source, build, verbs in SOURCES:
            if options.only and source not in options.only:
                continue
            path = folder / source
            built_in_a_child(build, path)
            for verb in [verb for verb in verbs if verb in options.verbs]:
                run = measured(command_for(verb, path, folder), folder)
                base = bases.setdefault(verb, run) if verb == "score" else NOTHING
                is_met = run.peak_bytes - base.peak_bytes <= AIM_BYTES
                is_met = is_met and run.cpu_seconds - base.cpu_seconds <= AIM_SECONDS
                mark = "" if is_met else " **"
                said = run.said.replace(str(folder) + "/", "").replace("|", r"\|")
                rows.append(
                    f"| {source} | {path.stat().st_size:,} | {verb} | {run.status} | {run.cpu_seconds:.1f}{mark} | "
                    f"{run.seconds:.1f} | {run.peak_bytes / 1e6:,.0f}{mark} | {said} |"
                )
                print(rows[-1], flush=True)
            path.unlink()
    if options.write:
        write_results(rows)


def built_in_a_child(build: Callable[[Path], None], path: Path) -> None:
    """Write a source in a process of its own, whose memory is gone afterwards."""
    pid = os.fork()
    if pid == 0:
        try:
            build(path)
        except BaseException as error:
            print(f"{path.name}: {type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        path.write_bytes(b"")


def command_for(verb: str, path: Path, folder: Path) -> list[str]:
    start = [sys.executable, "-m", "pairwright"]
    if verb == "validate":
        return [*start, "validate", str(path)]
    if verb == "ingest":
        return [*start, "ingest", str(path), "--output", str(folder / "tables" / path.name)]
    model = folder / "exported/model"
    if not model.exists():
        program = f"from exported_models import *; export_small_model(Path({str(folder / 'exported')!r}))"
        tests = str(Path(__file__).parents[1] / "tests/support/builders")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])}
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, env=environment)
    return [*start, "score", str(model), str(path), "--output", str(folder / "scores" / path.name)]


def measured(command: list[str], folder: Path) -> Run:
    """Run a command to its end, or until it takes too much, and look at the memory of its processes meanwhile."""
    began, used = time.perf_counter(), cpu_of_children()
    with (folder / "said").open("w+b") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        peak, status = 0, ""
        while process.poll() is None:
            peak = max(peak, tree_bytes(process.pid))
            if peak > MAX_BYTES or time.perf_counter() - began > MAX_SECONDS:
                status = "killed"
                end_session(process)
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        said.seek(0)
        text = said.read().decode(errors="replace")
    lines = [one for one in text.splitlines() if one.strip()]
    if "Traceback" in text:
        status = "traceback"
    shown = next((one for one in lines if one.startswith(("failed", "error", "  such"))), "") or next(
        (one for one in lines if "refused" in one), lines[-1] if lines else ""
    )
    return Run(status or f"exit {process.returncode}", shown[:240], seconds, cpu_of_children() - used, peak)


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tree_bytes(pid: int) -> int:
    """Return the resident memory of a process and its children; what several share counts once."""
    total = 0
    try:
        process = psutil.Process(pid)
        children = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return 0
    for one in [process, *children]:
        try:
            total += one.memory_full_info().pss if children else one.memory_info().rss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def end_session(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def write_results(rows: list[str]) -> None:
    lines = [
        "# Hostile sources",
        "",
        f"`python benchmarks/hostile_sources.py --write`, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPUs, Python "
        f"{platform.python_version()}, pyarrow {version('pyarrow')}. Seconds of the whole command; most memory of "
        "it and its children in MB (`score` runs Ray and a model: compare with its first row).",
        "",
        "| source | bytes | verb | outcome | CPU seconds | seconds | peak MB | what it said |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]
    name = f"hostile_sources_{os.cpu_count()}cpu_{datetime.now(UTC):%Y-%m-%d}.md"
    (Path(__file__).parent / "results" / name).write_text("\n".join(lines))


if __name__ == "__main__":
    main()
