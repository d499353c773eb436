"""Pipelines: those of ``jobs/pipelines/`` load, and a mistake in one is said with its place and the remedy."""

import shutil
from pathlib import Path

import pytest

from pairwright.config import load_pipeline
from pairwright.config.annotated_file import annotated, read_recipe
from pairwright.errors import ConfigError

ROOT = Path(__file__).parents[2]
PIPELINES = sorted((ROOT / "jobs/pipelines").glob("*.toml"))
TRAINED_BY = {"demo": ("demo/train.toml", "demo"), "nightly": ("train.toml", "eight_gpus")}
"""Pipeline -> the configuration that its [train] names, and the recipe that it is made of."""


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_a_pipeline_of_the_repository_loads(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, recipe = TRAINED_BY[path.stem]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(annotated(read_recipe(recipe)))
    shutil.copy(path, tmp_path / "pipeline.toml")
    monkeypatch.chdir(tmp_path)
    pipeline = load_pipeline("pipeline.toml")
    assert pipeline.train is not None
    assert pipeline.train.data.pairs == pipeline.pairs


def test_the_demos_pipeline_names_what_the_demo_writes() -> None:
    demo = (ROOT / "jobs/demo.py").read_text()
    text = (ROOT / "jobs/pipelines/demo.toml").read_text()
    for name in ("rankings.jsonl", "annotations", "pairs", "train.toml", "report.json", "rewards"):
        assert f"demo/{name}" in demo
        assert f'"demo/{name}"' in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"p\.toml: no stage; give at least one of \[ingest\], \[expand\]"),
        ("[evalute]", r"p\.toml: evalute: unknown key; did you mean evaluate\? known here: ingest, expand, train"),
        ('[expand]\noutput = "p"\noutpt = 1', r"p\.toml: expand\.outpt: unknown key; did you mean expand\.output\?"),
        ('[expand]\noutput = "p"', r"expand\.annotations: missing, and there is no \[ingest\] to take it from; set it"),
        ('[ingest]\nsources = []\noutput = "a"', r"ingest\.sources: found \[\]"),
        ('[ingest]\noutput = "a"', r"ingest\.sources: missing"),
        ('[score]\ninput = "a"\noutput = "b"', r"score\.model: missing, and there is no \[train\]"),
        ('[evaluate]\nmodel = "m"', r"evaluate\.pairs: missing"),
        ('[train]\nconfig = "none.toml"', r"p\.toml: none\.toml: no such configuration file; write one with"),
        (
            '[expand]\nannotations = "a"\noutput = "p"\nset = ["ties=maybe"]',
            r"p\.toml: .*ties: found 'maybe'",
        ),
        (
            '[ingest]\nsources = ["s"]\noutput = "a"\n[expand]\nannotations = "b"\noutput = "p"',
            r"expand\.annotations: \[ingest\] gives it; leave out one of the two",
        ),
    ],
)
def test_a_mistake_is_said_with_its_place_and_the_remedy(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_pipeline("p.toml")


def test_a_missing_pipeline_is_not_to_be_made_from_a_recipe_of_a_training() -> None:
    with pytest.raises(ConfigError, match=r"^none\.toml: no such configuration file; docs/pipelines\.md shows"):
        load_pipeline("none.toml")
