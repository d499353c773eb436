"""Part a: the tests that need a GPU, each file in a pytest of its own: one that cannot be imported stops no other.

Without conftest.py: it is that of all tests, and asks for packages that no test of a GPU needs.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from kit import Kit, start

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = ("test_attention_on_gpu.py", "test_losses_on_gpu.py", "test_offload_on_gpu.py")


def run(kit: Kit, file: Path, scratch: Path) -> None:
    """Run one file and record its counts, and what failed first."""
    report = scratch / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "--tb=short", "-p", "no:cacheprovider"]
    status = subprocess.run([*command, f"--junitxml={report}", str(file)], cwd=REPOSITORY, check=False).returncode
    suite = ElementTree.parse(report).getroot().find("testsuite") if report.exists() else None
    if suite is None:
        kit.record(file.name, exit_status=status, tests=0)
        return
    failed = [case for case in suite if case.find("failure") is not None or case.find("error") is not None]
    told = ""
    if failed:
        reason = failed[0].find("failure") if failed[0].find("failure") is not None else failed[0].find("error")
        told = f"{failed[0].get('name')}: {(reason.get('message') or '') if reason is not None else ''}"[:300]
    tests, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    kit.record(
        file.name,
        exit_status=status,
        tests=tests,
        passed=tests - skipped - len(failed),
        skipped=skipped,
        failed=len(failed),
        first_failure=told,
    )
    report.unlink()


def main() -> None:
    kit = start("a")
    with tempfile.TemporaryDirectory() as scratch:
        for name in FILES:
            run(kit, REPOSITORY / "tests/gpu" / name, Path(scratch))


if __name__ == "__main__":
    main()
