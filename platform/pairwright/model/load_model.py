"""Loads a Hugging Face checkpoint as a reward model, as it is before the first step of a run.

Weights that the checkpoint lacks are named or drawn from the seed alone, so the result is the same on every rank and in
every process.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from pairwright.config import TrainConfig
from pairwright.data.storage.model_files import heads_among, model_errors, other_head
from pairwright.errors import ModelError
from pairwright.model.lora import add_adapters
from pairwright.model.model_config import read_config
from pairwright.model.reward_model import RewardModel, dropout_rates, embedding_of, find_head

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Of weights and activations, by ``deepspeed.precision``."""


def starting_model(config: TrainConfig, tokenizer: PreTrainedTokenizerFast, *, pad_token_id: int) -> RewardModel:
    """Return the model before the first step, with its adapters if the run trains adapters.

    Args:
        config: of the run.
        tokenizer: of ``config.model.path``, with its pad token chosen.
        pad_token_id: id of that pad token.

    Raises:
        ModelError: if the model cannot be used.
    """
    model = load_reward_model(
        config.model.path,
        dtype=DTYPES[config.deepspeed.precision],
        seed=config.training.seed,
        dropout=config.model.dropout,
        gradient_checkpointing=config.model.gradient_checkpointing,
        pad_token_id=pad_token_id,
        vocab_size=len(tokenizer),
        cpu_kernels=config.model.cpu_kernels,
    )
    if config.lora is not None:
        add_adapters(model, config.lora, seed=config.training.seed)
    return model


def load_reward_model(
    path: str,
    *,
    dtype: torch.dtype,
    seed: int,
    dropout: bool,
    gradient_checkpointing: bool,
    pad_token_id: int | None,
    vocab_size: int | None,
    cpu_kernels: bool,
) -> RewardModel:
    """Return a reward model from a causal, masked or sequence-classification checkpoint.

    The head of a sequence-classification checkpoint is kept; a new one is drawn from ``seed`` alone, normal with
    standard deviation 1/sqrt(hidden + 1) (Stiennon et al. 2020, arXiv:2009.01325, appendix B.1), equal on every rank.

    Args:
        path: directory or hub name.
        dtype: of weights and activations; rewards are float32 whatever it is.
        seed: of weights that the checkpoint does not have.
        dropout: whether to keep the checkpoint's dropout rates, or set all of them to 0. Train in training mode in
            either case: gradient checkpointing is silently off outside of it.
        gradient_checkpointing: recompute activations in the backward pass.
        pad_token_id: of the tokenizer; the checkpoint's own if None.
        vocab_size: of the tokenizer; the embedding grows to it if it is smaller.
        cpu_kernels: whether packed sequences use our kernels for CPUs (model/attention/interface.py).

    Raises:
        ModelError: if there is no model, if it cannot give one reward a row, if weights are missing, or if the pad
            token does not fit it.
    """
    with model_errors(f"{path}: cannot be loaded as a sequence-classification model"):
        config = read_config(path)
        export_config = copy.deepcopy(config)
        if not dropout:
            _disable_dropout(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, weights = read_weights(path, config, dtype)
            is_new = _initialise_head(path, model, weights, seed)
            if vocab_size is not None and vocab_size > embedding_of(model).num_embeddings:
                model.resize_token_embeddings(vocab_size, mean_resizing=False)
                export_config.get_text_config().vocab_size = vocab_size
        ignored_heads = weights.other_heads if is_new else ()
        reward_model = RewardModel(model, export_config, cpu_kernels=cpu_kernels, ignored_heads=ignored_heads)
        if pad_token_id is not None:
            _set_pad_token(path, reward_model, pad_token_id)
        if gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return reward_model


@dataclass(frozen=True, slots=True)
class WeightDifferences:
    """How a checkpoint's weights differ from the model's, above the backbone.

    Attributes:
        missing: names of the model's weights that the checkpoint does not have.
        other_heads: names of the checkpoint's weights that belong to a head of another name.
    """

    missing: Sequence[str]
    other_heads: Sequence[str]


def read_weights(path: str, config: PreTrainedConfig, dtype: torch.dtype) -> tuple[PreTrainedModel, WeightDifferences]:
    """Return the model with the checkpoint's weights, and how they differ from the model's.

    Args:
        path: directory or hub name.
        config: of the model, with one label.
        dtype: of the weights.

    Raises:
        ModelError: if a weight of the backbone is missing, or any has another shape than ``config`` says.
    """
    # Shapes are compared here and not by transformers, so that the labels of a head can be counted.
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
    # An encoder's pooler belongs to the head: masked-LM checkpoints never have one.
    lost = [name for name in missing if name.startswith(backbone) and ".pooler." not in name]
    if lost:
        raise ModelError(
            f"{path}: {len(lost)} weights of the backbone are missing, the first being {lost[0]}; the checkpoint is "
            "damaged, or was made by another architecture than its config.json says"
        )
    return model, WeightDifferences(missing, heads_among(report["unexpected_keys"]))


def _disable_dropout(config: PreTrainedConfig) -> None:
    """Set every dropout rate of a configuration to 0, functional ones included."""
    for name, _ in dropout_rates(config):
        setattr(config.get_text_config(), name, 0.0)


def _initialise_head(path: str, model: PreTrainedModel, weights: WeightDifferences, seed: int) -> bool:
    """Draw the head from the seed if the checkpoint has none; return whether it was drawn."""
    name, head = find_head(model)
    if f"{name}.weight" not in weights.missing:
        return False
    architectures = model.config.architectures or []
    if any(architecture.endswith("ForSequenceClassification") for architecture in architectures):
        why = "it was lost when the model was saved; save it again with its head"
        raise ModelError(
            f"{path}: config.json promises a head ({', '.join(architectures)}), but the weights have no {name}.weight: "
            f"{other_head(weights.other_heads) or why}"
        )
    generator = torch.Generator().manual_seed(seed)
    weight = torch.normal(0.0, (head.in_features + 1) ** -0.5, (1, head.in_features), generator=generator)
    with torch.no_grad():
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.zero_()
    logger.info("%s: new reward head %s, drawn from seed %d", path, name, seed)
    return True


def _set_pad_token(path: str, model: RewardModel, pad_token_id: int) -> None:
    embedding = embedding_of(model.model)
    if not 0 <= pad_token_id < embedding.num_embeddings:
        raise ModelError(
            f"{path}: the tokenizer's pad token has id {pad_token_id}, but the model knows only "
            f"{embedding.num_embeddings} tokens; use the tokenizer that belongs to the model"
        )
    own = model.model.config.get_text_config().pad_token_id
    if not model.pools_last_token and own is not None and own != pad_token_id:
        raise ModelError(
            f"{path}: the tokenizer's pad token has id {pad_token_id}, but config.json says {own}, and encoders count "
            "positions by it; use the tokenizer that belongs to the model"
        )
    model.model.config.get_text_config().pad_token_id = pad_token_id
    model.export_config.get_text_config().pad_token_id = pad_token_id
    # This row gets no gradient; if it stayed at a checkpoint's pad == eos, the embedding of eos would never learn.
    embedding.padding_idx = pad_token_id
