"""Help in sections, and completion in a shell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hostile_text import run
from pairwright.cli.main import app
from pairwright.cli.options import PANELS
from pairwright.config import TrainConfig


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_the_verbs_in_sections(flag: str) -> None:
    shown = run(flag)
    assert shown.status == 0
    titles = [line[:-1] for line in shown.out.splitlines() if re.fullmatch(r"[A-Z][a-z]+:", line)]
    assert titles == ["Options", *PANELS]
    assert [run(verb, flag).status for verb in ("ingest", "train", "score")] == [0, 0, 0]


def test_without_arguments_the_help_is_shown() -> None:
    assert "Tables:" in run().err


def test_help_of_train_names_every_section_and_where_the_keys_are() -> None:
    shown = run("train", "--help").out
    assert re.findall(r"^ +\[?(\w+)\]? {2,}\S", shown.partition("Sections")[2], re.MULTILINE) == [
        *TrainConfig.model_fields
    ]
    assert "docs/training.md" in shown
    assert "pairwright init my.toml --recipe NAME" in shown


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("pairwright ing", "ingest"),
        ("pairwright ingest --out", "--output"),
        ("pairwright evaluate m --split val", "validation"),
    ],
)
def test_a_shell_completes_verbs_flags_and_values(typed: str, offered: str, tmp_path: Path) -> None:
    script = tmp_path / "pairwright"  # the name that a shell completes for
    script.write_text("from pairwright.cli.main import main\nmain()\n")
    asked = {"_PAIRWRIGHT_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    ended = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == [offered]


def test_completion_can_be_installed_and_shown() -> None:
    help_text = run("--help").out
    assert "--install-completion" in help_text
    assert "--show-completion" in help_text
    assert app.info.name == "pairwright"
