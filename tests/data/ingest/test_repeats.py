"""Who repeats whom, held to a loop over records; and what counts as the same annotation."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annotation_tables import annotation_row, annotations_table
from pairwright.data.id_index.index_files import truncated
from pairwright.data.identity import hash_ids
from pairwright.data.ingest.dedup import Duplicates, RecordLocations, find_duplicates, locations_of
from pairwright.data.table.table import Table

ROW = annotation_row(
    "x",
    ["one", "two", "three"],
    scores=[3.0, 1.0, 1.0],
    annotator="ann",
    subset="facts",
    metadata=[("tool", "a"), ("page", "7")],
    created_at=datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC),
)
OTHERS: dict[str, dict[str, Any]] = {
    "another role": {"prompt": [{"role": "system", "content": "Why is the sky blue?"}]},
    "another spelling of the prompt": {"prompt": [{"role": "user", "content": "Why  is the sky blue?"}]},
    "a turn more": {"prompt": [*ROW["prompt"], {"role": "assistant", "content": ""}]},
    "other texts": {"completions": [completion | {"text": "?"} for completion in ROW["completions"]]},
    "a model": {"completions": [ROW["completions"][0] | {"model": "m"}, *ROW["completions"][1:]]},
    "completions in another order": {"completions": ROW["completions"][::-1]},
    "another completion id": {"completions": [ROW["completions"][0] | {"id": "a"}, *ROW["completions"][1:]]},
    "other ranks": {"ranks": [2, 1, 1]},
    "other scores": {"scores": [4.0, 1.0, 1.0]},
    "no scores": {"scores": None},
    "another annotator": {"annotator": "bob"},
    "nobody's": {"annotator": None},
    "another subset": {"subset": None},
    "other metadata": {"metadata": [("tool", "a"), ("page", "8")]},
    "another time": {"created_at": None},
}
SAMES: dict[str, dict[str, Any]] = {
    "from elsewhere": {"source": "b.jsonl", "line": 99},
    "metadata in another order": {"metadata": [("page", "7"), ("tool", "a")]},
}


def places_in(tmp_path: Path, rows: list[dict[str, Any]]) -> RecordLocations:
    table = Table(str(tmp_path / "t"), "annotations")
    wanted = np.unique(truncated(hash_ids([row["id"] for row in rows])))
    return locations_of(table, table.write_data(annotations_table(rows)), wanted)


def told(repeats: Duplicates) -> list[tuple[int, bool, str]]:
    """Return row, whether it is the same annotation, and the earlier one's place, of each repeat."""
    where = [f"{repeats.sources[code]}:{line}" for code, line in zip(repeats.source_codes, repeats.lines, strict=True)]
    return list(zip(repeats.rows.tolist(), repeats.is_same.tolist(), where, strict=True))


@pytest.mark.parametrize(("change", "is_same"), [*((c, False) for c in OTHERS), *((c, True) for c in SAMES)])
def test_only_a_record_that_says_nothing_new_is_the_same_annotation(
    tmp_path: Path, change: str, *, is_same: bool
) -> None:
    second = ROW | (OTHERS | SAMES)[change]
    assert told(find_duplicates([], [places_in(tmp_path, [ROW, second])])[0]) == [(1, is_same, "file.jsonl:1")]


def test_neighbouring_texts_do_not_run_into_each_other(tmp_path: Path) -> None:
    one = annotation_row("x", ["ab", "c"], [1, 2])
    other = one | {"completions": [{"id": "0", "text": "a", "model": None}, {"id": "1", "text": "bc", "model": None}]}
    assert told(find_duplicates([], [places_in(tmp_path, [one, other])])[0]) == [(1, False, "file.jsonl:1")]


def test_the_first_record_of_an_id_stays_wherever_the_others_stand(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = []
    for file in range(5):
        rows = [
            annotation_row(
                f"id{rng.integers(40)}", ["a", "b"], [1, 2 - int(rng.integers(2))], source=f"{file}.jsonl", line=line
            )
            for line in range(1, 21)
        ]
        files.append(rows)
    expected, first = [], {}
    for rows in files:
        repeated = []
        for number, row in enumerate(rows):
            earlier = first.setdefault(row["id"], row)
            if earlier is not row:
                place = f"{earlier['source']}:{earlier['line']}"
                repeated.append((number, earlier["ranks"] == row["ranks"], place))
        expected.append(repeated)
    # Whatever is found within the table's own files is not this ingestion's to settle: here they hold no repeats.
    places = [places_in(tmp_path, rows) for rows in files]
    assert [told(repeats) for repeats in find_duplicates([], places)] == expected
    assert sum(same for rows in expected for _, same, _ in rows) > 5
    assert sum(not same for rows in expected for _, same, _ in rows) > 5
    assert [told(repeats) for repeats in find_duplicates(places[:2], places[2:])] == expected[2:]


def test_a_file_without_the_wanted_ids_is_not_read_for_its_content(tmp_path: Path) -> None:
    table = Table(str(tmp_path / "t"), "annotations")
    file = table.write_data(annotations_table([ROW]))
    assert len(locations_of(table, file, np.array([1], "<u8")).rows) == 0
    assert find_duplicates([], [RecordLocations([], b"")])[0].rows.tolist() == []
