"""No verb lets what stands in data, in names of files or in a command line act on a terminal, or write a line."""

import json
import os
from pathlib import Path

import pytest

import run_folders
from exported_models import export_small_model
from hostile_text import FORGED, HOSTILE, MARKUP, Shown, check_shown, run, write_records

NOT_UTF_8 = os.fsdecode(b"caf\xe9")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make tables, a run's folder and a report's place, all of hostile names."""
    folder = tmp_path_factory.mktemp("hostile") / f"folder {HOSTILE}"
    write_records(folder / "in")
    (folder / "in" / f"other {HOSTILE}.xlsx").write_text("x")
    (folder / "in" / f"empty {HOSTILE}.jsonl").write_text("")
    (folder / "in" / f"cut {HOSTILE}.jsonl.gz").write_bytes(b"\x1f\x8bno")
    return folder


def check(*arguments: str, status: int = 0) -> Shown:
    shown = check_once(*arguments, status=status)
    check_shown(run(*arguments, encoding="ascii").out)
    return shown


def check_once(*arguments: str, status: int = 0) -> Shown:
    shown = run(*arguments)
    assert shown.status == status, shown
    check_shown(shown.out)
    check_shown(shown.err)
    return shown


def test_verbs_of_tables_show_hostile_text_as_text(folder: Path) -> None:
    table, pairs = str(folder / "table"), str(folder / "pairs")
    assert "Traceback" not in check("ingest", str(folder / "in"), "--output", table, status=1).err
    check("ingest", str(folder / "in"), "--output", table, "--replace", "--json", status=1)
    for verb in ("validate", "inspect", "versions"):
        place, status = (str(folder / "in"), 1) if verb == "validate" else (table, 0)
        check(verb, place, status=status)
        exact = json.loads(check(verb, place, "--json", status=status).out)
        assert FORGED in json.dumps(exact)
        assert exact == json.loads(run(verb, place, "--json", encoding="ascii").out)
    check("expand", table, "--output", pairs, "--set", "validation_fraction=0.5")
    check("inspect", pairs)
    check("export-pairs", pairs, "--output", str(folder / "flat.jsonl"))
    check("export-pairs", pairs, "--output", str(folder / f"{HOSTILE}.jsonl"))
    assert run("forget", table, "--annotator", HOSTILE).status == 0
    check("forget", table, "--annotator", HOSTILE, status=1)
    check("diff", table, "1", "2")
    check("compact", table)
    check("vacuum", table, "--retention", "0", "--keep-versions", "1", "--dry-run")
    check("vacuum", table, "--retention", "0", "--keep-versions", "1")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_report_shows_hostile_text_as_text(folder: Path) -> None:
    table, page = str(folder / "reported"), folder / "page.html"
    run("ingest", str(folder / "in"), "--output", table)
    check_once("report", table, "--output", str(page))
    check("report", table, "--json")
    check_shown(page.read_text(encoding="utf-8").replace(FORGED, ""))
    for name in MARKUP[:3]:
        assert f">{name}</bdi>" in page.read_text(encoding="utf-8")


def test_verbs_of_runs_show_hostile_text_as_text(folder: Path) -> None:
    root = folder / "run"
    root.mkdir(parents=True)
    run_folders.claim(root)
    run_folders.add(root, 8, {})
    run_folders.commit(root, 8)
    check("checkpoints", str(root))
    odd = root / "checkpoints" / "odd \x9b31m\u202e"
    odd.mkdir()
    (odd / "x").write_text("")
    check("checkpoints", str(root))
    check("checkpoints", str(root), "--json")
    check("export", str(root), "--output", str(folder / "model"), "--checkpoint", HOSTILE, status=1)


@pytest.mark.parametrize("name", [HOSTILE, NOT_UTF_8, f"--{HOSTILE}"])
def test_a_mistake_quotes_hostile_arguments_as_text(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text('"\\u001b[2J\\nversion 9" = 1\n[model]\npath = "\\u009b\\nm"\n')
    commands = [
        [name],
        ["ingest", name, "--output", "t"],
        ["ingest", f"{name}/*.jsonl", f"s3://{name}", "--output", "t"],
        ["ingest", "x.jsonl", "--output", f"{name}://x"],
        ["ingest", "x.jsonl", "--output", "t", "--config", name],
        ["ingest", "x.jsonl", "--output", "t", "--set", name],
        ["ingest", "x.jsonl", "--output", "t", "--set", f"{name}=1"],
        ["ingest", "x.jsonl", "--output", "t", "--format", name],
        ["ingest", f"kafka://h:1/t?{name}=1", f"sqlite:///{name}?table={name}", "--output", "t"],
        ["inspect", name],
        ["inspect", ".", "--sample", name],
        ["versions", name, name],
        ["vacuum", ".", "--retention", name],
        ["validate", "x.jsonl", "--max-refused", name],
        ["forget", ".", "--prompt", name],
        ["expand", name, "--output", "p"],
        ["export-pairs", name, "--output", name],
        ["train", "--config", name],
        ["train", "--config", "c.toml", "--set", f"output={name}"],
        ["evaluate", name, "--pairs", name],
        ["score", name, name, "--output", name],
        ["checkpoints", name],
        ["export", name, "--output", name],
        ["new-model", "--output", name, "--texts", name],
        ["synthesize", "--output", "x.jsonl", "--seed", name],
    ]
    for command in commands:
        shown = run(*command)
        assert shown.status in (1, 2), (command, shown)
        assert "Traceback" not in shown.err, (command, shown.err)
        check_shown(shown.out)
        check_shown(shown.err)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_evaluate_and_score_show_hostile_text_as_text(folder: Path) -> None:
    model = export_small_model(folder / "exported", max_length=2048)
    table, pairs = str(folder / "scored"), str(folder / "evaluated")
    run("ingest", str(folder / "in"), "--output", table)
    run("expand", table, "--output", pairs, "--set", "validation_fraction=0.9")
    output = folder / "report.json"
    shown = check_once("evaluate", str(model), "--pairs", pairs, "--output", str(output))
    for name in MARKUP[:3]:
        assert any(line.startswith(f"  {name} ") for line in shown.out.splitlines())
    check_shown(output.read_text(encoding="utf-8"))
    assert set(json.loads(output.read_text())["by_subset"]) == set(MARKUP)
    check_once("score", str(model), str(folder / "in"), "--output", str(folder / f"rewards {HOSTILE}"), status=1)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_of_any_name_trains_and_its_log_shows_hostile_text_as_text(tmp_path: Path) -> None:
    root = tmp_path / "münchen [math] 100% \u202e\x9b31m"
    write_records(root / "in")
    assert run("ingest", str(root / "in"), "--output", str(root / "t")).status == 0
    assert run("expand", str(root / "t"), "--output", str(root / "p"), "--set", "validation_fraction=0.3").status == 0
    export_small_model(root, max_length=2048)
    config = tmp_path / "train.toml"
    config.write_text(
        f"output = {json.dumps(str(root / 'run'))}\nmodel.path = {json.dumps(str(root / 'base'))}\n"
        f"data.pairs = {json.dumps(str(root / 'p'))}\nworkers.num_workers = 1\nbatches.groups_per_step = 4\n"
        "[training]\nmax_steps = 2\nlog_every_steps = 1\nevaluate_every_steps = 1\n"
    )
    check_once("train", "--config", str(config), "--dry-run")
    assert "step 2/2" in check_once("train", "--config", str(config)).out
    check_once("train", "--config", str(config))
    check_once("checkpoints", str(root / "run"))
    for file in [*(root / "run").glob("*.jsonl"), root / "run" / "summary.json", root / "run" / "run.json"]:
        check_shown(file.read_text(encoding="utf-8"))


SECRET = "QXZ7QXZ7"
DEAD = (
    "ingest s3://bucket/x.jsonl --output s3://bucket/t",
    "ingest x.jsonl --output s3://bucket/t",
    "validate s3://bucket/x/",
    "expand s3://bucket/t --output p",
    "inspect s3://bucket/t",
    "versions s3://bucket/t",
    "diff s3://bucket/t 1 2",
    "compact s3://bucket/t",
    "vacuum s3://bucket/t",
    "forget s3://bucket/t --annotator a",
    "report s3://bucket/t",
    "export-pairs s3://bucket/t --output x.jsonl",
    "evaluate s3://bucket/m --pairs p",
    "evaluate m/model --pairs s3://bucket/p",
    "score s3://bucket/m x.jsonl --output o",
    "checkpoints s3://bucket/run",
    "export s3://bucket/run --output m",
    "train --config train.toml --set output=s3://bucket/run",
)


@pytest.mark.slow  # three seconds of retries each
def test_a_store_that_does_not_answer_ends_every_verb_in_one_line_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_text(json.dumps({"id": "a", "prompt": "p", "completions": [], "ranks": []}))
    export_small_model(tmp_path / "m")
    (tmp_path / "train.toml").write_text(f'[model]\npath = "{tmp_path}/m/base"\n[data]\npairs = "s3://bucket/p"\n')
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://ann:{SECRET}@127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    for command in DEAD:
        shown = run(*command.split())
        assert shown.status == 1, (command, shown)
        assert SECRET not in shown.out + shown.err, (command, shown)
        assert "Traceback" not in shown.err, (command, shown.err)
        assert shown.err.startswith("error: s3://bucket"), (command, shown.err)
        assert "***@127.0.0.1:9" in shown.err
        assert shown.err.count("\n") == 1
