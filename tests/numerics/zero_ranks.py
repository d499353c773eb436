"""One rank of a real DeepSpeed run without Ray: started by test_zero_ranks.py, writes what it computed on rank 0.

Argument: a JSON file of {rank, world_size, port, model, tokens, output, num_steps, label_smoothing, optimizer, cases};
a case is {zero_stage, precision, micro_batch_tokens, name}.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad

from pairwright.config import TrainConfig
from pairwright.data.tokens import TokenTable
from pairwright.model.reward_model import load_reward_model
from pairwright.training.engine import DTYPES, Engine, join_process_group
from pairwright.training.loop import Run, train_step


class RecordingEngine(Engine):
    """An engine that keeps the full gradient of each step, read just before the update."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gradients: list[dict[str, np.ndarray]] = []

    def step(self, learning_rate: float) -> float:
        found = {name: safe_get_full_grad(p) for name, p in self._model.named_parameters()}
        self.gradients.append({name: g.float().cpu().numpy().copy() for name, g in found.items() if g is not None})
        return super().step(learning_rate)


def run_case(case: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    config = TrainConfig.model_validate(
        {
            "output": "unused",
            "model": {"path": arguments["model"]},
            "data": {"pairs": "unused"},
            "tokens": {"max_length": 8},
            "batches": {"micro_batch_tokens": case["micro_batch_tokens"]},
            "loss": {"label_smoothing": arguments["label_smoothing"]},
            "optimizer": arguments["optimizer"],
            "engine": {"zero_stage": case["zero_stage"], "precision": case["precision"]},
        }
    )
    model = load_reward_model(
        arguments["model"],
        dtype=DTYPES[case["precision"]],
        seed=0,
        dropout=False,
        gradient_checkpointing=False,
        pad_token_id=None,
        vocab_size=None,
    )
    tokens = TokenTable([Path(arguments["tokens"])])
    run = Run(config=config, run_digest="", tokens=tokens, pad_token_id=0, layout="padded")
    engine = RecordingEngine(model, engine=config.engine, optimizer=config.optimizer)
    rows = np.arange(len(tokens))
    rate = config.optimizer.learning_rate
    figures = [train_step(engine, run, rows, rate, step=step) for step in range(arguments["num_steps"])]
    state = engine.full_state_dict()
    return {
        "figures": figures,
        "gradients": engine.gradients,
        "state": {} if state is None else {name: tensor.float().numpy() for name, tensor in state.items()},
    }


def main() -> None:
    arguments = json.loads(Path(sys.argv[1]).read_text())
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(arguments["port"]),
        "RANK": str(arguments["rank"]),
        "LOCAL_RANK": str(arguments["rank"]),
        "WORLD_SIZE": str(arguments["world_size"]),
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    join_process_group()
    results = {case["name"]: run_case(case, arguments) for case in arguments["cases"]}
    if dist.get_rank() == 0:
        torch.save(results, arguments["output"])
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
