"""LoRA: adds low-rank adapters to a reward model and freezes its backbone; merges them into plain weights.

peft puts the adapters into the layers of our own model, so names, hooks and the float32 head stay the same. Everything
above the backbone (the head, and a pooler) is trained in full: a new head is noise, which no low-rank product turns
into a good head. Adapters are merged in a state dict and in float32: under ZeRO-3 no rank holds a whole layer, and in
bfloat16 the product would be rounded before it is added.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pairwright.config import LoraConfig, TrainConfig
from pairwright.errors import ModelError
from pairwright.model.reward_model import RewardModel

logger = logging.getLogger(__name__)

ADAPTER = "default"
ADAPTER_FOLDER = "adapter"
"""Of an exported model's directory, with ``lora.keep_adapter``."""
_MARK_A, _MARK_B = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"


@dataclass(frozen=True, slots=True)
class KeptAdapter:
    """Adapters that an export keeps beside the merged weights."""

    config: LoraConfig
    base: str
    """Name or path of the starting model, for who reads the adapter."""

    @classmethod
    def of(cls, config: TrainConfig) -> "KeptAdapter | None":
        """Return what a run's configuration asks for."""
        if config.lora is None or not config.lora.keep_adapter:
            return None
        return cls(config.lora, config.model.path)


def add_adapters(model: RewardModel, config: LoraConfig, *, seed: int) -> None:
    """Add an adapter to every target layer and freeze the rest of the backbone; the rewards do not change.

    An adapter is (alpha / rank) * B A, with A drawn as peft does, Kaiming-uniform, from ``seed`` alone and so equal on
    every rank, and B zero.

    Raises:
        ModelError: if a name in ``target_modules`` matches no linear layer below the head, with the names that exist.
    """
    # Importing peft takes a second, so only runs with adapters do it.
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    plain = model.model
    targets = target_layers(plain, config.target_modules)
    settings = PeftConfig(
        r=config.rank,
        # peft's annotation says int; it only divides.
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=targets,
        fan_in_fan_out=isinstance(plain.get_submodule(targets[0]), Conv1D),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, plain, ADAPTER)
    for name, parameter in plain.named_parameters():
        if not in_backbone(plain, name):
            parameter.requires_grad = True
    trained = sum(parameter.numel() for parameter in plain.parameters() if parameter.requires_grad)
    logger.info("LoRA: adapters of rank %d in %d layers, %d trained numbers", config.rank, len(targets), trained)


def target_layers(model: PreTrainedModel, wanted: Literal["all-linear"] | Sequence[str]) -> list[str]:
    """Return the full names of the layers that get an adapter, in the model's order.

    Args:
        model: without adapters.
        wanted: ``"all-linear"``, or names; a name matches a layer if it is the layer's full name or its last parts.

    Raises:
        ModelError: if a name matches no linear layer below the head.
    """
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and in_backbone(model, name)
    ]
    if linear and wanted == "all-linear":
        return linear
    for name in wanted:
        if not any(_matches(layer, name) for layer in linear):
            ends = dict.fromkeys(layer.rpartition(".")[2] for layer in linear)
            raise ModelError(
                f"lora.target_modules: {name!r} matches no linear layer of {type(model).__name__} below its head; give "
                f'"all-linear", or some of: {", ".join(ends) or "none: this model takes no adapters"}'
            )
    return [layer for layer in linear if any(_matches(layer, name) for name in wanted)]


def _matches(layer: str, name: str) -> bool:
    return f".{layer}".endswith(f".{name}")


def in_backbone(model: PreTrainedModel, name: str) -> bool:
    """Whether a module or parameter belongs to the pretrained backbone; BERT's pooler belongs to the head."""
    return name.startswith(f"{model.base_model_prefix}.") and ".pooler." not in name


def merge_adapters(state_dict: Mapping[str, Tensor], model: RewardModel) -> dict[str, Tensor]:
    """Return a state dict of the model without adapters, with W + (alpha / rank) B A in place of W.

    Merged weights are float32 or wider, whatever their dtype was, so that they are rounded once, when written. A state
    dict without adapters is returned as it is.

    Args:
        state_dict: all weights, under the names of ``model.state_dict()``.
        model: source of the scale and the type of each layer; its weights are not read.
    """
    merged = {name.replace(".base_layer.", "."): tensor for name, tensor in state_dict.items() if ".lora_" not in name}
    for name, a_RD in state_dict.items():
        if not name.endswith(_MARK_A):
            continue
        layer = name.removesuffix(_MARK_A)
        module = model.get_submodule(layer)
        weight = merged[f"{layer}.weight"]
        dtype = torch.promote_types(weight.dtype, torch.float32)
        product = state_dict[f"{layer}{_MARK_B}"].to(dtype) @ a_RD.to(dtype)
        # GPT-2's layers hold transposed weights.
        transposed = isinstance(module.get_submodule("base_layer"), Conv1D)
        merged[f"{layer}.weight"] = weight.to(dtype) + _scale(module) * (product.T if transposed else product)
    return merged


def save_adapter(state_dict: Mapping[str, Tensor], model: RewardModel, kept: KeptAdapter, directory: Path) -> None:
    """Write adapters and head in peft's format, for ``PeftModel.from_pretrained`` over the starting model.

    Args:
        state_dict: all weights, under the names of ``model.state_dict()``.
        model: source of the layers' names.
        kept: how the adapters were trained.
        directory: of the adapter; created if it does not exist.
    """
    from peft import LoraConfig as PeftConfig

    plain, config = model.model, kept.config
    trained = [name for name, _ in plain.named_parameters() if not in_backbone(plain, name)]
    layers = [name.removesuffix(_MARK_A) for name in _plain_names(state_dict) if name.endswith(_MARK_A)]
    settings = PeftConfig(
        task_type="SEQ_CLS",
        base_model_name_or_path=kept.base,
        inference_mode=True,
        r=config.rank,
        # peft's annotation says int; it only divides.
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=layers,
        modules_to_save=sorted({_module_above_backbone(plain, name) for name in trained}),
        fan_in_fan_out=isinstance(plain.get_submodule(layers[0]).get_submodule("base_layer"), Conv1D),
    )
    settings.save_pretrained(str(directory))
    weights = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": tensor.contiguous()
        for name, tensor in _plain_names(state_dict).items()
        if ".lora_" in name or name in trained
    }
    save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def _plain_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}


def _module_above_backbone(model: PreTrainedModel, parameter: str) -> str:
    """Return the outermost module of a head's or pooler's parameter: ``score``, ``classifier``, ``bert.pooler``."""
    parts = parameter.split(".")
    return ".".join(parts[:2]) if parts[0] == model.base_model_prefix else parts[0]


def _scale(layer: nn.Module) -> float:
    from peft.tuners.lora import LoraLayer

    assert isinstance(layer, LoraLayer)
    return float(layer.scaling[ADAPTER])
