"""Mistakes of users, one a line: exit status, one message, and the remedy that it names works when followed.

All of them in one process; another test holds that none of them waits for torch, transformers or Ray.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from exported_models import export_small_model
from hostile_text import run
from pairwright.cli.early_checks import ARCHITECTURES
from pairwright.model import tiny_models


class Mistake(NamedTuple):
    """A command line, words of its message, and the command line that the message leads to."""

    command: str
    words: tuple[str, ...]
    remedy: str | None = None
    """None where it would start Ray, or is not a command."""


DRY = "train --config t.toml --dry-run"
SET = "train --config t.toml --set"
MISTAKES = {
    # ------------------------------------------------------------------------------------------ paths
    "a misspelt file": Mistake(
        "ingest rr.jsonl --output t",
        ("rr.jsonl: no such file or directory; did you mean r.jsonl?",),
        "ingest r.jsonl --output t",
    ),
    "a misspelt folder above a file": Mistake(
        "validate dta/good.jsonl", ("did you mean data/good.jsonl?",), "validate data/good.jsonl"
    ),
    "a folder without sources": Mistake("ingest other --output t", ("other: directory holds 1 file, none of them",)),
    "a table among other things": Mistake(
        "ingest r.jsonl --output other",
        ("other: holds no table but notes.txt", "such as other/annotations"),
        "ingest r.jsonl --output other/annotations",
    ),
    "a table in the place of a file": Mistake(
        "ingest r.jsonl --output broken.toml", ("broken.toml is a file",), "ingest r.jsonl --output t"
    ),
    "an unknown scheme": Mistake("ingest r.jsonl --output ftp://x/y", ("unknown scheme ftp://", "s3://")),
    "a file in place of a table": Mistake(
        "expand r.jsonl --output p",
        ("a file, not a table", "pairwright ingest r.jsonl --output URL"),
        "ingest r.jsonl --output t",
    ),
    "a misspelt table": Mistake("inspect pars", ("no table here", "did you mean pairs?"), "inspect pairs"),
    "a misspelt table to expand": Mistake(
        "expand anns --output p", ("no table here", "did you mean ann?"), "expand ann --output p"
    ),
    "pairs into annotations": Mistake(
        "expand ann --output ann", ("ann: holds annotations, expected pairs",), "expand ann --output pairs"
    ),
    "a model in place of a table": Mistake("inspect exported/model", ("no table here but a reward model",)),
    "no such version": Mistake(
        "inspect ann --version 7",
        ("no version 7; there are 1", "/ann` lists them"),
        "versions ann",
    ),
    "no such version to compare": Mistake("diff ann 1 9", ("no version 9",), "diff ann 1 1"),
    "pairs of annotations": Mistake(
        "export-pairs ann --output x.jsonl",
        ("ann: holds annotations, expected pairs",),
        "export-pairs pairs --output x.jsonl",
    ),
    "a name that says no format": Mistake(
        "export-pairs pairs --output x.csv",
        ("ends in .parquet or .jsonl",),
        "export-pairs pairs --output x.parquet",
    ),
    "pairs over a file of others": Mistake(
        "export-pairs pairs --output r.jsonl",
        ("r.jsonl: is there with other content", "name another file"),
        "export-pairs pairs --output x.jsonl",
    ),
    "rankings in the place of a folder": Mistake(
        "synthesize --output other", ("other: is a folder; name a file",), "synthesize --output other/x.jsonl"
    ),
    "rankings below a file": Mistake("synthesize --output r.jsonl/x.jsonl", ("r.jsonl is a file, not a folder",)),
    "contracts in the place of a file": Mistake(
        "schemas --output r.jsonl", ("r.jsonl: a file; name a folder",), "schemas --output contracts"
    ),
    "contracts over older ones": Mistake(
        "schemas --output old",
        ("old/pairs.v2.json: a contract of `pairwright schemas` is there", "--overwrite"),
        "schemas --output old --overwrite",
    ),
    "a page in the place of a folder": Mistake(
        "report ann --output other", ("other: is a folder; name a file",), "report ann --output other/page.html"
    ),
    "a page over an older one": Mistake(
        "report ann --output page.html",
        ("page.html: a page of `pairwright report` is there; replace it with --overwrite",),
        "report ann --output page.html --overwrite",
    ),
    "a page over a file of others": Mistake(
        "report ann --output other/notes.txt --overwrite",
        ("is not a page of `pairwright report`", "name another file"),
        "report ann --output other/page.html",
    ),
    # ------------------------------------------------------------------------------------------ flags
    "a verb in a typo": Mistake("ingets r.jsonl --output t", ("did you mean ingest",), "ingest r.jsonl --output t"),
    "a flag in a typo": Mistake(
        "ingest r.jsonl --output t --jsn",
        ("no such flag --jsn; did you mean --json?",),
        "ingest r.jsonl --output t --json",
    ),
    "the old flag of an output": Mistake(
        "ingest r.jsonl --into t", ("no such flag --into; it is --output now",), "ingest r.jsonl --output t"
    ),
    "an old flag of versions": Mistake("versions ann --last 3", ("it is --limit now",), "versions ann --limit 3"),
    "an old flag of vacuum": Mistake(
        "vacuum ann --older-than 1h", ("it is --retention now",), "vacuum ann --retention 1h --dry-run"
    ),
    "an output without its flag": Mistake(
        "synthesize x.jsonl", ("--output URL",), "synthesize --output x.jsonl --num-groups 3"
    ),
    "a configuration without its flag": Mistake(f"{DRY.replace('--config ', '')}", ("--config FILE",), DRY),
    "an argument too many": Mistake(
        "export-pairs pairs more --output x.jsonl", ("unexpected extra argument", "--output URL")
    ),
    "an argument too few": Mistake("inspect", ("missing argument", "pairwright inspect --help"), "inspect --help"),
    "a flag without its value": Mistake(
        "versions ann --limit", ("'--limit' requires an argument; see `pairwright versions --help`",), "versions -h"
    ),
    "a value that is no choice": Mistake(
        "export-pairs pairs --output x.jsonl --split test",
        ("'test' is not one of 'train', 'validation'",),
        "export-pairs pairs --output x.jsonl --split train",
    ),
    "a number that is none": Mistake(
        "inspect ann --sample few", ("'--sample'", "valid integer"), "inspect ann --sample 1"
    ),
    "a number out of range": Mistake(
        "synthesize --output x.jsonl --num-groups 0",
        ("'--num-groups'", "greater than or equal to 1"),
        "synthesize --output x.jsonl --num-groups 1",
    ),
    "a duration in words": Mistake(
        "vacuum ann --retention soon",
        ("--retention soon: expected a time such as 30m, 24h or 7d",),
        "vacuum ann --retention 30m --dry-run",
    ),
    "a limit in words": Mistake(
        "validate r.jsonl --max-refused few", ("a percentage such as 0.5%",), "validate r.jsonl --max-refused 0.5%"
    ),
    "a flag that needs another": Mistake(
        "validate r.jsonl --replace", ("name it with --against URL",), "validate r.jsonl"
    ),
    "nothing to forget": Mistake(
        "forget ann", ("give --annotator NAME or --prompt ID-OR-FILE",), "forget ann --annotator ann-1 --dry-run"
    ),
    "a misspelt annotator": Mistake(
        "forget ann --annotator anm-1", ("did you mean 'ann-1'?",), "forget ann --annotator ann-1 --dry-run"
    ),
    "forgetting in pairs": Mistake(
        "forget pairs --annotator ann-1", ("holds pairs", "forget there"), "forget ann --annotator ann-1 --dry-run"
    ),
    # ---------------------------------------------------------------------------------- configurations
    "a misspelt configuration": Mistake(
        "train --config tt.toml", ("no such configuration file", "did you mean t.toml?"), DRY
    ),
    "no TOML": Mistake("ingest r.jsonl --output t --config broken.toml", ("broken.toml: not a TOML file", "line 1")),
    "a misspelt key": Mistake(
        "ingest r.jsonl --output t --set max_completion=9",
        ("max_completion: unknown key; did you mean max_completions?",),
        "ingest r.jsonl --output t --set max_completions=9",
    ),
    "a key of another section": Mistake(
        f"{SET} learning_rate=1e-5",
        ("did you mean optimizer.learning_rate?",),
        f"{DRY} --set optimizer.learning_rate=1e-5",
    ),
    "a misspelt section": Mistake(
        f"{SET} trainig.epochs=2", ("did you mean training?",), f"{DRY} --set training.epochs=2"
    ),
    "a renamed key": Mistake(
        f"{SET} loss.centre=0.01",
        ("renamed to loss.center_coefficient",),
        f"{DRY} --set loss.center_coefficient=0.01",
    ),
    "a value that is none": Mistake(
        "expand ann --output p --set ties=sometimes", ("ties: found 'sometimes'",), "expand ann --output p"
    ),
    "no value": Mistake("expand ann --output p --set ties", ("expected section.key=value",)),
    "keys that do not fit": Mistake(
        f"{SET} batches.micro_batch_tokens=100",
        ("batches.micro_batch_tokens (100)", "raise the first or lower the second"),
        f"{DRY} --set batches.micro_batch_tokens=100 --set tokens.max_length=100",
    ),
    "a missing key": Mistake(
        "train --config empty.toml --set output=run",
        ("model: missing; set it in the file or with --set model=...",),
        DRY,
    ),
    "a misspelt layout": Mistake(
        "ingest r.jsonl --output t --format nativ",
        ("did you mean native?",),
        "ingest r.jsonl --output t --format native",
    ),
    "a layout to show": Mistake("formats trll", ("did you mean trl?",), "formats trl"),
    # ----------------------------------------------------------------------------------- runs, models
    "a misspelt pairs table": Mistake(f"{SET} data.pairs=pars", ("did you mean pairs?",), DRY),
    "annotations to train on": Mistake(
        f"{SET} data.pairs=ann", ("ann: holds annotations, expected pairs; make pairs with",), "expand ann --output p2"
    ),
    "a wrong path of a model": Mistake(
        f"{SET} model.path=./exported/bse", ("no such directory", "did you mean exported/base?"), DRY
    ),
    "a model of a hub out of reach": Mistake(
        f"{SET} model.path=org/nothing",
        ("no model of that name can be fetched", "HF_HUB_OFFLINE is set", "pairwright new-model"),
        "new-model --output small --texts r.jsonl",
    ),
    "a folder that is no model": Mistake(f"{SET} model.path=other", ("it has no config.json",), DRY),
    "a run among other things": Mistake(f"{SET} output=other", ("other", "notes.txt", "choose another output"), DRY),
    "a run in its starting model": Mistake(
        f"{SET} output=exported/base/run", ("one lies in the other", "beside the model"), DRY
    ),
    "no run": Mistake("checkpoints ann", ("ann: no run here", "the output of `pairwright train`")),
    "no run to export": Mistake("export rn --output m", ("rn: no run here",)),
    "a misspelt model": Mistake(
        "evaluate exported/modl --pairs pairs", ("no such model directory", "did you mean exported/model?")
    ),
    "a model without a head": Mistake(
        "evaluate exported/base --pairs pairs", ("no reward head", "train one from it with `pairwright train`")
    ),
    "annotations to evaluate on": Mistake(
        "evaluate exported/model --pairs ann", ("ann: holds annotations, expected pairs",)
    ),
    "a report over a file of others": Mistake(
        "evaluate exported/model --pairs pairs --output t.json", ("is not a report of `pairwright evaluate`",)
    ),
    "no held-out pairs": Mistake(
        "evaluate exported/model --pairs all", ("no pairs in split validation", "validation_fraction")
    ),
    "a misspelt input": Mistake("score exported/model rr.jsonl --output o", ("did you mean r.jsonl?",)),
    "rewards among other things": Mistake(
        "score exported/model r.jsonl --output other", ("other: holds", "give the scores a folder of their own")
    ),
    "an unknown architecture": Mistake(
        "new-model --output m --texts r.jsonl --architecture lama",
        ("did you mean llama?",),
        "new-model --output m --texts r.jsonl --architecture llama --vocab-size 300",
    ),
    "texts that are none": Mistake(
        "new-model --output m --texts rr.jsonl", ("did you mean r.jsonl?",), "new-model --output m --texts r.jsonl"
    ),
    "a model over another": Mistake(
        "new-model --output exported/base --texts r.jsonl",
        ("something is here already; name a directory that is not there yet",),
        "new-model --output m --texts r.jsonl",
    ),
    # ----------------------------------------------------------------------------- storage, permissions
    "credentials in an address": Mistake(
        "ingest s3://AKIA:SECRET@bucket/x.jsonl --output t", ("***", "environment variables (AWS_*")
    ),
    "a file where nothing can be written": Mistake(
        "synthesize --output /proc/x.jsonl", ("/proc/x.jsonl: nothing can be written there",)
    ),
    "a table where nothing can be written": Mistake("ingest r.jsonl --output /proc/none/t", ("/proc/none",)),
}
SLOW_IMPORTS = ("torch", "transformers", "ray", "deepspeed")
NOT_CHEAP = {"a model over another", "contracts over older ones"}
"""Mistakes that only the finished output shows, or whose check needs all contracts."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one of each thing that a command may be given."""
    folder = tmp_path_factory.mktemp("made")
    lines = [
        {
            "id": str(i),
            "prompt": f"Why {i}?",
            "completions": [{"text": f"So {i}."}, {"text": "Because."}],
            "ranks": [1, 2],
            "annotator": f"ann-{i % 2}",
        }
        for i in range(40)
    ]
    (folder / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "data").mkdir()
    shutil.copy(folder / "r.jsonl", folder / "data" / "good.jsonl")
    (folder / "other").mkdir()
    (folder / "other" / "notes.txt").write_text("mine")
    (folder / "old").mkdir()
    (folder / "old" / "pairs.v2.json").write_text('{"name": "pairs", "version": 2, "fields": []}')
    (folder / "t.json").write_text("{}")
    (folder / "empty.toml").write_text("")
    (folder / "broken.toml").write_text("a = = b\n")
    (folder / "t.toml").write_text(
        'output = "run"\nmodel.path = "exported/base"\ndata.pairs = "pairs"\nbatches.groups_per_step = 8\n'
    )
    export_small_model(folder / "exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in (
            "ingest r.jsonl --output ann",
            "expand ann --output pairs --set validation_fraction=0.3",
            "expand ann --output all --set validation_fraction=0",
            "report ann --output page.html",
        ):
            assert run(*command.split()).status == 0, command
        (folder / "page.html").write_text((folder / "page.html").read_text().replace("2026", "2025"))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of it, the current directory."""
    copy = tmp_path / "made"
    shutil.copytree(made, copy)
    monkeypatch.chdir(copy)
    return copy


def status_of(mistake: str) -> int:
    flags = [*MISTAKES]
    return 2 if flags.index("a verb in a typo") <= flags.index(mistake) <= flags.index("a number out of range") else 1


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_message_and_its_remedy_works(name: str, folder: Path) -> None:
    mistake = MISTAKES[name]
    before = sorted(folder.rglob("*"))
    ended = run(*mistake.command.split())
    assert ended.status == status_of(name), ended
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert ended.err.count("error: ") == 1, ended.err
    assert "Traceback" not in ended.err
    assert [word for word in mistake.words if word not in ended.err] == [], ended.err
    assert sorted(folder.rglob("*")) == before, "a command that did nothing left something"
    if mistake.remedy is not None:
        remedied = run(*mistake.remedy.split())
        assert remedied.status == 0, remedied


def test_no_mistake_waits_for_torch_transformers_or_ray(folder: Path) -> None:
    """One process makes them all, one after another; what is imported stays, so the first that imports is named."""
    program = (
        "import json, sys\n"
        "from pairwright.cli.main import main\n"
        "found = {}\n"
        "for name, command in json.load(open(sys.argv[1])).items():\n"
        "    sys.argv[1:] = command.split()\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit:\n"
        "        pass\n"
        f"    slow = [one for one in {SLOW_IMPORTS} if one in sys.modules]\n"
        "    if slow:\n"
        "        sys.exit(f'{name}: imported {slow}')\n"
    )
    commands = {name: one.command for name, one in MISTAKES.items() if name not in NOT_CHEAP}
    Path("../commands.json").write_text(json.dumps(commands))
    ended = subprocess.run(
        [sys.executable, "-c", program, "../commands.json"],
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr[-500:]
    assert ended.stderr.count("error: ") == len(commands)


LOCKED = {
    "a source that may not be read": ("ingest locked.jsonl --output t", "Permission denied"),
    "a configuration that may not be read": ("train --config locked.toml", "locked.toml: cannot be read"),
    "a table that may not be read": ("inspect closed/ann", "closed/ann"),
    "a table where nothing may be written": ("ingest r.jsonl --output closed/t", "closed/t"),
    "a file where nothing may be written": (
        "synthesize --output closed/x.jsonl",
        "nothing can be written to the folder",
    ),
    "a page where nothing may be written": ("report ann --output closed/page.html", "nothing can be written to the"),
    "a run where nothing may be written": ("train --config t.toml --output closed/run", "closed/run"),
}


_NO_RIGHTS = "-dac_override,-dac_read_search"


@pytest.mark.parametrize("name", LOCKED)
def test_what_may_not_be_read_or_written_is_said_in_one_line(name: str, folder: Path) -> None:
    """In a process of its own, in which root too has only the rights that a file's mode gives."""
    command, words = LOCKED[name]
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root may do everything here; install util-linux for setpriv, or run as somebody else")
    plain = ["setpriv", f"--bounding-set={_NO_RIGHTS}", f"--inh-caps={_NO_RIGHTS}"] if os.geteuid() == 0 else []
    shutil.copy(folder / "r.jsonl", folder / "locked.jsonl")
    shutil.copy(folder / "t.toml", folder / "locked.toml")
    shutil.copytree(folder / "ann", folder / "closed" / "ann")
    for place, mode in {"locked.jsonl": 0, "locked.toml": 0, "closed/ann": 0, "closed": 0o555}.items():
        (folder / place).chmod(mode)
    try:
        ended = subprocess.run(
            [*plain, sys.executable, "-m", "pairwright", *command.split()],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        for place in ("closed", "closed/ann"):
            (folder / place).chmod(0o755)
    assert ended.returncode == 1, ended
    assert "Traceback" not in ended.stderr
    assert words in ended.stdout + ended.stderr
    if command.startswith("ingest locked"):  # a source that fails is a line of the summary: others may go in
        assert [line for line in ended.stdout.splitlines() if line.startswith("failed ")], ended
    else:
        assert (ended.stdout, ended.stderr[:7], ended.stderr.count("error: ")) == ("", "error: ", 1)


def test_architectures_known_beforehand_are_those_that_can_be_made() -> None:
    assert ARCHITECTURES == tiny_models.ARCHITECTURES
