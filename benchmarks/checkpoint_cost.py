"""What checkpoints cost a run while nothing goes wrong: stretches of 20 steps with one against stretches without.

    python benchmarks/checkpoint_cost.py --pairs 10

One real run, `pairwright train` on two workers, ZeRO-2, with a checkpoint every 40 steps: the first 20 steps after one
bear all of it (standing still to write, then hashing, uploading and committing beside them), the next 20 nothing. So
their ratio is that of a run with a checkpoint every 20 steps to one with none, on like load, stretch by stretch.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

STRETCH = 20
TEXTS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10, help="of stretches that are compared")
    parser.add_argument("--hidden-size", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--groups-per-step", type=int, default=32)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pairwright-cost-") as folder:
        run = made(Path(folder), arguments)
        print(report(run, arguments))


def made(folder: Path, arguments: argparse.Namespace) -> Path:
    """Make data and a model, train, and return the run's folder."""
    pairwright = [sys.executable, "-m", "pairwright"]
    num_steps = 2 * STRETCH * (arguments.pairs + 1) + 1
    sizes = [f"--hidden-size={arguments.hidden_size}", f"--num-layers={arguments.layers}", "--max-positions=512"]
    commands = (
        ["synthesize", "--output", f"{folder}/rankings.jsonl", "--num-groups", str(TEXTS)],
        ["ingest", f"{folder}/rankings.jsonl", "--output", f"{folder}/annotations"],
        ["expand", f"{folder}/annotations", "--output", f"{folder}/pairs"],
        ["new-model", "--output", f"{folder}/model", "--texts", f"{folder}/rankings.jsonl", *sizes],
        ["train", "--config", f"{folder}/run.toml"],
    )
    (folder / "run.toml").write_text(
        f"""
output = "{folder}/run"
[model]
path = "{folder}/model"
[data]
pairs = "{folder}/pairs"
[tokens]
max_length = 256
[batches]
groups_per_step = {arguments.groups_per_step}
micro_batch_tokens = 4096
[training]
epochs = 1000
max_steps = {num_steps}
checkpoint_every_steps = {2 * STRETCH}
log_every_steps = {STRETCH}
[workers]
num_workers = 2
"""
    )
    for command in commands:
        subprocess.run([*pairwright, *command], check=True, stdout=sys.stderr)
    return folder / "run"


def report(run: Path, arguments: argparse.Namespace) -> str:
    """Return the figures as a text."""
    records: list[dict[str, Any]] = [
        json.loads(line) for file in sorted(run.glob("metrics-*.jsonl")) for line in file.open()
    ]
    ended = {record["step"]: record["time"] for record in records if record["kind"] == "step"}
    starts = range(2 * STRETCH, 2 * STRETCH * (arguments.pairs + 1), 2 * STRETCH)
    ratios = [
        (ended[start + STRETCH] - ended[start]) / (ended[start + 2 * STRETCH] - ended[start + STRETCH])
        for start in starts
    ]
    plain = [(ended[start + 2 * STRETCH] - ended[start + STRETCH]) / STRETCH for start in starts]
    saved = [record for record in records if record["kind"] == "checkpoint_written" and record["step"] in starts]
    stood = [record["waited_seconds"] + record["written_seconds"] for record in saved]
    folders = [path for path in (run / "checkpoints").glob("step-*") if path.is_dir()]
    num_bytes = sum(file.stat().st_size for file in folders[0].rglob("*") if file.is_file())
    return (
        f"`python benchmarks/checkpoint_cost.py --pairs {arguments.pairs} --hidden-size {arguments.hidden_size} "
        f"--layers {arguments.layers} --groups-per-step {arguments.groups_per_step}`, {time.strftime('%Y-%m-%d')}, "
        f"{os.cpu_count()} CPUs, Python {platform.python_version()}, torch {version('torch')}, ray {version('ray')}, "
        f"deepspeed {version('deepspeed')}.\n\n"
        "| step without, s | checkpoint | with one every 20 steps over without | training stood still |\n"
        "|---|---|---|---|\n"
        f"| {spread(plain, '.3f')} | {num_bytes / 1e6:.0f} MB | {spread(ratios, '.3f')} | {spread(stood, '.3f')} s |"
    )


def spread(values: list[float], form: str) -> str:
    """Return the median, and least and most."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


if __name__ == "__main__":
    main()
