"""One rank of a ZeRO-3 run whose memory is limited, without Ray: started by zero_runs.run_ranks.

A case is a dictionary as of ``zero_runs.case`` with {small_model: of the same architecture, reading: as of
``load_reward_model``, limit_bytes: how much anonymous memory the rank may take beyond what it has before it loads the
model; None for no limit}. A rank that takes more is killed, as in a container. A limit of the process (``ulimit``)
would count what DeepSpeed reserves, 2 GB that it never touches.
"""

import ctypes
import gc
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from pairwright.data.tokens.tokenize_groups import TokenTable
from pairwright.model.load_model import DTYPES, load_reward_model
from pairwright.model.lora import add_adapters
from pairwright.training.context import StatusTracker
from pairwright.training.engine import Engine
from pairwright.training.global_batch import Run, shape_of
from pairwright.training.step import train_step
from zero_ranks import config_of

KILLED = 137
M_MMAP_THRESHOLD = -3
POLL_SECONDS = 0.001


def run_case(case: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    # glibc's heap else keeps what was freed: weights that are gathered for a layer come and go through it.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)
    tokens = TokenTable([Path(arguments["tokens"])])
    # Once on a small model: what libraries take at their first use is not the model's.
    losses(case | {"model": case["small_model"], "reading": "all"}, arguments, tokens)
    gc.collect()
    before, most = anonymous_bytes(), [0]
    limit = 2**40 if case["limit_bytes"] is None else case["limit_bytes"]
    threading.Thread(target=watch, args=(before, limit, most), daemon=True).start()
    return {"losses": losses(case, arguments, tokens), "most_bytes": most[0]}


def watch(before: int, limit: int, most: list[int]) -> None:
    """Record the most that this process takes, and end it if that is too much."""
    while True:
        most[0] = max(most[0], anonymous_bytes() - before)
        if most[0] > limit:
            print(f"killed: took {most[0]:,} bytes, {limit:,} allowed", flush=True)
            os._exit(KILLED)
        time.sleep(POLL_SECONDS)


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def losses(case: dict[str, Any], arguments: dict[str, Any], tokens: TokenTable) -> list[float]:
    """Load the model, add adapters and train; return the loss of each step."""
    config = config_of(case, arguments)
    model = load_reward_model(
        config.model.path,
        dtype=DTYPES[config.deepspeed.precision],
        seed=0,
        dropout=False,
        gradient_checkpointing=True,
        pad_token_id=None,
        vocab_size=None,
        cpu_kernels=True,
        reading=case["reading"],
    )
    model.accept_packed_sequences(enabled=False)
    assert config.lora is not None
    add_adapters(model, config.lora, seed=0)
    run = Run(config=config, run_digest="", tokens=tokens, pad_token_id=0, layout="padded", shape=shape_of(model))
    engine = Engine(model, config=config.deepspeed, optimizer=config.optimizer, status=StatusTracker())
    # One micro-batch: from the second on, DeepSpeed keeps up to a billion weights gathered.
    rows, rate = np.arange(2), config.optimizer.learning_rate
    return [train_step(engine, run, rows, rate, step=step)["loss"] for step in range(case["num_steps"])]
