"""The GPU kit: what it writes when something is cut off, and, in the slow suite, every part of it on a CPU.

The slow test runs in an environment like the machine's: a Python 3.12 with what benchmarks/gpu_kit/machine.txt lists,
named by PAIRWRIGHT_GPU_KIT_PYTHON, and the wheels that `prepare.py` put into .whl/. It asks for no network.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
KIT = REPOSITORY / "benchmarks/gpu_kit"
WRITES = """
import sys, time
from pathlib import Path
from results import Recorder
record = Recorder({letter!r}, Path(sys.argv[2]))
"""


def _start(folder: Path, scripts: Mapping[str, tuple[str, float]]) -> subprocess.Popen[str]:
    """Start the conductor on scripts: for each letter the lines after its recorder, and its seconds."""
    parts = []
    for letter, (lines, seconds) in scripts.items():
        script = folder / f"{letter}.py"
        script.write_text(f"{WRITES.format(letter=letter)}\n{textwrap.dedent(lines)}")
        parts.append(f"Part({letter!r}, 'part {letter}', Path({str(script)!r}), {seconds})")
    conductor = folder / "conduct.py"
    conductor.write_text(
        "import os\nfrom pathlib import Path\nfrom conductor import Conductor, Part\n"
        f"parts = [{', '.join(parts)}]\n"
        f"Conductor(parts, Path({str(folder / 'out')!r}), arguments=[], environment=os.environ).run()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(KIT)}
    return subprocess.Popen([sys.executable, str(conductor)], env=environment, text=True, stdout=subprocess.PIPE)


def test_a_part_that_hangs_or_fails_loses_only_what_it_had_not_written(tmp_path: Path) -> None:
    scripts = {
        "a": ("record('first', value=1.5)\ntime.sleep(60)", 1.0),
        "b": ("record('second', value=2)\nraise SystemExit(3)", 5.0),
        "c": ("record('third', value=None)", 5.0),
    }
    process = _start(tmp_path, scripts)
    process.communicate(timeout=30)
    page = (tmp_path / "out/summary.md").read_text()
    records = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert [record["name"] for record in records] == ["first", "second", "third"]
    assert "| a | part a | killed after 1 s |" in page
    assert "| b | part b | exit status 3 |" in page
    assert "| c | part c | done |" in page
    assert "| first | 1.5 |" in page


def test_a_conductor_that_is_told_to_stop_leaves_the_page_and_no_process(tmp_path: Path) -> None:
    lines = "record('first', process=__import__('os').getpid())\ntime.sleep(60)"
    process = _start(tmp_path, {"a": (lines, 60.0), "b": ("", 60.0)})
    results = tmp_path / "out/results.jsonl"
    end = time.monotonic() + 20
    while not (results.exists() and results.read_text().endswith("\n")) and time.monotonic() < end:
        time.sleep(0.05)
    started = json.loads(results.read_text())["process"]
    # Before it is told: the page is there for a conductor that is killed outright.
    while "first" not in (tmp_path / "out/summary.md").read_text() and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 128 + signal.SIGTERM
    page = (tmp_path / "out/summary.md").read_text()
    assert "stopped by signal 15" in page
    assert "| b | part b | not started |" in page
    with pytest.raises(ProcessLookupError):
        os.kill(started, 0)


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    process = _start(tmp_path, {"a": ("record('first')\nopen(sys.argv[2], 'a').write('{\"part\": \"a\", \"na')", 5.0)})
    process.communicate(timeout=30)
    assert "| first |" in (tmp_path / "out/summary.md").read_text()


def test_the_command_fits_the_tool_that_runs_it() -> None:
    source = (KIT / "prepare.py").read_text()
    command = source.partition('COMMAND = "')[2].partition('"')[0]
    assert command.startswith("python3 ")
    assert len(command) < 2000


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_part_runs_to_its_end_on_a_cpu_with_the_machines_versions(tmp_path: Path) -> None:
    python, wheels = os.environ.get("PAIRWRIGHT_GPU_KIT_PYTHON"), REPOSITORY / ".whl"
    if python is None or not any(wheels.glob("*.whl")):
        pytest.skip("PAIRWRIGHT_GPU_KIT_PYTHON names no Python with the machine's packages, or .whl/ is empty")
    command = [python, str(KIT / "run.py"), "--tiny", "--minutes", "110", "--wheels", str(wheels)]
    # A blocked index, and the packages' own switches: nothing outside this machine is asked.
    environment = {**os.environ, "PIP_NO_INDEX": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""}
    status = subprocess.run([*command, "--output", str(tmp_path)], env=environment, check=False, cwd=REPOSITORY)
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    page = (tmp_path / "summary.md").read_text()
    assert status.returncode == 0, page
    assert {record["part"] for record in records} == set("abcdefgh")
    failed = [record for record in records if "error" in record and record["error"] != "RuntimeError: needs a GPU"]
    assert failed == []
    assert all(record["is_right"] for record in records if record["part"] == "b")
    assert all(record["exit_status"] == 0 for record in records if record["part"] == "a")
    kernels = {record["name"]: record for record in records if record["part"] == "c"}
    assert max(kernels["varlen"]["off"], kernels["varlen"]["gradient_off"], kernels["flex"]["off"]) < 1e-5
    losses = [record["losses"] for record in records if record["part"] == "g"]
    assert len(set(losses)) == 1
