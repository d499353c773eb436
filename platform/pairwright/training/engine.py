"""The DeepSpeed engine of one rank: rewards, accumulated gradients, the optimizer step, saving and loading.

DeepSpeed averages gradients over ranks, divides by an accumulation count of its own, and clips at 1.0 by default. Here
the loss already has the global batch's divisor, so each of the three is set explicitly: the loss is multiplied by the
world size once, ``scale_wrt_gas`` is off, and clipping comes from our configuration.
"""

import logging
import math
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import logger as deepspeed_logger
from torch import Tensor, nn

from pairwright.config import DeepSpeedConfig, OptimizerConfig
from pairwright.errors import OutOfMemoryError
from pairwright.model.collate import MicroBatch
from pairwright.model.load_model import DTYPES
from pairwright.model.reward_model import RewardModel
from pairwright.terminal import counted
from pairwright.training import deepspeed_workarounds as workarounds
from pairwright.training.context import StatusTracker

# As torch 2.13 words it where the CPU's memory is exhausted; a GPU's has an exception of its own.
CPU_MEMORY_ERRORS = ("DefaultCPUAllocator", "std::bad_alloc", "Cannot allocate memory")
MEMORY_SAVERS = (
    "model.gradient_checkpointing = true, a higher deepspeed.zero_stage, deepspeed.offload_optimizer, [lora] or a "
    "smaller tokens.max_length"
)


def join_process_group() -> None:
    """Let DeepSpeed adopt this worker's process group, and keep its information messages out of the log."""
    # 17 lines a step otherwise; DeepSpeed's own warnings stay.
    warnings.filterwarnings("ignore", category=FutureWarning)
    deepspeed_logger.setLevel(logging.WARNING)
    workarounds.without_shared_memory_kernel()
    workarounds.import_muon()
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False)


def deepspeed_config(config: DeepSpeedConfig, optimizer: OptimizerConfig) -> dict[str, Any]:
    """Return a run's configuration in DeepSpeed's own format."""
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if config.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    return {
        # Batches are planned by token budget (model/collate.py); these two only satisfy DeepSpeed's arithmetic.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": config.precision == "bf16"},
        "gradient_clipping": 0.0 if _clips_here(config) else optimizer.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own CPU Adam would be compiled on every node; torch's fused one comes with torch.
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
    }


class Engine:
    """A reward model under DeepSpeed on this rank; saving, loading and every step are collectives."""

    def __init__(
        self, model: RewardModel, *, config: DeepSpeedConfig, optimizer: OptimizerConfig, status: StatusTracker
    ) -> None:
        self._status = status
        self._rank = dist.get_rank()
        self._batch: MicroBatch | None = None
        self.zero_stage = config.zero_stage
        self._max_norm_here = optimizer.max_grad_norm if _clips_here(config) else None
        self.world_size = dist.get_world_size()
        # A client optimizer: a configured "AdamW" silently picks a fused kernel that takes 65 s to compile on CPU.
        client = torch.optim.AdamW(
            parameter_groups(model, optimizer.weight_decay),
            lr=optimizer.learning_rate,
            betas=optimizer.betas,
            eps=optimizer.eps,
            # On the CPU, one pass over memory is 4.7 times as fast (one thread, 16M weights).
            fused=config.offload_optimizer or not torch.cuda.is_available(),
        )
        self._model = model
        self._has_frozen = not all(parameter.requires_grad for parameter in model.parameters())
        settings = deepspeed_config(config, optimizer)
        if config.zero_stage == 3:
            dtype = DTYPES[config.precision]
            workarounds.partition_weights(model, model.stored_weights, dtype=dtype, config=settings)
        self._deepspeed: Any
        self._optimizer: Any
        self._deepspeed, self._optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=client, config=settings, dist_init_required=False
        )
        workarounds.undo_empty_step(self._optimizer)
        self._writer = workarounds.CheckpointWriter(self._deepspeed)
        workarounds.without_recovery_script(self._deepspeed)

    @property
    def device(self) -> torch.device:
        return self._deepspeed.device

    def rewards(self, batch: MicroBatch) -> Tensor:
        """Return the reward of each completion of a micro-batch, float32, shape (N,)."""
        self._status.forward()
        self._batch = batch
        with explain_oom("the forward pass", batch, rank=self._rank):
            # Called on the engine and not on the model: ZeRO's hooks are registered on the wrapper.
            return self._deepspeed(
                batch.input_ids_RT, batch.position_ids_RT, batch.attention_mask_RT, batch.segments, batch.last_N
            )

    def accumulate(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of this micro-batch's share of the global loss; ``is_last`` marks the last one of a step."""
        self._deepspeed.set_gradient_accumulation_boundary(is_last)
        with explain_oom("the backward pass", self._batch, rank=self._rank):
            self._deepspeed.backward(loss * self.world_size, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        """Update the weights and return the global gradient norm before clipping, the same on every rank.

        If the norm is not finite, neither a weight nor a moment of the optimizer changes, and the gradient is dropped.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._deepspeed.set_gradient_accumulation_boundary(True)
        if self._max_norm_here is not None:
            norm = float(nn.utils.clip_grad_norm_(self._model.parameters(), self._max_norm_here))
            if math.isfinite(norm):
                with explain_oom("the optimizer's update", None, rank=self._rank):
                    self._deepspeed.step()
            else:
                self._deepspeed.zero_grad()
            return norm
        with explain_oom("the optimizer's update", None, rank=self._rank):
            # DeepSpeed's own optimizers skip an update whose norm is not finite (tests/training/test_non_finite.py).
            self._deepspeed.step()
        return float(self._deepspeed.get_global_grad_norm())

    def train(self, *, training: bool) -> None:
        """Switch dropout on or off."""
        self._deepspeed.train(training)

    def save(self, directory: Path, tag: str) -> None:
        """Write this rank's shards below ``directory``; each rank has a directory of its own.

        Frozen weights are left out: they are those of the starting model, which the run's digest identifies.

        Raises:
            OSError: if this rank could not write, as on a full disk; raised after the last collective.
        """
        self._writer.error = None
        self._deepspeed.save_checkpoint(str(directory), tag=tag, save_latest=False, exclude_frozen_parameters=True)
        if self._writer.error is not None:
            raise OSError(f"{directory}: {self._writer.error}") from self._writer.error

    def load(self, directory: Path, tag: str, *, universal: bool) -> None:
        """Read back weights and optimizer state.

        Args:
            directory: whose folder ``tag`` holds them.
            tag: as they were saved under.
            universal: whether they are in the universal format (training/universal_checkpoint.py), which any number of
                ranks can load; else the same number of ranks must have saved them, or any number without ZeRO.
        """
        groups = self._optimizer.param_groups
        settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        with workarounds.load_universal(self._deepspeed, enabled=universal), workarounds.safe_loading():
            self._deepspeed.load_checkpoint(
                str(directory),
                tag=tag,
                load_lr_scheduler_states=False,
                load_module_strict=not self._has_frozen,
            )
        if universal:
            workarounds.restore_param_groups(self._optimizer, settings)

    def full_state_dict(self) -> dict[str, Tensor] | None:
        """Return all weights on the CPU on rank 0, None elsewhere; under ZeRO-3 they are gathered layer by layer."""
        if self.zero_stage == 3:
            state = workarounds.consolidated_16bit_state_dict(self._deepspeed)
        else:
            state = self._model.state_dict()
        if dist.get_rank() != 0:
            return None
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def _clips_here(config: DeepSpeedConfig) -> bool:
    """Whether gradients are plain tensors, which DeepSpeed would clip without reporting their norm."""
    return config.zero_stage == 0 and config.precision == "fp32"


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: matrices decay, biases and norms do not; an empty group is left out."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


# ------------------------------------------------------------------------------------------- out of memory


@contextmanager
def explain_oom(activity: str, batch: MicroBatch | None, *, rank: int) -> Iterator[None]:
    """Replace torch's out-of-memory errors by one that names the micro-batch and the settings that take less.

    The other ranks wait for this one in a collective, and a second attempt would fail in the same way. So the error
    goes to the driver beside Ray's own channel (cluster/train/worker.py), and the next start of the ranks ends with it.

    Args:
        activity: such as "the forward pass", for the message.
        batch: the micro-batch, if it decides how much memory is taken.
        rank: this rank.

    Raises:
        OutOfMemoryError: in place of torch's errors.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(_oom_message(activity, batch, rank=rank)) from None


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception reports exhausted memory, on a GPU or on the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in str(error) for words in CPU_MEMORY_ERRORS
    )


def _oom_message(activity: str, batch: MicroBatch | None, *, rank: int) -> str:
    """Return the message: where memory was exhausted, in what micro-batch, and which settings take less."""
    where = f"rank {rank} on {socket.gethostname()} ran out of memory in {activity}"
    if batch is None:
        return f"{where}; {MEMORY_SAVERS} take less"
    rows, tokens = batch.input_ids_RT.shape
    groups = ", ".join(batch.group_ids[:4]) + (
        f" and {len(batch.group_ids) - 4} more" if len(batch.group_ids) > 4 else ""
    )
    return (
        f"{where} of a micro-batch of {rows * tokens:,} tokens, padding included "
        f"({counted(rows, 'row')} of {tokens:,}; {counted(len(batch.last_N), 'completion')} of groups {groups}); "
        f"set batches.micro_batch_tokens to {rows * tokens // 2} or less, and where a completion does not fit that, "
        f"{MEMORY_SAVERS} take less too"
    )
