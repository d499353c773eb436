"""`pairwright compare` and `evaluate` over several tables, as commands of one machine."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from exported_models import export_small_model
from pairwright.cli.main import app
from pairwright.config import ExpandConfig
from pairwright.errors import ConfigError, StoreError
from training_runs import make_pairs


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.output


def test_two_models_and_two_tables_end_in_one_comparison_and_two_reports(tmp_path: Path) -> None:
    pairs = [str(tmp_path / "one"), str(tmp_path / "two")]
    for seed, url in enumerate(pairs):
        make_pairs(Path(url), num_groups=60, seed=seed, expansion=ExpandConfig(validation_fraction=0.5))
    first = export_small_model(tmp_path / "first", max_length=512)
    second = export_small_model(tmp_path / "second", max_length=512, architecture="gpt2")
    output = tmp_path / "comparison.json"
    arguments = ("compare", str(first), str(second), "--pairs", pairs[0], "--output", str(output))
    text = run(*arguments)
    assert "the longer text wins" in text
    found = json.loads(output.read_text())
    assert [len(model["runs"]) for model in found["models"]] == [1, 1]
    assert "second" in (tmp_path / "comparison.html").read_text()
    with pytest.raises(StoreError, match=r"comparison.json: a comparison .* is there; replace it with --overwrite"):
        run(*arguments)
    difference = found["differences"][0]["result"]["difference"]["value"]
    accuracies = [model["accuracy"]["value"] for model in found["models"]]
    assert difference == pytest.approx(accuracies[1] - accuracies[0])

    run("evaluate", str(first), "--pairs", pairs[0], "--pairs", pairs[1], "--output", str(tmp_path / "reports"))
    reports = [json.loads((tmp_path / "reports" / name / "report.json").read_text()) for name in ("one", "two")]
    assert reports[0]["overall"]["accuracy"]["value"] == pytest.approx(accuracies[0])
    assert reports[0]["pairs"]["url"] != reports[1]["pairs"]["url"]
    run("evaluate", str(first), str(second), "--pairs", pairs[0], "--output", str(tmp_path / "models"))
    of_models = [json.loads((tmp_path / "models" / name / "report.json").read_text()) for name in ("first", "second")]
    assert [one["overall"]["accuracy"]["value"] for one in of_models] == pytest.approx(accuracies)
    assert (tmp_path / "models" / "second" / "report.html").is_file()
    assert "synthetic" in reports[0]["ceiling_unknown"], "its annotations are nowhere"
    assert {row["kind"] for row in reports[0]["degenerate_texts"]} >= {"empty", "one character"}


def test_one_model_is_no_comparison_and_tables_of_one_name_need_other_outputs(tmp_path: Path) -> None:
    model = str(tmp_path / "model")
    with pytest.raises(ConfigError, match="two different models"):
        run("compare", model, model, "--pairs", "p")
    with pytest.raises(ConfigError, match="several tables need --output FOLDER"):
        run("evaluate", model, "--pairs", "a/p", "--pairs", "b/p", "--output", str(tmp_path))
    with pytest.raises(ConfigError, match="several models need --output FOLDER"):
        run("evaluate", "a/x/model", "b/x/model", "--pairs", "a/p", "--output", str(tmp_path))
    with pytest.raises(ConfigError, match="several models and tables need --output FOLDER"):
        run("evaluate", "a/x/model", "b/y/model", "--pairs", "a/p", "--pairs", "b/q")
