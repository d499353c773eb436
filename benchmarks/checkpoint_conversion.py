"""Convert checkpoints of two ranks for one: seconds and peak memory against the model's size, ZeRO 1, 2 and 3.

    python benchmarks/checkpoint_conversion.py --millions 10 50 125 --repeats 3 --into FOLDER

Two real DeepSpeed ranks take one step and save; a fresh process, which holds no model, converts, and another, of one
rank, loads. Memory is anonymous memory (RssAnon) sampled every 20 ms less what the process had before: shards are
mapped, and mapped pages are the kernel's to drop. Everything written is deleted afterwards.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

SAMPLE_SECONDS = 0.02
WORLD_SIZE = 2
SIZES = {10: (256, 10), 50: (512, 13), 125: (768, 14), 500: (1536, 14)}
"""Millions of parameters -> width and layers of a Llama with hardly any vocabulary."""
CASES = ((1, "fp32"), (2, "fp32"), (3, "fp32"), (2, "bf16"), (3, "bf16"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, nargs="+", choices=sorted(SIZES), default=[10, 50, 125])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--into", type=Path)
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        {"save": save, "convert": convert, "load": load}[arguments.role[0]](*arguments.role[1:])
        return
    print(
        f"`python benchmarks/checkpoint_conversion.py --millions {' '.join(map(str, arguments.millions))} --repeats "
        f"{arguments.repeats}`, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPUs, Python "
        f"{platform.python_version()}, torch {version('torch')}, deepspeed {version('deepspeed')}.\n"
    )
    print("| parameters | ZeRO | checkpoint | convert, s | peak memory | space used | load, s |")
    print("|---|---|---|---|---|---|---|")
    for millions in arguments.millions:
        for stage, precision in CASES:
            with tempfile.TemporaryDirectory(dir=arguments.into, prefix="conversion-") as folder:
                print(measured(Path(folder), millions, stage, precision, arguments.repeats), flush=True)


def measured(folder: Path, millions: int, stage: int, precision: str, repeats: int) -> str:
    """Return one row of the table."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = (str(folder), str(millions), str(stage), precision, port)
    saved = together([("save", *shared, str(rank)) for rank in range(WORLD_SIZE)])
    runs = [together([("convert", str(folder))]) for _ in range(repeats)]
    loaded = together([("load", *shared)])
    seconds = [run["seconds"] for run in runs]
    spread = f" ± {statistics.stdev(seconds):.1f}" if repeats > 1 else ""
    return (
        f"| {saved['parameters'] / 1e6:.0f}M | {stage} {precision} | {saved['bytes'] / 1e9:.2f} GB "
        f"| {statistics.mean(seconds):.1f}{spread} | {max(run['peak'] for run in runs) / 1e6:.0f} MB "
        f"| {max(run['space'] for run in runs) / 1e9:.2f} GB | {loaded['seconds']:.1f} |"
    )


def together(roles: list[tuple[str, ...]]) -> dict[str, float]:
    """Run these roles in processes side by side and return what the first one says."""
    commands = [[sys.executable, __file__, "--role", *role] for role in roles]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate()[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    return json.loads(said[0].strip().splitlines()[-1])


# ------------------------------------------------------------------------------------------- the processes


def save(folder: str, millions: str, stage: str, precision: str, port: str, rank: str) -> None:
    """Take one step as a rank of two and write a checkpoint."""
    from pairwright.training.checkpoint import TAG, CheckpointManifest, write_manifests

    engine, num_parameters = make_engine(folder, millions, stage, precision, port, int(rank), WORLD_SIZE)
    import torch.distributed as dist

    own = Path(folder) / f"rank-{rank}"
    engine.save(own, TAG)
    manifest = CheckpointManifest(
        format_version=1,
        step=1,
        num_steps=1,
        world_size=WORLD_SIZE,
        zero_stage=int(stage),
        precision=precision,
        run_digest="benchmark",
        code_version="",
    )
    write_manifests(own, manifest, rank=int(rank))
    shutil.copytree(own, Path(folder) / "checkpoint", dirs_exist_ok=True)
    shutil.rmtree(own)
    dist.barrier()
    print(json.dumps({"parameters": num_parameters, "bytes": size_of(Path(folder) / "checkpoint")}))


def convert(folder: str) -> None:
    """Convert it, and keep a copy to load from."""
    from pairwright.training.checkpoint import read_manifest
    from pairwright.training.universal_checkpoint import converted

    tempfile.tempdir = folder
    directory = Path(folder) / "checkpoint"
    before, started = anonymous_memory(), time.perf_counter()
    memory, space = Sampler(anonymous_memory), Sampler(lambda: size_of_conversions(Path(folder)))
    with memory, space, converted(directory, read_manifest(directory)) as place:
        seconds = time.perf_counter() - started
        shutil.rmtree(Path(folder) / "universal", ignore_errors=True)
        shutil.copytree(place, Path(folder) / "universal", copy_function=os.link)
    print(json.dumps({"seconds": seconds, "peak": memory.peak - before, "space": space.peak}))


def load(folder: str, millions: str, stage: str, precision: str, port: str) -> None:
    """Load the converted one on one rank."""
    from pairwright.training.checkpoint import TAG

    engine, _ = make_engine(folder, millions, stage, precision, port, 0, 1)
    started = time.perf_counter()
    engine.load(Path(folder) / "universal", TAG, universal=True)
    print(json.dumps({"seconds": time.perf_counter() - started}))


def make_engine(folder: str, millions: str, stage: str, precision: str, port: str, rank: int, world_size: int):
    """Return the engine of a model that has taken one step, and the number of its parameters."""
    import torch
    import torch.distributed as dist

    from pairwright.config import DeepSpeedConfig, OptimizerConfig
    from pairwright.model.collate import collate
    from pairwright.model.load_model import DTYPES, load_reward_model
    from pairwright.model.tiny_models import new_tiny_model
    from pairwright.training.context import StatusTracker
    from pairwright.training.engine import Engine, join_process_group

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(world_size), "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    hidden_size, num_layers = SIZES[int(millions)]
    base = new_tiny_model(
        Path(folder) / f"model-{rank}-{world_size}",
        architecture="llama",
        texts=["some words to learn from"],
        vocab_size=300,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=4,
        max_positions=64,
        seed=0,
    )
    # Only now: of several ranks transformers lets the first one alone write a model.
    dist.init_process_group("gloo")
    join_process_group()
    model = load_reward_model(
        str(base),
        dtype=DTYPES[precision],
        seed=0,
        dropout=False,
        gradient_checkpointing=False,
        pad_token_id=0,
        vocab_size=None,
        cpu_kernels=True,
    )
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    engine = Engine(
        model,
        config=DeepSpeedConfig.model_validate({"zero_stage": int(stage), "precision": precision}),
        optimizer=OptimizerConfig(),
        status=StatusTracker(),
    )
    engine.accumulate(engine.rewards(collate([some_group()], 0, "padded")).sum(), is_last=True)
    engine.step(1e-4)
    return engine, num_parameters


def some_group():
    """Return a group to take a step on: what it says does not matter here."""
    import numpy as np

    from pairwright.data.tokens.tokenize_groups import TokenGroup

    ids = np.arange(1, 9, dtype=np.int32)
    return TokenGroup(
        group_id="g",
        subset=None,
        prompt_ids=ids,
        completion_ids=[ids, ids[::-1].copy()],
        num_characters=np.array([8, 8], np.int32),
        completion_index=np.arange(2, dtype=np.int16),
        chosen_P=np.array([0]),
        rejected_P=np.array([1]),
        weight_P=np.ones(1, np.float32),
        margin_P=np.full(1, np.nan, np.float32),
    )


class Sampler(threading.Thread):
    """Keeps the largest value of what it measures, while its block runs."""

    def __init__(self, measure: Callable[[], int]) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._measure, self._stop_now = measure, threading.Event()

    def run(self) -> None:
        while not self._stop_now.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, self._measure())

    def __enter__(self) -> "Sampler":
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop_now.set()
        self.join()


def anonymous_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def size_of_conversions(folder: Path) -> int:
    return sum(size_of(place) for place in folder.glob("pairwright-universal-*"))


def size_of(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):  # which passes over folders that are removed meanwhile
        for name in names:
            try:
                total += (Path(place) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total


if __name__ == "__main__":
    main()
