"""A text ends where generation ends: at the last end of turn, in training and wherever the exported model is used."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from exported_models import TEXTS, export_of
from pairwright.config import TokensConfig
from pairwright.data.tokens.chat_template import render_one, resolve_template
from pairwright.data.tokens.tokenizer import load_tokenizer
from pairwright.evaluation.load_exported import load_exported, open_exported
from pairwright.model.tiny_models import new_tiny_model
from pairwright.serving.scorer import Scorer
from special_tokenizers import CHATML

LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML_PROMPTING = CHATML + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}\n"
CHAT = [{"role": "user", "content": "Why is the sky blue?"}, {"role": "assistant", "content": "It is green. \n"}]
MARKS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def base_with(folder: Path, template: str) -> Path:
    """Return a small model whose tokenizer knows the marks of both templates as special tokens."""
    base = new_tiny_model(
        folder / "base",
        architecture="llama",
        texts=TEXTS,
        vocab_size=300,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        max_positions=512,
        seed=1,
        chat_template=template,
    )
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.save_pretrained(base)
    return base


@pytest.mark.parametrize(
    ("template", "end", "prompting"),
    [
        (CHATML_PROMPTING, "It is green. \n<|im_end|>", "<|im_start|>assistant\n"),
        (LLAMA_3, "It is green.<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    ],
    ids=["ChatML", "Llama 3"],
)
def test_text_and_rewards_end_at_the_end_of_turn_wherever_the_model_is_used(
    tmp_path: Path, template: str, end: str, prompting: str
) -> None:
    base = base_with(tmp_path, template)
    tokens = TokensConfig(max_length=200)
    model = export_of(base, tmp_path / "model", tokens)
    exported = open_exported(str(model))
    assert exported.rules.template_end == "end_of_turn"
    scorer = Scorer(exported, device=torch.device("cpu"), micro_batch_tokens=None, is_exact=False)
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    text: Any = tokenizer.apply_chat_template(CHAT, tokenize=False)
    prompt: Any = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    assert text.endswith(end)
    assert prompt.endswith(prompting)
    plain = AutoModelForSequenceClassification.from_pretrained(model, trust_remote_code=False).eval()
    with torch.no_grad():
        expected = plain(**tokenizer(text, return_tensors="pt")).logits[0, 0].item()
    assert scorer.rewards_of_groups([(CHAT[0]["content"], [CHAT[1]["content"]])])[0] == pytest.approx(
        [expected], abs=2e-6
    )
    # What clients send: as the original template renders it, as generation ends it, and cut short.
    original = render_one(load_tokenizer(str(base)), template, CHAT)
    assert isinstance(original, str)
    mark = end[end.index("<|") :]
    for given in (original, text, text.removesuffix(mark)):
        found = scorer.inputs.of_text(given, "$")
        assert found.token_ids.tolist() == tokenizer(text)["input_ids"]
        ids = tokenizer(given)["input_ids"]
        assert scorer.inputs.of_token_ids(ids, "$").token_ids.tolist() == found.token_ids.tolist()


def test_a_model_from_before_keeps_its_end(tmp_path: Path) -> None:
    base = base_with(tmp_path, CHATML)
    model = export_of(base, tmp_path / "model", TokensConfig(max_length=200, template_end="template"))
    rules = model / "pairwright.json"
    rules.write_text(rules.read_text().replace('  "template_end": "template",\n', ""))
    exported = open_exported(str(model))
    tokenizer = load_exported(exported, torch.device("cpu")).tokenizer
    template = resolve_template(tokenizer, exported.rules.tokens_config())
    assert template == CHATML
    scorer = Scorer(exported, device=torch.device("cpu"), micro_batch_tokens=None, is_exact=False)
    text = render_one(tokenizer, CHATML, CHAT)
    assert isinstance(text, str)
    assert text.endswith("<|im_end|>\n")
    found = scorer.inputs.of_text(text.removesuffix("\n"), "$")
    assert found.is_completed
    assert found.token_ids.tolist() == tokenizer(text)["input_ids"]


def test_a_template_that_ends_at_a_turn_or_in_the_text_itself_is_left_as_it_is(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(base_with(tmp_path, CHATML)))
    for template in (LLAMA_3, "{{ messages | map(attribute='content') | join('\\n') }}\n"):
        assert resolve_template(tokenizer, TokensConfig(chat_template=template)) == template
    once = resolve_template(tokenizer, TokensConfig())
    assert once != CHATML
    assert resolve_template(tokenizer, TokensConfig(chat_template=once)) == once
