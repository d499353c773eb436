"""The verb report on Ray: the metrics that one process counts, whatever the files; lineage; messages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from annotation_tables import annotations_table, commit_annotations
from pairwright.cli.main import app
from pairwright.cluster.sized_executor import EXECUTOR
from pairwright.config import ExpandConfig
from pairwright.data.executor import LocalExecutor
from pairwright.data.pairs.expand import expand
from pairwright.data.profile.counts import count
from pairwright.data.profile.table_report import find_annotations, report
from pairwright.data.table.table import Table
from pairwright.errors import DataError, StoreError
from report_tables import random_rows


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_metrics_do_not_depend_on_the_files_and_the_partitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(120)
    commit_annotations(str(tmp_path / "one"), [annotations_table(rows)])
    backwards = rows[::-1]
    commit_annotations(
        str(tmp_path / "many"), [annotations_table(backwards[start : start + 50]) for start in range(0, len(rows), 50)]
    )
    one = report(str(tmp_path / "one"), version=None, output=None)
    monkeypatch.setattr("pairwright.data.profile.table_report.PARTITION_BYTES", 1)
    monkeypatch.setattr("pairwright.data.profile.table_report.ROWS_PER_BUCKET", 40)
    many = report(str(tmp_path / "many"), version=None, output=str(tmp_path / "page.html"), executor=EXECUTOR)
    expected = count(annotations_table(rows), {})["totals"].to_pylist()
    assert {row["name"]: row["count"] for row in expected}.items() <= one.totals.items()
    for name in ("highlights", "totals", "by_subset", "annotators", "lengths_by_rank", "annotations_per_group"):
        assert getattr(many, name) == getattr(one, name), name
    assert many.agreement.alpha == pytest.approx(one.agreement.alpha, abs=1e-12)
    assert [model.name for model in many.models.listed] == [model.name for model in one.models.listed]
    for ours, theirs in zip(many.models.listed, one.models.listed, strict=True):
        assert ours.strength == pytest.approx(theirs.strength, abs=1e-9)
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


ALONE = """
import json, sys
from pairwright.cluster.sized_executor import EXECUTOR
from pairwright.data.profile.table_report import report

print(json.dumps(report(sys.argv[1], version=None, output=None, executor=EXECUTOR).totals))
assert "ray" not in sys.modules
"""


def test_a_small_table_has_the_same_totals_without_ray(tmp_path: Path) -> None:
    url = str(tmp_path / "annotations")
    commit_annotations(url, [annotations_table(random_rows(40))])
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", ALONE, url], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == report(url, version=None, output=None).totals


class ManyMachines(LocalExecutor):
    """Works in this process, and says that others take part."""

    def num_nodes(self) -> int:
        return 2


def test_on_several_machines_rows_are_shuffled_through_the_table_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_rows(40)
    url = str(tmp_path / "annotations")
    commit_annotations(url, [annotations_table(rows[::2]), annotations_table(rows[1::2])])
    before = sorted(path.relative_to(url) for path in Path(url).rglob("*"))
    monkeypatch.setattr("pairwright.data.profile.table_report.PARTITION_BYTES", 1)
    expected = count(annotations_table(rows), {})["totals"].to_pylist()
    found = report(url, version=None, output=None, executor=ManyMachines()).totals
    assert found.items() >= {row["name"]: row["count"] for row in expected}.items()
    assert sorted(path.relative_to(url) for path in Path(url).rglob("*")) == before


def test_a_pairs_table_leads_to_the_version_of_the_annotations_that_it_was_made_from(tmp_path: Path) -> None:
    annotations, pairs = str(tmp_path / "annotations"), str(tmp_path / "pairs")
    commit_annotations(annotations, [annotations_table(random_rows(5))])
    expand(annotations, pairs, ExpandConfig(), version=None)
    commit_annotations(annotations, [annotations_table(random_rows(9))])
    found = find_annotations(pairs, None)
    assert (found.table.url, found.manifest.version) == (annotations, 1)
    assert found.followed == (f"pairs {pairs} version 1",)
    (tmp_path / "annotations" / "versions" / "00000001.json").unlink()
    with pytest.raises(StoreError, match=r"was made from .* version 1, which is not to be read any more"):
        find_annotations(pairs, None)


def test_what_is_wrong_with_a_table_is_said_by_name(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no table here"):
        report(str(tmp_path / "nothing"), version=None, output=None)
    one, other = random_rows(2, most_annotations=1)
    url = str(tmp_path / "annotations")
    commit_annotations(
        url, [annotations_table([one, other | {"group_id": one["group_id"], "prompt_id": one["prompt_id"]}])]
    )
    with pytest.raises(DataError, match="list different completions"):
        report(url, version=None, output=None)
    table = Table.open(url, "annotations")
    path = table.local_path(table.manifest().files[0])
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(StoreError, match="damaged"):
        report(url, version=None, output=None)


def test_the_command_prints_what_matters_and_json_for_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commit_annotations("annotations", [annotations_table(random_rows(30))])
    told = CliRunner().invoke(app, ["report", "annotations"])
    assert told.exit_code == 0, told.output
    assert told.output.endswith("wrote report.html\n")
    assert "alpha (Krippendorff)" in told.output
    (tmp_path / "report.html").unlink()
    metrics = json.loads(CliRunner().invoke(app, ["report", "annotations", "--json"]).stdout)
    assert metrics["totals"]["groups"] == 30
    assert not (tmp_path / "report.html").exists()
