"""Whatever a client leaves off a rendered text, the model reads the tokens that its template writes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pairwright.data.tokens.tokenizer import load_tokenizer
from pairwright.errors import DataError
from pairwright.evaluation.load_exported import InputRules
from pairwright.serving.text_tokens import InputTokens
from pairwright.serving.wire_format import conversation
from special_tokenizers import CHATML, adding_special_tokens

TOKENIZERS = adding_special_tokens()
WITH_BOS = "{{ bos_token }}" + CHATML
WITH_EOS = "{{ bos_token }}{{ messages[0]['content'] }}\n\n{{ messages[1]['content'] }}{{ eos_token }}"
PROMPT, COMPLETION = "a reward model ranks rewards", "the end of a drawer"


def inputs_of(folder: Path, name: str, template: str | None, *, max_length: int = 200, overlong: str = "drop"):
    tokenizer = TOKENIZERS[name]
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    rules = InputRules(max_length=max_length, overlong=overlong, format_version=1)  # type: ignore[arg-type]
    loaded = load_tokenizer(str(folder))
    return InputTokens(loaded, rules), loaded


@pytest.mark.parametrize(
    ("name", "template"),
    [
        *(pytest.param(name, WITH_BOS, id=f"{name}, bos") for name in TOKENIZERS if TOKENIZERS[name].bos_token),
        *(pytest.param(name, CHATML, id=f"{name}, no bos") for name in ("byte_level", "bert")),
        *(pytest.param(name, None, id=f"{name}, plain template") for name in ("prefixed_bpe", "bert")),
        pytest.param("llama", WITH_EOS, id="llama, bos and eos"),
    ],
)
def test_bos_is_there_once_and_the_end_is_completed(tmp_path: Path, name: str, template: str | None) -> None:
    inputs, tokenizer = inputs_of(tmp_path, name, template)
    (expected,) = inputs.of_request(conversation({"prompt": PROMPT, "completions": [COMPLETION]}))
    chat = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": COMPLETION}]
    tokenizer.chat_template = inputs.chat_template
    text: Any = tokenizer.apply_chat_template(chat, tokenize=False)
    assert np.array_equal(expected.token_ids, tokenizer(text, add_special_tokens=False)["input_ids"])
    first: Any = next((t for t in (tokenizer.bos_token, tokenizer.cls_token) if t and text.startswith(t)), "")
    end = text[text.rindex(COMPLETION) + len(COMPLETION) :]
    sent = {
        "whole": text,
        "without bos": text.removeprefix(first),
        "bos twice": first + text,
        "without its end": text.removesuffix(end),
        "with part of its end": text.removesuffix("\n"),
    }
    for what, given in sent.items():
        found = inputs.of_text(given, "$")
        assert found.token_ids.tolist() == expected.token_ids.tolist(), what
        assert found.is_completed == (not given.endswith(end)), what


@pytest.mark.parametrize("name", ["byte_level", "bert"])
def test_token_ids_get_the_same_frame_as_texts(tmp_path: Path, name: str) -> None:
    inputs, _ = inputs_of(tmp_path, name, WITH_BOS if name == "byte_level" else None)
    (expected,) = inputs.of_request(conversation({"prompt": PROMPT, "completions": [COMPLETION]}))
    whole = expected.token_ids.tolist()
    for given in (whole, whole[1:], whole[:1] + whole, whole[:-1]):
        assert inputs.of_token_ids(given, "$").token_ids.tolist() == whole
    assert not inputs.of_token_ids(whole, "$").is_completed
    assert inputs.of_token_ids(whole[:-1], "$").is_completed
    for wrong in ([-1], [10**6], [2**40]):
        with pytest.raises(DataError, match="token id"):
            inputs.of_token_ids(wrong, "$")


@pytest.mark.parametrize("ask", ["text", "conversation"])
def test_a_text_over_the_limit_is_refused_with_limit_and_length_or_cut(tmp_path: Path, ask: str) -> None:
    long = "ranks rewards " * 30
    record = conversation({"prompt": PROMPT, "completions": [COMPLETION, long]})
    for overlong in ("drop", "truncate"):
        inputs, _ = inputs_of(tmp_path, "byte_level", CHATML, max_length=60, overlong=overlong)

        def tokens(inputs: InputTokens = inputs):
            return inputs.of_text(long, "$.input") if ask == "text" else inputs.of_request(record)[1]

        if overlong == "drop":
            with pytest.raises(DataError, match=r"[\d,]+ tokens with its prompt, and the model's limit is 60"):
                tokens()
        else:
            assert (len(tokens().token_ids), tokens().is_cut) == (60, True)


def test_a_prompt_that_leaves_nothing_of_a_completion_is_refused(tmp_path: Path) -> None:
    inputs, _ = inputs_of(tmp_path, "byte_level", CHATML, max_length=20, overlong="truncate")
    with pytest.raises(DataError, match="leaves nothing of the completion"):
        inputs.of_request(conversation({"prompt": PROMPT * 9, "completions": [COMPLETION]}))
