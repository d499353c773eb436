"""The nightly run: what it counts, what it ends, and what it says at the end."""

from pathlib import Path

import pytest

from nightly import Outcome, run_all, run_module, seconds_of

SUITE = """
import time
import pytest

def test_good():
    pass

def test_bad():
    assert False

@pytest.mark.skip
def test_excluded():
    pass
"""
HANGS = "import time\n\ndef test_good():\n    pass\n\ndef test_hangs():\n    time.sleep(300)\n"


def write(folder: Path, content: str) -> str:
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(content)
    return str(folder / "test_it.py")


def test_a_modules_results_are_counted(tmp_path: Path) -> None:
    outcome = run_module(write(tmp_path, SUITE), [], 300)
    assert (outcome.passed, outcome.failed, outcome.skipped, outcome.note) == (1, 1, 1, "")
    assert not outcome.is_good


@pytest.mark.parametrize(
    ("content", "limit", "note"),
    [(HANGS, 5, "ended after 5 s"), ("import nothing_such", 300, "status 2")],
    ids=["hangs", "cannot be read"],
)
def test_a_module_that_does_not_end_as_it_should_is_not_good(
    tmp_path: Path, content: str, limit: float, note: str
) -> None:
    outcome = run_module(write(tmp_path, content), [], limit)
    assert note in outcome.note
    assert not outcome.is_good


def test_what_the_budget_does_not_reach_is_named_and_not_good(tmp_path: Path) -> None:
    report = tmp_path / "report.txt"
    limits = []

    def run(module: str, options: list[str], limit: float) -> Outcome:
        limits.append(limit)
        return Outcome(module, passed=7, seconds=1.0)

    good = run_all([("a.py", []), ("b.py", [])], budget=60, limit=5, report=report, run=run)
    assert limits == [5, 5]
    assert all(outcome.is_good for outcome in good)
    assert report.read_text().splitlines()[-1].split() == ["all", "14", "0", "0", "2"]
    late = run_all([("a.py", [])], budget=0, limit=5, report=report, run=run)
    assert not late[0].is_good
    assert "not run: the budget was used up" in report.read_text()


@pytest.mark.parametrize(("text", "seconds"), [("3h", 10800), ("1.5m", 90), ("600", 600), ("20s", 20)])
def test_a_time_is_seconds_or_has_a_unit(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
