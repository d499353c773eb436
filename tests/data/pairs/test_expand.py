"""Expansion on Ray: the same pairs whatever the files, one version for one piece of work, errors that name the file."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from annotation_tables import annotation_row, annotations_table, commit_annotations, real_rows
from brute_force import expand_by_hand
from pairwright.config import ExpandConfig
from pairwright.data.pairs.build_pairs import expand_groups
from pairwright.data.pairs.expand import expand
from pairwright.data.table.table import Manifest, Table
from pairwright.errors import DataError, StoreError


def rankings(num_groups: int, *, annotators: int = 2) -> list[dict[str, Any]]:
    return [
        annotation_row(
            f"{group}-{annotator}",
            [f"{group} {text}" for text in ("a", "b", "c", "d")],
            [(group + annotator) % 3 + 1, 1, 2, 2],
            prompt=f"prompt {group // 2}",
            annotator=f"annotator {annotator}",
            line=annotators * group + annotator + 1,
        )
        for group in range(num_groups)
        for annotator in range(annotators)
    ]


def read(manifest: Manifest, url: Path) -> pa.Table:
    """Return the groups in order of their ids: that of the table follows the annotations' files."""
    return pa.concat_tables(Table.open(str(url), "pairs").read(manifest)).sort_by("group_id").combine_chunks()


def test_pairs_do_not_depend_on_the_files_or_the_order_of_the_annotations(tmp_path: Path) -> None:
    rows = rankings(700)
    one = commit_annotations(str(tmp_path / "one"), [annotations_table(rows)])
    backwards = rows[::-1]
    many = commit_annotations(
        str(tmp_path / "many"), [annotations_table(backwards[i : i + 199]) for i in range(0, len(rows), 199)]
    )
    assert one.digest != many.digest
    made = [
        expand(str(tmp_path / name), str(tmp_path / f"{name} pairs"), ExpandConfig(), version=None)
        for name in ("one", "many")
    ]
    assert made[0].totals == pytest.approx(made[1].totals)
    expected, totals = expand_groups(annotations_table(rows), ExpandConfig())
    for manifest, name in zip(made, ("one", "many"), strict=True):
        assert read(manifest, tmp_path / f"{name} pairs").equals(expected)
        assert manifest.totals == pytest.approx(totals)


def test_groups_are_written_once_whether_their_annotations_lie_together_or_apart(tmp_path: Path) -> None:
    """Files in stretches of their own: a group in one is expanded there, one in several is exchanged."""
    rows = rankings(300)
    together, apart = rows[:400], rows[400:]
    files = [together, apart[::2], apart[1::2]]
    commit_annotations(str(tmp_path / "annotations"), [annotations_table(file) for file in files])
    made = expand(str(tmp_path / "annotations"), str(tmp_path / "pairs"), ExpandConfig(partition_bytes=1), version=None)
    expected, totals = expand_groups(annotations_table(rows), ExpandConfig())
    assert read(made, tmp_path / "pairs").equals(expected)
    assert made.totals == pytest.approx(totals)
    assert [file.rows for file in made.files] == [200, 100]
    assert not (tmp_path / "pairs/staging").exists()


def test_many_partitions_give_the_pairs_that_few_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rankings(300)
    files = [annotations_table(rows[::2]), annotations_table(rows[1::2])]
    commit_annotations(str(tmp_path / "annotations"), files)
    monkeypatch.setattr("pairwright.data.pairs.expand.ROWS_PER_BUCKET", 9)
    made = expand(str(tmp_path / "annotations"), str(tmp_path / "pairs"), ExpandConfig(partition_bytes=1), version=None)
    expected, totals = expand_groups(annotations_table(rows), ExpandConfig())
    assert len(made.files) > 60
    assert read(made, tmp_path / "pairs").equals(expected)
    assert made.totals == pytest.approx(totals)


def test_a_group_is_one_row_however_its_annotations_were_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pitfall 17: the pairs of one prompt's group stay together."""
    rows = rankings(600, annotators=3)
    tables = [annotations_table([row for row in rows if row["annotator"] == f"annotator {i}"]) for i in range(3)]
    commit_annotations(str(tmp_path / "annotations"), tables)
    monkeypatch.setattr("pairwright.data.pairs.expand.ROWS_PER_BUCKET", 500)
    made = expand(str(tmp_path / "annotations"), str(tmp_path / "pairs"), ExpandConfig(partition_bytes=1), version=None)
    table = read(made, tmp_path / "pairs")
    assert len(made.files) > 1
    assert sorted(table["group_id"].to_pylist()) == sorted({row["group_id"] for row in rows})
    assert set(table["num_annotations"].to_pylist()) == {3}


def test_the_same_work_adds_no_version_and_other_work_adds_one(tmp_path: Path) -> None:
    annotations, pairs = str(tmp_path / "annotations"), str(tmp_path / "pairs")
    commit_annotations(annotations, [annotations_table(rankings(5))])
    first = expand(annotations, pairs, ExpandConfig(), version=None)
    assert expand(annotations, pairs, ExpandConfig(), version=None) == first
    other = expand(annotations, pairs, ExpandConfig(ties="half"), version=None)
    assert (first.version, other.version, other.parent) == (1, 2, 1)
    assert other.config["ties"] == "half"
    commit_annotations(annotations, [annotations_table(rankings(6))])
    newer = expand(annotations, pairs, ExpandConfig(ties="half"), version=None)
    assert (newer.version, newer.totals["groups"]) == (3, 6)
    older = expand(annotations, pairs, ExpandConfig(ties="half"), version=1)
    assert (older.version, older.totals["groups"], older.digest) == (4, 5, other.digest)
    assert older.inputs[0].version == 1
    assert older.inputs[0].url == annotations


def test_two_expansions_at_once_are_one_version_and_leave_no_file_behind(tmp_path: Path) -> None:
    annotations, pairs = str(tmp_path / "annotations"), str(tmp_path / "pairs")
    commit_annotations(annotations, [annotations_table(rankings(20))])
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: expand(annotations, pairs, ExpandConfig(), version=None), range(2)))
    assert made[0] == made[1]
    assert {f"data/{path.name}" for path in (Path(pairs) / "data").iterdir()} == {file.path for file in made[0].files}


def test_a_table_without_annotations_expands_to_none(tmp_path: Path) -> None:
    commit_annotations(str(tmp_path / "annotations"), [])
    made = expand(str(tmp_path / "annotations"), str(tmp_path / "pairs"), ExpandConfig(), version=None)
    assert made.files == []
    assert set(made.totals.values()) == {0}


def test_a_damaged_file_stops_the_expansion_by_its_name(tmp_path: Path) -> None:
    annotations = Table(str(tmp_path / "annotations"), "annotations")
    tables = [annotations_table(rankings(3)), annotations_table(rankings(6)[6:])]
    file = commit_annotations(annotations.url, tables).files[1]
    path = annotations.local_path(file)
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(StoreError, match=f"{file.path}: damaged"):
        expand(annotations.url, str(tmp_path / "pairs"), ExpandConfig(), version=None)
    assert Table(str(tmp_path / "pairs"), "pairs").versions() == []


def test_annotations_that_cannot_be_of_one_group_stop_the_expansion(tmp_path: Path) -> None:
    one, other = annotation_row("1", ["a", "b"], [1, 2]), annotation_row("2", ["a", "c"], [1, 2])
    table = annotations_table([one, other | {"group_id": one["group_id"]}])
    commit_annotations(str(tmp_path / "annotations"), [table])
    with pytest.raises(DataError, match="annotations 1 and 2 list different completions"):
        expand(str(tmp_path / "annotations"), str(tmp_path / "pairs"), ExpandConfig(), version=None)


def test_tables_of_another_kind_are_refused_before_any_work(tmp_path: Path) -> None:
    annotations = str(tmp_path / "annotations")
    commit_annotations(annotations, [annotations_table(rankings(2))])
    with pytest.raises(StoreError, match="holds annotations, expected pairs"):
        expand(annotations, annotations, ExpandConfig(), version=None)
    with pytest.raises(StoreError, match=r"no table here.*pairwright ingest"):
        expand(str(tmp_path / "nothing"), str(tmp_path / "pairs"), ExpandConfig(), version=None)
    with pytest.raises(StoreError, match="no version 2; there are 1"):
        expand(annotations, str(tmp_path / "pairs"), ExpandConfig(), version=2)


def test_the_real_rankings_expand_to_the_pairs_that_are_known(tmp_path: Path) -> None:
    rows = real_rows()
    commit_annotations(str(tmp_path / "annotations"), [annotations_table(rows[:1000]), annotations_table(rows[1000:])])
    made = expand(str(tmp_path / "annotations"), str(tmp_path / "pairs"), ExpandConfig(), version=None)
    assert [made.totals[name] for name in ("groups", "comparisons", "decisive")] == [2436, 47_090, 18_099]
    expected, _ = expand_by_hand(
        rows, pair_weight="comparisons", ties="drop", margin="none", margin_table="small", margin_scale=1.0
    )
    sides: dict[str, set[str]] = {}
    for row in read(made, tmp_path / "pairs").to_pylist():
        wanted = {direction: float(weight) for direction, (weight, _) in expected[row["group_id"]].items()}
        found = {(pair["chosen"], pair["rejected"]): pair["weight"] for pair in row["pairs"]}
        assert found == pytest.approx(wanted, rel=1e-6)
        sides.setdefault(row["prompt"][0]["content"], set()).add(row["split"])
    assert len(sides) == 406
    assert all(len(side) == 1 for side in sides.values()), "a prompt is on both sides"
