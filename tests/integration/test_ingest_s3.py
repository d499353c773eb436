"""Sources on object storage, against a real S3 server on a loopback port."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import obstore
import pytest

from pairwright.config import IngestConfig
from pairwright.data.lines import count_lines, number_ranges, plan_ranges, read_chunks
from pairwright.data.sources import SourceRef, find_sources, list_sources
from pairwright.data.store import Table, open_store
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
    assert listing.ignored == [f"{s3_bucket}/in/notes.txt"]
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
    ranges = plan_ranges(source, 1024)
    units = number_ranges(source, ranges, [count_lines(source, *bounds) for bounds in ranges[:-1]])
    chunks = [chunk for unit in units for chunk in read_chunks(unit)]
    assert b"".join(chunk.text for chunk in chunks) == TEXT
    for chunk in chunks:
        assert chunk.text.startswith(b'{"line": %d}' % chunk.first_line)


def test_an_object_that_changes_or_goes_after_it_was_listed_fails(s3_bucket: str) -> None:
    put(s3_bucket, **{"moving.jsonl": TEXT})
    source = list_sources([f"{s3_bucket}/moving.jsonl"])[0]
    put(s3_bucket, **{"moving.jsonl": TEXT[::-1]})
    with pytest.raises(SourceError, match=r"moving\.jsonl: has changed since it was listed"):
        count_lines(source, 0, source.size)
    obstore.delete(open_store(s3_bucket), "moving.jsonl")
    with pytest.raises(SourceError, match=r"moving\.jsonl: is gone since it was listed"):
        count_lines(source, 0, source.size)


SCRIPT = """
import json, sys
from pairwright.cluster.ingest import ingest
from pairwright.config import IngestConfig
bucket = sys.argv[1]
first = ingest([f"{bucket}/data/"], f"{bucket}/table", IngestConfig(range_bytes=1024))
again = ingest([f"{bucket}/data/"], f"{bucket}/table", IngestConfig(range_bytes=1024))
print(json.dumps([first.failed, [source.uri for source in first.sources], again.manifest is None, again.skipped]))
"""


@pytest.mark.ray
def test_sources_and_table_may_both_be_remote(s3_bucket: str, tmp_path: Path) -> None:
    # A process of its own: the tasks find the server through the environment that their Ray was started in.
    good = {"prompt": "q", "completions": [{"text": "x"}, {"text": "y"}], "ranks": [1, 2]}
    records = b"".join(json.dumps(good | {"id": str(number)}).encode() + b"\n" for number in range(100))
    packed = gzip.compress(records)
    put(s3_bucket, **{"data/a.jsonl": records[:5000], "data/b.jsonl.gz": packed, "data/c.jsonl.gz": packed[:-1]})
    script = tmp_path / "ingest.py"
    script.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, str(script), s3_bucket], env=environment, stdout=subprocess.PIPE, check=True, timeout=300
    )
    failed, sources, nothing_new, skipped = json.loads(done.stdout.splitlines()[-1])
    assert [uri for uri, _ in failed] == [f"{s3_bucket}/data/c.jsonl.gz"]
    assert sources == skipped == [f"{s3_bucket}/data/a.jsonl", f"{s3_bucket}/data/b.jsonl.gz"]
    assert nothing_new
    table = Table.open(f"{s3_bucket}/table", "annotations")
    ids = [name for rows in table.read(table.manifest()) for name in rows.column("id").to_pylist()]
    assert sorted(ids, key=int) == [str(number) for number in range(100)]
    stored = {item["path"] for chunk in obstore.list(open_store(s3_bucket), prefix="table/data") for item in chunk}
    assert stored == {f"table/{file.path}" for file in table.manifest().files}
    assert IngestConfig(**table.manifest().config).range_bytes == 1024
