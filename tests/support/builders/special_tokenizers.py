"""Tokenizers of every kind that models come with, trained in a moment: for what stands in texts as a special token."""

import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AddedToken,
    BertTokenizer,
    DebertaV2Tokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)
TEXTS = [
    "a reward model ranks rewards, and <b>bold</b> words | (im_end) [SEP] of a user's /s> turn\n\n- one\n- two",
    "assistant: the end of a drawer; if a < b and c > d: pad the start, x|y_z",
] * 40
ROLES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
SPECIAL = (*ROLES.values(), "<|im_start|>", "<|im_end|>")


def byte_level() -> PreTrainedTokenizerFast:
    """As of GPT-2, Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, trainers.BpeTrainer, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))


def metaspace_bpe() -> PreTrainedTokenizerFast:
    """As of Mistral and Gemma: blanks as a letter, and bytes for characters that are not in the vocabulary."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _trained(tokenizer, trainers.BpeTrainer)


def prefixed_bpe() -> PreTrainedTokenizerFast:
    """As of Llama 2: the same by a normaliser, which sets a blank before each piece between special tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _trained(tokenizer, trainers.BpeTrainer)


def unigram() -> PreTrainedTokenizerFast:
    """As of T5 and XLM-R: a vocabulary that holds the special tokens, which its model makes of plain text too."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return _trained(tokenizer, trainers.UnigramTrainer, unk_token="<unk>")


def word_piece(*, normalized: bool = False) -> PreTrainedTokenizerFast:
    """As of BERT, whose normaliser takes letters' case and characters for private use away."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _trained(tokenizer, trainers.WordPieceTrainer, normalized=normalized)


KINDS = {
    "byte_level": byte_level,
    "metaspace_bpe": metaspace_bpe,
    "prefixed_bpe": prefixed_bpe,
    "unigram": unigram,
    "word_piece": word_piece,
}


def adding_special_tokens() -> dict[str, PreTrainedTokenizerFast]:
    """Return tokenizers that set bos or cls before every text by themselves, and some of them eos or sep behind it.

    Each of ``KINDS`` by its tokenizer.json, and of transformers' own classes those that build it otherwise: whatever
    the file says, BERT's, RoBERTa's, XLM-R's and DeBERTa's set these tokens anew when they are loaded.
    """
    made = {name: make() for name, make in KINDS.items()}
    for tokenizer in made.values():
        ids = [(str(token), tokenizer.convert_tokens_to_ids(str(token))) for token in ("<s>", "</s>")]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ids
        )
    bytes_, blanks, pieces, words = (
        json.loads(made[name].backend_tokenizer.to_str())["model"]
        for name in ("byte_level", "metaspace_bpe", "unigram", "word_piece")
    )
    byte_merges: Any = [tuple(merge) for merge in bytes_["merges"]]
    blank_merges: Any = [tuple(merge) for merge in blanks["merges"]]
    scores = [tuple(piece) for piece in pieces["vocab"]]
    marks = [("[CLS]", 0.0), ("[SEP]", 0.0), ("[MASK]", 0.0)]
    vocabulary = words["vocab"]
    vocabulary |= {mark: len(vocabulary) + i for i, mark in enumerate(("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"))}
    roles: Any = ROLES
    own: dict[str, Any] = {
        "llama": LlamaTokenizer(vocab=blanks["vocab"], merges=blank_merges, add_bos_token=True, **roles),
        "gpt2": GPT2Tokenizer(vocab=bytes_["vocab"], merges=byte_merges, add_bos_token=True, **roles),
        "roberta": RobertaTokenizer(vocab=bytes_["vocab"], merges=byte_merges),
        "bert": BertTokenizer(vocab=vocabulary),
        "xlm-roberta": XLMRobertaTokenizer(vocab=scores),
        "deberta-v2": DebertaV2Tokenizer(vocab=scores + marks),
    }
    return made | own


def _trained(
    tokenizer: Tokenizer, trainer: Any, *, normalized: bool = False, **settings: Any
) -> PreTrainedTokenizerFast:
    trained = trainer(vocab_size=700, special_tokens=[*ROLES.values()], show_progress=False, **settings)
    tokenizer.train_from_iterator(TEXTS, trained)
    whole = json.loads(tokenizer.to_str())
    if whole["model"].get("byte_fallback"):
        for byte in range(256):
            whole["model"]["vocab"].setdefault(f"<0x{byte:02X}>", len(whole["model"]["vocab"]))
    backend = Tokenizer.from_str(json.dumps(whole))
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=CHATML, **ROLES)
    turns = [AddedToken(token, special=True, normalized=normalized) for token in ("<|im_start|>", "<|im_end|>")]
    fast.add_special_tokens({"additional_special_tokens": turns})
    return fast
