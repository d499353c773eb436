"""Sources: what is found, what is no source, and lines that keep their numbers however a file is cut."""

import gzip
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pairwright.config import IngestConfig, SourceLimits
from pairwright.data.ingest.decoders import chunks
from pairwright.data.ingest.shards import IngestShard, write_shards
from pairwright.data.ingest.sources import source_bytes as blocks
from pairwright.data.ingest.sources.listing import find_sources, list_sources
from pairwright.data.ingest.sources.source import SourceRef, with_checksum
from pairwright.data.ingest.sources.source_bytes import checksum_blocks, content_hash, hash_block
from pairwright.data.ingest.sources.splits import (
    InputSplit,
    count_lines,
    fetch_lines,
    known_newlines,
    number_splits,
    plan_byte_ranges,
    read_chunks,
)
from pairwright.data.table.table import Table
from pairwright.errors import SourceError

TEXT = b"".join(b'{"line": %d}\n' % number for number in range(1, 50_001))


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def source_of(path: Path) -> SourceRef:
    return list_sources([str(path)])[0]


def units_of(source: SourceRef, split_bytes: int) -> list[InputSplit]:
    ranges = plan_byte_ranges(source, split_bytes)
    return number_splits(source, ranges, [count_lines(source, *bounds) for bounds in ranges[:-1]])


def lines_of(source: SourceRef, split_bytes: int) -> list[tuple[int, bytes]]:
    """Return (number, line) of every line, read range by range."""
    found = []
    for unit in units_of(source, split_bytes):
        for chunk in read_chunks(unit):
            texts = chunk.text.split(b"\n")
            texts = texts[:-1] if texts[-1] == b"" else texts
            assert len(texts) == chunk.num_lines
            found += list(enumerate(texts, start=chunk.first_line))
    return found


def expected_lines(content: bytes) -> list[tuple[int, bytes]]:
    texts = content.split(b"\n")
    return list(enumerate(texts[:-1] if texts[-1] == b"" else texts, start=1))


@contextmanager
def block_bytes(size: int) -> Iterator[None]:
    """Read in blocks of another size, to reach the seams between blocks with small files."""
    old = blocks.READ_BYTES
    blocks.READ_BYTES = size
    try:
        yield
    finally:
        blocks.READ_BYTES = old


# ---------------------------------------------------------------------------------------------- reading


@settings(deadline=None)
@given(
    content=st.lists(st.sampled_from([b"\n", b"a", b"\r", b"long line", b"\r\n", b"\xff", "\u2028".encode()])).map(
        b"".join
    ),
    split_bytes=st.integers(1, 40),
    block=st.integers(1, 20),
)
def test_any_cut_gives_the_same_lines_with_the_same_numbers(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, split_bytes: int, block: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    source = source_of(write(path, content))
    with block_bytes(block):
        assert lines_of(source, split_bytes) == expected_lines(content)


def test_a_line_longer_than_several_ranges_belongs_to_the_one_it_starts_in(tmp_path: Path) -> None:
    source = source_of(write(tmp_path / "a.jsonl", b"one\n" + b"2" * 100 + b"\nthree"))
    owned = [[chunk.text for chunk in read_chunks(unit)] for unit in units_of(source, 10)]
    assert [b"".join(texts) for texts in owned] == [b"one\n" + b"2" * 100 + b"\n", *[b""] * 9, b"three"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.ndjson.zst", "a.json"])
def test_plain_and_compressed_sources_give_the_same_lines(tmp_path: Path, name: str) -> None:
    packed = {".gz": gzip.compress(TEXT), ".zst": zstandard.compress(TEXT)}.get(Path(name).suffix, TEXT)
    assert lines_of(source_of(write(tmp_path / name, packed)), 100_000) == expected_lines(TEXT)


@pytest.mark.parametrize(("name", "compress"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)])
def test_every_member_of_a_compressed_source_is_read(tmp_path: Path, name: str, compress: type) -> None:
    packed = compress(TEXT[:1000]) + compress(TEXT[1000:5000]) + compress(b"") + compress(TEXT[5000:])
    assert lines_of(source_of(write(tmp_path / name, packed)), 1024) == expected_lines(TEXT)


@pytest.mark.parametrize(("name", "compress"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)])
@pytest.mark.parametrize("keep", [0, 3, 0.5, -1, "second"])
def test_a_truncated_stream_fails_and_says_so(tmp_path: Path, name: str, compress: type, keep: float | str) -> None:
    whole: bytes = compress(TEXT)
    cut = {0: b"", 3: whole[:3], 0.5: whole[: len(whole) // 2], -1: whole[:-1], "second": whole + whole[:50]}[keep]
    source = source_of(write(tmp_path / name, cut))
    with pytest.raises(
        SourceError, match=rf"{name}: (not a whole|0 bytes, which is no) (gzip|zstd) file.*copy it again"
    ):
        lines_of(source, 1024)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_plain_file_with_a_compressed_name_fails(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match="not a whole"):
        lines_of(source_of(write(tmp_path / name, TEXT)), 1024)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(TEXT), "starts like a gzip file; name it .gz"),
        (zstandard.compress(TEXT), "starts like a zstd file; name it .zst"),
        (TEXT.decode().encode("utf-16"), "is UTF-16; write it in UTF-8"),
        (b"PAR1...", "is a Parquet file; name it .parquet"),
        (b"ARROW1..", "is an Arrow file; name it .arrow"),
        (
            b'{\n  "id": 1,\n  "ranks": [\n',
            "spread over several lines, expected one record a line or one array; .* `jq -c",
        ),
    ],
)
def test_a_source_that_is_not_what_its_name_says_fails_with_the_remedy(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        lines_of(source_of(write(tmp_path / "a.json", content)), 1024)


def test_a_byte_order_mark_at_the_start_is_no_part_of_the_first_record(tmp_path: Path) -> None:
    for name, content in [("a.jsonl", b"\xef\xbb\xbf" + TEXT), ("b.jsonl.gz", gzip.compress(b"\xef\xbb\xbf" + TEXT))]:
        assert lines_of(source_of(write(tmp_path / name, content)), 70_000) == expected_lines(TEXT)


def test_an_empty_source_has_no_lines(tmp_path: Path) -> None:
    assert lines_of(source_of(write(tmp_path / "a.jsonl", b"")), 1024) == []
    assert lines_of(source_of(write(tmp_path / "b.jsonl.gz", gzip.compress(b""))), 1024) == []


def test_a_line_beyond_all_bounds_is_passed_over_and_its_neighbours_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "KEPT_BYTES", 10)
    path = write(tmp_path / "a.jsonl", b"first\n" + b"x" * 5000 + b"\nthird\n" + b"y" * 3000)
    with block_bytes(64):
        found = [
            chunk
            for unit in units_of(list_sources([str(path)], SourceLimits(max_record_bytes=1000))[0], 1024)
            for chunk in read_chunks(unit)
        ]
    reason, advice = "expected a record of at most 1,000 bytes", "; set limits.max_record_bytes to take longer ones"
    assert [(c.first_line, c.text, c.problem) for c in found] == [
        (1, b"first\n", ""),
        (2, b"x" * 10, f"{reason}, got 5,000{advice}"),
        (3, b"third\n", ""),
        (4, b"y" * 10, f"{reason}, got 3,000{advice}"),
    ]
    assert {chunk.num_lines for chunk in found} == {1}


def test_lines_are_found_again_by_their_numbers(tmp_path: Path) -> None:
    source = source_of(write(tmp_path / "a.jsonl", TEXT))
    unit = units_of(source, 300_000)[1]
    first = next(read_chunks(unit)).first_line
    assert fetch_lines(unit, [first, first + 2, 1]) == {
        first: b'{"line": %d}' % first,
        first + 2: b'{"line": %d}' % (first + 2),
    }


def test_a_source_that_shrinks_while_it_is_read_fails(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", TEXT)
    source = source_of(path)
    path.write_bytes(TEXT[:100])
    with pytest.raises(SourceError, match="ended at byte 100 of 788,894: something is changing it"):
        lines_of(source, 10**9)
    path.unlink()
    with pytest.raises(SourceError, match="is gone since it was listed"):
        lines_of(source, 10**9)


# ---------------------------------------------------------------------------------------------- listing


def test_a_directory_gives_its_sources_in_order_and_names_what_it_ignores(tmp_path: Path) -> None:
    for name in [
        "b.jsonl",
        "a/z.jsonl.gz",
        "a/y.json.zst",
        "c.NDJSON",
        "_SUCCESS",
        ".hidden.jsonl",
        "_tmp/x.jsonl",
        "n.txt",
    ]:
        write(tmp_path / name, b"")
    listing = find_sources([str(tmp_path)])
    names = [str(Path(source.uri).relative_to(tmp_path)) for source in listing.sources]
    assert names == ["b.jsonl", "c.NDJSON", "a/y.json.zst", "a/z.jsonl.gz"]
    assert listing.ignored == {str(tmp_path / "n.txt"): "no source by its name"}


def test_patterns_and_names_are_taken_in_the_order_given_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ["b1.jsonl", "b2.jsonl", "a.jsonl", "w[1].jsonl"]:
        write(tmp_path / name, b"")
    monkeypatch.chdir(tmp_path)
    found = list_sources(["b*.jsonl", "a.jsonl", f"file://{tmp_path}/b1.jsonl", "w[1].jsonl", str(tmp_path)])
    assert [source.uri for source in found] == [
        str(tmp_path / name) for name in ["b1.jsonl", "b2.jsonl", "a.jsonl", "w[1].jsonl"]
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", "none.jsonl: no such file or directory"),
        ("*.jsonl", r"pattern matches no files; expected JSON Lines \(\.jsonl"),
        ("empty", "empty: directory holds no files; expected JSON Lines"),
        ("other", "other: directory holds 1 file, none of them a source; expected JSON Lines"),
        ("other/a.txt", "other/a.txt: unknown kind of file; expected JSON Lines"),
        ("ftp://host/a.jsonl", "unknown scheme ftp://"),
    ],
)
def test_what_is_no_source_is_named_with_what_was_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "other/a.txt", b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=message):
        list_sources([name])


def test_all_missing_sources_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"one\.jsonl(.|\n)*two\.jsonl"):
        list_sources([str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")])
    with pytest.raises(SourceError, match="no source was named"):
        list_sources([])


def tag_of(path: Path) -> str:
    source = source_of(path)
    return content_hash([hash_block(source, *bounds)[0] for bounds in checksum_blocks(source)])


def test_the_tag_of_a_file_follows_its_content_and_not_its_times(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", TEXT)
    tag = tag_of(path)
    assert tag == f"sha256:{hashlib.sha256(TEXT).hexdigest()}"
    os.utime(path, (1, 1))
    assert tag_of(path) == tag
    other = write(tmp_path / "b.jsonl", TEXT[::-1])
    os.utime(other, (1, 1))
    shutil.copy2(other, path)
    assert tag_of(path) != tag


def test_blocks_that_are_hashed_apart_make_one_tag_and_count_the_lines(tmp_path: Path) -> None:
    source = source_of(write(tmp_path / "a.jsonl", TEXT))
    blocks = [TEXT[start : start + 50] for start in range(0, len(TEXT), 50)]
    assert len(blocks) > 2
    assert checksum_blocks(source, 50) == plan_byte_ranges(source, 50)
    hashed = [hash_block(source, *bounds) for bounds in checksum_blocks(source, 50)]
    digests = b"".join(hashlib.sha256(block).digest() for block in blocks)
    assert content_hash([digest for digest, _ in hashed]) == f"sha256-64m:{hashlib.sha256(digests).hexdigest()}"
    known = known_newlines(with_checksum(source, "tag", [count for _, count in hashed]), 50, 50)
    assert known == tuple(block.count(b"\n") for block in blocks)
    assert known_newlines(with_checksum(source, "tag", [1]), 51, 50) is None


# ------------------------------------------------------------------------------------------------ parts


def parts_of(path: Path, table: Path, split_bytes: int) -> list[IngestShard]:
    config = IngestConfig(split_bytes=split_bytes)
    units = units_of(source_of(path), split_bytes)
    target = Table(str(table), "annotations")
    return [part for index, unit in enumerate(units) for part in write_shards(index, unit, target, config)]


def records(count: int) -> bytes:
    record = b'{"id":"%d","prompt":"q","completions":[{"text":"x"},{"text":"y"}],"ranks":[1,%d]}\n'
    return b"".join(record % (number, number % 3) for number in range(1, count + 1))


@pytest.mark.parametrize("split_bytes", [1024, 5000, 10**6])
def test_parts_hold_every_line_once_whatever_the_range(tmp_path: Path, split_bytes: int) -> None:
    content = b"\n" + records(300) + b"  "
    parts = parts_of(write(tmp_path / "a.jsonl", content), tmp_path / "table", split_bytes)
    table = Table(str(tmp_path / "table"), "annotations")
    rows = [row for part in parts if part.data for row in table.read_file(part.data).to_pylist()]
    refused = [one for part in parts for file in part.quarantined_files for one in table.read_quarantined(file)]
    assert [(row["id"], row["line"]) for row in rows] == [(str(n), n + 1) for n in range(1, 301) if n % 3]
    assert [one.line for one in refused] == [n + 1 for n in range(1, 301) if n % 3 == 0]
    assert {(one.path, one.reason) for one in refused} == {("$.ranks[1]", "expected `int` >= 1 (1 = best), got 0")}
    assert sum(part.lines for part in parts) == 302
    assert sum(part.accepted for part in parts) == len(rows) == 200
    assert sum(part.refused for part in parts) == len(refused) == 100
    assert sum(part.completions for part in parts) == 400


def test_a_stream_becomes_several_files_and_a_truncated_one_ends_in_an_error(tmp_path: Path) -> None:
    packed = gzip.compress(records(60_000))
    whole = parts_of(write(tmp_path / "a.jsonl.gz", packed), tmp_path / "table", 1_000_000)
    assert len([part for part in whole if part.data]) > 1
    assert [part.index for part in whole] == list(range(len(whole)))
    assert not any(part.error for part in whole)
    cut = parts_of(write(tmp_path / "b.jsonl.gz", packed[:-9]), tmp_path / "table", 1_000_000)
    assert "not a whole gzip file" in (cut[-1].error or "")
    assert (cut[-1].data, cut[-1].quarantined_files) == (None, [])
