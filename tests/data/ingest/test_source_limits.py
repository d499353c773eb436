"""What a source may cost: small sources that unpack to gigabytes are refused by name, and their neighbours go in."""

import contextlib
import gzip
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import zstandard

from pairwright.config import IngestConfig, SourceLimits
from pairwright.data.ingest.decoders import parquet_pages
from pairwright.data.ingest.decoders.arrow_rows import values_of
from pairwright.data.ingest.decoders.row_sizes import row_bytes
from pairwright.data.ingest.shards import MAX_REASONS, OTHER_REASONS, IngestShard, most_common, write_shards
from pairwright.data.ingest.sources.listing import list_sources
from pairwright.data.ingest.sources.splits import count_lines, number_splits, plan_byte_ranges, read_chunks
from pairwright.data.table.table import Table
from pairwright.errors import SourceError

GOOD = {"id": "1", "prompt": "p", "completions": [{"text": "a"}, {"text": "b"}], "ranks": [1, 2]}
MEGABYTE = "x" * 1_000_000


def line(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode() + b"\n"


def parts_of(path: Path, format: str = "auto", **limits: Any) -> list[IngestShard]:  # noqa: A002 - the key's name
    """Return what a source becomes, as a task of an ingestion makes it."""
    config = IngestConfig.model_validate({"limits": limits, "format": format})
    [source] = list_sources([str(path)], config.limits)
    ranges = plan_byte_ranges(source, config.split_bytes)
    units = number_splits(source, ranges, [count_lines(source, *bounds) for bounds in ranges[:-1]])
    table = Table(str(path.parent / "table"), "annotations")
    return [part for index, unit in enumerate(units) for part in write_shards(index, unit, table, config)]


def failure(path: Path, **limits: Any) -> str:
    """Return why a source fails; nothing of it is kept."""
    last = parts_of(path, **limits)[-1]
    assert last.data is None
    assert last.error is not None
    return last.error


def records_of(path: Path, **limits: Any) -> list[Any]:
    """Return the records of a source, and the reason for each that is none."""
    [source] = list_sources([str(path)], SourceLimits(**limits))
    [unit] = number_splits(source, [(0, source.size)], [])
    found: list[Any] = []
    for chunk in read_chunks(unit):
        assert chunk.first_line == len(found) + 1
        found += [chunk.problem] if chunk.problem else list(map(json.loads, chunk.text.splitlines()))
    return found


def write_arrow(path: Path, table: pa.Table, *, stream: bool = False, compression: str | None = "zstd") -> Path:
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(path, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return path


# ------------------------------------------------------------------------------------------------ memory


def test_sources_of_some_kilobytes_take_no_gigabyte(tmp_path: Path) -> None:
    # Without the limits the first three took over 3, 4 and 6 GB, the fourth 2.1 GB and the last a day.
    (tmp_path / "refused.jsonl.gz").write_bytes(gzip.compress(b"1\n" * 4_000_000))
    write_arrow(tmp_path / "text.arrow", pa.table({"prompt": ["x" * 300_000_000]}))
    indices = pa.array([0] * 4096, pa.int16())
    pq.write_table(
        pa.table({"prompt": pa.DictionaryArray.from_arrays(indices, pa.array([MEGABYTE]))}), tmp_path / "d.parquet"
    )
    (tmp_path / "commas.csv.gz").write_bytes(gzip.compress(b"a,b\n" + b"," * 100_000_000))
    (tmp_path / "header.csv").write_text(",".join(f"c{number}" for number in range(40_000)))
    (tmp_path / "good.jsonl").write_bytes(line())
    program = (
        "import re, sys\n"
        "from pairwright.data.ingest.ingest import ingest\n"
        "from pairwright.config import IngestConfig\n"
        "summary = ingest([sys.argv[1]], sys.argv[2], IngestConfig())\n"
        "print(len(summary.failed), re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(tmp_path / "t")], check=True, capture_output=True, text=True
    )
    num_failed, peak = map(int, done.stdout.split())
    assert num_failed == 5
    assert peak < 800_000


# ------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl.gz", gzip.compress), ("a.json.zst", zstandard.compress)])
def test_text_that_is_out_of_proportion_to_its_bytes_fails_and_names_the_key(
    tmp_path: Path, name: str, pack: Any
) -> None:
    path = tmp_path / name
    path.write_bytes(pack(b"\n" * 18_000_000))
    assert "set limits.max_text_ratio" in failure(path)
    assert parts_of(path, max_text_ratio=10**6)[-1].error is None


def test_a_source_that_is_mostly_refused_fails_and_one_that_is_partly_does_not(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n" * 101)
    reason = failure(path, max_refused_records=100)
    assert "more than 100 of its records are refused" in reason
    assert "a.jsonl:1: expected `object`, got `int`" in reason
    assert parts_of(path, max_refused_records=101)[0].refused == 101
    path.write_bytes(b"".join(line(id=str(number)) for number in range(200)) + b"1\n" * 150)
    [part] = parts_of(path, max_refused_records=100)
    assert (part.accepted, part.refused, part.error) == (200, 150, None)


def test_refusals_go_to_files_of_their_own_long_before_a_range_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pairwright.data.ingest.shards.MAX_REFUSED_BYTES", 1_000_000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n" * 20_000)
    parts = parts_of(path)
    assert len(parts) == 3
    assert [part.index for part in parts] == [0, 1, 2]
    assert sum(part.refused for part in parts) == sum(part.lines for part in parts) == 20_000
    table = Table(str(tmp_path / "table"), "annotations")
    numbers = [one.line for part in parts for file in part.quarantined_files for one in table.read_quarantined(file)]
    assert numbers == list(range(1, 20_001))


def test_a_reason_of_its_own_for_each_record_is_counted_with_the_others() -> None:
    reasons = Counter({f"reason {number}": 1 for number in range(1000)} | {"frequent": 7})
    counted = most_common(reasons)
    assert len(counted) == MAX_REASONS + 1
    assert counted["frequent"] == 7
    assert counted[OTHER_REASONS] == 1000 - (MAX_REASONS - 1)
    assert sum(counted.values()) == 1007
    assert most_common(Counter({"a": 2})) == {"a": 2}


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_a_record_that_is_too_long_is_refused_alone(tmp_path: Path, ending: str) -> None:
    long = line(id="2", prompt="x" * 5000)
    path = tmp_path / f"a.{ending}"
    if ending == "csv":
        cells = '"[{""text"": ""a""}, {""text"": ""b""}]","[1, 2]"\n'
        path.write_text(f"id,prompt,completions,ranks\n1,p,{cells}2,{'x' * 5000},{cells}3,p,{cells}")
    elif ending == "json":
        path.write_bytes(b"[" + b",".join([line(), long, line(id="3")]) + b"]")
    else:
        path.write_bytes(line() + long + line(id="3"))
    [part] = parts_of(path, max_record_bytes=2000)
    assert (part.lines, part.accepted, part.refused, part.error) == (3, 2, 1, None)
    assert part.shown[0].line == 2
    assert part.shown[0].reason.startswith("expected a record of at most 2,000 bytes, got 5,")
    assert part.shown[0].reason.endswith("set limits.max_record_bytes to take longer ones")


# -------------------------------------------------------------------------------------------------- CSV


def test_a_header_of_too_many_columns_fails_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(",".join(f"c{number}" for number in range(11)) + "\n")
    assert "has 11 columns, expected at most 10; leave out what is not needed" in failure(path, max_columns=10)


@pytest.mark.parametrize("cells", ['"a,\n' + "b\n" * 5000, "x" * 3000 + '"' + "\n1,2\n", '1,"\n' + "x" * 3000 + '"\n'])
def test_a_quote_that_does_not_close_within_a_record_fails(tmp_path: Path, cells: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + cells)
    assert "a quote that opens in row 1 does not close" in failure(path, max_record_bytes=2000)


def test_a_cell_of_any_depth_is_a_cell(tmp_path: Path) -> None:
    # A depth that can be decoded and not be encoded again, one in a thousand, ended in a RecursionError.
    depths = [1, 400, *range(900, 1010), 20_000]
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "".join(f'{depth},"{"[" * depth}{"]" * depth}"\n' for depth in depths))
    found = [json.loads(one["a"]) for one in records_without_depth(path)]
    assert found == depths


def records_without_depth(path: Path) -> list[Any]:
    [source] = list_sources([str(path)])
    [unit] = number_splits(source, [(0, source.size)], [])
    lines = b"".join(chunk.text for chunk in read_chunks(unit)).splitlines()
    return [json.loads(one.partition(b',"b"')[0] + b"}") for one in lines]


def test_names_of_columns_count_as_text_of_each_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x" * 900 + "\n" + "1\n" * 100_000)
    assert "limits.max_text_ratio" in (parts_of(path, format="native")[-1].error or "")


# ------------------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_row_that_is_too_long_is_refused_alone_with_what_is_short_of_it(tmp_path: Path, ending: str) -> None:
    table = pa.table({"id": ["a", "b", "c"], "prompt": ["p", "x" * 100_000, "p"]})
    path = tmp_path / f"a.{ending}"
    pq.write_table(table, path) if ending == "parquet" else write_arrow(path, table)
    first, problem, last = records_of(path, max_record_bytes=5000)
    assert (first["id"], last["id"]) == ("a", "c")
    assert problem.startswith("expected a record of at most 5,000 bytes, got 100,0")


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_table_of_too_many_columns_fails_by_name(tmp_path: Path, ending: str) -> None:
    inner = pa.StructArray.from_arrays([pa.array([1])] * 8, names=[f"n{number}" for number in range(8)])
    table = pa.table({"a": [1], "b": [2], "c": [3], "d": inner})
    path = tmp_path / f"a.{ending}"
    pq.write_table(table, path) if ending == "parquet" else write_arrow(path, table)
    with pytest.raises(SourceError, match=r"has 11 columns, expected at most 10; .* limits\.max_columns"):
        records_of(path, max_columns=10)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_batch_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(
    tmp_path: Path, compression: str, stream: bool
) -> None:
    texts = [f"{number} " * 100 for number in range(2000)] * 100
    path = write_arrow(tmp_path / "a.arrow", pa.table({"a": texts}), stream=stream, compression=compression)
    with pytest.raises(SourceError, match=r"a record batch unpacks to .* bytes, expected at most 30,000,000"):
        records_of(path, max_batch_bytes=30_000_000, max_text_ratio=10**6)
    with pytest.raises(SourceError, match=r"bytes of record batches or more, expected at most 2 times as many"):
        records_of(path, max_text_ratio=2)
    assert len(records_of(path, max_text_ratio=10**6)) == len(texts)


def test_dictionaries_of_a_table_count_once_a_row_and_are_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_pages, "DENSE_BYTES", 100_000)
    values = [f"{number}" * 300 for number in range(40)]
    prompts = [values[number % 40] for number in range(3000)]
    lists = [[values[number % 7], f"own {number}"] for number in range(3000)]
    table = pa.table({"id": [str(number) for number in range(3000)], "prompt": prompts, "texts": lists})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1100, compression="gzip")
    assert records_of(tmp_path / "a.parquet") == table.to_pylist()


def test_a_dictionary_that_makes_too_much_text_fails_by_name(tmp_path: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 5000 + [1] * 1000, pa.int16()), pa.array(["y", MEGABYTE]))
    pq.write_table(pa.table({"a": texts}), tmp_path / "a.parquet", compression="zstd")
    write_arrow(tmp_path / "a.arrow", pa.table({"a": texts}))
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(SourceError, match=r"bytes of text or more, .* set limits\.max_text_ratio"):
            records_of(tmp_path / name)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "zstd", "snappy"])
def test_text_that_is_written_as_what_follows_the_text_before_is_counted_whole(
    tmp_path: Path, compression: str, version: Any
) -> None:
    # 468 bytes were 400 MB.
    def write(texts: list[Any], column: str) -> Path:
        encodings: Any = {column: "DELTA_BYTE_ARRAY"}
        options: dict[str, Any] = {"compression": compression, "data_page_version": version, "data_page_size": 20_000}
        table = pa.table({"a": texts})
        pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, column_encoding=encodings, **options)
        return tmp_path / "a.parquet"

    texts = [f"beginning {number // 7} end {number * number}" for number in range(3000)]
    rows: list[Any] = [*texts, None, ""]
    for column, values in (("a", rows), ("a.list.element", [None if row is None else [row, row] for row in rows])):
        found = records_of(write(values, column))
        assert found == [{} if value is None else {"a": value} for value in values]
    with pytest.raises(SourceError, match=r"bytes of Parquet pages or more, .* limits\.max_text_ratio"):
        records_of(write(["x" * 200_000] * 300, "a"))


def test_a_footer_that_says_less_than_the_pages_hold_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": ["x" * 20_000_000]}), path, compression="zstd", use_dictionary=False)
    group = pq.ParquetFile(path).metadata.row_group(0)
    content = path.read_bytes()
    for size in {group.column(0).total_uncompressed_size, group.total_byte_size}:
        number = bytearray()
        rest = 2 * size
        while rest:
            number.append(rest & 127 | (128 if rest > 127 else 0))
            rest >>= 7
        assert bytes(number) in content
        content = content.replace(bytes(number), bytes([0xE8, *[0x80] * (len(number) - 2), 0]))  # 52
    path.write_bytes(content)
    assert pq.ParquetFile(path).metadata.row_group(0).total_byte_size == 52
    with pytest.raises(SourceError, match="hold more than the footer says"):
        records_of(path)


def test_no_byte_of_a_parquet_footer_ends_the_process(tmp_path: Path) -> None:
    # Asking pyarrow for a column's metadata ends the process on a codec or a histogram that is damaged.
    table = pa.table({"id": ["a", "b"] * 4, "texts": [["x", "y"]] * 8})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4, store_schema=False)
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pairwright.data.ingest.sources.splits import count_lines, number_splits, read_chunks\n"
        "from pairwright.data.ingest.sources.listing import list_sources\n"
        "from pairwright.errors import SourceError\n"
        "path = Path(sys.argv[1])\n"
        "content = path.read_bytes()\n"
        "for place in range(len(content) - 8 - int.from_bytes(content[-8:-4], 'little'), len(content)):\n"
        "    for change in (2, 16):\n"
        "        spoilt = bytearray(content)\n"
        "        spoilt[place] ^= change\n"
        "        path.write_bytes(spoilt)\n"
        "        try:\n"
        "            [source] = list_sources([str(path)])\n"
        "            num_rows = count_lines(source, 0, source.size)\n"
        "            [unit] = number_splits(source, [(0, source.size)], [])\n"
        "            assert num_rows == sum(chunk.num_lines for chunk in read_chunks(unit))\n"
        "        except SourceError as error:\n"
        "            assert str(error).isprintable()\n"
        "print('all read or refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.parquet")], capture_output=True, text=True, check=False
    )
    assert done.stdout == "all read or refused\n", done.stderr[-2000:]


def test_a_damaged_name_of_a_column_fails_its_source_alone(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["p"] * 3})
    for name in ("a.parquet", "a.arrow"):
        path = tmp_path / name
        pq.write_table(table, path, store_schema=False) if name == "a.parquet" else write_arrow(path, table)
        path.write_bytes(path.read_bytes().replace(b"prompt", b"prom\xe9t"))
        with pytest.raises(SourceError, match=r"not a whole (Parquet|Arrow) file: .*codec can't decode"):
            records_of(path)


LISTS = [["a", "bb"], None, [], ["x" * 1000]]


@pytest.mark.parametrize(
    ("array", "longest"),
    [
        (pa.array(["a", None, "x" * 1000]), 1000),
        (pa.array(["a", None, "x" * 1000], pa.large_string()), 1000),
        (pa.array(["a", None, "x" * 1000], pa.string_view()), 1000),
        (pa.array(["a", None, "x" * 1000]).dictionary_encode(), 1000),
        (pc.call_function("run_end_encode", [pa.array(["a", "x" * 1000, "x" * 1000])]), 1000),
        (pa.array(LISTS), 1000),
        (pa.array(LISTS, pa.large_list(pa.string())), 1000),
        (pa.array(LISTS, pa.list_view(pa.string())), 1000),
        (pa.array([["a", "b"], ["c", "x" * 1000]], pa.list_(pa.string(), 2)), 1000),
        (pa.array([{"t": "a"}, None, {"t": "x" * 1000}]), 1000),
        (pa.array([[("k", "v")], None, [("k", "x" * 1000)]], pa.map_(pa.string(), pa.string())), 1000),
    ],
    ids=lambda value: str(value.type)[:30] if isinstance(value, pa.Array) else "",
)
def test_the_size_of_a_row_is_known_before_it_is_decoded(array: pa.Array, longest: int) -> None:
    for piece in (array, array.slice(1)):
        sizes = row_bytes(piece)
        assert sizes.shape == (len(piece),)
        assert longest <= sizes[-1] < longest + 200
        assert sizes[0] < longest or len(array.slice(1)) == len(piece)


@pytest.mark.parametrize("width", [pa.int32(), pa.int64()])
def test_list_views_keep_their_values_in_any_order_and_more_than_once(width: pa.DataType) -> None:
    # A cast of list views to lists gives empty lists in their place (pyarrow 26.0.1).
    make: Any = pa.ListViewArray if width == pa.int32() else pa.LargeListViewArray
    array = make.from_arrays(pa.array([2, 0, 0, 1], width), pa.array([1, 3, 0, 1], width), pa.array(["a", "b", "c"]))
    assert values_of(array) == [["c"], ["a", "b", "c"], [], ["b"]]
    assert values_of(array.slice(1, 2)) == [["a", "b", "c"], []]
    assert values_of(pa.array(LISTS, pa.list_view(pa.string()))) == LISTS


def test_a_type_that_no_record_has_fails_by_name(tmp_path: Path) -> None:
    union = pa.UnionArray.from_dense(pa.array([0, 0], pa.int8()), pa.array([0, 0], pa.int32()), [pa.array(["x"])])
    with pytest.raises(SourceError, match=r"a column of type dense_union.*, which no record has"):
        records_of(write_arrow(tmp_path / "a.arrow", pa.table({"a": union})))


def test_metadata_of_arrow_that_lie_about_their_lengths_are_damage(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "a.arrow", pa.table({"a": ["x"] * 10}))
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(200):
        spoilt = bytearray(content)
        for place in rng.integers(8, len(content), 3):
            spoilt[place] = rng.choice([0, 0x7F, 0xFF])
        path.write_bytes(spoilt)
        with contextlib.suppress(SourceError):  # and nothing else
            records_of(path)


def test_old_feather_files_are_told_from_damaged_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.feather"
    path.write_bytes(b"FEA1" + bytes(100) + b"FEA1")
    with pytest.raises(SourceError, match="Feather version 1"):
        records_of(path)


def test_a_row_group_of_few_bytes_and_many_values_is_read_in_flat_memory(tmp_path: Path) -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"a": pa.nulls(3_000_000, pa.int8())}), file)
    (tmp_path / "a.parquet").write_bytes(file.getvalue())
    assert "records are refused" in failure(tmp_path / "a.parquet", max_refused_records=1000)
