"""Every pair of verbs at once on one table, one run and one model, on disk and on S3: sums right, nothing lost.

Each command is a process of its own. It ends well, or in one line that says what another command did; whatever the
order, the table's sums add up, every file has its hash, and nobody's records are missing.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import boto3
import pyarrow.parquet as pq
import pytest

from exported_models import export_small_model
from pairwright.cli.main import app
from pairwright.data.table.table import Table
from pairwright.evaluation.score_files import read_scores_manifest
from training_runs import make_model, make_pairs, run_config, write_config

pytestmark = [pytest.mark.slow]

NUM_RECORDS = 60
TABLE_VERBS = {
    "ingest": ["ingest", "{folder}/b.jsonl", "--output", "{table}"],
    "ingest another": ["ingest", "{folder}/c.jsonl", "--output", "{table}"],
    "replace": ["ingest", "{folder}/a.jsonl", "--output", "{table}", "--replace"],
    "compact": ["compact", "{table}"],
    "forget": ["forget", "{table}", "--annotator", "ann"],
    "restore": ["restore", "{table}", "--version", "1"],
    "vacuum": ["vacuum", "{table}"],
    "vacuum all": ["vacuum", "{table}", "--retention", "1h", "--keep-versions", "1"],
    "expand": ["expand", "{table}", "--output", "{table}-pairs"],
    "validate": ["validate", "{folder}/a.jsonl", "--against", "{table}"],
    "inspect": ["inspect", "{table}"],
    "versions": ["versions", "{table}"],
    "diff": ["diff", "{table}", "1", "2"],
}


def write_records(path: Path, name: str, text: str = "So.") -> None:
    with path.open("w") as file:
        for i in range(NUM_RECORDS):
            completions = [{"text": f"{text} {name} {i}"}, {"text": "No."}]
            record = {"id": f"{name}-{i}", "prompt": f"Why {i}?", "completions": completions, "ranks": [1, 2]}
            file.write(json.dumps(record | {"annotator": "ann" if i % 3 == 0 else "bob"}) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path)
    request.getfixturevalue("s3_server")
    bucket = f"pairs-{abs(hash(request.node.name))}"
    boto3.client("s3", region_name="us-east-1", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).create_bucket(
        Bucket=bucket
    )
    return f"s3://{bucket}"


def start(arguments: list[str], **names: object) -> subprocess.Popen[str]:
    command = [argument.format(**names) for argument in arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "pairwright", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Return status and output of each; none may end in a traceback."""
    outcomes = []
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert "Traceback" not in output, output
        outcomes.append((process.returncode, output))
    return outcomes


def run(*arguments: str) -> None:
    assert not app(list(arguments), standalone_mode=False)


def check(table: Table, expected: set[str]) -> None:
    """Check that the newest version's sums add up, that its files are what was written, and which records it holds."""
    manifest = table.manifest()
    totals = manifest.totals
    rows = [row for part in table.read(manifest) for row in part.select(["id", "annotator"]).to_pylist()]
    for file in manifest.quarantined_files:
        table.read_quarantined(file)
    assert len(rows) == totals["annotations"] == sum(source.accepted for source in manifest.sources)
    assert totals["annotations"] + totals["refused"] + totals["erased"] == totals["lines"] - totals["blank"]
    assert {row["id"] for row in rows} == expected
    assert len(rows) == len(expected)


@pytest.mark.parametrize("pair", itertools.combinations_with_replacement(TABLE_VERBS, 2), ids=" + ".join)
def test_two_verbs_at_once_on_one_table(pair: tuple[str, str], place: str, folder: Path) -> None:
    for name in "abc":
        write_records(folder / f"{name}.jsonl", name)
    table = Table(f"{place}/table", "annotations")
    write_records(folder / "d.jsonl", "d")
    run("ingest", str(folder / "a.jsonl"), "--output", table.url)
    run("ingest", str(folder / "d.jsonl"), "--output", table.url)
    if "replace" in pair:
        write_records(folder / "a.jsonl", "a", text="Newer.")
    outcomes = ended([start(TABLE_VERBS[verb], folder=folder, table=table.url) for verb in pair])
    failed = [output for status, output in outcomes if status]
    assert len(failed) < 2 or set(pair) <= {"validate", "forget"}, outcomes
    came = {"ingest": "b", "ingest another": "c"}
    names = {
        "a",
        "d",
        *(came[verb] for verb, (status, _) in zip(pair, outcomes, strict=True) if verb in came and not status),
    }
    every = {f"{name}-{i}" for name in names for i in range(NUM_RECORDS)}
    found = {row["id"] for part in table.read(table.manifest()) for row in part.select(["id"]).to_pylist()}
    forgotten = {name for name in every - found if int(name.partition("-")[2]) % 3 == 0} if "forget" in pair else set()
    check(table, every - forgotten)
    if "forget" in pair:
        assert {f"{name}-{i}" for name in "ad" for i in range(0, NUM_RECORDS, 3)} - {
            f"a-{i}" for i in range(NUM_RECORDS)
        } <= forgotten
    if "expand" in pair:
        pairs = Table(f"{place}/table-pairs", "pairs")
        manifest = pairs.manifest()
        assert sum(part.num_rows for part in pairs.read(manifest)) == manifest.totals["groups"]


# ----------------------------------------------------------------------------------------- one run, one model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    export_small_model(folder / "exported", max_length=512)
    make_model(folder / "model")
    make_pairs(folder / "pairs", num_groups=64)
    write_records(folder / "texts.jsonl", "t")
    return folder


def training(folder: Path, output: str, *, max_steps: int) -> list[str]:
    path = folder / f"train-{max_steps}.toml"
    steps = {"epochs": 20, "max_steps": max_steps, "checkpoint_every_steps": 4, "log_every_steps": 1}
    write_config(
        run_config(
            folder,
            "run",
            training=steps,
            workers={"num_workers": 1},
            tokens={"max_length": 128, "cache": str(folder / "tokens")},
        ),
        path,
    )
    return ["train", "--config", str(path), "--set", f"output={output}"]


@pytest.mark.ray
def test_two_trainings_at_once_on_one_run_are_one_training(place: str, trained: Path) -> None:
    output = f"{place}/run"
    command = training(trained, output, max_steps=40)
    outcomes = ended([start(command), start(command)])
    assert sorted(status for status, _ in outcomes) == [0, 1]
    (refused,) = (output for status, output in outcomes if status)
    assert "another command does `pairwright train` here" in refused
    ((status, checkpoints),) = ended([start(["checkpoints", output, "--verify"])])
    assert status == 0
    assert "not committed" not in checkpoints
    assert checkpoints.count("verified") == 2
    (again,) = ended([start(command)])
    assert (again[0], "already finished" in again[1]) == (0, True)


MODEL_VERBS = {
    "evaluate": ["evaluate", "{folder}/exported/model", "--pairs", "{folder}/pairs", "--output", "{place}/found.json"],
    "score": ["score", "{folder}/exported/model", "{folder}/texts.jsonl", "--output", "{place}/scores", "--overwrite"],
    "export": ["export", "{folder}/done", "--output", "{place}/export"],
    "checkpoints": ["checkpoints", "{folder}/done", "--verify"],
    "train again": ["train", "--config", "{folder}/train-4.toml", "--set", "output={folder}/done"],
}


@pytest.mark.ray
@pytest.mark.parametrize("pair", itertools.combinations_with_replacement(MODEL_VERBS, 2), ids=" + ".join)
def test_two_verbs_at_once_on_one_run_and_one_model(pair: tuple[str, str], place: str, trained: Path) -> None:
    if not (trained / "done").exists():
        (first,) = ended([start(training(trained, str(trained / "done"), max_steps=4))])
        assert first[0] == 0, first[1]
    names = {"folder": trained, "place": place}
    outcomes = ended([start(MODEL_VERBS[verb], **names) for verb in pair])
    failed = [output for status, output in outcomes if status]
    assert len(failed) < 2, outcomes
    assert not failed or len(set(pair)) == 1, outcomes
    if "score" in pair and not place.startswith("s3"):
        manifest = read_scores_manifest(f"{place}/scores")
        rows = sum(pq.read_table(Path(place, "scores", file.path)).num_rows for file in manifest.files)
        assert rows == manifest.totals["completions"] == 2 * NUM_RECORDS
    if "export" in pair:
        (loaded,) = ended(
            [start(["evaluate", f"{place}/export", "--pairs", str(trained / "pairs"), "--output", f"{place}/e.json"])]
        )
        assert loaded[0] == 0, loaded[1]
