"""A pipeline does what is not done, whatever was done, changed or killed before, and says what came from what."""

import json
import random
import shutil
from io import StringIO
from pathlib import Path

import pytest

from killed_commands import Command
from pairwright.cluster.pipeline_run import PipelineSummary, preview_pipeline, run_pipeline
from pairwright.config import load_pipeline
from pairwright.data.synthetic import write_rankings
from pairwright.data.table.table import Table
from pairwright.errors import ConfigError, ModelError, SourceError, StoreError
from pipeline_files import digests, make_sources, write_pipeline

NUM_KILLS = 10
SEED = 19
PIPELINE_SECONDS = 600.0
TABLES = ["ingest", "expand"]


def write_tables_only(folder: Path) -> Path:
    """Write a pipeline of tables, which needs no model and no Ray."""
    file = folder / "tables.toml"
    file.write_text(f"""
[ingest]
sources = ["{folder}/sources/"]
output = "{folder}/annotations"

[expand]
output = "{folder}/pairs"
set = ["validation_fraction=0.5"]
""")
    return file


def run(file: Path, *settings: str) -> PipelineSummary:
    return run_pipeline(load_pipeline(str(file), settings), log=StringIO())


def actions(summary: PipelineSummary) -> dict[str, str]:
    return {record.stage: record.action for record in summary.stages}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sources").mkdir()
    write_rankings(tmp_path / "sources" / "first.jsonl", 20, seed=0)
    return tmp_path


def test_what_is_done_is_skipped_and_only_what_depends_on_a_change_is_done_again(folder: Path) -> None:
    file = write_tables_only(folder)
    assert actions(run(file)) == dict.fromkeys(TABLES, "run")
    assert actions(run(file)) == dict.fromkeys(TABLES, "skip")
    assert actions(run(file, 'expand.set=["validation_fraction=0.25"]')) == {"ingest": "skip", "expand": "run"}
    write_rankings(folder / "sources" / "second.jsonl", 5, seed=1)
    assert actions(run(file)) == dict.fromkeys(TABLES, "run")
    assert len(Table.open(str(folder / "annotations")).versions()) == 2


def test_a_dry_run_says_what_would_run_and_writes_nothing(folder: Path) -> None:
    file = write_tables_only(folder)
    before = sorted(folder.rglob("*"))
    preview = preview_pipeline(load_pipeline(str(file)))
    assert actions(preview) == dict.fromkeys(TABLES, "run")
    assert preview.stages[1].reason == "ingest would run before"
    assert sorted(folder.rglob("*")) == before
    run(file)
    assert actions(preview_pipeline(load_pipeline(str(file)))) == dict.fromkeys(TABLES, "skip")


def test_the_lineage_leads_from_the_sources_to_the_pairs(folder: Path) -> None:
    lineage = run(write_tables_only(folder)).lineage
    assert [link.kind for link in lineage] == ["source", "annotations", "pairs"]
    assert lineage[0].url == f"{folder}/sources/first.jsonl"
    tables = [Table.open(str(folder / name)).manifest().digest for name in ("annotations", "pairs")]
    assert [link.digest for link in lineage[1:]] == tables


def test_a_changed_source_stops_the_pipeline_where_it_may_not_be_replaced(folder: Path) -> None:
    file = write_tables_only(folder)
    run(file)
    (folder / "sources" / "first.jsonl").unlink()
    write_rankings(folder / "sources" / "first.jsonl", 21, seed=3)
    with pytest.raises(SourceError, match=r"tables\.toml: stage ingest: 1 source could not.*--replace"):
        run(file)
    assert actions(run(file, "ingest.replace=true")) == dict.fromkeys(TABLES, "run")


def test_a_missing_input_is_named_with_its_stage(folder: Path) -> None:
    file = write_tables_only(folder)
    shutil.rmtree(folder / "sources")
    with pytest.raises(SourceError, match=r"tables\.toml: stage ingest: .*sources/: no such file or directory"):
        run(file)
    alone = folder / "alone.toml"
    alone.write_text(f'[expand]\nannotations = "{folder}/nowhere"\noutput = "{folder}/pairs"\n')
    with pytest.raises(StoreError, match=r"alone\.toml: stage expand: .*nowhere"):
        preview_pipeline(load_pipeline(str(alone)))


def test_a_starting_model_that_is_not_there_is_said_before_the_first_stage(folder: Path) -> None:
    make_sources(folder / "more")
    file = write_pipeline(folder / "more", folder / "outputs")
    shutil.rmtree(folder / "more" / "model")
    with pytest.raises(ModelError, match="model"):
        run(file)
    assert not (folder / "outputs" / "annotations").exists()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(2400)
def test_a_pipeline_killed_anywhere_ends_in_the_digests_of_one_that_was_not(tmp_path: Path) -> None:
    """Ten kills, each of the command with all that it started, over as many starts as that takes."""
    make_sources(tmp_path / "given")
    undisturbed = write_pipeline(tmp_path / "given", tmp_path / "undisturbed")
    seconds = command(undisturbed, "undisturbed").wait(PIPELINE_SECONDS)
    expected = digests(tmp_path / "undisturbed")
    assert len(expected) == 5
    rng, kills, round_number = random.Random(SEED), 0, 0
    while kills < NUM_KILLS:
        round_number += 1
        outputs = tmp_path / f"round-{round_number}"
        file = write_pipeline(tmp_path / "given", outputs)
        while True:
            started = command(file, f"{round_number}-{kills}")
            if kills < NUM_KILLS and not started.has_ended(rng.uniform(0.1, seconds)):
                started.end()
                kills += 1
                continue
            started.wait(PIPELINE_SECONDS)
            break
        assert digests(outputs) == expected, f"round {round_number}, seed {SEED}"
        shutil.rmtree(outputs)


def command(file: Path, name: str) -> Command:
    return Command(["run", str(file), "--json"], file.parent.parent / f"{name}.log", {})


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(2400)
def test_only_what_depends_on_a_new_source_runs_again_and_the_old_run_stays(tmp_path: Path) -> None:
    make_sources(tmp_path / "given")
    file = write_pipeline(tmp_path / "given", tmp_path / "outputs")
    command(file, "first").wait(PIPELINE_SECONDS)
    before = digests(tmp_path / "outputs")
    command(file, "again").wait(PIPELINE_SECONDS)
    assert digests(tmp_path / "outputs") == before
    write_rankings(tmp_path / "given" / "sources" / "second.jsonl", 20, seed=7)
    command(file, "more").wait(PIPELINE_SECONDS)
    after = digests(tmp_path / "outputs")
    assert len(after) == len(before) + 3, "a model, a report and rewards more"
    assert {name: after[name] for name in before if name not in ("annotations", "pairs")}.items() <= before.items()
    text = (tmp_path / "more.log").read_text()
    print(text)
    summary = json.loads(text[text.rindex('{\n  "pipeline"') :])
    assert [stage["action"] for stage in summary["stages"]] == ["run"] * 5
    assert [link["kind"] for link in summary["lineage"][:2]] == ["source", "source"]
    # A fixed output cannot hold both: said with the remedy, and nothing is lost.
    fixed = load_pipeline(str(file), [f'train.output="{tmp_path}/outputs/runs/fixed"'])
    run_pipeline(fixed, log=StringIO())
    write_rankings(tmp_path / "given" / "sources" / "third.jsonl", 20, seed=8)
    with pytest.raises(ConfigError, match=r"holds a run of other inputs .*put \{inputs\} into the name"):
        run_pipeline(fixed, log=StringIO())
