"""Exports a trained reward model as a plain Hugging Face directory that gives the same rewards wherever it is loaded.

Plain transformers pools at the last token that is not the pad token and ignores the attention mask, so no text may end
in the pad token (transformers issue 35352). It is chosen here before training, and checked again before anything is
written. The same directory holds what decides the model's input: chat template and maximum length.
"""

import copy
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from tokenizers import processors
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
from transformers.configuration_utils import PreTrainedConfig

from pairwright.config import TokensConfig
from pairwright.data.storage.model_listing import RULES_FILE, list_files
from pairwright.data.tokens.chat_template import render_one, tokens_around_two_texts
from pairwright.data.tokens.template_sandbox import Refusal
from pairwright.errors import ModelError
from pairwright.model.lora import ADAPTER_FOLDER, KeptAdapter, merge_adapters, save_adapter
from pairwright.model.reward_model import DECODER_HEAD, RewardModel

logger = logging.getLogger(__name__)

RULES_FORMAT_VERSION = 1
# Padding tokens of published vocabularies, used if the tokenizer names none of its own; if none is there, one is added.
KNOWN_PAD_TOKENS = (
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<|padding|>",
    "<|finetune_right_pad_id|>",
    "<|fim_pad|>",
    "<|vision_pad|>",
)
NEW_PAD_TOKENS = ("<|pad|>", "<|reward_pad|>")

SELF_CHECK_FILE = "self_check.json"
SELF_CHECK_MESSAGES = (
    {"role": "user", "content": "Name a prime."},
    {"role": "assistant", "content": "7 is one."},
)
SELF_CHECK_DIGITS = 5
"""After the decimal point: smaller digits differ between processors."""


class SelfCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One text with its reward, for clients of an exported model to compare with their own."""

    messages: Annotated[list[dict[str, str]], msgspec.Meta(description="prompt and completion, each {role, content}")]
    text: Annotated[str, msgspec.Meta(description="what the chat template makes of them, special tokens included")]
    token_ids: Annotated[list[int], msgspec.Meta(description="of the text, nothing added")]
    reward: Annotated[
        float | None, msgspec.Meta(description="computed on a CPU in float32; null where it is not a finite number")
    ]
    format_version: Literal[1]


def choose_pad_token(tokenizer: PreTrainedTokenizerFast) -> int:
    """Give a tokenizer a pad token that no text ends in, and return its id.

    That is the tokenizer's own if it has no other role, else a known padding token of the vocabulary, else a new
    ``<|pad|>``; the model's embedding then has to grow to ``len(tokenizer)``. The ids of texts do not change.
    """
    own = tokenizer.pad_token
    if not isinstance(own, str) or _has_other_role(tokenizer, own):
        vocabulary = tokenizer.get_vocab()
        known = [token for token in KNOWN_PAD_TOKENS if token in vocabulary and not _has_other_role(tokenizer, token)]
        new = [token for token in NEW_PAD_TOKENS if token not in vocabulary]
        tokenizer.add_special_tokens({"pad_token": (known + new)[0]})
        logger.info(
            "the tokenizer's pad token (%s) cannot tell padding from text: %s is it now", own, tokenizer.pad_token
        )
    pad_token_id = tokenizer.pad_token_id
    assert isinstance(pad_token_id, int)
    return pad_token_id


def _has_other_role(tokenizer: PreTrainedTokenizerFast, token: str) -> bool:
    roles = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.sep_token, tokenizer.cls_token, tokenizer.unk_token)
    return token in roles or token in (tokenizer.chat_template or "")


def save_reward_model(
    state_dict: Mapping[str, Tensor],
    model: RewardModel,
    tokenizer: PreTrainedTokenizerFast,
    directory: Path | str,
    *,
    chat_template: str,
    dtype: torch.dtype,
    tokens: TokensConfig,
    kept_adapter: KeptAdapter | None = None,
) -> None:
    """Write a plain Hugging Face directory that ``AutoModelForSequenceClassification`` loads with equal rewards.

    Args:
        state_dict: all weights under the names of ``RewardModel.state_dict()``, on the CPU, with the adapters, which
            are merged; ``model``'s own weights are not read, since under ZeRO-3 no rank holds them.
        model: source of architecture and configuration.
        tokenizer: with the pad token that ``model`` was loaded with.
        directory: of the output; created if it does not exist.
        chat_template: that the model was trained with; saved with the tokenizer.
        dtype: of the saved weights.
        tokens: length rules of the training input, recorded in ``pairwright.json``.
        kept_adapter: the adapters to write beside the merged weights; None for none.

    Raises:
        ModelError: if the pad token is missing, equals eos or differs from the model's, or if a weight is missing.
    """
    _refuse_pad_token(tokenizer, model)
    config = copy.deepcopy(model.export_config)
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    _ask_for_raw_rewards(config, model)
    with torch.device("meta"):
        plain = type(model.model)(config)
    weights: dict[str, Any] = {
        name.removeprefix("model."): tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in merge_adapters(state_dict, model).items()
    }
    try:
        plain.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise ModelError(f"{directory}: these are not all the weights of {type(plain).__name__}: {error}") from None
    plain.save_pretrained(directory)
    save_tokenizer(tokenizer, Path(directory), chat_template=chat_template, max_length=tokens.max_length)
    del plain, weights
    if kept_adapter is not None:
        save_adapter(state_dict, model, kept_adapter, Path(directory) / ADAPTER_FOLDER)
    _write_self_check(Path(directory), tokenizer, chat_template, tokens.max_length)
    rules = {
        "format_version": RULES_FORMAT_VERSION,
        "max_length": tokens.max_length,
        "overlong": tokens.overlong_policy,
        "special_in_text": tokens.special_in_text,
        "template_end": tokens.template_end,
    }
    _write_rules(Path(directory), rules)


def _ask_for_raw_rewards(config: PreTrainedConfig, model: RewardModel) -> None:
    """Set keys of ``config.json`` by which other programs give the reward itself; transformers computes the same.

    Source: vLLM's ``/classify`` and transformers' pipeline read ``problem_type``; vLLM's ``/score``, TEI and
    CrossEncoder read ``sentence_transformers``; OpenRLHF reads the other three, and normalises by mean and std.
    """
    config.problem_type = "regression"
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    if model.pools_last_token:
        config.value_head_prefix, config.mean, config.std = DECODER_HEAD, 0.0, 1.0


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path, *, chat_template: str, max_length: int) -> None:
    """Write a tokenizer that adds no special tokens of its own: the chat template writes all of them.

    Its limit is the run's, so that other programs cut where the model was trained to be cut, not at the base model's.

    Otherwise every client that tokenises rendered text (transformers' pipelines, vLLM, TEI) would add them a second
    time. Classes such as ``BertTokenizer`` replace the post-processor in tokenizer.json by their own, so the directory
    names a class that does not. Two texts, which CrossEncoder and TEI send for an encoder, become what the plain
    template makes of prompt and completion, where the model was trained with that one.
    """
    exported = copy.deepcopy(tokenizer)
    exported.chat_template = chat_template
    exported.padding_side = "right"
    exported.model_max_length = max_length
    adds_tokens = exported("a")["input_ids"] != exported("a", add_special_tokens=False)["input_ids"]
    if adds_tokens:
        exported.backend_tokenizer.post_processor = _adding_nothing(tokenizer, chat_template)
    exported.save_pretrained(directory)
    if adds_tokens:
        file = directory / "tokenizer_config.json"
        settings = msgspec.json.decode(file.read_bytes()) | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": exported.model_input_names,
        }
        file.write_bytes(msgspec.json.format(msgspec.json.encode(settings), indent=2) + b"\n")


def _adding_nothing(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> processors.TemplateProcessing:
    """Return a post-processor that leaves one text as it is, and joins two as the plain template does."""
    around = tokens_around_two_texts(tokenizer, chat_template)
    if around is None:
        return processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1")
    before, between, after = ([f"{token}:0" for token in tokens] for tokens in around)
    special = {token for tokens in around for token in tokens}
    return processors.TemplateProcessing(
        single="$A:0",
        pair=[*before, "$A:0", *between, "$B:0", *after],
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in sorted(special)],
    )


def _write_self_check(directory: Path, tokenizer: PreTrainedTokenizerFast, chat_template: str, max_length: int) -> None:
    """Write ``self_check.json``, a text and its reward for other clients of the model to compare with."""
    text = render_one(tokenizer, chat_template, SELF_CHECK_MESSAGES)
    if isinstance(text, Refusal):
        raise ModelError(f"{directory}: the self-check's conversation: {text.reason}")
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert isinstance(token_ids, list)
    if len(token_ids) > max_length:
        logger.info("%s: no %s, whose %d tokens are over the limit", directory, SELF_CHECK_FILE, len(token_ids))
        return
    reward = _float32_reward(directory, token_ids)
    check = SelfCheck(
        format_version=1,
        messages=[*SELF_CHECK_MESSAGES],
        text=text,
        token_ids=token_ids,
        reward=round(reward, SELF_CHECK_DIGITS) if math.isfinite(reward) else None,
    )
    (directory / SELF_CHECK_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(check), indent=2) + b"\n")


@torch.no_grad()
def _float32_reward(directory: Path, token_ids: list[int]) -> float:
    """Return the reward of a text by plain transformers, in float32 whatever the dtype of the saved weights.

    It computes on one thread: sums over several threads differ in their last digits.
    """
    model = AutoModelForSequenceClassification.from_pretrained(
        directory, dtype=torch.float32, trust_remote_code=False
    ).eval()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return model(input_ids=torch.tensor([token_ids])).logits[0, 0].item()
    finally:
        torch.set_num_threads(num_threads)


def _write_rules(directory: Path, rules: Mapping[str, Any]) -> None:
    """Write ``pairwright.json``, last: it lists every other file of the directory with its hash."""
    content = msgspec.json.format(msgspec.json.encode({**rules, "files": list_files(directory)}), indent=2)
    (directory / RULES_FILE).write_bytes(content + b"\n")


def _refuse_pad_token(tokenizer: PreTrainedTokenizerFast, model: RewardModel) -> None:
    pad_token_id = tokenizer.pad_token_id
    own = model.export_config.get_text_config().pad_token_id
    if pad_token_id is None or pad_token_id == tokenizer.eos_token_id:
        raise ModelError(
            f"the tokenizer's pad token is {tokenizer.pad_token} and its eos token {tokenizer.eos_token}: plain "
            "transformers would pool another token than the last; give it one of its own with choose_pad_token"
        )
    if own != pad_token_id:
        raise ModelError(
            f"the tokenizer's pad token has id {pad_token_id}, the model's {own}, so plain transformers would pool "
            f"the wrong token; load the model with pad_token_id={pad_token_id}"
        )
