"""The command line on bad input: each mistake ends as a message that says where, what and what to do, and a status."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import zstandard

from annotation_tables import annotation_row, annotations_table, commit_annotations
from exported_models import export_small_model
from pairwright.cli.main import main
from pairwright.cluster.ray_map import map_on_ray
from pairwright.cluster.session import ray_session
from pairwright.data.table.table import Table
from pairwright.errors import ClusterError


class Ended(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Ended]
RECORD = {"prompt": "Why?", "completions": [{"text": "one"}, {"text": "two"}], "ranks": [1, 2]}
TRAIN = '[model]\npath = "m"\n[data]\npairs = "p"\n'


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Return a function that runs `pairwright` with arguments, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["pairwright", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Ended(end.value.code, captured.out, captured.err)

    return run_command


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """Fill the folder in which commands run with things that are not what they should be."""
    (tmp_path / "good.jsonl").write_text(json.dumps({"id": "a", **RECORD}) + "\n")
    (tmp_path / "table.rtf").write_text("a,b\n")
    (tmp_path / "unknown.toml").write_text("max_completion = 4\n")
    (tmp_path / "broken.toml").write_text("a = = b\n")
    (tmp_path / "train.toml").write_text(f'output = "run"\n{TRAIN}')
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    for folder, name in {"a_run": "run.json", "scores": "scores.json", "a_model": "config.json"}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("{}")
    commit_annotations(str(tmp_path / "annotations"), [annotations_table([annotation_row("a", ["x", "y"], [1, 2])])])
    return tmp_path


MISTAKES: dict[str, tuple[str, list[str]]] = {
    "no file": ("ingest no.jsonl --output t", ["no.jsonl: no such file"]),
    "unknown kind of file": ("ingest other/notes.txt --output t", ["notes.txt: unknown kind", ".jsonl"]),
    "folder without sources": ("ingest other --output t", ["other: directory holds 1 file, none of them a source"]),
    "table among other things": (
        "ingest good.jsonl --output other",
        ["other: holds no table but notes.txt"],
    ),
    "table over its sources": ("ingest a_run --output a_run", ["a_run: holds no table but run.json"]),
    "table at a file": ("ingest good.jsonl --output table.rtf", ["table.rtf: table.rtf is a file"]),
    "table below a file": ("ingest good.jsonl --output table.rtf/t", ["table.rtf/t: table.rtf is a file"]),
    "unknown scheme": ("ingest good.jsonl --output ftp://x/y", ["unknown scheme ftp://", "s3://"]),
    "no configuration": ("ingest good.jsonl --output t --config no.toml", ["no.toml: no such configuration file"]),
    "unknown key": (
        "ingest good.jsonl --output t --config unknown.toml",
        ["max_completion: unknown key; did you mean max_completions? known here: "],
    ),
    "no TOML": ("ingest good.jsonl --output t --config broken.toml", ["broken.toml: not a TOML file", "line 1"]),
    "wrong value": ("ingest good.jsonl --output t --set max_completions=x", ["max_completions: found 'x'"]),
    "no value": ("ingest good.jsonl --output t --set max_completions", ["expected section.key=value"]),
    "impossible batch": (
        "train --config train.toml --set batches.micro_batch_tokens=100",
        ["batches.micro_batch_tokens (100)", "tokens.max_length (2048)", "raise the first or lower the second"],
    ),
    "expand a file": (
        "expand good.jsonl --output p",
        ["a file, not a table", "pairwright ingest good.jsonl"],
    ),
    "expand a folder": ("expand other --output p", ["other: no table here", "pairwright ingest"]),
    "expand into annotations": (
        "expand annotations --output annotations",
        ["annotations: holds annotations, expected pairs"],
    ),
    "inspect nothing": ("inspect nowhere", ["nowhere: no table here"]),
    "inspect a run": ("inspect a_run", ["a_run: no table here but a training run", "pairwright evaluate a_run/model"]),
    "inspect scores": ("inspect scores", ["the rewards of a model", "scores/*.parquet"]),
    "inspect a model": ("inspect a_model", ["no table here but a model", "pairwright train"]),
    "no such version": ("inspect annotations --version 7", ["no version 7; there are 1"]),
    "export annotations": (
        "export-pairs annotations --output x.jsonl",
        ["annotations: holds annotations, expected pairs"],
    ),
    "export under another name": (
        "export-pairs annotations --output x.csv",
        ["x.csv: expected a name that ends in"],
    ),
    "no model": ("evaluate no --pairs annotations", ["no: no such model directory"]),
    "no model to score with": ("score no good.jsonl --output o", ["no: no such model directory"]),
    "model without a head": ("evaluate a_model --pairs annotations", ["a_model: the model has no reward head"]),
    "file below a file": (
        "synthesize --output table.rtf/x.jsonl",
        ["error: table.rtf/x.jsonl: table.rtf is a file, not a folder"],
    ),
    "file in place of a folder": ("synthesize --output other", ["error: other: is a folder; name a file"]),
    "texts that are none": ("new-model --output m --texts no.txt", ["no.txt: cannot be read as text"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_as_one_message_and_status_1(mistake: str, places: Path, run: Run) -> None:
    command, expected = MISTAKES[mistake]
    before = sorted(places.rglob("*"))
    ended = run(*command.split())
    assert ended.status == 1, ended
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err
    assert all(words in ended.err for words in expected), ended.err
    assert sorted(places.rglob("*")) == before, "a command that did nothing left something"


@pytest.mark.parametrize("command", ["nonsense", "ingest good.jsonl", "evaluate m --pairs p --num-workers 0"])
def test_a_wrong_command_line_ends_with_status_2_and_the_way_to_help(command: str, run: Run) -> None:
    ended = run(*command.split())
    assert ended.status == 2
    assert "--help" in ended.err


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises; what a shell starts in the background ignores it, this suite too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_as_a_line_and_status_130(tmp_path: Path, run: Run) -> None:
    os.mkfifo(tmp_path / "never.toml")  # nobody writes to it, so that reading it waits for ever
    threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGINT]).start()
    ended = run("train", "--config", "never.toml")
    assert ended == (130, "", "interrupted: nothing half done counts; the same command can be run again\n")


def test_what_the_table_has_already_word_for_word_is_no_failure_and_other_refusals_of_all_are(
    tmp_path: Path, run: Run
) -> None:
    line = json.dumps({"id": "a", **RECORD}) + "\n"
    for name, content in {
        "one": line,
        "again": line * 2,
        "bad": '{"id": "a"}\n',
        "both": line + '{"id": "b"}\n',
    }.items():
        (tmp_path / f"{name}.jsonl").write_text(content)
    found = {name: run("ingest", f"{name}.jsonl", "--output", "t").status for name in ("one", "again", "bad", "both")}
    assert found == {"one": 0, "again": 0, "bad": 1, "both": 1}


BAD = {
    "missing field": ({"prompt": ...}, "missing field `prompt`"),
    "wrong type": ({"prompt": 5}, "expected `str | array`, got `int` at $.prompt"),
    "K = 1": ({"completions": [{"text": "q"}], "ranks": [1]}, "expected 2 to 64 completions, got 1"),
    "ranks of another length": ({"ranks": [1, 2, 3]}, "expected one rank a completion, got 3 for 2 completions"),
    "NaN score": ({"ranks": ..., "scores": [float("nan"), 1.0]}, "NaN and Infinity are not JSON"),
    "duplicate id": ({"id": "good"}, "in.jsonl:1"),
    "empty completion": ({"completions": [{"text": " "}, {"text": "b"}]}, "expected text"),
}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_bad_records_are_refused_with_place_and_reason_and_the_rest_goes_in(tmp_path: Path, run: Run) -> None:
    records = [{"id": "good", **RECORD}]
    for name, (changes, _) in BAD.items():
        changed = {"id": name, **RECORD} | changes
        records.append({key: value for key, value in changed.items() if value is not ...})
    lines = [json.dumps(record).encode() for record in records] + [b'{"id": "\xff\xfe"}', b"not JSON"]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    ended = run("ingest", "in.jsonl", "--output", "t", "--json")
    assert ended.status == 0, ended.err
    totals = json.loads(ended.out)["totals"]
    assert (totals["annotations"], totals["refused"]) == (1, len(lines) - 1)
    table = Table("t", "annotations")
    refused = {
        rejected.line: str(rejected)
        for file in table.manifest().quarantined_files
        for rejected in table.read_quarantined(file)
    }
    assert sorted(refused) == list(range(2, len(lines) + 1))
    for line, (_, reason) in enumerate(BAD.values(), start=2):
        assert f"in.jsonl:{line}: " in refused[line]
        assert reason in refused[line]
    assert "in.jsonl:2: missing field `prompt`" in run("inspect", "t").out


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_source_that_cannot_be_read_fails_alone_and_is_named(tmp_path: Path, run: Run) -> None:
    good = json.dumps({"id": "a", **RECORD}).encode() + b"\n"
    (tmp_path / "good.jsonl").write_bytes(good)
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "half.jsonl.zst").write_bytes(zstandard.compress(good * 100)[:40])
    ended = run("ingest", "good.jsonl", "empty.jsonl", "half.jsonl.zst", "--output", "t")
    assert ended.status == 1
    assert "accepted 1 and refused 0 records of 2 sources" in ended.out
    assert "empty.jsonl is empty" in ended.out
    assert "half.jsonl.zst: not a whole zstd file" in ended.out
    again = run("ingest", "good.jsonl", "--output", "t")
    assert again.status == 0
    assert "good.jsonl: it is in the table already" in again.out


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "interruptible")
def test_an_ingestion_stopped_half_way_is_not_there_and_goes_in_whole_the_next_time(tmp_path: Path, run: Run) -> None:
    num_records = 40_000
    with (tmp_path / "in.jsonl").open("w") as file:
        for number in range(num_records):
            file.write(json.dumps({"id": str(number), **RECORD, "metadata": {"padding": "x" * 500}}) + "\n")
    command = ["ingest", "in.jsonl", "--output", "t", "--set", "split_bytes=262144"]

    def stop_when_something_is_written() -> None:
        while not list((tmp_path / "t").glob("data/*.arrow")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop_when_something_is_written, daemon=True).start()
    ended = run(*command)
    assert ended.status == 130, ended
    assert "Traceback" not in ended.err
    assert Table("t", "annotations").versions() == []
    assert run(*command).status == 0
    assert Table("t", "annotations").manifest().totals["annotations"] == num_records


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_evaluating_and_scoring_say_what_is_missing(tmp_path: Path, run: Run) -> None:
    model = str(export_small_model(tmp_path / "exported"))
    (tmp_path / "good.jsonl").write_text(json.dumps({"id": "a", **RECORD}) + "\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "file").write_text("")
    assert run("ingest", "good.jsonl", "--output", "annotations").status == 0
    assert run("expand", "annotations", "--output", "pairs", "--set", "validation_fraction=0").status == 0
    held_out = run("evaluate", model, "--pairs", "pairs", "--output", "r.json")
    assert held_out.status == 1
    assert "no pairs in split validation" in held_out.err
    assert "validation_fraction" in held_out.err
    unwritable = run("evaluate", model, "--pairs", "pairs", "--split", "train", "--output", "file/r.json")
    assert unwritable.status == 1
    assert "file" in unwritable.err
    assert run("score", model, "empty.jsonl", "--output", "rewards").status == 0
    twice = run("score", model, "good.jsonl", "--output", "rewards")
    assert twice.status == 1
    assert "--overwrite" in twice.err
    (Path(model) / "tokenizer_config.json").unlink()
    gone = run("evaluate", model, "--pairs", "pairs", "--split", "train", "--output", "r.json")
    assert gone.status == 1
    assert "damaged: tokenizer_config.json is missing; copy the model again" in gone.err
    (Path(model) / "tokenizer.json").unlink()
    rules = Path(model) / "pairwright.json"  # as a person writes it, who has a model from elsewhere
    rules.write_text(json.dumps(json.loads(rules.read_text()) | {"files": []}))
    no_tokenizer = run("evaluate", model, "--pairs", "pairs", "--split", "train", "--output", "r.json")
    assert no_tokenizer.status == 1
    assert "no tokenizer" in no_tokenizer.err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_temporary_folder_whose_path_is_too_long_for_rays_sockets_is_said(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    program = "from pairwright.cluster.session import ray_session\nwith ray_session(): pass"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"TMPDIR": str(folder)}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.stderr.strip().splitlines()[-1].endswith("set TMPDIR to a folder with a shorter path")


def test_what_nobody_foresaw_in_a_task_comes_with_the_tasks_own_traceback() -> None:
    def divide(number: int) -> Iterator[int]:
        yield 1 // number

    with pytest.raises(ClusterError, match=r"(?s)a bug.*in divide.*ZeroDivisionError.*logs"), ray_session():
        list(map_on_ray(divide, [0], [1], int, what="numbers divided"))
