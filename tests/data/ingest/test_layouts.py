"""Layouts of sources: whatever a record is kept in, its JSON, its number and its neighbours stay what they were."""

import csv
import datetime
import decimal
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from annotation_tables import manifest
from pairwright.config import SourceLimits
from pairwright.data.ingest.decoders.arrow_rows import encode_rows
from pairwright.data.ingest.decoders.json_array import lines_of_array
from pairwright.data.ingest.sources import source_bytes as blocks
from pairwright.data.ingest.sources.listing import REGISTRY, find_sources, list_sources
from pairwright.data.ingest.sources.source import SourceRef
from pairwright.data.ingest.sources.splits import (
    Chunk,
    InputSplit,
    count_lines,
    fetch_lines,
    number_splits,
    plan_byte_ranges,
    read_chunks,
)
from pairwright.errors import SourceError

DATA = Path(__file__).parents[3].parent / "shared/data"
RECORDS = [
    {
        "id": f"r{number}",
        "prompt": f'a "quoted", [bracketed] {{question}}\\ of {number}',
        "completions": [{"text": "one\ntwo, three", "model": "m"}, {"text": '}\\"],[', "model": None}],
        "ranks": [1, number],
    }
    for number in range(1, 301)
]


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def units_of(source: SourceRef, split_bytes: int) -> list[InputSplit]:
    ranges = plan_byte_ranges(source, split_bytes)
    return number_splits(source, ranges, [count_lines(source, *bounds) for bounds in ranges[:-1]])


def chunks_of(path: Path, split_bytes: int = 10**9) -> list[Chunk]:
    source = list_sources([str(path)])[0]
    return [chunk for unit in units_of(source, split_bytes) for chunk in read_chunks(unit)]


def numbered(found: list[Chunk]) -> list[tuple[int, bytes]]:
    """Return every line with its number; a chunk that is a problem as its reason."""
    every: list[tuple[int, bytes]] = []
    for chunk in found:
        texts = [chunk.problem.encode()] if chunk.problem else chunk.text.removesuffix(b"\n").split(b"\n")
        assert len(texts) == chunk.num_lines
        every += enumerate(texts, start=chunk.first_line)
    return every


def records_of(path: Path, split_bytes: int = 10**9) -> list[Any]:
    found = numbered(chunks_of(path, split_bytes))
    assert [number for number, _ in found] == list(range(1, len(found) + 1))
    return [json.loads(text) for _, text in found]


# ---------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["json", "json.gz", "json.zst"])
@pytest.mark.parametrize("indent", [None, 2])
def test_the_items_of_an_array_are_its_records(
    tmp_path: Path, pack: Callable[[bytes], bytes], indent: int | None
) -> None:
    ending = {bytes: "", gzip.compress: ".gz"}.get(pack, ".zst")
    content = b"\xef\xbb\xbf \r\n" + json.dumps(RECORDS, indent=indent).encode() + b"\r\n "
    assert records_of(write(tmp_path / f"a.json{ending}", pack(content)), 1000) == RECORDS


def test_the_real_array_has_three_hundred_records() -> None:
    path = DATA / "pairs_sharegpt_demo.json"
    if not path.exists():
        pytest.skip(f"{path.name} is not here: shared/data is handed out with the project, not in it")
    assert records_of(path) == json.loads(path.read_text())
    assert len(records_of(path)) == 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab\\"[]{},\n\té\u2028', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='a"\\[', max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=300)
@given(items=st.lists(JSON, max_size=6), size=st.integers(1, 30), indent=st.sampled_from([None, 1]))
def test_an_array_gives_the_same_items_however_its_blocks_are_cut(
    items: list[Any], size: int, indent: int | None
) -> None:
    content = b" " + json.dumps(items, indent=indent, ensure_ascii=False).encode() + b"\n"
    parts = [content[start : start + size] for start in range(0, len(content), size)]
    text = b"".join(lines_of_array("a.json", iter(parts)))
    assert [json.loads(line) for line in text.split(b"\n") if line.strip()] == items


@pytest.mark.parametrize(("content", "num_lines"), [(b"[]", 0), (b" [ \n ] ", 0), (b"[1,\n2,\n]", 2), (b"[1,,2]", 3)])
def test_empty_arrays_have_no_records_and_a_comma_too_many_is_none(
    tmp_path: Path, content: bytes, num_lines: int
) -> None:
    assert sum(chunk.num_lines for chunk in chunks_of(write(tmp_path / "a.json", content))) == num_lines


def test_a_bad_item_stays_bad_and_alone(tmp_path: Path) -> None:
    content = b'[{"a": 1}, {"a": NaN}, {"a": "line\nend"}, {"a": \xff}, {"a" 1}, {\n"a":\n2\n}]'
    found = [text.strip() for _, text in numbered(chunks_of(write(tmp_path / "a.json", content)))]
    assert found == [b'{"a": 1}', b'{"a": NaN}', b'{"a": "line\tend"}', b'{"a": \xff}', b'{"a" 1}', b'{\t"a":\t2\t}']
    with pytest.raises(json.JSONDecodeError):
        json.loads(found[2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2", "the JSON array does not end: item 2 is not closed"),
        (b'[{"a": 1}, {"a": [2}, {"a": 3}]', "the JSON array does not end: item 2 is not closed"),
        (b'[1, "2]', "the JSON array does not end: item 2 is not closed"),
        (b"[1, 2]\n[3]", "the JSON array ends at byte 7, but more follows"),
    ],
)
def test_an_array_that_is_cut_off_or_goes_on_fails_and_says_where(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        chunks_of(write(tmp_path / "a.json", content))


def test_an_item_beyond_all_bounds_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "READ_BYTES", 16)
    path = write(tmp_path / "a.json", b'[1, "' + b"x" * 70_000 + b'", 3]')
    [source] = list_sources([str(path)], SourceLimits(max_record_bytes=100))
    [unit] = units_of(source, 10**9)
    found = numbered(list(read_chunks(unit)))
    assert [number for number, _ in found] == [1, 2, 3]
    assert found[0][1] == b"1"
    assert found[1][1].startswith(b"expected a record of at most 100 bytes, got 70,0")
    assert found[2][1] == b" 3"


def test_an_array_named_json_lines_is_told_its_name(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"is one JSON array, expected one record a line; name it \.json"):
        chunks_of(write(tmp_path / "a.jsonl", b"[{}]"))


def test_a_large_json_file_of_lines_is_still_cut_into_ranges(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS))
    assert len(units_of(list_sources([str(path)])[0], 5000)) > 5
    assert records_of(path, 5000) == RECORDS


# ---------------------------------------------------------------------------------------------- tables


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def arrow_file(table: pa.Table, path: Path, rows: int) -> None:
    with pa.ipc.new_file(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table, max_chunksize=rows)


def arrow_stream(table: pa.Table, path: Path, rows: int) -> None:
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


WRITERS: dict[str, Callable[[pa.Table, Path, int], None]] = {
    "a.parquet": lambda table, path, rows: pq.write_table(table, path, row_group_size=rows),
    "a.arrow": arrow_file,
    "a.ipc": arrow_stream,
    "a.feather": lambda table, path, rows: pyarrow.feather.write_feather(table, str(path), chunksize=rows),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("split_bytes", [500, 4000, 10**9])
def test_rows_of_a_table_are_records_with_their_numbers_whatever_the_range(
    tmp_path: Path, name: str, split_bytes: int
) -> None:
    WRITERS[name](pa.Table.from_pylist(RECORDS), tmp_path / name, 17)
    assert records_of(tmp_path / name, split_bytes) == without_nulls(RECORDS)
    source = list_sources([str(tmp_path / name)])[0]
    unit = units_of(source, split_bytes)[0]
    assert json.loads(fetch_lines(unit, [3])[3]) == without_nulls(RECORDS[2])


def test_a_large_table_is_read_by_several_ranges(tmp_path: Path) -> None:
    WRITERS["a.parquet"](pa.Table.from_pylist(RECORDS), tmp_path / "a.parquet", 30)
    units = units_of(list_sources([str(tmp_path / "a.parquet")])[0], 2000)
    owned = [[chunk.first_line for chunk in read_chunks(unit)] for unit in units]
    assert sum(1 for lines in owned if lines) > 3
    assert sorted(line for lines in owned for line in lines)[:3] == [1, 31, 61]


def test_every_kind_of_column_has_its_json() -> None:
    when = datetime.datetime(2026, 3, 1, 12, 30, tzinfo=datetime.UTC)
    columns: dict[str, tuple[pa.DataType, Any, Any]] = {
        "text": (pa.large_string(), "é\n", "é\n"),
        "view": (pa.string_view(), "v", "v"),
        "category": (pa.dictionary(pa.int8(), pa.string()), "c", "c"),
        "bytes": (pa.binary(), "é".encode(), "é"),
        "noise": (pa.binary(), b"\xff", "/w=="),
        "whole": (pa.decimal128(20, 2), decimal.Decimal("7.00"), 7),
        "half": (pa.decimal128(20, 2), decimal.Decimal("7.50"), 7.5),
        "when": (pa.timestamp("ns", "UTC"), when, "2026-03-01T12:30:00Z"),
        "day": (pa.date32(), datetime.date(2026, 3, 1), "2026-03-01"),
        "map": (pa.map_(pa.string(), pa.string()), {"a": "1", "b": None}, {"a": "1", "b": None}),
        "fixed": (pa.list_(pa.int8(), 2), [1, 2], [1, 2]),
        "holes": (pa.list_(pa.float32()), [1.5, None], [1.5, None]),
        "struct": (pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]), {"a": None, "b": ["x"]}, {"b": ["x"]}),
        "float": (pa.float16(), np.float16(0.5), 0.5),
        "none": (pa.string(), None, None),
        "flag": (pa.bool_(), True, True),
    }
    arrays = [pa.array([value, None, value], kind) for kind, value, _ in columns.values()]
    batch = pa.record_batch(arrays, names=list(columns))
    expected = {name: wanted for name, (_, _, wanted) in columns.items() if wanted is not None}
    for piece, wanted in [(batch, [expected, {}, expected]), (batch.slice(2, 1), [expected]), (batch.slice(0, 0), [])]:
        assert [json.loads(line) for line in encode_rows(piece).splitlines()] == wanted


def test_text_of_a_table_that_is_no_unicode_keeps_its_bytes() -> None:
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a\xff", b"b"], pa.binary()).buffers())
    lines = encode_rows(pa.record_batch([bad, pa.array(["x", "y"])], names=["t", "u"])).splitlines()
    assert lines[1] == b'{"t":"b","u":"y"}'
    assert json.loads(lines[0].replace(b"\xff", b"?")) == {"t": "a?", "u": "x"}
    assert b"\xff" in lines[0]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather", "a.ipc"])
@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_a_table_that_is_cut_off_or_none_fails_and_says_so(tmp_path: Path, name: str, keep: float) -> None:
    WRITERS[name](pa.Table.from_pylist(RECORDS), tmp_path / name, 17)
    whole = (tmp_path / name).read_bytes()
    write(tmp_path / name, whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    with pytest.raises(SourceError, match=f"{name}: not a whole (Parquet|Arrow) file: .*; copy it again"):
        chunks_of(tmp_path / name)


# ------------------------------------------------------------------------------------------------- CSV


def table_text(rows: list[list[str]], delimiter: str) -> bytes:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue().encode()


ROWS = [
    ["id", "prompt", "completions", "ranks", "subset"],
    *(
        [r["id"], f"line\n{r['prompt']}\r\n,;\t", json.dumps(r["completions"]), json.dumps(r["ranks"]), ""]
        for r in RECORDS
    ),
]


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_rows_of_csv_are_records_of_text(
    tmp_path: Path, name: str, delimiter: str, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "READ_BYTES", 5000)
    packed = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[ending](
        b"\xef\xbb\xbf" + table_text(ROWS, delimiter)
    )
    expected = [record | {"prompt": f"line\n{record['prompt']}\r\n,;\t"} for record in RECORDS]
    cells = [
        {key: text if isinstance(text, str) else json.dumps(text) for key, text in one.items()} for one in expected
    ]
    assert records_of(write(tmp_path / f"{name}{ending}", packed), 1000) == cells


def test_cells_are_text_whatever_they_hold(tmp_path: Path) -> None:
    content = b'a,b,c,d\n007,[INST] no,"{""x"": [1.5]}",\n'
    assert records_of(write(tmp_path / "a.csv", content)) == [{"a": "007", "b": "[INST] no", "c": '{"x": [1.5]}'}]


def test_a_bad_row_is_refused_alone_with_its_number(tmp_path: Path) -> None:
    content = b'a,b\n1,"x\ny"\n2\n\n3,"z"z\n4,\xff\n5,w,v\n6,u'
    found = chunks_of(write(tmp_path / "a.csv", content))
    assert [(c.first_line, c.problem, c.text) for c in found] == [
        (1, "", b'{"a":"1","b":"x\\ny"}\n'),
        (2, "expected one cell a column, got 1 for 2 columns", b"2"),
        (3, "", b"\n"),
        (4, "expected a row of cells, got ',' expected after '\"'", b'3,"z"z'),
        (5, "", b'{"a": "4", "b": "\xff"}\n'),
        (6, "expected one cell a column, got 3 for 2 columns", b"5,w,v"),
        (7, "", b'{"a":"6","b":"u"}\n'),
    ]
    unit = units_of(list_sources([str(tmp_path / "a.csv")])[0], 10**9)[0]
    assert fetch_lines(unit, [2, 7]) == {2: b"2", 7: b'{"a":"6","b":"u"}'}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'a,b\n1,2\n3,"4\n5,6\n', 'a quote that opens in row 2 does not close; write a quote within a cell as ""'),
        (b"a,a\n1,2\n", "expected a first row that names each column once, got `a` twice"),
        (b"a,,b\n1,2,3\n", "expected a first row that names each column once, got a column without a name"),
        (b"\x1f\x8b\x08", "starts like a gzip file; name it .gz"),
    ],
)
def test_csv_that_cannot_be_read_fails_with_the_remedy(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=f"a.csv: {message}"):
        chunks_of(write(tmp_path / "a.csv", content))


def test_csv_without_rows_has_no_records(tmp_path: Path) -> None:
    assert chunks_of(write(tmp_path / "a.csv", b"")) == []
    assert chunks_of(write(tmp_path / "b.csv", b"a,b\n")) == []


# --------------------------------------------------------------------------------------------- listing


def test_a_directory_gives_sources_of_every_layout_and_no_files_of_a_table_of_ours(tmp_path: Path) -> None:
    names = ["a.arrow", "a.csv.gz", "a.feather", "a.json", "a.jsonl", "a.parquet", "a.tsv", "sub/b.parquet"]
    ours = ["t/data/x.arrow", "t/quarantine/x.jsonl", "t/versions/00000001.json"]
    for name in [*names, *ours, "a.parquet.gz", "notes.txt"]:
        write(tmp_path / name, b"")
    write(tmp_path / ours[-1], msgspec.json.encode(manifest(kind="pairs", version=1)))
    listing = find_sources([str(tmp_path)])
    assert [str(Path(source.uri).relative_to(tmp_path)) for source in listing.sources] == names
    ignored = [str(Path(path).relative_to(tmp_path)) for path in listing.ignored]
    assert sorted(ignored) == sorted(["a.parquet.gz", "notes.txt", *ours])


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("_delta_log/00000000000000000000.json", "d: is a Delta table, .* name it as delta[+]file:///.*/d$"),
        ("metadata/00000-x.metadata.json", "d: is an Iceberg table, .* name it as iceberg://"),
        ("dataset_info.json", "d: is a saved Hugging Face dataset; name it as hf[+]file:///.*/d$"),
    ],
)
def test_a_directory_that_holds_another_systems_table_is_told_its_name(tmp_path: Path, mark: str, message: str) -> None:
    write(tmp_path / "d" / mark, b"{}")
    write(tmp_path / "d/part-0.parquet", b"")
    with pytest.raises(SourceError, match=message):
        find_sources([str(tmp_path)])


@pytest.mark.parametrize("name", ["{}", "{}/*.json"], ids=["directory", "pattern"])
def test_a_dataset_info_of_another_tool_is_passed_over_and_the_data_beside_it_are_sources(
    tmp_path: Path, name: str
) -> None:
    """LLaMA-Factory calls its registry so."""
    registry = {"dpo_demo": {"file_name": "dpo_demo.json", "ranking": True, "formatting": "sharegpt"}}
    write(tmp_path / "dataset_info.json", msgspec.json.encode(registry))
    write(tmp_path / "dpo_demo.json", b"[]")
    listing = find_sources([name.format(tmp_path)])
    assert [Path(source.uri).name for source in listing.sources] == ["dpo_demo.json"]
    assert listing.ignored == {str(tmp_path / "dataset_info.json"): REGISTRY}


def test_a_dataset_that_datasets_saved_is_told_its_name(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"prompt": ["Why?"]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(SourceError, match=r"saved: is a saved Hugging Face dataset; name it as hf\+file://"):
        find_sources([str(tmp_path)])
