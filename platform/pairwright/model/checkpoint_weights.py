"""Reads a checkpoint's weights into a model of one label, and says which of them do not fit it, by name."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import AutoModelForSequenceClassification
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from pairwright.data.storage.model_files import heads_among
from pairwright.errors import ModelError


@dataclass(frozen=True, slots=True)
class FoundWeights:
    """How a checkpoint's weights differ from the model's, above the backbone.

    Attributes:
        missing: names of the model's weights that the checkpoint does not have.
        other_heads: names of the checkpoint's weights that are a head under another name.
    """

    missing: Sequence[str]
    other_heads: Sequence[str]


def read_weights(path: str, config: PreTrainedConfig, dtype: torch.dtype) -> tuple[PreTrainedModel, FoundWeights]:
    """Return the model with the checkpoint's weights, and how these differ.

    Args:
        path: directory or hub name.
        config: of the model, with one label.
        dtype: of the weights.

    Raises:
        ModelError: if a weight of the backbone is missing, or any has another shape than ``config`` says.
    """
    # Shapes are compared here and not there, so that the labels of a head can be counted.
    model, report = AutoModelForSequenceClassification.from_pretrained(
        path,
        config=config,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        trust_remote_code=False,
    )
    backbone = f"{model.base_model_prefix}."
    if report["mismatched_keys"]:
        name, found, expected = min(report["mismatched_keys"])
        shapes = f"{name} is {tuple(found)}, expected {tuple(expected)}"
        if name.startswith(backbone) or len(found) != len(expected) or found[1:] != expected[1:]:
            raise ModelError(f"{path}: its weights have other shapes than config.json says: {shapes}")
        raise ModelError(
            f"{path}: its head has {found[0]} labels, expected 1 (a reward model): {shapes}; start from the causal or "
            "masked language model that it was made from"
        )
    missing = sorted(report["missing_keys"])
    # Poolers of encoders belong to the head: masked-LM checkpoints never have them.
    lost = [name for name in missing if name.startswith(backbone) and ".pooler." not in name]
    if lost:
        raise ModelError(
            f"{path}: {len(lost)} weights of the backbone are missing, the first being {lost[0]}; the checkpoint is "
            "damaged, or was made by another architecture than its config.json says"
        )
    return model, FoundWeights(missing, heads_among(report["unexpected_keys"]))
