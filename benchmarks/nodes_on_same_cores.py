"""Ingestion in MB/s and training in tokens/s on 1, 2 and 4 Ray nodes that share the same cores.

    python benchmarks/nodes_on_same_cores.py --megabytes 800 --steps 30 --into rates.jsonl

A head without CPUs, and nodes that are processes of this machine, each with an object store of its own. Together they
have four of Ray's CPUs, however many they are, so the same number of tasks and of ranks is at work: four, with one
thread each, on whatever cores there are. What differs is what lies between them. Each call measures each count of
nodes once, in random order, adds the rates to the file, and prints the table of all that it holds.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from annotation_files import write_annotations

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support" / name) for name in ("systems", "builders")]

from killed_commands import session_members  # noqa: E402 - behind the path to the tests' real heads
from pairwright.terminal import counted  # noqa: E402 - the same
from ray_head import RayHead, ray_head  # noqa: E402 - the same
from training_runs import make_model, make_pairs, run_config, write_config  # noqa: E402 - the same

NUM_CPUS = 4
NUM_FILES = 8
FIRST_STEPS = 3
"""Left out of the median: caches and memory pools fill."""
KINDS = {"ingestion, MB/s": "ingest", "training, tokens/s": "train"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=800)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--into", type=Path, required=True, help="file of rates, a line each; made or added to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pairwright-nodes-") as name:
        folder = Path(name)
        (folder / "sources").mkdir()
        for number in range(NUM_FILES):
            num_bytes = options.megabytes * 1_000_000 // NUM_FILES
            write_annotations(folder / "sources" / f"{number}.jsonl", num_bytes, seed=number)
        make_model(folder / "model", hidden_size=256)
        make_pairs(folder / "pairs", num_groups=400)
        for count in random.sample(options.nodes, len(options.nodes)):
            rates = measured(folder / f"n{count}", folder, count, options.steps)
            with options.into.open("a") as file:
                file.write(json.dumps({str(count): rates}) + "\n")
    print(report([json.loads(line) for line in options.into.read_text().splitlines()]))


def measured(own: Path, folder: Path, num_nodes: int, num_steps: int) -> dict[str, float]:
    """Return both rates on so many nodes."""
    own.mkdir()
    with cluster(own, num_nodes) as head:
        seconds = run(head, "ingest", f"{folder}/sources/", "--output", f"{own}/annotations")
        num_bytes = sum(file.stat().st_size for file in (folder / "sources").iterdir())
        training = {"max_steps": num_steps, "epochs": 50, "checkpoint_every_steps": num_steps, "log_every_steps": 1}
        batches = {"groups_per_step": 32, "micro_batch_tokens": 2048}
        config = run_config(folder, f"{own.name}/run", training=training, batches=batches, workers={"num_workers": 4})
        write_config(config, own / "train.toml")
        run(head, "train", "--config", f"{own}/train.toml")
    lines = [line for file in (own / "run").glob("metrics-*.jsonl") for line in file.read_text().splitlines()]
    steps = [event for event in map(json.loads, lines) if event["kind"] == "step"]
    assert len(steps) == num_steps
    tokens = statistics.median(event["tokens_per_second"] for event in steps[FIRST_STEPS:])
    return {"ingest": num_bytes / 1e6 / seconds, "train": tokens}


@contextmanager
def cluster(folder: Path, num_nodes: int) -> Iterator[RayHead]:
    """Start a head and its nodes, and end them."""
    with ray_head(folder, num_cpus=0) as head:
        nodes: list[subprocess.Popen[bytes]] = []
        try:
            for number in range(num_nodes):  # one after the other: nodes that start at once take each other's ports
                nodes.append(head.start_node(NUM_CPUS // num_nodes, folder / "nodes.log"))
                head.wait_for_nodes(2 + number)
            warm_up(head, folder)
            yield head
        finally:
            for process in [process for node in nodes for process in session_members(node.pid)]:
                process.kill()


def warm_up(head: RayHead, folder: Path) -> None:
    """Ingest a little, so that Ray's workers have started and imported what they need."""
    (folder / "few").mkdir()
    for number in range(NUM_CPUS):
        write_annotations(folder / "few" / f"{number}.jsonl", 2_000_000, seed=100 + number)
    run(head, "ingest", f"{folder}/few/", "--output", f"{folder}/warm")


def run(head: RayHead, *arguments: str) -> float:
    """Run a verb on the cluster, and return its seconds."""
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "pairwright", *arguments],
        env=os.environ | head.environment | {"RAY_ADDRESS": head.gcs_address, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return time.monotonic() - began


def report(rounds: list[dict[str, dict[str, float]]]) -> str:
    counts = sorted({int(count) for one in rounds for count in one})
    versions = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "deepspeed", "pyarrow"))
    lines = [
        f"{len(rounds)} measurements, {time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} CPUs, "
        f"{versions}; median, with least and most",
        "",
        f"| what | {' | '.join(counted(count, 'node') for count in counts)} |",
        f"|---|{'---|' * len(counts)}",
    ]
    for what, kind in KINDS.items():
        rates = {count: [one[str(count)][kind] for one in rounds if str(count) in one] for count in counts}
        cells = [f"{statistics.median(of):,.0f} ({min(of):,.0f} to {max(of):,.0f})" for of in rates.values()]
        lines.append(f"| {what} | {' | '.join(cells)} |")
        alone = statistics.median(rates[counts[0]])
        over = [f"{alone / statistics.median(of) - 1:+.1%}" for of in rates.values()]
        lines.append(f"| time over that of {counts[0]} | {' | '.join(over)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
