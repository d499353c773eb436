"""Seconds from submitting a training job to its first optimizer step, split by what they go to.

    python benchmarks/submit_to_first_step.py --starts 3
    python benchmarks/submit_to_first_step.py --starts 3 --grow

A real head on this machine. Without ``--grow`` its CPUs are there, and `pairwright train --address` brings the package
along. With it the head has none to spare: Ray's autoscaler starts a node (a process here, so its seconds are Ray's own,
without a machine's boot), and the job runs what is installed. Each start is a run of its own; the first makes tokens.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support" / name) for name in ("systems", "builders")]

from ray_head import RayHead, ray_head  # noqa: E402 - behind the path to the tests' real heads
from training_runs import make_model, make_pairs, run_config, write_config  # noqa: E402 - the same

PARTS = {
    "submit": "the command starts, packages and uploads, and the cluster takes the job",
    "environment": "Ray unpacks what the job brought; the driver starts and imports",
    "tokens": "made in the first start, found in the others; the plan of the run",
    "node": "the autoscaler starts a node; nothing where there was room",
    "workers": "Ray Train starts the ranks, and they import",
    "model": "ranks load the model, and check the layout",
    "first step": "from then to the end of step 1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--grow", action="store_true", help="a head without room, and Ray's autoscaler")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pairwright-start-") as name:
        folder = Path(name)
        make_model(folder / "model")
        make_pairs(folder / "pairs", num_groups=200)
        grow = arguments.grow
        with ray_head(folder, num_cpus=1 if grow else 2, max_nodes=int(grow), cpus_per_node=2 * grow) as head:
            head.submit_installed(folder, "-c", "pass")  # the agent that starts jobs comes after the head
            starts = [measured(head, folder, number, grow=arguments.grow) for number in range(arguments.starts)]
    print(report(starts, grow=arguments.grow))


def measured(head: RayHead, folder: Path, number: int, *, grow: bool) -> dict[str, float]:
    """Return the seconds of each part of one start."""
    while grow and len(head.living_nodes()) > 1:
        time.sleep(1)  # each start is cold
    name = f"run-{number}"
    workers = {"num_workers": 1, "cpus_per_worker": 2 if grow else 1}
    training = {"max_steps": 2, "checkpoint_every_steps": 2, "log_every_steps": 1}
    write_config(run_config(folder, name, training=training, workers=workers), folder / f"{name}.toml")
    run = folder / name
    watch = Watch(head, run, grow=grow)
    watch.start()
    began = time.time()
    submit(head, folder, name, grow=grow)
    watch.stop.set()
    accepted = newest_job(head)["start_time"] / 1000
    events = [
        json.loads(line) for file in sorted(run.glob("metrics-*.jsonl")) for line in file.read_text().splitlines()
    ]
    planned = (run / "run.json").stat().st_mtime
    tokens = watch.began or planned
    ranks = next(event["time"] for event in events if event["kind"] == "phase")
    layout = next(event["time"] for event in events if event["kind"] == "layout")
    step = next(event["time"] for event in events if event["kind"] == "step")
    node = min(max(watch.came or planned, planned), ranks)
    times = [began, accepted, tokens, planned, node, ranks, layout, step]
    return dict(zip(PARTS, (after - before for before, after in pairwise(times)), strict=True))


def submit(head: RayHead, folder: Path, name: str, *, grow: bool) -> None:
    config = str(folder / f"{name}.toml")
    if grow:
        job = head.submit_installed(folder, str(ROOT / "jobs/run.py"), "train", "--config", config)
        assert job.returncode == 0, job.stdout[-3000:]
        return
    (folder / "empty").mkdir(exist_ok=True)  # what is needed to be there travels: nothing
    process = head.pairwright(folder / "empty", "train", "--config", config)
    output, _ = process.communicate()
    assert process.returncode == 0, output[-3000:]


class Watch(threading.Thread):
    """Notes when a run's folder was made, after the driver's imports, and when a node came."""

    def __init__(self, head: RayHead, run: Path, *, grow: bool) -> None:
        super().__init__(daemon=True)
        self.stop = threading.Event()
        self.began: float | None = None
        self.came: float | None = None
        self._head, self._run, self._grow = head, run, grow

    def run(self) -> None:
        while not self.stop.wait(0.2):
            if self.began is None and self._run.is_dir():
                self.began = time.time()
            if self._grow and self.came is None and len(self._head.living_nodes()) > 1:
                self.came = time.time()


def newest_job(head: RayHead) -> dict[str, Any]:
    token = (Path.home() / ".ray" / "auth_token").read_text().strip()
    request = urllib.request.Request(f"{head.address}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        jobs = [job for job in json.load(answer) if job["type"] == "SUBMISSION"]
    return max(jobs, key=lambda job: job["start_time"])


def report(starts: list[dict[str, float]], *, grow: bool) -> str:
    command = f"python benchmarks/{Path(__file__).name} --starts {len(starts)}{' --grow' if grow else ''}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "deepspeed", "transformers"))
    lines = [
        "# Seconds from submit to the first step",
        "",
        f"`{command}`, {time.strftime('%Y-%m-%d')}, {platform.machine()}, {cpus()} CPUs, {versions}",
        "",
        f"| part | {' | '.join(f'start {number}' for number in range(1, len(starts) + 1))} | what |",
        f"|---|{'---|' * (len(starts) + 1)}",
    ]
    for part, what in PARTS.items():
        lines.append(f"| {part} | {' | '.join(f'{start[part]:.1f}' for start in starts)} | {what} |")
    lines.append(f"| all | {' | '.join(f'{sum(start.values()):.1f}' for start in starts)} | |")
    return "\n".join(lines)


def cpus() -> str:
    return subprocess.run(["nproc"], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
