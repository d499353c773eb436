"""The DeepSpeed tests' runs: the cases of each number of ranks, and the processes that run them (zero_ranks.py).

A rank imports torch, DeepSpeed and transformers, which takes six seconds. So one process imports them once for all
runs of a session, and each rank of each run is a fork of it (``multiprocessing``'s fork server).
"""

import importlib
import json
import os
import socket
import time
from collections.abc import Iterator
from multiprocessing import get_context
from typing import Any, Literal

import pytest
import torch

from zero_world import (
    ADAM_EPS,
    LABEL_SMOOTHING,
    LEARNING_RATE,
    LORA,
    MAX_GRADIENT_NORM,
    NUM_STEPS,
    WEIGHT_DECAY,
    World,
)

LAYOUTS = ("shared", "packed", "padded")
Results = dict[str, dict[str, Any]]


def case(world: World, name: str, stage: int, **settings: Any) -> dict[str, Any]:
    """Return a run: by default full fine-tuning of the Llama model in float32, padded, cut finely."""
    engine = {"zero_stage": stage, "precision": settings.pop("precision", "fp32")}
    engine |= {key: settings.pop(key) for key in ("offload_optimizer", "offload_parameters") if key in settings}
    defaults = {
        "model": str(world["llama"]),
        "adapters": str(world["adapters"]),
        "layout": "padded",
        "micro_batch_tokens": 300,
        "gradient_checkpointing": False,
        "dropout": False,
        "lora": None,
        "num_steps": NUM_STEPS,
        "resumes": False,
        # Of a run that does not take all rows in each step: another table, and each step's number and rows.
        "tokens": None,
        # Bytes of address space that a rank may take beyond what it has when its steps begin.
        "memory_bytes": None,
        "steps": None,
        "saves": None,
    }
    assert settings.keys() <= defaults.keys()
    return {"name": name, "engine": engine} | defaults | settings


def saved_in(world: World, world_size: int, name: str) -> str:
    """Return the folder of the checkpoint that a case of so many ranks leaves, where it leaves one."""
    return str(world["folder"] / f"saved-{world_size}-{name.replace(' ', '-')}")


def all_cases(world: World, world_size: int) -> list[dict[str, Any]]:
    """Return the stages in both precisions and, on two ranks, what they are combined with.

    Over 1, 2 and 3 ranks every stage meets every layout. The budget cuts the batch finely for one stage and coarsely
    for the next: memory must not change the result.
    """
    cases = [
        case(
            world,
            f"zero{stage} {precision}",
            stage,
            precision=precision,
            layout=LAYOUTS[(stage + world_size + shift) % 3],
            micro_batch_tokens=300 if stage % 2 == 0 else 100_000,
            saves=saved_in(world, world_size, f"zero{stage} {precision}"),
        )
        for stage in range(4)
        for shift, precision in enumerate(("fp32", "bf16"))
    ]
    if world_size in (1, 2):
        cases += _split_cases(world, world_size)
    if world_size == 2:
        cases += [*_lora_cases(world), *_checkpointing_cases(world), *_offload_cases(world), *_dropout_cases(world)]
    return cases


def _split_cases(world: World, world_size: int) -> Iterator[dict[str, Any]]:
    """A budget under most groups; on two ranks also with dropout, kept and recomputed."""
    for stage in range(4):
        layout = LAYOUTS[(stage + world_size) % 3]
        yield case(world, f"split zero{stage}", stage, layout=layout, micro_batch_tokens=50)
    if world_size == 2:
        for kind in ("on", "recomputed"):
            yield case(
                world,
                f"split dropout {kind}",
                3,
                model=str(world["gpt2"]),
                layout="shared",
                micro_batch_tokens=50,
                dropout=True,
                gradient_checkpointing=kind == "recomputed",
                num_steps=1,
            )


def _lora_cases(world: World) -> Iterator[dict[str, Any]]:
    """Every stage on every layout: one goes on from a checkpoint, one is offloaded; half recompute activations."""
    for stage in range(4):
        for index, layout in enumerate(LAYOUTS):
            offload = {"offload_optimizer": stage > 0, "offload_parameters": stage == 3} if index == 1 else {}
            yield case(
                world,
                f"lora zero{stage} {layout}",
                stage,
                layout=layout,
                lora=LORA,
                gradient_checkpointing=(stage + index) % 2 == 0,
                resumes=index == 0,
                num_steps=NUM_STEPS if index == 0 else 1,
                saves=saved_in(world, 2, f"lora zero{stage} {layout}"),
                **offload,
            )
    for stage, layout in enumerate(LAYOUTS, start=1):
        name = f"lora bf16 {layout}"
        yield case(world, name, stage, layout=layout, lora=LORA, precision="bf16", gradient_checkpointing=True)


def _checkpointing_cases(world: World) -> Iterator[dict[str, Any]]:
    for stage, layout in enumerate(LAYOUTS, start=1):
        yield case(world, f"checkpointing {layout}", stage, layout=layout, gradient_checkpointing=True, num_steps=1)


def _offload_cases(world: World) -> Iterator[dict[str, Any]]:
    for stage, layout in enumerate(LAYOUTS, start=1):
        for precision in ("fp32", "bf16"):
            yield case(
                world,
                f"offload zero{stage} {precision}",
                stage,
                layout=layout,
                precision=precision,
                offload_optimizer=True,
                offload_parameters=stage == 3,
                resumes=precision == "fp32",
            )


def _dropout_cases(world: World) -> Iterator[dict[str, Any]]:
    """GPT-2 with its dropout, twice, and once without; the second time activations are recomputed."""
    for layout in LAYOUTS:
        for kind in ("off", "on", "recomputed"):
            yield case(
                world,
                f"dropout {kind} {layout}",
                2,
                model=str(world["gpt2"]),
                layout=layout,
                dropout=kind != "off",
                gradient_checkpointing=kind == "recomputed",
                num_steps=2,
            )


RANKS = ("zero_ranks", "loop_ranks", "hostile_ranks", "limited_ranks")
"""The modules whose ``run_case`` a rank can run."""
TIMEOUT_SECONDS = 500.0
_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload([*RANKS])


def run_ranks(
    world: World,
    world_size: int,
    cases: list[dict[str, Any]],
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    ranks: str = "zero_ranks",
) -> Results:
    """Run cases one after the other in processes of one process group, and return what rank 0 found, by name."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    scratch = world["folder"] / f"ranks-{port}"
    scratch.mkdir()
    arguments = {
        "world_size": world_size,
        "device": device,
        "port": port,
        "tokens": str(world["tokens"]),
        "scratch": str(scratch),
        "output": str(scratch / "results.pt"),
        "cases": cases,
        "label_smoothing": LABEL_SMOOTHING,
        "optimizer": {
            "learning_rate": LEARNING_RATE,
            "eps": ADAM_EPS,
            "weight_decay": WEIGHT_DECAY,
            "max_grad_norm": MAX_GRADIENT_NORM,
        },
    }
    # A GPU is opened by a process that starts as one: after a fork CUDA refuses.
    context = _FORKS if device == "cpu" else get_context("spawn")
    processes = []
    with pytest.MonkeyPatch.context() as environment:
        if device == "cpu":  # on a machine with GPUs too
            environment.setenv("CUDA_VISIBLE_DEVICES", "")
            environment.setenv("DS_ACCELERATOR", "cpu")
        for rank in range(world_size):
            file = scratch / f"arguments-{rank}.json"
            file.write_text(json.dumps(arguments | {"rank": rank}))
            processes.append(context.Process(target=_run_rank, args=(ranks, str(file), str(file.with_suffix(".log")))))
            processes[-1].start()
    deadline = time.monotonic() + TIMEOUT_SECONDS
    for rank, process in enumerate(processes):
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode != 0:
            for other in processes:
                other.kill()
            log = (scratch / f"arguments-{rank}.log").read_text()
            raise AssertionError(f"rank {rank} ended with {process.exitcode}: {log[-4000:]}")
    return torch.load(scratch / "results.pt", weights_only=False)


def _run_rank(ranks: str, arguments: str, log: str) -> None:
    """Run one rank in this process, whose output goes to ``log``."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    zero_ranks = importlib.import_module("zero_ranks")
    zero_ranks.main(importlib.import_module(ranks).run_case, arguments)
