"""The memory model: an estimate of the bytes that a rank holds in a step, from the model's sizes and the configuration.

Reads no weights. Weights, gradients and optimizer state are exact but for DeepSpeed's buffers; activations are counted
as the inputs and outputs of the linear layers, which a transformer keeps for the backward pass without those of its
attention's inner products (Korthikanti et al. 2022, arXiv:2205.05198, section 4, with their recomputation).
"""

from dataclasses import dataclass

from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pairwright.config import LoraConfig, TrainConfig
from pairwright.model.lora import in_backbone, target_layers
from pairwright.model.reward_model import max_positions

_BYTES = {"fp32": 4, "bf16": 2}
_MOMENTS, _MASTER = 8, 4
"""Bytes a trained weight of AdamW's two moments, and of DeepSpeed's float32 copy of the weight."""


@dataclass(frozen=True, slots=True)
class ModelOutline:
    """The sizes of a model that decide what it takes to train it."""

    num_parameters: int
    num_trained: int
    """Of them, with adapters if there are any."""
    linear_width: int
    """Inputs and outputs of all linear layers of the backbone."""
    hidden_size: int
    num_layers: int
    max_positions: int | None
    """Longest row in tokens; None if the model's configuration names no limit."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What a rank holds in a step, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All parts together."""
        return self.weights + self.gradients + self.optimizer + self.activations


def outline_of(model: PreTrainedModel, lora: LoraConfig | None) -> ModelOutline:
    """Return the sizes of a model, which may be on the meta device.

    Raises:
        ModelError: if adapters are wanted for layers that it does not have.
    """
    config = model.config.get_text_config()
    linear = {
        name: (int(module.weight.shape[0]), int(module.weight.shape[1]))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and in_backbone(model, name)
    }
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    num_trained = num_parameters
    if lora is not None:
        num_adapters = sum(lora.rank * sum(linear[name]) for name in target_layers(model, lora.target_modules))
        above = sum(p.numel() for name, p in model.named_parameters() if not in_backbone(model, name))
        num_parameters, num_trained = num_parameters + num_adapters, num_adapters + above
    return ModelOutline(
        num_parameters=num_parameters,
        num_trained=num_trained,
        linear_width=sum(map(sum, linear.values())),
        hidden_size=int(config.hidden_size),
        num_layers=int(config.num_hidden_layers),
        max_positions=max_positions(model),
    )


def rank_memory(outline: ModelOutline, config: TrainConfig, *, num_ranks: int, num_tokens: int) -> MemoryEstimate:
    """Return the estimate of one rank.

    Args:
        outline: of the model.
        config: of the run.
        num_ranks: over which ZeRO parts what its stage parts.
        num_tokens: of the largest micro-batch.
    """
    stage, width = config.deepspeed.zero_stage, _BYTES[config.deepspeed.precision]
    keeps = outline.linear_width
    if config.model.gradient_checkpointing:
        keeps = outline.hidden_size * outline.num_layers + outline.linear_width // max(1, outline.num_layers)
    return MemoryEstimate(
        weights=outline.num_parameters * width // (num_ranks if stage == 3 else 1),
        gradients=outline.num_trained * width // (num_ranks if stage >= 2 else 1),
        optimizer=outline.num_trained * _state_bytes(config) // (num_ranks if stage >= 1 else 1),
        activations=num_tokens * keeps * width,
    )


def checkpoint_bytes(outline: ModelOutline, config: TrainConfig) -> int:
    """Return the size of a checkpoint, all ranks together: trained weights and the optimizer's state."""
    return outline.num_trained * (_BYTES[config.deepspeed.precision] + _state_bytes(config))


def model_bytes(outline: ModelOutline, config: TrainConfig) -> int:
    """Return the size of the weights of the exported model."""
    return outline.num_parameters * _BYTES[config.deepspeed.precision]


def _state_bytes(config: TrainConfig) -> int:
    """Return the bytes a trained weight of the optimizer's state; without ZeRO, float32 weights need no copy."""
    is_plain = config.deepspeed.zero_stage == 0 and config.deepspeed.precision == "fp32"
    return _MOMENTS if is_plain else _MOMENTS + _MASTER
