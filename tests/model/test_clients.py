"""An exported model gives one reward to one text, whichever client tokenises it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    pipeline,
)

from exported_models import export_of
from pairwright.config import TokensConfig
from pairwright.data.tokens.conversation_tokens import TokenSpec
from pairwright.data.tokens.template_sandbox import Conversation
from pairwright.evaluation.load_exported import load_exported, open_exported
from pairwright.evaluation.requests import ScoreRequest
from pairwright.evaluation.score import score_requests
from pairwright.model.model_export import SELF_CHECK_FILE, SelfCheck
from special_tokenizers import CHATML, adding_special_tokens

TOKENIZERS = adding_special_tokens()
WITH_BOS = "{{ bos_token }}" + CHATML
PROMPT = [{"role": "user", "content": "a reward model ranks rewards"}]
COMPLETIONS = ["the end of a drawer", "assistant: pad the start, x|y_z\n\n- one"]
TOLERANCE = 1e-5


def export(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    chat_template: str | None,
    *,
    dtype: torch.dtype = torch.float32,
    max_length: int = 256,
) -> Path:
    """Return the directory of a small reward model with this tokenizer, as a run would export it."""
    base = folder / "base"
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "pad_token_id": tokenizer.pad_token_id,
        "num_labels": 1,
        "initializer_range": 0.2,
    }
    is_encoder = tokenizer.cls_token is not None
    torch.manual_seed(1)
    model = BertForSequenceClassification(BertConfig(**sizes)) if is_encoder else None
    (model or LlamaForSequenceClassification(LlamaConfig(**sizes))).save_pretrained(base)
    tokenizer.save_pretrained(base)
    tokens = TokensConfig(max_length=max_length, chat_template=chat_template)
    return export_of(base, folder / "model", tokens, dtype=dtype)


def scored(model: Path, prompt: Conversation = PROMPT, completions: Sequence[str] = COMPLETIONS) -> list[float]:
    """Return the rewards that `pairwright score` gives."""
    exported = open_exported(str(model))
    loaded = load_exported(exported, torch.device("cpu"))
    request = ScoreRequest(
        id="1",
        prompt=prompt,
        completion_ids=list(map(str, range(len(completions)))),
        replies=[{"role": "assistant", "content": text} for text in completions],
        source="-",
        line=1,
        paths=["$" for _ in completions],
    )
    spec = TokenSpec.of(loaded.tokenizer, exported.rules.tokens_config())
    return score_requests(loaded, spec, [request], [], micro_batch_tokens=1024).scores["reward"].to_pylist()


@pytest.mark.parametrize(
    ("name", "chat_template"),
    [
        *(pytest.param(name, WITH_BOS, id=f"{name}, bos by the template") for name in TOKENIZERS),
        *(pytest.param(name, CHATML, id=f"{name}, no bos") for name in ("llama", "bert")),
        *(pytest.param(name, None, id=f"{name}, plain template") for name in ("llama", "bert")),
    ],
)
def test_every_client_of_an_export_gives_the_reward_that_score_gives(
    tmp_path: Path, name: str, chat_template: str | None
) -> None:
    tokenizer = TOKENIZERS[name]
    tokenizer.chat_template = None
    model = export(tmp_path, tokenizer, chat_template)
    expected = scored(model)
    assert abs(expected[0] - expected[1]) > 100 * TOLERANCE
    loaded = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.model_input_names == tokenizer.model_input_names
    texts = [
        loaded.apply_chat_template([*PROMPT, {"role": "assistant", "content": text}], tokenize=False)
        for text in COMPLETIONS
    ]
    classify = pipeline("text-classification", model=str(model))
    found = {
        "pipeline": [classify(text)[0]["score"] for text in texts],
        "pipeline, batches": [one["score"] for one in classify(texts, batch_size=2)],
    }
    network = AutoModelForSequenceClassification.from_pretrained(model, trust_remote_code=False).eval()
    for flag in (True, False):
        with torch.no_grad():
            rows = loaded(texts, add_special_tokens=flag, padding=True, return_tensors="pt")
            found[f"add_special_tokens={flag}"] = network(**rows).logits[:, 0].tolist()
    for client, rewards in found.items():
        assert rewards == pytest.approx(expected, abs=TOLERANCE), client


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta-v2"])
def test_an_encoder_takes_prompt_and_completion_as_two_texts(tmp_path: Path, name: str) -> None:
    """As CrossEncoder and TEI's /predict and /rerank send them."""
    tokenizer = TOKENIZERS[name]
    tokenizer.chat_template = None
    model = export(tmp_path, tokenizer, None)
    prompt, completions = "a user's turn", ["a reward model", "the end of a drawer"]
    expected = scored(model, [{"role": "user", "content": prompt}], completions)
    classify = pipeline("text-classification", model=str(model))
    pairs = [{"text": prompt, "text_pair": completion} for completion in completions]
    assert [one["score"] for one in classify(pairs)] == pytest.approx(expected, abs=TOLERANCE)


# -------------------------------------------------------------------------------------------- self-check


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_self_check_of_an_export_is_what_score_and_plain_transformers_give(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    model = export(tmp_path, TOKENIZERS[name], WITH_BOS, dtype=dtype)
    check = msgspec.json.decode((model / SELF_CHECK_FILE).read_bytes(), type=SelfCheck)
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    assert tokenizer.apply_chat_template(check.messages, tokenize=False) == check.text
    assert tokenizer(check.text)["input_ids"] == check.token_ids
    network = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32, trust_remote_code=False)
    with torch.no_grad():
        plain = network.eval()(input_ids=torch.tensor([check.token_ids])).logits[0, 0].item()
    assert check.reward == pytest.approx(plain, abs=TOLERANCE)
    *prompt, completion = check.messages
    by_score = scored(model, prompt, [completion["content"]])
    assert by_score == pytest.approx([check.reward], abs=TOLERANCE if dtype == torch.float32 else 0.05)
    assert SELF_CHECK_FILE in {file.path for file in open_exported(str(model)).rules.files}


def test_an_export_whose_limit_is_below_the_self_check_has_none(tmp_path: Path) -> None:
    assert not (export(tmp_path, TOKENIZERS["llama"], WITH_BOS, max_length=8) / SELF_CHECK_FILE).exists()


@pytest.mark.parametrize("name", ["byte_level", "metaspace_bpe", "prefixed_bpe"])
def test_the_manuals_copy_for_verl_gives_the_reward_to_text_whose_bos_was_cut(tmp_path: Path, name: str) -> None:
    model = export(tmp_path, TOKENIZERS[name], WITH_BOS)
    check = msgspec.json.decode((model / SELF_CHECK_FILE).read_bytes(), type=SelfCheck)
    AutoTokenizer.from_pretrained(model, add_bos_token=True, trust_remote_code=False).save_pretrained(tmp_path / "copy")
    copy = AutoTokenizer.from_pretrained(tmp_path / "copy", trust_remote_code=False)
    assert copy(check.text.removeprefix(copy.bos_token))["input_ids"] == check.token_ids
