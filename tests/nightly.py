"""Runs every slow suite in one piece: each module in a pytest process of its own, with limits and a table at the end.

`make test-nightly` runs it. A module that hangs, or takes its process down, costs its own limit and no other module's
result. Where the budget is used up, the modules that are left are named as not run, and the exit status says so too.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import psutil

ROOT = Path(__file__).parents[1]
SUITES = (("slow and not gpu", ()), ("hypothesis and not slow and not gpu", ("--hypothesis-profile=search",)))
"""Marker expression and further options of what `make test-slow` runs in two pytest processes."""
UNITS = {"s": 1, "m": 60, "h": 3600}
GRACE_SECONDS = 30.0
"""From SIGTERM to SIGKILL, for fixtures that end clusters and servers."""


@dataclass(frozen=True)
class Outcome:
    """What became of one module."""

    module: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    note: str = ""

    @property
    def is_good(self) -> bool:
        """Return whether everything in it ran and nothing failed."""
        return not self.failed and not self.note


def seconds_of(text: str) -> float:
    """Return a time such as 3h, 90m, or 600 as seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a time such as 3h, 90m or 600, got {text!r}")
    return float(match[1]) * UNITS[match[2] or "s"]


def main() -> None:
    """Run the suites and end with status 1 unless all of them ran and passed."""
    parser = argparse.ArgumentParser(description="Run every slow suite, each module in a process of its own.")
    parser.add_argument("--budget", type=seconds_of, default="3h", help="time for all of them (3h)")
    parser.add_argument("--limit", type=seconds_of, default="1h", help="most time for one module (1h)")
    parser.add_argument("--report", type=Path, default=ROOT / "nightly.txt", help="file for the table (nightly.txt)")
    parser.add_argument("paths", nargs="*", default=["tests"], help="test files or folders (tests)")
    given = parser.parse_args()
    suites = [(module, ["-m", marks, *more]) for marks, more in SUITES for module in modules_with(marks, given.paths)]
    outcomes = run_all(suites, budget=given.budget, limit=given.limit, report=given.report)
    print(f"\n{given.report.read_text()}", end="")
    sys.exit(not all(outcome.is_good for outcome in outcomes))


def modules_with(marks: str, paths: Sequence[str]) -> list[str]:
    """Return the modules that have a test with these marks."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", marks, *paths]
    collected = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if collected.returncode not in (0, 5):  # 5: there is none
        sys.exit(collected.stdout)
    return list(dict.fromkeys(re.findall(r"^(\S+\.py)::", collected.stdout, re.MULTILINE)))


def run_module(module: str, options: list[str], limit: float) -> Outcome:
    """Run one module's tests in a process of their own, which is ended with all that it started at the limit."""
    print(f"\n== {module} {' '.join(options)}", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-rP", "--durations=5", f"--junitxml={results}", *options, module]
        process = subprocess.Popen(command, cwd=ROOT)
        note = ""
        try:
            status = process.wait(limit)
            note = "" if status in (0, 1) else f"pytest ended with status {status}"
        except subprocess.TimeoutExpired:
            end(process)
            note = f"ended after {limit:.0f} s"
        passed, failed, skipped = counts(results)
    return Outcome(module, passed, failed, skipped, time.monotonic() - started, note)


def run_all(
    suites: Sequence[tuple[str, list[str]]],
    *,
    budget: float,
    limit: float,
    report: Path,
    run: Callable[[str, list[str], float], Outcome] = run_module,
) -> list[Outcome]:
    """Run modules one after the other, and keep ``report`` up to date: a night that ends early leaves what it knows.

    Args:
        suites: each module, with further options of pytest.
        budget: seconds for all.
        limit: most seconds for one.
        report: file for the table.
        run: runs one.
    """
    ends = time.monotonic() + budget
    outcomes: list[Outcome] = []
    for module, options in suites:
        left = ends - time.monotonic()
        if left <= 0:
            outcomes.append(Outcome(module, note="not run: the budget was used up"))
        else:
            outcomes.append(run(module, options, min(left, limit)))
        report.write_text(table(outcomes))
    report.write_text(table(outcomes))
    return outcomes


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and every one below it, by pid."""
    started = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    _, alive = psutil.wait_procs(started, timeout=GRACE_SECONDS)
    for child in alive:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()


def counts(results: Path) -> tuple[int, int, int]:
    """Return how many tests passed, failed and were skipped, by pytest's own file; none where it wrote none."""
    if not results.is_file():
        return 0, 0, 0
    total = passed = failed = skipped = 0
    for suite in ElementTree.parse(results).iter("testsuite"):
        total = int(suite.get("tests", 0))
        bad, left_out = int(suite.get("failures", 0)) + int(suite.get("errors", 0)), int(suite.get("skipped", 0))
        passed, failed, skipped = passed + total - bad - left_out, failed + bad, skipped + left_out
    return passed, failed, skipped


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the table of all modules, the sums last."""
    width = max([len(outcome.module) for outcome in outcomes], default=6)
    lines = [f"{'module':{width}} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8}"]
    whole = Outcome(
        "all",
        sum(outcome.passed for outcome in outcomes),
        sum(outcome.failed for outcome in outcomes),
        sum(outcome.skipped for outcome in outcomes),
        sum(outcome.seconds for outcome in outcomes),
        "" if all(outcome.is_good for outcome in outcomes) else "not good",
    )
    for one in (*outcomes, whole):
        figures = f"{one.passed:7,} {one.failed:7,} {one.skipped:8,} {one.seconds:8,.0f}"
        lines.append(f"{one.module:{width}} {figures}  {one.note}".rstrip())
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
