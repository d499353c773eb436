"""A sweep on a real Ray: every run trained and evaluated once, and the same command again does nothing twice."""

import json
from pathlib import Path

import pytest

from pairwright.cli.main import app
from training_runs import TRAINING, make_model, make_pairs, run_config, write_config

pytestmark = [pytest.mark.slow, pytest.mark.ray]
RATES = ("1e-3", "3e-3")


def sweep(folder: Path, *more: str) -> int:
    vary = f"optimizer.learning_rate={','.join(RATES)}"
    named = ["--config", str(folder / "base.toml"), "--vary", vary, "--seeds", "2", "--output", str(folder / "sweep")]
    return app(["sweep", *named, *more], standalone_mode=False) or 0


def test_two_settings_with_two_seeds_are_four_runs_that_a_second_command_leaves_as_they_are(
    tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pairs(tmp_path / "pairs", num_groups=80)
    make_model(tmp_path / "model")
    config = run_config(tmp_path, "unused", training=TRAINING | {"max_steps": 4}, workers={"num_workers": 1})
    write_config(config, tmp_path / "base.toml")
    assert sweep(tmp_path, "--dry-run") == 0
    assert capsys.readouterr().out.count("new ") == 4
    assert not (tmp_path / "sweep").exists()

    assert sweep(tmp_path) == 0
    shown = capsys.readouterr().out
    table = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert len(table["settings"]) == 2
    for run in table["runs"]:
        report = json.loads(Path(run["report"]).read_text())
        assert run["accuracy"] == report["overall"]["accuracy"]["value"]
        summary = json.loads((Path(run["output"]) / "summary.json").read_text())
        assert summary["config"]["training"]["seed"] == run["seed"]
    for one in table["settings"]:
        of_one = [run["accuracy"] for run in table["runs"] if run["setting"] == one["setting"]]
        assert (one["accuracy"]["lowest"], one["accuracy"]["highest"]) == (min(of_one), max(of_one))
        assert f"{100 * sum(of_one) / 2:.1f} %" in shown

    compared = json.loads((tmp_path / "sweep" / "report.json").read_text())
    for model, one in zip(compared["models"], table["settings"], strict=True):
        assert model["accuracy"]["value"] == pytest.approx(one["accuracy"]["mean"])
        assert len(model["accuracy_of_runs"]) == 2
    assert "What was trained on what" in (tmp_path / "sweep" / "report.html").read_text()

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("*") if path.is_file()}
    assert sweep(tmp_path) == 0
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("*") if path.is_file()}
    changed = {path.name for path in after.keys() | before.keys() if before.get(path) != after.get(path)}
    assert {name for name in changed if not name.endswith(".json") or name == "summary.json"} == set()
    capsys.readouterr()
    assert sweep(tmp_path, "--dry-run", "--json") == 0
    assert {run["state"] for run in json.loads(capsys.readouterr().out)} == {"finished"}
