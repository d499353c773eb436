"""One rank of a ZeRO-3 run under a limit of the system on its memory, without Ray: started by zero_runs.run_ranks.

A case is a dictionary as of ``zero_runs.case`` with {reading: as of ``load_reward_model``, data_bytes: how much private
memory the rank may take beyond what it has before it loads the model}.
"""

import resource
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


def run_case(case: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    tokens = TokenTable([Path(arguments["tokens"])])
    # Read before: Arrow takes memory when it likes.
    for row in range(len(tokens)):
        tokens.group(row)
    resource.setrlimit(resource.RLIMIT_DATA, (private_bytes() + case["data_bytes"], resource.RLIM_INFINITY))
    try:
        return {"losses": losses(case, arguments, tokens), "message": ""}
    except Exception as error:
        return {"losses": [], "message": f"{type(error).__name__}: {error}"}
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def private_bytes() -> int:
    """Return what counts against RLIMIT_DATA: memory that is private and can be written, mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))


def losses(case: dict[str, Any], arguments: dict[str, Any], tokens: TokenTable) -> list[float]:
    """Load the model, add adapters and train; return the loss of each step."""
    config = config_of(case, arguments)
    model = load_reward_model(
        config.model.path,
        dtype=DTYPES[config.deepspeed.precision],
        seed=0,
        dropout=False,
        gradient_checkpointing=False,
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
    rows, rate = np.arange(len(tokens)), config.optimizer.learning_rate
    return [train_step(engine, run, rows, rate, step=step)["loss"] for step in range(case["num_steps"])]
