"""Resident memory of a process that trains, step by step, on real texts of varied lengths: does it grow?

    python benchmarks/rank_memory.py FILE --steps 500       # FILE: rankings, as rankings_dev.jsonl.zst

One rank on gloo with real DeepSpeed and the training step of a run (training/step.py), without Ray: tokens from a
memory-mapped table, a plan for every step, shared-prefix layout. The bar: from step 50 on, memory stays within 10 % of
what it was there.
"""

import argparse
import os
import platform
import socket
import statistics
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.distributed as dist
from reward_groups import PAD_ID, real_groups, tokenizer_of
from transformers import AutoModelForSequenceClassification, LlamaConfig

from pairwright.config import TrainConfig
from pairwright.data.table.table import Table
from pairwright.data.tokens.token_table import TokenTable, groups_to_table
from pairwright.model.reward_model import RewardModel
from pairwright.training.context import StatusTracker
from pairwright.training.engine import Engine, join_process_group
from pairwright.training.global_batch import Run, shape_of
from pairwright.training.step import train_step

VOCAB_SIZE = 8000
SETTLED = 50
"""Steps after which memory counts."""
BAR = 0.10


def configuration(options: argparse.Namespace) -> TrainConfig:
    """Return the configuration of the steps."""
    return TrainConfig.model_validate(
        {
            "output": "unused",
            "model": {"path": "unused"},
            "data": {"pairs": "unused"},
            "tokens": {"max_length": options.max_length},
            "batches": {"micro_batch_tokens": options.micro_batch_tokens, "groups_per_step": options.groups},
            "deepspeed": {"zero_stage": options.zero_stage, "precision": "bf16"},
        }
    )


def small_llama() -> RewardModel:
    """Return a model that is small beside its activations."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=352,
        max_position_embeddings=4096,
        pad_token_id=PAD_ID,
    )
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    reward_model = RewardModel(model, config, cpu_kernels=True)
    reward_model.accept_packed_sequences(enabled=True)
    return reward_model


def join_one_rank() -> None:
    """Make this process the only rank of a process group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    one = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= one
    dist.init_process_group("gloo")
    join_process_group()


def resident_by_step(tokens: TokenTable, options: argparse.Namespace) -> list[float]:
    """Return the resident memory after each step, MiB."""
    config, model = configuration(options), small_llama()
    run = Run(config=config, run_digest="", tokens=tokens, pad_token_id=PAD_ID, layout="shared", shape=shape_of(model))
    engine = Engine(model, config=config.deepspeed, optimizer=config.optimizer, status=StatusTracker())
    process, rng, found = psutil.Process(), np.random.default_rng(0), []
    for step in range(options.steps):
        rows = np.sort(rng.choice(len(tokens), options.groups, replace=False))
        train_step(engine, run, rows, 1e-5, step=step)
        found.append(process.memory_info().rss / 2**20)
        if step % SETTLED == SETTLED - 1:
            print(f"step {step + 1}: {found[-1]:,.0f} MiB", flush=True)
    return found


def report(found: list[float], seconds: float, num_groups: int, options: argparse.Namespace) -> list[str]:
    """Return the page, with the growth over the level after the first steps."""
    level = statistics.median(found[SETTLED : 2 * SETTLED])
    growth = max(found[SETTLED:]) / level - 1
    rows = [
        f"| {start + 1}-{start + len(part)} | {statistics.median(part):,.0f} | {min(part):,.0f} | {max(part):,.0f} |"
        for start in range(0, len(found), SETTLED)
        if (part := found[start : start + SETTLED])
    ]
    return [
        "# Resident memory of a rank by step",
        "",
        f"`python benchmarks/rank_memory.py {options.file.name} --steps {options.steps} --groups {options.groups} "
        f"--micro-batch-tokens {options.micro_batch_tokens} --max-length {options.max_length} "
        f"--zero-stage {options.zero_stage}`, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPUs, "
        f"{torch.get_num_threads()} threads, Python {platform.python_version()}, torch {version('torch')}, "
        f"deepspeed {version('deepspeed')}; {num_groups:,} groups, {seconds / len(found):.2f} s a step.",
        "",
        f"The most after step {SETTLED} is {growth:+.1%} of the median of steps {SETTLED + 1} to {2 * SETTLED}; "
        f"allowed: {BAR:+.0%}.",
        "",
        "| steps | median MiB | least | most |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Does a process that trains grow?")
    parser.add_argument("file", type=Path, help="rankings, .jsonl.zst")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--groups", type=int, default=4, help="a step")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--zero-stage", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="also write below benchmarks/results")
    options = parser.parse_args()
    groups = real_groups(options.file, tokenizer_of(options.file, vocab_size=VOCAB_SIZE), max_length=options.max_length)
    join_one_rank()
    with tempfile.TemporaryDirectory() as folder:
        table = Table(folder, "tokens")
        path = table.local_path(table.write_data(groups_to_table(groups, ["train"] * len(groups)), compress=False))
        assert path is not None
        begin = time.perf_counter()
        found = resident_by_step(TokenTable([path]), options)
        page = report(found, time.perf_counter() - begin, len(groups), options)
    print("\n".join(page))
    if options.write:
        name = f"rank_memory_{os.cpu_count()}cpu_{datetime.now(UTC):%Y-%m-%d}.md"
        (Path(__file__).parent / "results" / name).write_text("\n".join(page))


if __name__ == "__main__":
    main()
