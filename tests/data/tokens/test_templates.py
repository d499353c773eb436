"""Chat templates: what honest ones give, and that no other takes time, memory or output without measure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jinja2 import TemplateError

import hostile_templates
from pairwright.config import TokensConfig
from pairwright.data.tokens.chat_template import render, resolve_template
from pairwright.data.tokens.template_sandbox import MAX_EXCESSES, Refusal, render_conversations
from pairwright.errors import ConfigError, DataError, ModelError
from special_tokenizers import CHATML, byte_level

TOKENIZER = byte_level()
TEMPLATES = Path(__file__).parents[2] / "fixtures" / "chat_templates"
USER, ASSISTANT = (
    {"role": "user", "content": " Why is\nthe sky blue? "},
    {"role": "assistant", "content": "Räyleigh 狐."},
)
SYSTEM, TOOL = {"role": "system", "content": "Be brief."}, {"role": "tool", "content": '{"a": 1}'}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nBecause."}
CONVERSATIONS = [
    [USER, ASSISTANT],
    [SYSTEM, USER, ASSISTANT],
    [USER, ASSISTANT, USER, THOUGHT],
    [SYSTEM, USER, TOOL, ASSISTANT],
    [USER, USER, {"role": "assistant", "content": ""}],
]
HONEST = {path.stem: path.read_text() for path in sorted(TEMPLATES.glob("*.jinja"))} | {"chatml": CHATML}
"""As common models have them: roles that are refused, tools, dates, namespaces, `generation` blocks, trimming."""


@pytest.mark.parametrize("name", HONEST)
def test_texts_are_those_of_apply_chat_template(name: str) -> None:
    for conversation, text in zip(CONVERSATIONS, render(TOKENIZER, HONEST[name], CONVERSATIONS), strict=True):
        try:
            expected = TOKENIZER.apply_chat_template(conversation, chat_template=HONEST[name], tokenize=False)
        except TemplateError as error:
            expected = Refusal(f"the chat template gives no text: {error.message}")
        assert text == expected


def run_hostile(kind: str, directory: Path) -> dict:
    """Try a kind of template in a process of its own, with 2 GiB of address space."""
    TOKENIZER.save_pretrained(directory)
    command = [sys.executable, hostile_templates.__file__, kind, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        ("failing", ""),
        ("writing", "MiB of memory|over the limit of"),
        ("endless", "more than 2 s of processor time"),
        pytest.param("more_endless", "processor time|MiB of memory", marks=pytest.mark.slow),
    ],
)
def test_a_hostile_template_is_one_error_that_names_its_origin(kind: str, limit: str, tmp_path: Path) -> None:
    found = run_hostile(kind, tmp_path)
    for name, error in found["errors"].items():
        assert error.startswith("tokens.chat_template: the chat template gives no text: "), name
        assert error.endswith("set tokens.chat_template to one that works"), name
        assert any(part in error for part in limit.split("|")), (name, error)
        assert len(error) < 600
        assert "\n" not in error
    assert max(found["peak_megabytes"]) < 900


def test_a_template_that_comes_with_a_tokenizer_is_named_with_it() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = "{{ 1/0 }}"
    with pytest.raises(ModelError, match=r".*: its chat template: the chat template gives no text: ZeroDivisionError"):
        resolve_template(tokenizer, TokensConfig())


def test_a_template_that_fails_on_one_conversation_gives_the_others() -> None:
    template = "{{ messages[-1].content }}{{ 1 // (messages[-1].content | length - 1) }}"
    conversations = [[USER, {"role": "assistant", "content": content}] for content in ("ab", "a", "abc")]
    good, bad, other = render(TOKENIZER, template, conversations)
    assert (good, other) == ("ab1", "abc0")
    assert isinstance(bad, Refusal)
    assert "ZeroDivisionError" in bad.reason


def test_a_template_that_explodes_on_some_contents_refuses_these_and_is_an_error_at_the_third() -> None:
    template = "{{ messages[-1].content * (10**10 if 'boom' in messages[-1].content else 1) }}"
    rows = [[USER, {"role": "assistant", "content": content}] for content in ("ok", "boom", "fine", "boom", "good")]
    found = render_conversations(template, {}, rows)
    assert [text for text in found if isinstance(text, str)] == ["ok", "fine", "good"]
    assert [isinstance(text, Refusal) for text in found] == [False, True, False, True, False]
    assert MAX_EXCESSES == 3
    with pytest.raises(DataError, match=r"MiB of memory .*, the 3rd time now: such a template is faulty or hostile"):
        render_conversations(template, {}, rows[:2])


def test_a_template_file_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "zero.jinja").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=r"tokens.chat_template: has over 1,000,000 characters"):
        resolve_template(TOKENIZER, TokensConfig(chat_template=str(tmp_path / "zero.jinja")))
