"""One rank of a real DeepSpeed run without Ray: started by zero_runs.py, writes what it computed on rank 0.

Argument: a JSON file of {rank, world_size, device, port, tokens, scratch, output, label_smoothing, optimizer, cases}; a
case is a dictionary as of ``zero_runs.case``.
"""

import json
import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad

from pairwright.config import TrainConfig
from pairwright.data.tokens.tokenize_groups import TokenTable
from pairwright.errors import NotFiniteError, OutOfMemoryError
from pairwright.model.load_model import DTYPES, load_reward_model
from pairwright.model.lora import add_adapters
from pairwright.model.reward_model import RewardModel
from pairwright.training.checkpoint import TAG, CheckpointManifest, write_manifests
from pairwright.training.context import StatusTracker
from pairwright.training.engine import Engine, join_process_group
from pairwright.training.global_batch import Run, shape_of
from pairwright.training.step import train_step


class RecordingEngine(Engine):
    """An engine that keeps the full gradient of each step, read just before the update."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gradients: list[dict[str, np.ndarray]] = []
        self.saved: list[str] = []

    def step(self, learning_rate: float) -> float:
        trained = [(name, p) for name, p in self._model.named_parameters() if p.requires_grad]
        found = {name: safe_get_full_grad(parameter) for name, parameter in trained}
        self.gradients.append({name: g.float().cpu().numpy().copy() for name, g in found.items() if g is not None})
        return super().step(learning_rate)


def config_of(case: dict[str, Any], arguments: dict[str, Any]) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "output": "unused",
            "model": {
                "path": case["model"],
                "gradient_checkpointing": case["gradient_checkpointing"],
                "dropout": case["dropout"],
            },
            "data": {"pairs": "unused"},
            "tokens": {"max_length": 8},
            "batches": {"micro_batch_tokens": case["micro_batch_tokens"]},
            "loss": {"label_smoothing": arguments["label_smoothing"]},
            "optimizer": arguments["optimizer"],
            "lora": case["lora"],
            "deepspeed": case["engine"],
        }
    )


def make_model(config: TrainConfig, case: dict[str, Any]) -> RewardModel:
    model = load_reward_model(
        config.model.path,
        dtype=DTYPES[config.deepspeed.precision],
        seed=0,
        dropout=config.model.dropout,
        gradient_checkpointing=config.model.gradient_checkpointing,
        pad_token_id=None,
        vocab_size=None,
        cpu_kernels=True,
        # As cluster/train/worker.py does.
        reading="deferred" if config.deepspeed.zero_stage == 3 else "all",
    )
    model.accept_packed_sequences(enabled=case["layout"] != "padded")
    if config.lora is not None:
        add_adapters(model, config.lora, seed=0)
        # Adapters as if trained: a new one's product is 0, and with it half of the gradient.
        missing, unexpected = model.load_state_dict(torch.load(case["adapters"]), strict=False)
        assert not unexpected
        assert not any("lora" in name for name in missing)
    return model


def run_case(case: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    config = config_of(case, arguments)
    tokens = TokenTable([Path(case["tokens"] or arguments["tokens"])])
    layout, shape = case["layout"], shape_of(make_model(config, case))
    run = Run(config=config, run_digest="", tokens=tokens, pad_token_id=0, layout=layout, shape=shape)
    rows, rate = np.arange(len(tokens)), config.optimizer.learning_rate

    def new_engine() -> RecordingEngine:
        model = make_model(config, case)
        return RecordingEngine(model, config=config.deepspeed, optimizer=config.optimizer, status=StatusTracker())

    engine, figures, refused = new_engine(), [], []
    start = engine.full_state_dict()
    if case["memory_bytes"] is not None:
        return {"message": message_without_memory(case, engine, run)}
    for step, some in case["steps"] or [(step, rows) for step in range(case["num_steps"])]:
        if case["resumes"] and step == case["num_steps"] - 1:
            engine = resumed(engine, new_engine, Path(arguments["scratch"]))
        before = engine.full_state_dict() if case["steps"] else None
        try:
            figures.append(train_step(engine, run, np.array(some), rate, step=step))
        except NotFiniteError as error:
            refused.append({"message": str(error), "unchanged": same_weights(before, engine.full_state_dict())})
    if case["saves"] is not None:
        save(engine, config, Path(case["saves"]))
    state = engine.full_state_dict()
    return {
        "figures": figures,
        "refused": refused,
        "gradients": engine.gradients,
        "saved": engine.saved,
        "imports_compiler": "torch._inductor.compile_fx" in sys.modules,
        "start": {} if start is None else {name: tensor.float().numpy() for name, tensor in start.items()},
        "state": {} if state is None else {name: tensor.float().numpy() for name, tensor in state.items()},
    }


def message_without_memory(case: dict[str, Any], engine: Engine, run: Run) -> str:
    """Return what a step says that the system refuses memory."""
    # The table is read before: Arrow takes address space by the tens of megabytes, when it likes.
    run.tokens.sizes_of(np.arange(len(run.tokens)))
    for row in range(len(run.tokens)):
        run.tokens.group(row)
    taken = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (taken + case["memory_bytes"], resource.RLIM_INFINITY))
    try:
        train_step(engine, run, np.arange(len(run.tokens)), 0.0, step=0)
    except OutOfMemoryError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return "there was enough"


def same_weights(before: dict[str, torch.Tensor] | None, after: dict[str, torch.Tensor] | None) -> bool:
    """Return whether two states on rank 0 are equal to the bit; a weight may be NaN."""
    if before is None or after is None:
        return dist.get_rank() != 0
    return all(torch.equal(before[name].nan_to_num(7.0), after[name].nan_to_num(7.0)) for name in before | after)


def save(engine: RecordingEngine, config: TrainConfig, directory: Path) -> None:
    """Write a checkpoint as a run does, all ranks into one folder."""
    engine.save(directory, TAG)
    dist.barrier()
    manifest = CheckpointManifest(
        format_version=1,
        step=1,
        num_steps=1,
        world_size=engine.world_size,
        zero_stage=config.deepspeed.zero_stage,
        precision=config.deepspeed.precision,
        run_digest="",
        code_version="",
    )
    write_manifests(directory, manifest, rank=dist.get_rank())


def resumed(engine: RecordingEngine, new_engine: Any, scratch: Path) -> RecordingEngine:
    """Save, and go on in a new engine that loads what was saved."""
    directory = scratch / "checkpoint"
    engine.save(directory, "state")
    dist.barrier()
    fresh = new_engine()
    fresh.load(directory, "state", universal=False)
    dist.barrier()
    if dist.get_rank() == 0:
        files = [torch.load(file, weights_only=False) for file in directory.rglob("*model_states.pt")]
        fresh.saved = sorted(
            {name for file in files for name in [*file["module"], *(file["frozen_param_shapes"] or [])]}
        )
        shutil.rmtree(directory)
    dist.barrier()
    fresh.gradients = engine.gradients
    return fresh


def main(run_case: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]], file: str) -> None:
    arguments = json.loads(Path(file).read_text())
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(arguments["port"]),
        "RANK": str(arguments["rank"]),
        "LOCAL_RANK": str(arguments["rank"]),
        "WORLD_SIZE": str(arguments["world_size"]),
    }
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if arguments["device"] == "cuda" else "gloo")
    join_process_group()
    results = {case["name"]: run_case(case, arguments) for case in arguments["cases"]}
    if dist.get_rank() == 0:
        torch.save(results, arguments["output"])
    dist.barrier()
    dist.destroy_process_group()
