"""Every command of docs/quickstart.md, and of the README's road, prints what the page says."""

import re
import shutil
from pathlib import Path

import pytest

from manual_commands import not_printed, run, shown_commands

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "docs" / "quickstart.md"
TABLE = re.compile(r"^```toml\n(\[fields\].*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAM = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_quickstart_leads_from_a_sheet_to_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small model in place of the one that has to be downloaded."""
    page = QUICKSTART.read_text(encoding="utf-8")
    commands = list(shown_commands(QUICKSTART))
    made, tried, *rest = commands
    status, printed = run(made.words, tmp_path)
    assert (status, not_printed(made, printed, tmp_path)) == (0, [])
    status, printed = run(tried.words, tmp_path)
    assert (status, not_printed(tried, printed, tmp_path)) == (1, [])
    fields = TABLE.search(page)
    assert fields is not None
    assert fields[1] in printed, "the page shows the table that the command prints"
    (tmp_path / "fields.toml").write_text(fields[1], encoding="utf-8")
    run("pairwright synthesize --output texts.jsonl --num-groups 100", tmp_path)
    bert = "--architecture bert --max-positions 512"
    assert run(f"pairwright new-model --output models/encoder --texts texts.jsonl {bert}", tmp_path)[0] == 0
    for command in rest:
        words = command.words
        if " train " in words and "--dry-run" not in words:
            words += " --set training.max_steps=3"
        status, printed = run(words, tmp_path)
        assert (status, not_printed(command, printed, tmp_path)) == (0, []), f"{command.words}\n{printed}"
    monkeypatch.chdir(tmp_path)
    (program,) = PROGRAM.findall(page)
    exec(compile(program, "quickstart", "exec"), {})


@pytest.mark.slow
def test_the_readmes_road_prints_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    road = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Bring your own data")[0]
    (tmp_path / "road.md").write_text(road, encoding="utf-8")
    wrong = []
    for command in shown_commands(tmp_path / "road.md"):
        status, printed = run(command.words, tmp_path)
        assert status == 0, f"{command.words}\n{printed}"
        wrong += [f"{command.words}: {line}" for line in not_printed(command, printed, tmp_path)]
    assert not wrong
    monkeypatch.chdir(tmp_path)
    shutil.rmtree("demo/rewards")
    for program in PROGRAM.findall(road):
        exec(compile(program, "README", "exec"), {})
