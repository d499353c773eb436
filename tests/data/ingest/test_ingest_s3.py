"""Sources on object storage, against a real S3 server on a loopback port."""

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import deltalake
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pairwright.config import IngestConfig
from pairwright.data.ingest.ingest import ingest
from pairwright.data.ingest.sources.listing import find_sources, list_sources
from pairwright.data.ingest.sources.source import SourceRef
from pairwright.data.ingest.sources.splits import count_lines, number_splits, plan_byte_ranges, read_chunks
from pairwright.data.table.table import Table, open_store
from pairwright.errors import SourceError

TEXT = b"".join(b'{"line": %d}\n' % number for number in range(1, 2001))


def put(bucket: str, **objects: bytes) -> None:
    for key, content in objects.items():
        obstore.put(open_store(bucket), key, content)


def names_of(bucket: str, sources: list[SourceRef]) -> list[str]:
    return [source.uri.removeprefix(f"{bucket}/") for source in sources]


def test_objects_prefixes_and_patterns_are_found(s3_bucket: str) -> None:
    objects = ["in/b.jsonl", "in/a.jsonl.gz", "in/sub/c.json", "in/_SUCCESS", "in/notes.txt", "inside.jsonl"]
    put(s3_bucket, **dict.fromkeys(objects, b"x"))
    listing = find_sources([f"{s3_bucket}/in/"])
    assert names_of(s3_bucket, listing.sources) == ["in/a.jsonl.gz", "in/b.jsonl", "in/sub/c.json"]
    assert listing.ignored == {f"{s3_bucket}/in/notes.txt": "no source by its name"}
    assert list_sources([f"{s3_bucket}/in"]) == listing.sources
    assert names_of(s3_bucket, list_sources([f"{s3_bucket}/in*.jsonl"])) == ["in/b.jsonl", "inside.jsonl"]
    one = list_sources([f"{s3_bucket}/in/b.jsonl"])[0]
    assert (one.size, one.etag is not None, one.is_local) == (1, True, False)


@pytest.mark.parametrize("name", ["gone.jsonl", "nothing/", "nothing", "nothing/*.jsonl"])
def test_what_is_not_there_is_named(s3_bucket: str, name: str) -> None:
    with pytest.raises(SourceError, match=f"{s3_bucket}/{name[:4]}.*(no such object|holds no files|matches no files)"):
        list_sources([f"{s3_bucket}/{name}"])


@pytest.mark.parametrize("name", ["plain.jsonl", "packed.jsonl.gz"])
def test_remote_ranges_and_streams_give_every_line_its_number(s3_bucket: str, name: str) -> None:
    put(s3_bucket, **{name: gzip.compress(TEXT) if name.endswith(".gz") else TEXT})
    source = list_sources([f"{s3_bucket}/{name}"])[0]
    ranges = plan_byte_ranges(source, 1024)
    units = number_splits(source, ranges, [count_lines(source, *bounds) for bounds in ranges[:-1]])
    chunks = [chunk for unit in units for chunk in read_chunks(unit)]
    assert b"".join(chunk.text for chunk in chunks) == TEXT
    for chunk in chunks:
        assert chunk.text.startswith(b'{"line": %d}' % chunk.first_line)


@pytest.mark.parametrize("bad", ["x\x01y.jsonl", "../y.jsonl", "/z.jsonl"])
def test_a_key_that_the_client_refuses_fails_its_level_alone(s3_bucket: str, bad: str) -> None:
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    root = f"odd-{ord(bad[0])}"
    for key in ("a.jsonl", "deep/b.jsonl", f"level/{bad}", "level/c.jsonl", "other/d.jsonl"):
        client.put_object(Bucket="bucket", Key=f"{root}/{key}", Body=b"x")
    listing = find_sources([f"{s3_bucket}/{root}"])
    names = {source.uri.removeprefix(f"{s3_bucket}/{root}/") for source in listing.sources}
    assert names == {"a.jsonl", "deep/b.jsonl", "other/d.jsonl"}
    [(place, reason)] = listing.failed.items()
    assert place.startswith(f"{s3_bucket}/{root}/level")
    assert reason.startswith("cannot be listed: ")
    assert reason.isprintable()
    assert reason.endswith("rename or remove that key, or name the other objects one by one")
    with pytest.raises(SourceError, match="cannot be listed"):
        list_sources([f"{s3_bucket}/{root}"])
    assert len(list_sources([f"{s3_bucket}/{root}/level/c.jsonl"])) == 1


def test_an_object_that_changes_or_goes_after_it_was_listed_fails(s3_bucket: str) -> None:
    put(s3_bucket, **{"moving.jsonl": TEXT})
    source = list_sources([f"{s3_bucket}/moving.jsonl"])[0]
    put(s3_bucket, **{"moving.jsonl": TEXT[::-1]})
    with pytest.raises(SourceError, match=r"moving\.jsonl: has changed since it was listed"):
        count_lines(source, 0, source.size)
    obstore.delete(open_store(s3_bucket), "moving.jsonl")
    with pytest.raises(SourceError, match=r"moving\.jsonl: is gone since it was listed"):
        count_lines(source, 0, source.size)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.ipc", "a.csv.gz", "a.json", "a.json.zst"])
@pytest.mark.parametrize("split_bytes", [2000, 10**9])
def test_every_layout_is_read_from_an_object_store(s3_bucket: str, tmp_path: Path, name: str, split_bytes: int) -> None:
    rows = [{"id": str(number), "completions": [{"text": f"x{number}"}, {"text": "y"}]} for number in range(300)]
    write_layout(rows, tmp_path / name)
    put(s3_bucket, **{f"layouts/{name}": (tmp_path / name).read_bytes()})
    source = list_sources([f"{s3_bucket}/layouts/{name}"])[0]
    ranges = plan_byte_ranges(source, split_bytes)
    units = number_splits(source, ranges, [count_lines(source, *bounds) for bounds in ranges[:-1]])
    chunks = [chunk for unit in units for chunk in read_chunks(unit)]
    lines = [line for chunk in chunks for line in chunk.text.splitlines()]
    cells = [row | {"completions": json.dumps(row["completions"])} for row in rows]  # a cell is text
    assert [json.loads(line) for line in lines] == (cells if ".csv" in name else rows)
    assert [chunk.first_line for chunk in chunks][:1] == [1]
    assert sum(chunk.num_lines for chunk in chunks) == chunks[-1].first_line + chunks[-1].num_lines - 1
    put(s3_bucket, **{f"layouts/{name}": (tmp_path / name).read_bytes() + b" "})
    with pytest.raises(SourceError, match=f"{name}: has changed since it was listed"):
        list(read_chunks(units[0]))


def write_layout(rows: list[dict[str, Any]], path: Path) -> None:
    table = pa.Table.from_pylist(rows)
    match path.name.partition(".")[2]:
        case "parquet":
            pq.write_table(table, path, row_group_size=20)
        case "arrow":
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table, max_chunksize=20)
        case "ipc":
            with pa.ipc.new_stream(str(path), table.schema) as writer:
                writer.write_table(table, max_chunksize=20)
        case "csv.gz":
            with gzip.open(path, "wt", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(table.column_names)
                cells = [[v if isinstance(v, str) else json.dumps(v) for v in row.values()] for row in rows]
                writer.writerows(cells)
        case "json":
            path.write_text(json.dumps(rows, indent=1))
        case _:
            path.write_bytes(zstandard.compress(json.dumps(rows).encode()))


SCRIPT = """
import json, sys
from pairwright.cluster.sized_executor import EXECUTOR
from pairwright.data.ingest.ingest import ingest
from pairwright.config import IngestConfig
bucket = sys.argv[1]
names = [f"{bucket}/data/", f"delta+{bucket}/lake"]
first = ingest(names, f"{bucket}/table", IngestConfig(split_bytes=1024), executor=EXECUTOR)
again = ingest(names, f"{bucket}/table", IngestConfig(split_bytes=1024), executor=EXECUTOR)
print(json.dumps([first.failed, [source.uri for source in first.sources], again.manifest is None, again.skipped]))
"""


@pytest.mark.ray
def test_sources_and_table_may_both_be_remote(s3_bucket: str, tmp_path: Path) -> None:
    # A process of its own: the tasks find the server through the environment that their Ray was started in.
    good = {"prompt": "q", "completions": [{"text": "x"}, {"text": "y"}], "ranks": [1, 2]}
    records = b"".join(json.dumps(good | {"id": str(number)}).encode() + b"\n" for number in range(100))
    packed = gzip.compress(records)
    put(s3_bucket, **{"data/a.jsonl": records[:5000], "data/b.jsonl.gz": packed, "data/c.jsonl.gz": packed[:-1]})
    rows = [good | {"id": str(number)} for number in range(100, 140)]
    for kind, some in [("json", rows[:10]), ("parquet", rows[10:20]), ("csv.gz", rows[20:30])]:
        write_layout(some, tmp_path / f"d.{kind}")
        put(s3_bucket, **{f"data/d.{kind}": (tmp_path / f"d.{kind}").read_bytes()})
    deltalake.write_deltalake(
        f"{s3_bucket}/lake", pa.Table.from_pylist(rows[30:]), storage_options={"AWS_ALLOW_HTTP": "true"}
    )
    script = tmp_path / "ingest.py"
    script.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, str(script), s3_bucket], env=environment, stdout=subprocess.PIPE, check=True, timeout=300
    )
    failed, sources, nothing_new, skipped = json.loads(done.stdout.splitlines()[-1])
    assert [uri for uri, _ in failed] == [f"{s3_bucket}/data/c.jsonl.gz"]
    named = ["a.jsonl", "b.jsonl.gz", "d.csv.gz", "d.json", "d.parquet"]
    assert sources == skipped == [*(f"{s3_bucket}/data/{name}" for name in named), f"delta+{s3_bucket}/lake"]
    assert nothing_new
    table = Table.open(f"{s3_bucket}/table", "annotations")
    ids = [name for rows in table.read(table.manifest()) for name in rows.column("id").to_pylist()]
    assert sorted(ids, key=int) == [str(number) for number in range(140)]
    assert not list(obstore.list(open_store(s3_bucket), prefix="table/staging"))
    stored = {item["path"] for chunk in obstore.list(open_store(s3_bucket), prefix="table/data") for item in chunk}
    assert stored == {f"table/{file.path}" for file in table.manifest().files}
    assert IngestConfig(**table.manifest().config).split_bytes == 1024


def test_an_endpoint_without_tls_is_taken_unless_that_is_forbidden(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert os.environ["AWS_ENDPOINT_URL"].startswith("http://")
    assert "AWS_ALLOW_HTTP" not in os.environ
    record = b'{"prompt": "Name a lake.", "chosen": "Lake Como.", "rejected": "A puddle."}\n'
    obstore.put(open_store(s3_bucket), "plain/a.jsonl", record)
    assert ingest([f"{s3_bucket}/plain/a.jsonl"], str(tmp_path / "t"), IngestConfig()).sources[0].accepted == 1
    monkeypatch.setenv("AWS_ALLOW_HTTP", "false")
    with pytest.raises(SourceError, match=r"takes no such endpoint \(AWS_ENDPOINT_URL in the environment\)"):
        ingest([f"{s3_bucket}/plain/a.jsonl"], str(tmp_path / "t"), IngestConfig())
