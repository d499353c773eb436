"""What a verb with ``--address`` submits, and what is refused before anything is uploaded."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pairwright.cluster.job_request import (
    check_address,
    job_request,
    refuse_hiding_modules,
    without_flags_of_submitting,
)
from pairwright.errors import ConfigError
from training_runs import make_pairs, run_config, write_config


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a.jsonl --output s3://b/t --address http://h:8265", "a.jsonl --output s3://b/t"),
        ("--address=http://h:8265 --no-wait a.jsonl --submission-id nightly", "a.jsonl"),
        ("--submission-id=x a -- --address b", "a -- --address b"),
        ("a --set k=--address", "a --set k=--address"),
    ],
)
def test_a_job_runs_the_command_line_without_what_says_where(given: str, kept: str) -> None:
    assert without_flags_of_submitting(given.split()) == kept.split()


@pytest.mark.parametrize("name", ["stat.py", "platform/__init__.py", "json/__init__.py", "ray/__init__.py"])
def test_a_folder_that_hides_a_module_of_pythons_own_is_refused_by_name(name: str, tmp_path: Path) -> None:
    refuse_hiding_modules(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=rf"{name} would hide a module of Python's own"):
        refuse_hiding_modules(tmp_path)


def test_this_repository_can_be_submitted() -> None:
    refuse_hiding_modules(Path(__file__).parents[2])


@pytest.mark.parametrize("address", ["ray://head:10001", "head:8265", "auto", "http://"])
def test_an_address_that_is_no_dashboards_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"expected the address of a head's dashboard, such as http://HEAD:8265"):
        check_address(address, None)


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 200])
def test_an_id_that_can_be_no_files_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="submission-id"):
        check_address("http://head:8265", name)


def test_a_job_is_labelled_with_its_stage_its_run_and_its_data_version(tmp_path: Path) -> None:
    make_pairs(tmp_path / "pairs", num_groups=4)
    write_config(run_config(tmp_path, "run"), tmp_path / "train.toml")
    params = {"config": str(tmp_path / "train.toml"), "settings": [], "output": None}
    job = job_request("train", ["--config", "train.toml"], params, folder=tmp_path)
    assert shlex.split(job.entrypoint) == ["python", "-m", "pairwright", "train", "--config", "train.toml"]
    described = {key: job.metadata[key] for key in ("stage", "run", "data", "data_version")}
    assert described == {
        "stage": "train",
        "run": f"{tmp_path}/run",
        "data": f"{tmp_path}/pairs",
        "data_version": "1",
    }


def test_an_output_that_would_go_with_the_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--output: tables/a is relative"):
        job_request("ingest", [], {"output": "tables/a", "sources": ["b"]}, folder=tmp_path)
    write_config(run_config(Path("relative"), "run"), tmp_path / "train.toml")
    with pytest.raises(ConfigError, match=r"output: relative/run is relative"):
        job_request("train", [], {"config": f"{tmp_path}/train.toml", "settings": [], "output": None}, folder=tmp_path)
    (tmp_path / "pipeline.toml").write_text('[expand]\nannotations = "s3://b/a"\noutput = "pairs"\n')
    with pytest.raises(ConfigError, match=r"expand\.output: pairs is relative"):
        job_request("run", [], {"pipeline": f"{tmp_path}/pipeline.toml", "settings": []}, folder=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["formats", "--no-wait"], "--submission-id and --no-wait are for jobs; give --address"),
        (["formats", "--address", "http://127.0.0.1:9"], "no Ray dashboard answers"),
        (["inspect", "--address", "http://127.0.0.1:9"], "error: pairwright inspect: missing argument"),
    ],
)
def test_what_is_wrong_is_one_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pairwright", *arguments]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.returncode in (1, 2)
