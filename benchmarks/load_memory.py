"""Memory and time that loading a model takes on the ranks of one node, under real DeepSpeed without Ray.

    python benchmarks/load_memory.py                  # two ranks on gloo, a Llama of about 1 GB

Each case is two processes that load a checkpoint as a run does, until every weight is in its place and DeepSpeed would
add gradients and optimizer: ZeRO-2, ZeRO-3 with all weights read first by every rank, and ZeRO-3 with weights
that stay in their files until they are partitioned. Anonymous memory is sampled every 5 ms and summed over the ranks at
each moment. File pages are reported apart: ranks share them, and the system takes them back when it needs to.
"""

import argparse
import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

POLL_SECONDS = 0.005
BAR = 1.3
"""Most that the ranks of a node may take together while they load, in models."""


@dataclass(frozen=True, slots=True)
class Case:
    """One way to load a model."""

    name: str
    zero_stage: int
    reading: Literal["all", "deferred"]
    stored: str
    """Precision of the checkpoint."""
    precision: str
    """Precision of the run."""


CASES = (
    Case("ZeRO-2", 2, "all", "bf16", "bf16"),
    Case("ZeRO-3, all weights read first", 3, "all", "bf16", "bf16"),
    Case("ZeRO-3", 3, "deferred", "bf16", "bf16"),
    Case("ZeRO-2", 2, "all", "fp32", "bf16"),
    Case("ZeRO-3, all weights read first", 3, "all", "fp32", "bf16"),
    Case("ZeRO-3", 3, "deferred", "fp32", "bf16"),
)


def make_model(folder: Path, stored: str, *, num_layers: int) -> int:
    """Write a Llama in several safetensors files; return its number of weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16_000,
        hidden_size=1536,
        intermediate_size=4096,
        num_hidden_layers=num_layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    torch.nn.Module.to(model, torch.bfloat16 if stored == "bf16" else torch.float32)
    model.save_pretrained(folder, max_shard_size="300MB")
    return model.num_parameters()


# ------------------------------------------------------------------------------------------------------- one rank


class Sampler(threading.Thread):
    """Samples this process's anonymous and file-backed memory, in bytes, with the time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, int, int]] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(POLL_SECONDS):
            self.samples.append(sample())


def sample() -> tuple[float, int, int]:
    """Return the time, and RssAnon and RssFile in bytes."""
    found = dict.fromkeys(("RssAnon", "RssFile"), 0)
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0]) * 1024
    return time.monotonic(), found["RssAnon"], found["RssFile"]


def rank_main(arguments: dict[str, Any]) -> None:
    """Load the model; write the samples and when the weights were in place."""
    import deepspeed
    import torch
    import torch.distributed as dist

    from pairwright.config import DeepSpeedConfig, OptimizerConfig
    from pairwright.model.load_model import DTYPES, load_reward_model
    from pairwright.training.context import StatusTracker
    from pairwright.training.engine import Engine, join_process_group

    torch.set_num_threads(1)
    os.environ |= {key: str(value) for key, value in arguments["environment"].items()}
    dist.init_process_group("gloo")
    join_process_group()
    case = Case(**arguments["case"])
    stop_when_loaded(deepspeed, case)
    dist.barrier()
    before, sampler = sample(), Sampler()
    sampler.start()
    model = load_reward_model(
        arguments["model"],
        dtype=DTYPES[case.precision],
        seed=0,
        dropout=False,
        gradient_checkpointing=False,
        pad_token_id=None,
        vocab_size=None,
        cpu_kernels=True,
        reading=case.reading,
    )
    config = DeepSpeedConfig.model_validate({"zero_stage": case.zero_stage, "precision": case.precision})
    with contextlib.suppress(LoadedError):
        Engine(model, config=config, optimizer=OptimizerConfig(), status=StatusTracker())
    end = time.monotonic()
    sampler.stopped.set()
    sampler.join()
    Path(arguments["output"]).write_text(json.dumps({"before": before, "end": end, "samples": sampler.samples}))
    dist.barrier()
    dist.destroy_process_group()


class LoadedError(Exception):
    """Every weight is in its place."""


def stop_when_loaded(deepspeed: Any, case: Case) -> None:
    """Let DeepSpeed stop where weights are in place: at its start under ZeRO-3, else after rank 0's are broadcast."""

    def stop(*_: Any, **__: Any) -> None:
        raise LoadedError

    if case.zero_stage == 3:
        deepspeed.initialize = stop
        return
    broadcast = deepspeed.DeepSpeedEngine._broadcast_model

    def stop_after(engine: Any) -> None:
        broadcast(engine)
        raise LoadedError

    deepspeed.DeepSpeedEngine._broadcast_model = stop_after


# --------------------------------------------------------------------------------------------------------- a case


def measure(case: Case, model: Path, scratch: Path, *, num_ranks: int) -> dict[str, Any]:
    """Return the peaks of a case, in bytes beyond what the processes had before, and its seconds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes, outputs = [], [scratch / f"rank{rank}.json" for rank in range(num_ranks)]
    for rank, output in enumerate(outputs):
        environment = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": num_ranks,
        }
        fields = {name: getattr(case, name) for name in Case.__slots__}
        arguments = {"case": fields, "model": str(model), "output": str(output), "environment": environment}
        command = [sys.executable, "-W", "ignore", __file__, "--rank", json.dumps(arguments)]
        processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
    if any(process.wait() for process in processes):
        raise SystemExit(f"{case.name}: a rank failed")
    return peaks([json.loads(output.read_text()) for output in outputs])


def peaks(ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the most that each rank, and all together, have taken beyond what they had, in bytes, and the seconds."""
    begin = max(rank["before"][0] for rank in ranks)
    moments = np.arange(begin, max(rank["end"] for rank in ranks), POLL_SECONDS)
    anonymous = [added(rank, 1, moments) for rank in ranks]
    return {
        "each": [float(values.max()) for values in anonymous],
        "sum": float(np.sum(anonymous, axis=0).max()),
        "file_pages": max(float(added(rank, 2, moments).max()) for rank in ranks),
        "seconds": float(moments[-1] - begin),
    }


def added(rank: dict[str, Any], column: int, moments: np.ndarray) -> np.ndarray:
    """Return what a rank's memory has grown by at each moment: the most since the moment before."""
    times = np.array([sample[0] for sample in rank["samples"]])
    values = np.array([sample[column] for sample in rank["samples"]], dtype=float) - rank["before"][column]
    return values[np.clip(np.searchsorted(times, moments), 0, len(times) - 1)]


def report(rows: Sequence[tuple[Case, int, dict[str, Any]]], options: argparse.Namespace) -> list[str]:
    """Return the page."""
    page = [
        "# Memory of loading a model",
        "",
        f"`python benchmarks/load_memory.py --ranks {options.ranks} --layers {options.layers}`, "
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        f"torch {version('torch')}, deepspeed {version('deepspeed')}, transformers {version('transformers')}, "
        f"safetensors {version('safetensors')}.",
        "",
        f"{options.ranks} ranks on one node, gloo, one thread each; a Llama of {rows[0][1] / 1e6:,.0f}M weights in "
        "files of 300 MB. Each figure is anonymous memory beyond what the rank had after its imports, in models: "
        "the bytes of all weights in the run's precision.",
        f"The bar is {BAR} for all ranks of a node together. File pages are the most that one rank mapped: ranks share "
        "them, and the system takes them back when it needs to. Gradients and optimizer, which come after, are not in "
        "these figures. Weights that cannot wait, as those of a mixture of experts, are all read first.",
        "",
        "| case | checkpoint | run | each rank | together | file pages | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, num_weights, found in rows:
        size = num_weights * (2 if case.precision == "bf16" else 4)
        each = ", ".join(f"{value / size:.2f}" for value in found["each"])
        page.append(
            f"| {case.name} | {case.stored} | {case.precision} | {each} | {found['sum'] / size:.2f} | "
            f"{found['file_pages'] / size:.2f} | {found['seconds']:.1f} |"
        )
    return [*page, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description="What does loading a model take?")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--write", action="store_true", help="also write below benchmarks/results")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        rank_main(json.loads(options.rank))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for stored in ("bf16", "fp32"):
            model = Path(folder) / stored
            num_weights = make_model(model, stored, num_layers=options.layers)
            for case in CASES:
                if case.stored == stored:
                    rows.append((case, num_weights, measure(case, model, Path(folder), num_ranks=options.ranks)))
                    print(case, rows[-1][2], flush=True)
    page = report(rows, options)
    print("\n".join(page))
    if options.write:
        name = f"load_memory_{os.cpu_count()}cpu_{datetime.now(UTC):%Y-%m-%d}.md"
        (Path(__file__).parent / "results" / name).write_text("\n".join(page))


if __name__ == "__main__":
    main()
