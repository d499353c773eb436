"""Micro-batches -> one optimizer step, over DeepSpeed ZeRO 0-3: with conversion.py, all that imports deepspeed.

DeepSpeed averages gradients over ranks, divides by an accumulation count of its own and clips at 1.0 unless told
otherwise (TRAPS.md 21). Here the loss already has the global batch's divisor, so each of the three is set by hand:
the loss is multiplied by the world size once, ``scale_wrt_gas`` is off, and clipping comes from our configuration.
"""

import importlib
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime import compiler
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.utils import logger as deepspeed_logger
from torch import Tensor, nn

from pairwright.config import EngineConfig, OptimizerConfig
from pairwright.model.collate import MicroBatch
from pairwright.model.reward_model import RewardModel
from pairwright.training import oom as memory
from pairwright.training.rank_status import Pulse
from pairwright.training.universal_checkpoint import known_types_only

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def join_process_group() -> None:
    """Let DeepSpeed adopt the process group that this worker is in, and keep its chatter out of the log."""
    # 17 lines a step otherwise; what DeepSpeed warns of stays.
    warnings.filterwarnings("ignore", category=FutureWarning)
    deepspeed_logger.setLevel(logging.WARNING)
    # On a CPU it would compile a kernel for inference, under a lock file that a process killed meanwhile leaves behind:
    # every later start on that node would wait for it for ever (found so in November 2026).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _import_muon()
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False)


def _import_muon() -> None:
    """Import DeepSpeed's Muon, as every ZeRO stage but 0 does, without having torch.compile wrap it there and then.

    That imports all of torch's compiler, 1.5 s of each start of a rank, for an optimizer that no run here uses.
    """
    before = compiler.compile
    compiler.compile = lambda: compiler.dummy_decorator
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = before


def deepspeed_config(engine: EngineConfig, optimizer: OptimizerConfig) -> dict[str, Any]:
    """Return the DeepSpeed configuration of a run."""
    zero: dict[str, Any] = {"stage": engine.zero_stage}
    if engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if engine.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    return {
        # Batches are planned by token budget (model/collate.py); these two only satisfy DeepSpeed's arithmetic.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": engine.precision == "bf16"},
        "gradient_clipping": 0.0 if _clips_here(engine) else optimizer.max_gradient_norm,
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own CPU Adam is a kernel to compile on every node; torch's fused one comes with torch.
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
    }


class Engine:
    """A reward model under DeepSpeed on this rank; every method but ``learning_rate`` is a collective."""

    def __init__(self, model: RewardModel, *, engine: EngineConfig, optimizer: OptimizerConfig, pulse: Pulse) -> None:
        self._pulse = pulse
        self._rank = dist.get_rank()
        self._batch: MicroBatch | None = None
        self.zero_stage = engine.zero_stage
        self._max_norm_here = optimizer.max_gradient_norm if _clips_here(engine) else None
        self.world_size = dist.get_world_size()
        # A client optimizer: a configured "AdamW" silently picks a fused kernel that takes 65 s to compile on CPU.
        client = torch.optim.AdamW(
            parameter_groups(model, optimizer.weight_decay),
            lr=optimizer.learning_rate,
            betas=optimizer.betas,
            eps=optimizer.eps,
            # Where it steps on the CPU: one pass over memory, 4.7 times as fast (one thread, 16M weights).
            fused=engine.offload_optimizer or not torch.cuda.is_available(),
        )
        self._model = model
        self._has_frozen = not all(parameter.requires_grad for parameter in model.parameters())
        self._deepspeed: Any
        self._optimizer: Any
        self._deepspeed, self._optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=client, config=deepspeed_config(engine, optimizer), dist_init_required=False
        )
        self._writer = _Writer(self._deepspeed._config)
        self._deepspeed.checkpoint_engine = self._writer
        # Programs for reading the shards, which `pairwright export` does; they would be written between collectives.
        self._deepspeed._copy_recovery_script = lambda save_path: None

    @property
    def device(self) -> torch.device:
        return self._deepspeed.device

    def rewards(self, batch: MicroBatch) -> Tensor:
        """Return the reward of each completion of a micro-batch, float32, shape (N,)."""
        self._pulse.forward()
        self._batch = batch
        with memory.named("the forward pass", batch, rank=self._rank):
            # Through the engine: ZeRO's hooks sit on the wrapper, never on the bare backbone.
            return self._deepspeed(
                batch.input_ids_RT, batch.position_ids_RT, batch.attention_mask_RT, batch.segments, batch.last_N
            )

    def accumulate(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of this micro-batch's share of the global loss; the last one of a step says so."""
        self._deepspeed.set_gradient_accumulation_boundary(is_last)
        with memory.named("the backward pass", self._batch, rank=self._rank):
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
                with memory.named("the optimizer's update", None, rank=self._rank):
                    self._deepspeed.step()
            else:
                self._deepspeed.zero_grad()
            return norm
        with memory.named("the optimizer's update", None, rank=self._rank):
            # DeepSpeed's own optimizers leave out one whose norm is not finite (tests/numerics/test_non_finite.py).
            self._deepspeed.step()
        return float(self._deepspeed.get_global_grad_norm())

    def train(self, *, training: bool) -> None:
        """Switch dropout on or off."""
        self._deepspeed.train(training)

    def save(self, directory: Path, tag: str) -> None:
        """Write this rank's shards below ``directory``; each rank has a directory of its own.

        Frozen weights are left out: they are the starting model's, which the run's digest names.

        Raises:
            OSError: if this rank could not write, as on a full disk; after all that ranks do together.
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
            universal: whether they are in the form that any number of ranks reads (training/universal_checkpoint.py);
            else
                as many ranks had saved them, or any number without ZeRO.
        """
        settings = [{key: value for key, value in group.items() if key != "params"} for group in self._param_groups]
        self._deepspeed._config.load_universal_checkpoint = universal
        # It warns that no one told it of tensor parallelism, which there is none of.
        deepspeed_logger.setLevel(logging.ERROR if universal else logging.WARNING)
        with known_types_only():
            self._deepspeed.load_checkpoint(
                str(directory),
                tag=tag,
                load_lr_scheduler_states=False,
                load_module_strict=not self._has_frozen,
            )
        self._deepspeed._config.load_universal_checkpoint = False
        deepspeed_logger.setLevel(logging.WARNING)
        if universal:
            self._mend_after_universal_load(settings)

    def _mend_after_universal_load(self, settings: list[dict[str, Any]]) -> None:
        """Undo what DeepSpeed 0.19.8 gets wrong under ZeRO-3, where it reads one group's settings for all.

        Biases and norms would decay like matrices, and AdamW would count a step once for each group, since all share
        one tensor (tests/numerics/test_world_sizes.py).
        """
        for group, setting in zip(self._param_groups, settings, strict=True):
            group.update(setting)
        for state in self._optimizer.state.values():
            if "step" in state:
                state["step"] = state["step"].clone()

    @property
    def _param_groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups

    def full_state_dict(self) -> dict[str, Tensor] | None:
        """Return all weights on the CPU on rank 0, None elsewhere; under ZeRO-3 they are gathered layer by layer."""
        if self.zero_stage == 3:
            state = self._deepspeed._zero3_consolidated_16bit_state_dict()
        else:
            state = self._model.state_dict()
        if dist.get_rank() != 0:
            return None
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


class _Writer(TorchCheckpointEngine):
    """Writes as DeepSpeed does, but keeps an error: raised between collectives it would leave the others waiting."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.error: Exception | None = None

    def makedirs(self, path: str, exist_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - DeepSpeed's signature
        self._try(lambda: super(_Writer, self).makedirs(path, exist_ok=exist_ok))

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        self._try(lambda: super(_Writer, self).save(state_dict, path))

    def _try(self, write: Callable[[], None]) -> None:
        if self.error is not None:
            return
        try:
            write()
        except OSError as error:
            self.error = error
        except RuntimeError as error:
            if "PytorchStreamWriter" not in str(error):  # what torch's zip writer says of a full disk
                raise
            self.error = error


def _clips_here(engine: EngineConfig) -> bool:
    """Whether gradients are plain tensors that DeepSpeed would clip without telling their norm."""
    return engine.zero_stage == 0 and engine.precision == "fp32"


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: matrices decay, biases and norms do not; an empty group is left out."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
