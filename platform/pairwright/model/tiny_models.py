"""Creates tiny untrained models with their tokenizers, for the demo, smoke recipes and tests.

Every architecture runs its real code, with random weights; a model takes well under a second and no download.
"""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from pairwright.data.storage.outputs import put_directory
from pairwright.errors import ModelError

# Role -> token, in the order of their ids; pad is never eos, because an export could not tell padding from text.
_WITH_BOS = {"pad": "<pad>", "bos": "<s>", "eos": "</s>"}
_WITHOUT_BOS = {"pad": "<|pad|>", "eos": "<|endoftext|>"}
_BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_ROBERTA = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}


@dataclass(frozen=True, slots=True)
class _Architecture:
    special_tokens: Mapping[str, str]
    is_encoder: bool = False
    grouped_queries: bool = False
    sizes_its_heads: bool = False
    positions_after_pad: bool = False
    feed_forward: str = "intermediate_size"


_ARCHITECTURES = {
    "llama": _Architecture(_WITH_BOS, grouped_queries=True),
    "mistral": _Architecture(_WITH_BOS, grouped_queries=True),
    "phi3": _Architecture(_WITH_BOS, grouped_queries=True),
    "gemma3_text": _Architecture(_WITH_BOS, grouped_queries=True, sizes_its_heads=True),
    "opt": _Architecture(_WITH_BOS, feed_forward="ffn_dim"),
    "qwen2": _Architecture(_WITHOUT_BOS, grouped_queries=True),
    "qwen3": _Architecture(_WITHOUT_BOS, grouped_queries=True, sizes_its_heads=True),
    "gpt2": _Architecture(_WITHOUT_BOS, feed_forward="n_inner"),
    "gpt_neox": _Architecture(_WITHOUT_BOS),
    "bert": _Architecture(_BERT, is_encoder=True),
    "roberta": _Architecture(_ROBERTA, is_encoder=True, positions_after_pad=True),
    "deberta-v2": _Architecture(_BERT, is_encoder=True),
}
ARCHITECTURES = tuple(_ARCHITECTURES)


def publish_tiny_model(directory: Path, **settings: Any) -> None:
    """Create a tiny model, as ``new_tiny_model`` does, in a directory that is empty, completely or not at all.

    The same model may be there already: equal settings give equal files.

    Raises:
        ModelError: as ``new_tiny_model``.
        StoreError: if the directory holds anything else, or cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="pairwright-model-") as made:
        new_tiny_model(Path(made), **settings)
        if not (directory.is_dir() and _contents(directory) == _contents(Path(made))):
            put_directory(Path(made), str(directory), last="config.json")


def _contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def new_tiny_model(
    directory: Path,
    *,
    architecture: str,
    texts: Iterable[str],
    vocab_size: int,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    max_positions: int,
    seed: int,
    chat_template: str | None = None,
) -> Path:
    """Write configuration, random weights and a fast BPE tokenizer trained on ``texts``; return ``directory``.

    Equal arguments give equal files, whatever the process's random state. The tokenizer may be smaller than
    ``vocab_size`` if the texts hold too few words; the model is built for its actual size.

    Args:
        directory: created if it does not exist.
        architecture: one of ``ARCHITECTURES``; encoders get a masked-language-model head, the others a causal one.
        texts: from which the tokenizer learns its merges; its alphabet has every byte in any case.
        vocab_size: upper bound on the vocabulary, at least 256 bytes and the special tokens.
        hidden_size: width, a multiple of ``num_heads``; the feed-forward layers are four times as wide.
        num_layers: transformer blocks.
        num_heads: attention heads; key and value heads are half as many where the architecture groups queries.
        max_positions: longest input in tokens.
        seed: of the weights.
        chat_template: Jinja chat template of the tokenizer, if any.

    Raises:
        ModelError: for an architecture that is not in the list, or sizes that do not fit together.
    """
    if architecture not in _ARCHITECTURES:
        raise ModelError(f"architecture {architecture!r} is not one of {', '.join(ARCHITECTURES)}")
    kind = _ARCHITECTURES[architecture]
    if hidden_size % num_heads:
        raise ModelError(f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}")
    tokenizer = _train_tokenizer(kind, texts, vocab_size, max_positions)
    tokenizer.chat_template = chat_template
    sizes = {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "max_position_embeddings": max_positions,
    }
    config = AutoConfig.for_model(architecture, **_config_values(kind, sizes, tokenizer))
    directory.mkdir(parents=True, exist_ok=True)
    # Otherwise the command's log would show a progress bar for one small file.
    disable_progress_bar()
    _random_model(kind, config, seed).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _config_values(kind: _Architecture, sizes: dict[str, int], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    hidden_size, num_heads = sizes["hidden_size"], sizes["num_attention_heads"]
    values = sizes | {
        "vocab_size": len(tokenizer),
        kind.feed_forward: 4 * hidden_size,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if kind.grouped_queries:
        values["num_key_value_heads"] = num_heads // 2 if num_heads % 2 == 0 else num_heads
    if kind.sizes_its_heads:
        values["head_dim"] = hidden_size // num_heads
    if kind.feed_forward == "ffn_dim":
        values["word_embed_proj_dim"] = hidden_size
    if kind.positions_after_pad:
        values["max_position_embeddings"] += values["pad_token_id"] + 1
    return values


def _random_model(kind: _Architecture, config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    auto_class = AutoModelForMaskedLM if kind.is_encoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return auto_class.from_config(config, dtype=torch.float32, trust_remote_code=False)


def _train_tokenizer(
    kind: _Architecture, texts: Iterable[str], vocab_size: int, max_positions: int
) -> PreTrainedTokenizerFast:
    special_tokens = list(kind.special_tokens.values())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(special_tokens):
        least = f"{len(alphabet)} bytes and {len(special_tokens)} special tokens"
        raise ModelError(f"vocab_size {vocab_size} is too small to hold {least}; give at least that many")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special_tokens, initial_alphabet=sorted(alphabet), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    template = _special_tokens_around(kind)
    if template != "$A":
        ids = [(token, backend.token_to_id(token)) for token in special_tokens]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    roles: dict[str, Any] = {f"{role}_token": token for role, token in kind.special_tokens.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=max_positions, **roles)


def _special_tokens_around(kind: _Architecture) -> str:
    tokens = kind.special_tokens
    if kind.is_encoder:
        return f"{tokens['cls']} $A {tokens['sep']}"
    return f"{tokens['bos']} $A" if "bos" in tokens else "$A"
