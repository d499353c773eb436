"""Small training runs for tests: data from the synthetic truth, a model from nothing, and commands to start them."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch
from safetensors.torch import load_file

from pairwright.config import ExpandConfig, IngestConfig, TrainConfig
from pairwright.data.ingest.adapters import parser_for
from pairwright.data.ingest.parse import annotations_to_arrow, parse_lines
from pairwright.data.pairs.build_pairs import expand_groups
from pairwright.data.synthetic import make_rankings
from pairwright.data.table.table import Input, Manifest, Table
from pairwright.model.tiny_models import new_tiny_model

ROOT = Path(__file__).parents[3]
NUM_STEPS = 32
TRAINING: dict[str, Any] = {
    "epochs": 4,
    "max_steps": NUM_STEPS,
    "checkpoint_every_steps": 8,
    "log_every_steps": 1,
}
"""Long enough, at about 0.3 s a step, for an accident to happen on the way."""


def make_pairs(url: Path, *, num_groups: int, seed: int = 0, expansion: ExpandConfig | None = None) -> pa.Table:
    """Commit a pairs table of synthetic rankings and return its rows."""
    lines = "\n".join(json.dumps(record) for record in make_rankings(num_groups, seed=seed))
    config = IngestConfig()
    accepted, refused = parse_lines(lines.encode(), 1, "synthetic", parser_for("native", config), config)
    assert not refused, refused[:3]
    rows, totals = expand_groups(annotations_to_arrow(accepted), expansion or ExpandConfig())
    table = Table(str(url), "pairs")
    file = table.write_data(rows)
    manifest = Manifest(
        kind="pairs",
        operation="expand",
        files=[file],
        quarantined_files=[],
        totals=totals,
        sources=[],
        inputs=[Input(url="synthetic", version=1, digest=str(seed))],
        config={},
        config_digest="",
    )
    assert table.commit(lambda newest: manifest if newest is None else None)
    return rows


def make_model(directory: Path, *, hidden_size: int = 96, architecture: str = "llama") -> Path:
    """Write a small untrained model whose tokenizer knows the synthetic words."""
    texts = [c["text"] for record in make_rankings(50, seed=99) for c in record["completions"]]
    return new_tiny_model(
        directory,
        architecture=architecture,
        texts=texts,
        vocab_size=600,
        hidden_size=hidden_size,
        num_layers=2,
        num_heads=4,
        max_positions=256,
        seed=0,
    )


def run_config(folder: Path, name: str, **sections: dict[str, Any]) -> TrainConfig:
    """Return a run of a few steps over ``folder/pairs`` and ``folder/model``."""
    values: dict[str, dict[str, Any]] = {
        "model": {"path": str(folder / "model")},
        "data": {"pairs": str(folder / "pairs")},
        "tokens": {"max_length": 128},
        "batches": {"groups_per_step": 16, "micro_batch_tokens": 1024},
        "optimizer": {"learning_rate": 3e-3},
        "training": TRAINING,
        "workers": {"num_workers": 2},
    }
    merged = {key: values.get(key, {}) | sections.get(key, {}) for key in values | sections}
    return TrainConfig.model_validate({"output": str(folder / name)} | merged)


def write_config(config: TrainConfig, file: Path) -> None:
    file.write_text(_as_toml(config.model_dump(mode="json")))


def start_command(config: TrainConfig, file: Path, *, address: str | None = None) -> subprocess.Popen[str]:
    """Start ``pairwright train`` as a user would, in a process of its own, on a cluster of its own or the one given."""
    write_config(config, file)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {} if address is None else {"RAY_ADDRESS": address}
    # Ray commits a checkpoint when its controller next looks: these runs take a step in less than POLL_SECONDS.
    environment["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"
    return subprocess.Popen(
        [sys.executable, "-m", "pairwright", "train", "--config", str(file)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


class RunningCommand:
    """``start_command``, whose log is read while it runs."""

    def __init__(self, config: TrainConfig, file: Path) -> None:
        self.process = start_command(config, file)
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._lines.extend(self.process.stdout)

    def wait_for_line(self, part: str) -> None:
        """Wait until a line of the log has this in it."""
        wait_until(lambda: any(part in line for line in self._lines), timeout_seconds=200, what=part)

    def end(self) -> str:
        """Wait for the end, which must be a good one, and return the log."""
        self.process.wait(300)
        self._reader.join()
        log = "".join(self._lines)
        assert self.process.returncode == 0, log
        return log


def steps_logged(output: Path) -> list[int]:
    """Return the steps that a run's metrics files hold, in the order of writing."""
    lines = [line for file in sorted(output.glob("metrics-*.jsonl")) for line in file.read_text().splitlines()]
    return [record["step"] for record in map(json.loads, lines) if record["kind"] == "step"]


def committed_steps(output: Path) -> list[int]:
    """Return the steps whose checkpoints Ray's snapshot names: what a restart will find."""
    snapshot = output / "checkpoints" / "checkpoint_manager_snapshot.json"
    if not snapshot.is_file():
        return []
    try:
        found = json.loads(snapshot.read_text())
    except json.JSONDecodeError:  # just being written
        return []
    names = [result["checkpoint_dir_name"] for result in found["checkpoint_results"]]
    return [int(name.split("-")[1]) for name in names]


def wait_until(condition: Callable[[], bool], *, timeout_seconds: float, what: str) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_seconds} s for {what}"
        time.sleep(0.05)


def training_workers(of: psutil.Process) -> list[psutil.Process]:
    """Return the processes of a run's ranks, found below the process that started its cluster."""
    found = []
    for child in of.children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE and "RayTrainWorker" in " ".join(child.cmdline()[:1]):
                found.append(child)
        except psutil.NoSuchProcess:  # a process that has just ended, or is a zombie by now
            continue
    return found


def weights(output: Path) -> dict[str, np.ndarray]:
    """Return a run's exported weights, those in bfloat16, which NumPy does not know, as the same numbers in float32."""
    return {
        name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        for name, tensor in load_file(output / "model" / "model.safetensors").items()
    }


def same_bits(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def _as_toml(values: dict[str, Any]) -> str:
    plain = {key: value for key, value in values.items() if value is not None and not isinstance(value, dict)}
    top = "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in plain.items())
    for section, items in values.items():
        if isinstance(items, dict):
            lines = "".join(
                f"{key} = {json.dumps(value, ensure_ascii=False)}\n"
                for key, value in items.items()
                if value is not None
            )
            top += f"\n[{section}]\n{lines}"
    return top
