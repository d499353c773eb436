"""Loads a Hugging Face checkpoint as a reward model, as it is before the first step of a run.

Weights that the checkpoint lacks are named or drawn from the seed alone, so the result is the same on every rank and in
every process. For ZeRO-3 the checkpoint's weights can stay in its files until the engine partitions them, one at a time
(training/engine.py): a rank then never holds the whole model.
"""

import copy
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from pairwright.config import TrainConfig
from pairwright.data.storage.model_files import heads_among, model_errors, other_head
from pairwright.errors import ModelError
from pairwright.model.lora import add_adapters
from pairwright.model.model_config import meta_model, of_first_layers, read_config
from pairwright.model.reward_model import RewardModel, StoredWeight, dropout_rates, embedding_of, find_head

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Of weights and activations, by ``deepspeed.precision``."""

Reading = Literal["all", "deferred", "first layers"]
"""Which weights are read: all of them; none before the engine partitions them, where that can be; or a shorter model's,
which has the first layers only, for a test of the architecture."""


def starting_model(
    config: TrainConfig, tokenizer: PreTrainedTokenizerFast, *, pad_token_id: int, reading: Reading = "all"
) -> RewardModel:
    """Return the model before the first step, with its adapters if the run trains adapters and it has all layers.

    Args:
        config: of the run.
        tokenizer: of ``config.model.path``, with its pad token chosen.
        pad_token_id: id of that pad token.
        reading: which weights are read now.

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
        reading=reading,
    )
    # ``lora.target_modules`` may name layers that a shorter model lacks.
    if config.lora is not None and reading != "first layers":
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
    reading: Reading = "all",
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
        reading: which weights are read now; ``RewardModel.stored_weights`` has the others.

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
            loaded = _load_weights(path, config, dtype, reading)
            model = loaded.model
            is_new = _initialise_head(path, model, loaded.differences, seed)
            if vocab_size is not None and vocab_size > embedding_of(model).num_embeddings:
                _read_embedding(loaded)
                model.resize_token_embeddings(vocab_size, mean_resizing=False)
                export_config.get_text_config().vocab_size = vocab_size
        reward_model = RewardModel(
            model,
            export_config,
            cpu_kernels=cpu_kernels,
            ignored_heads=loaded.differences.other_heads if is_new else (),
            stored_weights=loaded.stored,
            read_because=loaded.read_because,
        )
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


# Shapes are compared by ``_differences`` and not by transformers, so that the labels of a head can be counted.
_REPORTED: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model as transformers made it from a checkpoint.

    Attributes:
        model: with the checkpoint's weights, or NaN in place of those that are ``stored``.
        differences: between its weights and the checkpoint's.
        stored: how to read each weight that stayed in the checkpoint.
        read_because: why no weight could stay there; None if all did, or none was to.
    """

    model: PreTrainedModel
    differences: WeightDifferences
    stored: dict[nn.Parameter, StoredWeight]
    read_because: str | None


def _load_weights(path: str, config: PreTrainedConfig, dtype: torch.dtype, reading: Reading) -> _Loaded:
    """Return the model with the checkpoint's weights; arguments and errors as of ``load_reward_model``."""
    found: tuple[PreTrainedModel, Mapping[str, Any], dict[nn.Parameter, StoredWeight]] | str | None = None
    if reading == "deferred":
        with _without_table():
            found = _leave_in_files(path, config, dtype)
    if found is None or isinstance(found, str):
        is_whole = reading != "first layers"
        with nullcontext() if is_whole else _without_table():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                path,
                config=config if is_whole else of_first_layers(config),
                dtype=dtype,
                **_REPORTED,
                trust_remote_code=False,
            )
        return _Loaded(model, _differences(path, model, report), {}, found)
    model, report, stored = found
    return _Loaded(model, _differences(path, model, report), stored, None)


@contextmanager
def _without_table() -> Iterator[None]:
    """Keep transformers from logging its table of differences, which has every weight of the layers left out."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _differences(path: str, model: PreTrainedModel, report: Mapping[str, Any]) -> WeightDifferences:
    """Return how the checkpoint's weights differ from the model's.

    Raises:
        ModelError: if a weight of the backbone is missing, or any has another shape than ``config.json`` says.
    """
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
    return WeightDifferences(missing, heads_among(report["unexpected_keys"]))


# ------------------------------------------------------------------------------- weights that stay in their files


def _leave_in_files(
    path: str, config: PreTrainedConfig, dtype: torch.dtype
) -> tuple[PreTrainedModel, Mapping[str, Any], dict[nn.Parameter, StoredWeight]] | str:
    """Return the model with NaN for each weight of the checkpoint, transformers' report, and how to read each weight.

    transformers renames weights on its way from a file to a model, so it is handed a stand-in for each: one number of
    its own, expanded to the weight's shape, that takes no memory and is recognised by its address.

    Returns:
        Instead, why that cannot be, if the checkpoint is quantized, is not in safetensors files, or holds weights that
        transformers converts.
    """
    settings = config.to_dict()
    files = None if "transformers_weights" in settings else _safetensors_files(path)
    if files is None:
        return "its weights are not in model.safetensors"
    if settings.get("quantization_config"):
        return "its weights are quantized"
    readers: list[StoredWeight] = []
    shapes: dict[str, list[int]] = {}
    for file in files:
        # pread: a mapped file would count against some limits of memory.
        opened = safe_open(file, "pt", backend="pread")
        for name in opened.keys():  # noqa: SIM118 - no mapping
            shapes[name] = opened.get_slice(name).get_shape()
            readers.append(partial(opened.get_tensor, name))
    stand_ins = torch.full((len(readers),), torch.nan, dtype=dtype)
    state = {name: number.expand(shape) for (name, shape), number in zip(shapes.items(), stand_ins, strict=True)}
    # Its automatic class takes no weights without a path.
    model_class: Any = type(meta_model(path))
    model, report = model_class.from_pretrained(
        None, config=config, dtype=dtype, state_dict=state, **_REPORTED, trust_remote_code=False
    )
    by_address = {number.data_ptr(): reader for number, reader in zip(stand_ins, readers, strict=True)}
    for name, buffer in model.named_buffers():
        if buffer.data_ptr() in by_address:
            module, _, last = name.rpartition(".")
            model.get_submodule(module).register_buffer(last, by_address[buffer.data_ptr()]().to(buffer.dtype))
    stored: dict[nn.Parameter, StoredWeight] = {}
    drawn = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    for name, parameter in model.named_parameters():
        if parameter.data_ptr() in by_address:
            stored[parameter] = by_address[parameter.data_ptr()]
        elif name not in drawn:
            return f"transformers converts {name} while it reads it"
    return model, report, stored


def _safetensors_files(path: str) -> list[str] | None:
    """Return the files of a checkpoint's weights, as transformers chooses them; None if they have another format."""
    if (single := _file_of(path, SAFE_WEIGHTS_NAME)) is not None:
        return [single]
    if (index := _file_of(path, SAFE_WEIGHTS_INDEX_NAME)) is None:
        return None
    files = [_file_of(path, name) for name in sorted(set(json.loads(Path(index).read_bytes())["weight_map"].values()))]
    return [file for file in files if file is not None]


def _file_of(path: str, name: str) -> str | None:
    return cached_file(path, name, _raise_exceptions_for_missing_entries=False)


def _read_embedding(loaded: _Loaded) -> None:
    """Read the token embedding now if it is still in the checkpoint."""
    weight = embedding_of(loaded.model).weight
    assert isinstance(weight, nn.Parameter)
    if (read := loaded.stored.pop(weight, None)) is not None:
        weight.data = read().to(weight.dtype)


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
