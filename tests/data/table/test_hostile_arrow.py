"""Arrow files that hold pickled objects under Ray's extension type: never unpickled, in a source or in a table."""

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

from annotation_tables import annotation_row, annotations_table, commit_annotations
from hostile_files import Runs
from pairwright.config import IngestConfig
from pairwright.data.table.table import Table
from pairwright.errors import StoreError
from spoilt_sources import ingested

LIMITS = {"max_completions": 12, "max_characters": 2000}


def pickled(marker: Path, num_rows: int = 2) -> pa.ExtensionArray:
    payload = pickle.dumps(Runs(os.system, f"touch '{marker}'"))
    return ArrowPythonObjectType().wrap_array(pa.array([payload] * num_rows, pa.large_binary()))


WITHIN: dict[str, Callable[[pa.Array], pa.Array]] = {
    "itself": lambda array: array,
    "list": lambda array: pa.ListArray.from_arrays([0, 1, 2], array),
    "fixed list": lambda array: pa.FixedSizeListArray.from_arrays(array, 1),
    "list view": lambda array: pa.ListViewArray.from_arrays([0, 1], [1, 1], array),
    "struct": lambda array: pa.StructArray.from_arrays([array], ["a"]),
    "map": lambda array: pa.MapArray.from_arrays([0, 1, 2], pa.array(["a", "b"]), array),
    "sparse union": lambda array: pa.UnionArray.from_sparse(pa.array([0, 0], pa.int8()), [array]),
    "dense union": lambda array: pa.UnionArray.from_dense(
        pa.array([0, 0], pa.int8()), pa.array([0, 1], pa.int32()), [array]
    ),
    "runs": lambda array: pa.RunEndEncodedArray.from_arrays(pa.array([1, 2], pa.int32()), array),
    "union in a list": lambda array: pa.ListArray.from_arrays([0, 1, 2], WITHIN["dense union"](array)),
}


@pytest.mark.parametrize("within", WITHIN)
def test_a_source_that_holds_pickled_objects_runs_nothing(tmp_path: Path, within: str) -> None:
    marker = tmp_path / "ran"
    rows = pa.table({"prompt": WITHIN[within](pickled(marker))})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    config = IngestConfig.model_validate({"format": "native"} | LIMITS)
    outcome = ingested(tmp_path / "a.arrow", Table(str(tmp_path / "table"), "annotations"), config, LIMITS)
    assert outcome.rows == []
    assert not marker.exists()
    if "union" in within:
        assert "union<" in outcome.errors[0]
        assert "which no record has" in outcome.errors[0]
    if within == "runs":
        assert "no extension type is read out of such" in outcome.errors[0]


def test_a_tables_file_of_other_types_is_refused_though_its_hash_is_right(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    table = Table(str(tmp_path / "table"), "annotations")
    rows = annotations_table([annotation_row("1", ["a", "b"], [1, 2], annotator="x")])
    (file,) = commit_annotations(table.url, [rows]).files
    number = rows.schema.get_field_index("annotator")
    rows = rows.set_column(number, "annotator", pa.chunked_array([pickled(marker, rows.num_rows)]))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    content = sink.getvalue().to_pybytes()
    (tmp_path / "table" / file.path).write_bytes(content)
    changed = msgspec.structs.replace(file, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    for read in (lambda: table.read_file(changed), lambda: table.read_unverified(changed, ["annotator"])):
        with pytest.raises(StoreError, match=r"column 'annotator' is extension<.*>, expected string in annotations"):
            read()
    assert table.read_unverified(changed, ["id"]).num_rows == rows.num_rows
    assert not marker.exists()
