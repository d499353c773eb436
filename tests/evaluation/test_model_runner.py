"""Models in this process or on Ray: the same rewards, no noise, little processor time, and an end within seconds."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from exported_models import export_small_model
from pairwright.cluster.sized_executor import SMALL_BYTES, SMALL_MODEL_BYTES, fits_this_process

pytestmark = pytest.mark.ray
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
BASE = "from transformers import AutoModelForSequenceClassification, modeling_utils"
"""What any program imports that loads a model."""

PROGRESS = re.compile(r"\d\d:\d\d:\d\d [\d,]+ ")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small_model(tmp_path_factory.mktemp("exported"))


def write_texts(path: Path, num_records: int) -> Path:
    records = [
        {
            "id": f"r{i}",
            "prompt": f"Why is {i}?",
            "completions": [{"text": f"Because of {i} and {k}."} for k in range(3)],
        }
        for i in range(num_records)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def score(model: Path, texts: Path, output: Path, *flags: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "pairwright", "score", str(model), str(texts), "--output", str(output), *flags]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_rewards_are_the_same_to_the_bit_here_and_on_ray_and_ray_says_nothing(model: Path, tmp_path: Path) -> None:
    """Ray's own pool printed `E ... the actor restart will fail` into every evaluation."""
    texts = write_texts(tmp_path / "texts.jsonl", 300)
    for output, flags in (("here", ()), ("ray", ("--num-workers", "2"))):
        said, _ = score(model, texts, tmp_path / output, *flags).communicate(timeout=300)
        kinds = {"progress" if PROGRESS.match(line) else line.split()[0] for line in said.splitlines()}
        assert kinds - {"progress"} == {"scores", "refused"}, said
    here, ray = (pq.read_table(tmp_path / name / "scores") for name in ("here", "ray"))
    assert here.num_rows == 900
    assert here.equals(ray)


def cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_three_texts_take_little_more_processor_time_than_the_libraries(model: Path, tmp_path: Path) -> None:
    """5 s on a quiet machine, 15 s when Ray was started; what others do here makes both figures larger."""
    texts = write_texts(tmp_path / "texts.jsonl", 3)
    command = [sys.executable, "-m", "pairwright", "score", str(model), str(texts), "--output"]
    libraries = min(cpu_seconds([sys.executable, "-c", BASE]) for _ in range(2))
    whole = min(cpu_seconds([*command, str(tmp_path / f"out{i}")]) for i in range(2))
    assert whole < 1.6 * libraries


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_ctrl_c_ends_scoring_within_seconds_and_leaves_nothing(num_workers: int, model: Path, tmp_path: Path) -> None:
    """It took four minutes: Ray Data, closed after Ray had ended, looked for another cluster."""
    texts = write_texts(tmp_path / "texts.jsonl", 40_000)
    process = score(model, texts, tmp_path / "out", "--num-workers", str(num_workers))
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    deadline = time.monotonic() + 200
    while not any("completions scored" in line for line in lines):
        assert process.poll() is None, lines
        assert time.monotonic() < deadline
        time.sleep(0.1)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.wait(90)
    reader.join()
    assert time.monotonic() - asked < 60, "seconds on a quiet machine"
    assert process.returncode == 130, lines
    assert "Traceback" not in "".join(lines)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_size_workers_and_a_cluster_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("pairwright.cluster.sized_executor._is_ray_up", lambda: False)
    small, one = (SMALL_MODEL_BYTES, SMALL_BYTES), {"num_workers": 1, "use_gpu": False}
    assert fits_this_process(*small, **one)
    assert not fits_this_process(SMALL_MODEL_BYTES + 1, SMALL_BYTES, **one)
    assert not fits_this_process(SMALL_MODEL_BYTES, SMALL_BYTES + 1, **one)
    assert not fits_this_process(*small, num_workers=2, use_gpu=False)
    assert not fits_this_process(*small, num_workers=1, use_gpu=True)
    monkeypatch.setenv("RAY_ADDRESS", "ray.example:6379")
    assert not fits_this_process(*small, **one)
