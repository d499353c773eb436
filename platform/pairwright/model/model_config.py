"""Reads a model's configuration and sets it to one label, without running any code that comes with the model.

transformers can run code that ``config.json`` names, and fetch compiled kernels for it. Here it may do neither: a model
that needs either is refused.
"""

import copy
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from pairwright.data.storage.model_files import MODEL_EXPECTED, check_model_files, check_model_path, model_errors
from pairwright.errors import ModelError


def read_config(path: str) -> PreTrainedConfig:
    """Return a checkpoint's configuration, set to one label; it reads no weights, so a wrong path fails at once.

    Raises:
        ModelError: if there is no model, if it needs code of its own, or if its head has another number of labels.
    """
    check_model_path(path)
    directory = Path(path)
    if directory.is_dir():
        check_model_files(directory)
        if not (directory / "config.json").exists():
            raise ModelError(f"{path}: no Hugging Face model here (it has no config.json); {MODEL_EXPECTED}")
    with model_errors(f"{path}: no Hugging Face model here; {MODEL_EXPECTED}"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        _check_kernels(path, config)
        has_head = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
        # transformers reads and writes a head of two labels without naming the number; the weights decide then.
        is_stated = bool({"num_labels", "id2label"} & PreTrainedConfig.get_config_dict(path)[0].keys())
        num_labels = config.num_labels if is_stated else 1
        config.num_labels = 1
    if has_head and num_labels != 1:
        raise ModelError(
            f"{path}: its head has {num_labels} labels, expected 1 (a reward model); start from the causal or "
            "masked language model that it was made from"
        )
    return config


def meta_model(path: str) -> PreTrainedModel:
    """Return a checkpoint's architecture with a head of one label and without weights, on the meta device.

    Raises:
        ModelError: as ``read_config``, or if transformers cannot build it.
    """
    with model_errors(f"{path}: cannot be built as a sequence-classification model"), torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(read_config(path), trust_remote_code=False)


def of_first_layers(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a configuration of the fewest layers, two at least, that have one layer of each kind."""
    shorter = copy.deepcopy(config)
    text = shorter.get_text_config()
    num_layers = text.num_hidden_layers
    # Of each layer, such as ``layer_types``.
    lists = {name: value for name, value in text.to_dict().items() if isinstance(value, list)}
    kinds = {name: value for name, value in lists.items() if len(value) == num_layers}
    kept = max([2, *(value.index(kind) + 1 for value in kinds.values() for kind in value)])
    if kept < num_layers:
        text.num_hidden_layers = kept
        for name, value in kinds.items():
            setattr(text, name, value[:kept])
    return shorter


def _check_kernels(path: str, config: PreTrainedConfig) -> None:
    """Refuse an attention implementation from the hub, whose compiled code transformers would fetch."""
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        wanted = getattr(part, "_attn_implementation", None)
        if wanted is not None and "/" in str(wanted):
            raise ModelError(
                f"{path}: config.json asks for the attention {wanted!r}, which is code from the hub and never run; "
                "remove attn_implementation from it"
            )
