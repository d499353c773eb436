"""Workarounds for DeepSpeed 0.19.8, each with the defect it avoids.

``tests/contracts/test_deepspeed_workarounds.py`` reproduces every defect on stock DeepSpeed and fails once one is gone,
so that its workaround can go too. Private names of DeepSpeed's are used here and nowhere else.

| workaround | defect of DeepSpeed 0.19.8 | upstream |
|---|---|---|
| ``without_shared_memory_kernel`` | compiles a CPU kernel under a lock file that outlives a kill | none known |
| ``import_muon`` | importing ZeRO's Muon imports torch's compiler (1.5 s) | none known |
| ``without_recovery_script`` | copies scripts into every checkpoint, between collectives | none known |
| ``CheckpointWriter`` | a failed write raises on one rank, between collectives | none known |
| ``safe_loading`` | ``torch.load`` with ``weights_only=False`` runs code that a checkpoint names | PR 6751, PR 6094 |
| ``restore_param_groups`` | a universal load takes one group's settings and step for all | none known |
| ``load_universal`` | universal loading can be chosen at the start only | none known |
| ``partition_weights`` | ZeRO-3 takes a whole model on every rank | none known |
| ``undo_empty_step`` | without ZeRO in bf16, AdamW takes a step of zero gradients at the start | none known |
| ``consolidated_16bit_state_dict`` | the public method writes a file | none known |
"""

import contextlib
import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime import compiler
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils import logger as deepspeed_logger
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor, nn

from pairwright.training.checkpoint_shards import trusted_types_only


def without_shared_memory_kernel() -> None:
    """Keep DeepSpeed from compiling its shared-memory kernel when it initialises on a CPU.

    The kernel is for inference. It is compiled under a lock file, and a process that is killed meanwhile leaves the
    file behind: every later start on that node would wait for it for ever (observed in November 2026).
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def import_muon() -> None:
    """Import DeepSpeed's Muon, as every ZeRO stage but 0 does, without letting ``torch.compile`` wrap it on import.

    Wrapping imports all of torch's compiler, 1.5 s of each start of a rank, for an optimizer that no run uses.
    """
    before = compiler.compile
    compiler.compile = lambda: compiler.dummy_decorator
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = before


def without_recovery_script(engine: Any) -> None:
    """Keep an engine from copying its scripts for reading shards into every checkpoint.

    ``pairwright export`` reads shards. The copies would be written between collectives, where a full disk on one rank
    leaves the others waiting.
    """
    engine._copy_recovery_script = lambda save_path: None


class CheckpointWriter(TorchCheckpointEngine):
    """Writes as DeepSpeed does, but keeps an error until all ranks are done; else the others wait in a collective."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine._config)
        self.error: Exception | None = None
        engine.checkpoint_engine = self

    def makedirs(self, path: str, exist_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - DeepSpeed's signature
        self._try(lambda: super(CheckpointWriter, self).makedirs(path, exist_ok=exist_ok))

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        self._try(lambda: super(CheckpointWriter, self).save(state_dict, path))

    def _try(self, write: Callable[[], None]) -> None:
        if self.error is not None:
            return
        try:
            write()
        except OSError as error:
            self.error = error
        except RuntimeError as error:
            if "PytorchStreamWriter" not in str(error):  # what torch's zip writer reports on a full disk
                raise
            self.error = error


def safe_loading() -> AbstractContextManager[None]:
    """Let DeepSpeed's ``torch.load`` rebuild nothing but tensors, plain values and DeepSpeed's own three records."""
    return trusted_types_only([ZeroStageEnum, LossScaler, fragment_address])


@contextlib.contextmanager
def load_universal(engine: Any, *, enabled: bool) -> Iterator[None]:
    """Let an engine's ``load_checkpoint`` read the universal format; DeepSpeed takes this at its start only."""
    engine._config.load_universal_checkpoint = enabled
    # It warns that nothing was configured for tensor parallelism, which is not used.
    deepspeed_logger.setLevel(logging.ERROR if enabled else logging.WARNING)
    try:
        yield
    finally:
        engine._config.load_universal_checkpoint = False
        deepspeed_logger.setLevel(logging.WARNING)


def partition_weights(
    model: nn.Module,
    stored: MutableMapping[nn.Parameter, Callable[[], Tensor]],
    *,
    dtype: torch.dtype,
    config: Mapping[str, Any],
) -> None:
    """Partition a model's weights over the ranks for ZeRO-3, one at a time; a collective.

    DeepSpeed's own way takes a whole model on every rank. Here rank 0 reads a weight from the checkpoint and broadcasts
    it, each rank keeps its part, and the weight is freed before the next one is read.

    Args:
        model: on the CPU.
        stored: how rank 0 reads each weight that is still in the checkpoint; emptied.
        dtype: of the partitioned weights.
        config: DeepSpeed's.
    """
    accelerator = get_accelerator()
    assert accelerator is not None
    device = torch.device(accelerator.current_device_name())
    # One buffer for all: weights that come and go between parts that stay leave holes, up to a fifth of the model.
    buffer = torch.empty(max((parameter.numel() for parameter in stored), default=0), dtype=dtype, device=device)
    first: Any = None
    for parameter in model.parameters():
        read = stored.pop(parameter, None)
        if read is None:
            parameter.data = parameter.data.to(dtype)
        else:
            weight = buffer[: parameter.numel()].view(parameter.shape)
            if dist.get_rank() == 0:
                weight.copy_(read())
            parameter.data = weight
        if first is None:
            first = parameter
            deepspeed.zero.Init(nn.ParameterList([parameter]), config_dict_or_path=dict(config), dtype=dtype)
        else:
            first.convert_to_zero_parameters(param_list=[parameter])
    # DeepSpeed moves them only together with whole weights.
    for value in model.buffers():
        value.data = value.data.to(device)


def undo_empty_step(optimizer: Any) -> None:
    """Undo the step that DeepSpeed's optimizer for bf16 without ZeRO takes on zero gradients to allocate its state.

    It decays the weights once more, and AdamW counts one step too many: the first real step is about half as long
    (tests/training/test_zero_ranks.py). AdamW allocates its state again in that step.
    """
    if isinstance(optimizer, FP16_UnfusedOptimizer):
        optimizer.refresh_fp32_params()
        optimizer.state.clear()


def restore_param_groups(optimizer: Any, settings: Sequence[Mapping[str, Any]]) -> None:
    """Undo what a universal load gets wrong under ZeRO-3, where it reads one group's settings for all.

    Biases and norms would decay like matrices, and AdamW would count a step once for each group, since all share one
    tensor (tests/training/test_world_sizes.py).

    Args:
        optimizer: after the load.
        settings: of its parameter groups, before the load.
    """
    for group, setting in zip(optimizer.param_groups, settings, strict=True):
        group.update(setting)
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = state["step"].clone()


def consolidated_16bit_state_dict(engine: Any) -> dict[str, Tensor]:
    """Return all weights of a ZeRO-3 engine on rank 0, gathered layer by layer; a collective."""
    return engine._zero3_consolidated_16bit_state_dict()
