"""Part g: three steps under DeepSpeed with one rank: ZeRO 0, 2 and 3 and CPU offload; all must train alike."""

import os
import socket
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from kit import TINY, TINY_CASE, Kit, build, free, in_words, peak_gib, start
from model_flops import SHAPES
from reward_groups import PAD_ID, random_groups

from pairwright.config import DeepSpeedConfig, LossConfig, OptimizerConfig
from pairwright.model.collate import collate
from pairwright.model.loss import preference_loss
from pairwright.training.context import StatusTracker
from pairwright.training.engine import Engine, join_process_group

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "ZeRO-2": {"zero_stage": 2},
    "ZeRO-3": {"zero_stage": 3},
    "ZeRO-2, optimizer on the CPU": {"zero_stage": 2, "offload_optimizer": True},
    "ZeRO-3, optimizer and weights on the CPU": {
        "zero_stage": 3,
        "offload_optimizer": True,
        "offload_parameters": True,
    },
    "ZeRO-0": {"zero_stage": 0},
}
STEPS = 3


def train(kit: Kit, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the losses, norms and seconds of a few steps on the same groups, and the memory."""
    shape = TINY if kit.is_tiny else SHAPES["0.5B"]
    num_completions, prompt, completion = TINY_CASE if kit.is_tiny else (4, 512, 256)
    groups = random_groups(
        4,
        num_completions=num_completions,
        prompt_tokens=prompt,
        completion_tokens=completion,
        vocab_size=shape.vocab_size,
        rng=np.random.default_rng(0),
    )
    torch.manual_seed(0)
    model = build(shape, kit.device)
    model.accept_packed_sequences(enabled=True)
    if kit.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    engine = Engine(
        model,
        config=DeepSpeedConfig(precision="bf16", **settings),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        status=StatusTracker(),
    )
    batches = [collate([group], PAD_ID, "shared").to(kit.device) for group in groups]
    weight = torch.tensor(float(len(groups)), device=kit.device)
    losses, norms, seconds = [], [], []
    for _ in range(STEPS):
        begin = time.perf_counter()
        total = 0.0
        for number, batch in enumerate(batches):
            loss = preference_loss(engine.rewards(batch), batch.targets, LossConfig(), global_weight=weight)
            engine.accumulate(loss, is_last=number == len(batches) - 1)
            total += loss.item()
        norms.append(engine.step(1e-4))
        losses.append(total)
        seconds.append(time.perf_counter() - begin)
    return {
        "losses": " ".join(f"{loss:.4f}" for loss in losses),
        "gradient_norms": " ".join(f"{norm:.4f}" for norm in norms),
        "last_step_s": seconds[-1],
        "peak_gib": peak_gib(kit.device),
    }


def main() -> None:
    kit = start("g")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
    }
    dist.init_process_group("nccl" if kit.device.type == "cuda" else "gloo")
    join_process_group()
    for name, settings in CONFIGURATIONS.items():
        try:
            kit.record(name, **train(kit, settings))
        except Exception as error:
            # Whatever one configuration cannot do, the others are tried.
            kit.record(name, error=in_words(error))
        free()


if __name__ == "__main__":
    main()
