"""Prompt and completion -> the text that a model reads -> its tokens; one path for training, evaluation and scoring.

Everything goes through a Jinja chat template, which writes the special tokens itself, so that none is ever added
twice; a tokenizer without a template gets a plain one. The resolved template is what an exported model carries.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from pairwright.config import TokensConfig
from pairwright.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Conversation = Sequence[dict[str, str]]

# Templates such as Llama 3.2's print today's date: a reward would change overnight, and with it every cached token.
# The date that Llama's own templates fall back on stands in for it, also in what is exported (TRAPS 24).
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format"
    ".replace('%d', '26').replace('%-d', '26').replace('%m', '07').replace('%b', 'Jul').replace('%B', 'July')"
    ".replace('%Y', '2024').replace('%y', '24').replace('%A', 'Friday').replace('%a', 'Fri').replace('%H', '00')"
    ".replace('%M', '00').replace('%S', '00') }}{% endmacro %}{{ '' }}"
)
_PROBES: tuple[Conversation, ...] = tuple(
    ({"role": "user", "content": "Which one?"}, {"role": "assistant", "content": text}) for text in ("This.", "That.")
)


def resolve_template(tokenizer: "PreTrainedTokenizerFast", config: TokensConfig) -> str:
    """Return the chat template to use: the configured one, else the tokenizer's own, else a plain one.

    Raises:
        ConfigError: if the configured template cannot be read, is not Jinja, or does not show the completion.
        ModelError: if that holds of the tokenizer's own.
    """
    if config.chat_template is not None:
        template, kind, origin = _read_template(config.chat_template), ConfigError, "tokens.chat_template"
    elif tokenizer.chat_template is not None:
        template, kind, origin = _own_template(tokenizer), ModelError, f"{tokenizer.name_or_path}: its chat template"
    else:
        template, kind, origin = plain_template(tokenizer), ModelError, f"{tokenizer.name_or_path}: the plain template"
    if "strftime_now" in template and not template.startswith(_FIXED_DATE):
        template = _FIXED_DATE + template
    try:
        texts = [render(tokenizer, template, [probe])[0] for probe in _PROBES]
    except DataError as error:
        raise kind(f"{origin}: {error}; set tokens.chat_template to one that works") from None
    if texts[0] == texts[1]:
        raise kind(f"{origin}: shows nothing of the completion (the last, assistant message); set another one")
    return template


def plain_template(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Return a chat template without roles: leading special tokens, the contents with blank lines between, an end.

    Leading tokens are those that the tokenizer puts before any text by itself (bos, cls); the end is what it puts
    behind (sep), or else eos where it has one, so that the last token of every completion is the same.
    """
    before, after = _own_special_tokens(tokenizer)
    if not after and tokenizer.eos_token is not None:
        after = str(tokenizer.eos_token)
    contents = "{{ messages | map(attribute='content') | join('\\n\\n') }}"
    return f"{{{{ {before!r} }}}}{contents}{{{{ {after!r} }}}}"


def render(tokenizer: "PreTrainedTokenizerFast", template: str, conversations: Sequence[Conversation]) -> list[str]:
    """Return the text of each conversation.

    Raises:
        DataError: if the template refuses one, with the template's own reason.
    """
    try:
        return tokenizer.apply_chat_template(list(conversations), chat_template=template, tokenize=False)  # pyright: ignore[reportReturnType, reportArgumentType]
    except TemplateError as error:
        raise DataError(f"the chat template gives no text: {error.message or type(error).__name__}") from None


def encode(
    tokenizer: "PreTrainedTokenizerFast", template: str, conversations: Sequence[Conversation]
) -> list[NDArray[np.int32]]:
    """Return the token ids of each conversation, int32: plain tokenisation of its text, with nothing added.

    Raises:
        DataError: if the template refuses one.
    """
    texts = render(tokenizer, template, conversations)
    encoded = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )
    return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]


def _read_template(text_or_path: str) -> str:
    if not text_or_path.endswith(".jinja"):
        return text_or_path
    try:
        return Path(text_or_path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"tokens.chat_template: {text_or_path} cannot be read: {error}") from None


def _own_template(tokenizer: "PreTrainedTokenizerFast") -> str:
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise ModelError(f"{tokenizer.name_or_path}: {error}; set tokens.chat_template to the one to use") from None


def _own_special_tokens(tokenizer: "PreTrainedTokenizerFast") -> tuple[str, str]:
    """Return what the tokenizer puts before and behind any text by itself."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    assert isinstance(bare, list)
    assert isinstance(full, list)
    starts = [i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare]
    start = starts[0] if starts else len(full)
    around = (full[:start], full[start + len(bare) :])
    before, after = ("".join(tokenizer.convert_ids_to_tokens(ids)) for ids in around)
    # Written into a template as text, they must come back as the same tokens.
    read_back = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, after)]
    if not starts or read_back != list(around):
        raise ModelError(
            f"{tokenizer.name_or_path}: its special tokens cannot be written around a text ({full} for {bare}); "
            "set tokens.chat_template to say where they belong"
        )
    return before, after
