"""Chooses a model's chat template, and renders conversations with it; one path for training, evaluation and scoring.

Everything goes through a Jinja chat template, which writes the special tokens itself, so that none is ever added
twice; a tokenizer without a template gets a plain one. The resolved template is what an exported model carries.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pairwright.config import TokensConfig
from pairwright.data.tokens.template_sandbox import Conversation, Refusal, render_conversations
from pairwright.errors import ConfigError, DataError, ModelError, PairwrightError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerFast

MAX_TEMPLATE_CHARACTERS = 1_000_000
"""Of a template's source; the longest that models come with have 20,000."""
# Templates such as Llama 3.2's print today's date: a reward would change overnight, and with it every cached token.
# The date that Llama's own templates fall back on stands in for it, also in what is exported.
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format"
    ".replace('%d', '26').replace('%-d', '26').replace('%m', '07').replace('%b', 'Jul').replace('%B', 'July')"
    ".replace('%Y', '2024').replace('%y', '24').replace('%A', 'Friday').replace('%a', 'Fri').replace('%H', '00')"
    ".replace('%M', '00').replace('%S', '00') }}{% endmacro %}{{ '' }}"
)
PROBES: tuple[Conversation, ...] = tuple(
    ({"role": "user", "content": "Which one?"}, {"role": "assistant", "content": text}) for text in ("This.", "That.")
)


def resolve_template(tokenizer: "PreTrainedTokenizerFast", config: TokensConfig) -> str:
    """Return the chat template to use: the configured one, else the tokenizer's own, else a plain one.

    Raises:
        ConfigError: if the configured template cannot be read, gives no text, or does not show the completion.
        ModelError: if that holds of the tokenizer's own.
    """
    template, kind, origin = _choose_template(tokenizer, config)
    texts: list[str] = []
    for probe in PROBES:
        try:
            text = render_one(tokenizer, template, probe)
        except DataError as error:
            text = Refusal(str(error))
        if isinstance(text, Refusal):
            raise kind(f"{origin}: {text.reason}; set tokens.chat_template to one that works")
        texts.append(text)
    if texts[0] == texts[1]:
        raise kind(f"{origin}: shows nothing of the completion (the last, assistant message); set another one")
    if config.template_end == "template":
        return template
    return _ending_at_the_turn(template, _white_space_behind_the_turn(tokenizer, texts))


def _white_space_behind_the_turn(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]) -> str:
    """Return the white space that a template writes behind the special token that ends every text; mostly nothing."""
    text = texts[0].rstrip()
    behind = texts[0][len(text) :]
    special = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    ends_alike = all(other.endswith(behind) and other.rstrip().endswith(special) for other in texts)
    return behind if special and ends_alike else ""


def _ending_at_the_turn(template: str, behind: str) -> str:
    """Return a template that writes nothing behind the last turn's end, but whole prompts for a policy to continue."""
    if not behind:
        return template
    # An expression stands at each edge: transformers' Jinja takes white space next to a block away.
    kept = f"pairwright_text.endswith({behind!r}) and not add_generation_prompt"
    return (
        f"{{% set pairwright_text %}}{{{{ '' }}}}{template}{{{{ '' }}}}{{% endset %}}"
        f"{{{{ pairwright_text[:-{len(behind)}] if {kept} else pairwright_text }}}}"
    )


def template_origin(tokenizer: "PreTrainedTokenizerFast", config: TokensConfig) -> str:
    """Return where the template to use comes from, for messages."""
    return _choose_template(tokenizer, config)[2]


def _choose_template(
    tokenizer: "PreTrainedTokenizerFast", config: TokensConfig
) -> tuple[str, type[PairwrightError], str]:
    """Return the template, the kind of error that one of its faults is, and where it comes from."""
    if config.chat_template is not None:
        template, kind, origin = _read_template(config.chat_template), ConfigError, "tokens.chat_template"
    elif tokenizer.chat_template is not None:
        template, kind, origin = _own_template(tokenizer), ModelError, f"{tokenizer.name_or_path}: its chat template"
    else:
        template, kind, origin = plain_template(tokenizer), ModelError, f"{tokenizer.name_or_path}: the plain template"
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise kind(f"{origin}: has over {MAX_TEMPLATE_CHARACTERS:,} characters, expected a chat template; set another")
    if "strftime_now" in template and not template.startswith(_FIXED_DATE):
        template = _FIXED_DATE + template
    return template, kind, origin


def plain_template(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Return a chat template without roles: leading special tokens, the contents set apart, an end.

    Leading tokens are those that the tokenizer puts before any text by itself (bos, cls); the end is what it puts
    behind (sep), or else eos where it has one, so that the last token of every completion is the same. Contents are set
    apart as the tokenizer does with two texts (BERT: ``[SEP]``; RoBERTa: ``</s></s>``), else by a blank line: BERT's
    tokenizer drops line breaks, and a prompt would run into its completion (benchmarks/learn_real.py).
    """
    before, after, between = ("".join(tokens) for tokens in _own_special_tokens(tokenizer))
    if not after and tokenizer.eos_token is not None:
        after = str(tokenizer.eos_token)
    contents = f"{{{{ messages | map(attribute='content') | join({between or chr(10) * 2!r}) }}}}"
    return f"{{{{ {before!r} }}}}{contents}{{{{ {after!r} }}}}"


def tokens_around_two_texts(
    tokenizer: "PreTrainedTokenizerFast", template: str
) -> tuple[list[str], list[str], list[str]] | None:
    """Return what a plain template with separators writes before a prompt, between it and a completion, and behind.

    None where the template is another one: then two texts are not what the model reads.
    """
    before, after, between = _own_special_tokens(tokenizer)
    return (before, between, after) if between and template == plain_template(tokenizer) else None


def render(
    tokenizer: "PreTrainedTokenizerFast", template: str, conversations: Sequence[Conversation]
) -> list[str | Refusal]:
    """Return the text of each conversation, or why the template refuses it: what ``apply_chat_template`` gives.

    Raises:
        DataError: if the template goes over its limits (``rendering``) again and again.
    """
    rendered = render_conversations(template, tokenizer.special_tokens_map, conversations)
    return [
        Refusal(f"the chat template gives no text: {text.reason}") if isinstance(text, Refusal) else text
        for text in rendered
    ]


def render_one(tokenizer: "PreTrainedTokenizerFast", template: str, conversation: Conversation) -> str | Refusal:
    """Return what ``render`` does, for one conversation."""
    return render(tokenizer, template, [conversation])[0]


def _read_template(text_or_path: str) -> str:
    if not text_or_path.endswith(".jinja"):
        return text_or_path
    try:
        with Path(text_or_path).open(encoding="utf-8") as file:
            return file.read(MAX_TEMPLATE_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"tokens.chat_template: {text_or_path} cannot be read: {error}") from None


def _own_template(tokenizer: "PreTrainedTokenizerFast") -> str:
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise ModelError(f"{tokenizer.name_or_path}: {error}; set tokens.chat_template to the one to use") from None


def _own_special_tokens(tokenizer: "PreTrainedTokenizerFast") -> tuple[list[str], list[str], list[str]]:
    """Return what the tokenizer puts before and behind any text by itself, and the separators between two."""
    bare = _ids(tokenizer("a", add_special_tokens=False))
    full = _ids(tokenizer("a"))
    starts = [i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare]
    start = starts[0] if starts else len(full)
    around = (full[:start], full[start + len(bare) :], _separators(tokenizer, full[: start + len(bare)], bare))
    before, after, between = (_names(tokenizer, ids) for ids in around)
    # Written into a template as text, they must come back as the same tokens.
    read_back = [_ids(tokenizer("".join(tokens), add_special_tokens=False)) for tokens in (before, after, between)]
    if not starts or read_back != list(around):
        raise ModelError(
            f"{tokenizer.name_or_path}: its special tokens cannot be written around a text ({full} for {bare}); "
            "set tokens.chat_template to say where they belong"
        )
    return before, after, between


def _separators(tokenizer: "PreTrainedTokenizerFast", first: list[int], second: list[int]) -> list[int]:
    """Return the separators that stand between two texts; none where anything else does, such as another bos."""
    both = _ids(tokenizer("a", "a"))
    if both[: len(first)] != first or second[0] not in both[len(first) :]:
        return []
    between = both[len(first) : both.index(second[0], len(first))]
    return between if between and all(each == tokenizer.sep_token_id for each in between) else []


def _names(tokenizer: "PreTrainedTokenizerFast", ids: list[int]) -> list[str]:
    names = tokenizer.convert_ids_to_tokens(ids)
    assert isinstance(names, list)
    return names


def _ids(encoded: "BatchEncoding") -> list[int]:
    ids = encoded["input_ids"]
    assert isinstance(ids, list)
    return ids
