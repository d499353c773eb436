"""An exported model, loaded by plain transformers, gives the rewards that it gave here."""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    TextClassificationPipeline,
)

from pairwright.config import TokensConfig
from pairwright.errors import ModelError
from pairwright.model.load_model import load_reward_model
from pairwright.model.model_export import RULES_FILE, choose_pad_token, save_reward_model
from pairwright.model.reward_model import RewardModel

DECODERS = ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi3", "gpt2", "gpt_neox", "opt"]
ENCODERS = ["bert", "roberta", "modernbert", "deberta-v2"]
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}"
TOLERANCE = 1e-5
Tokenizer = PreTrainedTokenizerFast
Exported = tuple[RewardModel, Tokenizer, Path]


def _export(
    source: Path, target: Path, *, tokenizer: Tokenizer | None = None, seed: int = 3, dtype: torch.dtype = torch.float32
) -> Exported:
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    pad_token_id = choose_pad_token(tokenizer)
    model = load_reward_model(
        str(source),
        dtype=dtype,
        seed=seed,
        dropout=False,
        gradient_checkpointing=False,
        pad_token_id=pad_token_id,
        vocab_size=len(tokenizer),
        cpu_kernels=True,
    ).eval()
    _save(model, tokenizer, target, dtype=dtype)
    return model, tokenizer, target


def _save(model: RewardModel, tokenizer: Tokenizer, target: Path, *, dtype: torch.dtype = torch.float32) -> None:
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    tokens = TokensConfig(max_length=64, overlong_policy="truncate", special_in_text="refuse")
    save_reward_model(state, model, tokenizer, target, chat_template=TEMPLATE, dtype=dtype, tokens=tokens)


def _texts(tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids; every text ends in eos (or sep), as chat templates have it."""
    rng = np.random.default_rng(1)
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    assert isinstance(end, int)
    return [[*rng.integers(10, 250, length).tolist(), end] for length in (2, 5, 17, 40)]


@torch.no_grad()
def _ours(model: RewardModel, texts: list[list[int]]) -> Tensor:
    rewards = []
    for text in texts:
        ids_RT, last_N = torch.tensor([text]), torch.tensor([len(text) - 1])
        rewards.append(model(ids_RT, torch.arange(len(text))[None], torch.ones_like(ids_RT), None, last_N))
    return torch.cat(rewards)


@torch.no_grad()
def _plain_rewards(
    directory: Path, texts: list[list[int]], *, side: str = "right", dtype: torch.dtype | None = None
) -> Tensor:
    """Return rewards as any user of transformers gets them, in one batch that the exported tokenizer pads."""
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    plain = AutoModelForSequenceClassification.from_pretrained(
        directory, dtype=dtype or "auto", trust_remote_code=False
    ).eval()
    batch = tokenizer.pad({"input_ids": texts}, padding_side=side, return_tensors="pt")
    positions = {}
    if side == "left":
        # What generation does; models with learned positions need it whenever padding stands on the left.
        positions = {"position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}
    return plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **positions).logits[:, 0]


@pytest.fixture(params=DECODERS + ENCODERS)
def exported(request: pytest.FixtureRequest, small_model: Callable[[str], Path], tmp_path: Path) -> Exported:
    return _export(small_model(request.param), tmp_path / "model")


def test_plain_transformers_gives_the_same_rewards_alone_and_in_a_batch(exported: Exported):
    model, tokenizer, directory = exported
    texts = _texts(tokenizer)
    expected = _ours(model, texts)
    assert expected.std() > 1000 * TOLERANCE
    torch.testing.assert_close(_plain_rewards(directory, texts), expected, rtol=TOLERANCE, atol=TOLERANCE)
    alone = torch.cat([_plain_rewards(directory, [text]) for text in texts])
    torch.testing.assert_close(alone, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("architecture", DECODERS)
def test_plain_transformers_gives_the_same_rewards_padded_left(small_model, tmp_path: Path, architecture):
    model, tokenizer, directory = _export(small_model(architecture), tmp_path)
    texts = _texts(tokenizer)
    found = _plain_rewards(directory, texts, side="left")
    torch.testing.assert_close(found, _ours(model, texts), rtol=TOLERANCE, atol=TOLERANCE)


def test_the_exported_directory_loads_here_with_every_weight_and_keeps_its_head(exported: Exported):
    model, _, directory = exported
    again = load_reward_model(
        str(directory),
        dtype=torch.float32,
        seed=99,
        dropout=False,
        gradient_checkpointing=False,
        pad_token_id=None,
        vocab_size=None,
        cpu_kernels=True,
    )
    state = model.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(weight, state[name]) for name, weight in again.state_dict().items())


def test_the_exported_directory_says_what_it_is(exported: Exported):
    _, tokenizer, directory = exported
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    assert [name[-len("ForSequenceClassification") :] for name in config.architectures or []] == [
        "ForSequenceClassification"
    ]
    assert config.num_labels == 1
    assert config.pad_token_id == tokenizer.pad_token_id
    rules = json.loads((directory / RULES_FILE).read_text())
    files = {file["path"]: (file["bytes"], file["sha256"]) for file in rules.pop("files")}
    input_rules = {"max_length": 64, "overlong": "truncate", "special_in_text": "refuse", "template_end": "end_of_turn"}
    assert rules == {"format_version": 1} | input_rules
    assert files == {
        path.name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in directory.iterdir()
        if path.name != RULES_FILE
    }
    saved = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    assert saved.chat_template == TEMPLATE
    assert saved.padding_side == "right"
    assert saved.model_max_length == rules["max_length"]
    assert saved.get_vocab() == tokenizer.get_vocab()


def test_the_exported_configuration_asks_other_programs_for_raw_rewards(exported: Exported):
    """As vLLM, TEI and CrossEncoder read it (activation), and OpenRLHF (its head's name, mean and deviation)."""
    model, _, directory = exported
    config = json.loads((directory / "config.json").read_text())
    assert config["problem_type"] == "regression"
    assert config["sentence_transformers"] == {"activation_fn": "torch.nn.modules.linear.Identity"}
    weights = load_file(directory / "model.safetensors")
    if model.pools_last_token:
        assert f"{config['value_head_prefix']}.weight" in weights
        assert (config["mean"], config["std"]) == (0.0, 1.0)
    else:
        assert "value_head_prefix" not in config


def test_the_exported_configuration_has_the_checkpoint_s_own_dropout(small_model, tmp_path: Path):
    _, _, directory = _export(small_model("gpt2"), tmp_path)
    assert AutoConfig.from_pretrained(directory, trust_remote_code=False).resid_pdrop == 0.1


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_a_bfloat16_model_loads_plainly_in_float32_with_equal_rewards(small_model, tmp_path: Path, architecture):
    _, tokenizer, directory = _export(small_model(architecture), tmp_path, dtype=torch.bfloat16)
    assert AutoConfig.from_pretrained(directory, trust_remote_code=False).dtype == torch.bfloat16
    texts = _texts(tokenizer)
    wide = load_reward_model(
        str(directory),
        dtype=torch.float32,
        seed=0,
        dropout=False,
        gradient_checkpointing=False,
        pad_token_id=None,
        vocab_size=None,
        cpu_kernels=True,
    ).eval()
    found = _plain_rewards(directory, texts, dtype=torch.float32)
    torch.testing.assert_close(found, _ours(wide, texts), rtol=TOLERANCE, atol=TOLERANCE)


def test_the_text_classification_pipeline_returns_the_reward_itself(small_model, tmp_path: Path):
    model, tokenizer, directory = _export(small_model("gpt2"), tmp_path)
    pipeline = TextClassificationPipeline(
        model=AutoModelForSequenceClassification.from_pretrained(directory, trust_remote_code=False),
        tokenizer=AutoTokenizer.from_pretrained(directory, trust_remote_code=False),
    )
    text = "to be or not to be"
    (found,) = pipeline(text)
    expected = _ours(model, [tokenizer(text)["input_ids"]]).item()
    assert found == {"label": "reward", "score": pytest.approx(expected, abs=TOLERANCE)}


# -------------------------------------------------------------------------------------------------- pad token


def _tokenizer(small_model: Callable[[str], Path], architecture: str = "gpt2") -> Tokenizer:
    return AutoTokenizer.from_pretrained(small_model(architecture), trust_remote_code=False)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_tokenizer_that_pads_with_eos_gets_another_pad_token_and_rewards_stay_equal(
    small_model, tmp_path: Path, architecture
):
    tokenizer = _tokenizer(small_model, architecture)
    tokenizer.pad_token = tokenizer.eos_token
    model, tokenizer, directory = _export(small_model(architecture), tmp_path, tokenizer=tokenizer)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    texts = _texts(tokenizer)
    torch.testing.assert_close(_plain_rewards(directory, texts), _ours(model, texts), rtol=TOLERANCE, atol=TOLERANCE)


def test_a_tokenizer_without_a_pad_token_gets_a_new_one_and_the_model_a_row_for_it(small_model, tmp_path: Path):
    tokenizer = _tokenizer(small_model)
    fresh = _without_pad(tokenizer)
    before = fresh("to be or not to be")["input_ids"]
    model, fresh, directory = _export(small_model("gpt2"), tmp_path, tokenizer=fresh)
    assert fresh.pad_token == "<|pad|>"
    assert fresh.pad_token_id == len(fresh) - 1
    assert fresh("to be or not to be")["input_ids"] == before
    texts = _texts(fresh)
    torch.testing.assert_close(_plain_rewards(directory, texts), _ours(model, texts), rtol=TOLERANCE, atol=TOLERANCE)


def _without_pad(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer whose vocabulary has no token for padding, such as GPT-2's."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    old = tokenizer.pad_token
    backend["model"]["vocab"] = {("unused" if t == old else t): i for t, i in backend["model"]["vocab"].items()}
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["content"] != old]
    core = type(tokenizer.backend_tokenizer).from_str(json.dumps(backend))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=tokenizer.eos_token, bos_token=tokenizer.bos_token)


def test_a_pad_token_of_its_own_is_kept(small_model):
    tokenizer = _tokenizer(small_model, "llama")
    before = len(tokenizer)
    assert choose_pad_token(tokenizer) == tokenizer.convert_tokens_to_ids("<pad>")
    assert len(tokenizer) == before


@pytest.mark.parametrize("role", ["bos_token", "eos_token", "unk_token"])
def test_a_pad_token_with_another_role_is_replaced_by_one_that_the_vocabulary_has(small_model, role):
    tokenizer = _without_pad(_tokenizer(small_model))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|finetune_right_pad_id|>"], role: "the"})
    tokenizer.pad_token = "the"
    assert choose_pad_token(tokenizer) == tokenizer.convert_tokens_to_ids("<|finetune_right_pad_id|>")


def test_a_pad_token_that_the_chat_template_writes_is_replaced(small_model):
    tokenizer = _tokenizer(small_model)
    tokenizer.chat_template = "{{ messages[0].content }}" + str(tokenizer.pad_token)
    written = tokenizer.pad_token_id
    assert choose_pad_token(tokenizer) != written


def test_choosing_twice_changes_nothing(small_model):
    tokenizer = _without_pad(_tokenizer(small_model))
    first, size = choose_pad_token(tokenizer), len(tokenizer)
    assert (choose_pad_token(tokenizer), len(tokenizer)) == (first, size)


def test_export_refuses_a_pad_token_that_equals_eos_or_is_not_the_model_s(small_model, tmp_path: Path):
    model, tokenizer, _ = _export(small_model("llama"), tmp_path / "good")
    bad = copy.deepcopy(tokenizer)
    bad.pad_token = bad.eos_token
    with pytest.raises(ModelError, match="would pool another token than the last"):
        _save(model, bad, tmp_path / "bad")
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"pad_token": "<|other|>"})
    with pytest.raises(ModelError, match="load the model with pad_token_id"):
        _save(model, other, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_export_refuses_weights_without_the_head(small_model, tmp_path: Path):
    model, tokenizer, _ = _export(small_model("llama"), tmp_path / "good")
    state = {name: weight for name, weight in model.state_dict().items() if "score" not in name}
    with pytest.raises(ModelError, match=r"score\.weight"):
        save_reward_model(
            state,
            model,
            tokenizer,
            tmp_path / "bad",
            chat_template=TEMPLATE,
            dtype=torch.float32,
            tokens=TokensConfig(max_length=64),
        )


def test_export_reads_the_given_weights_and_not_the_model_s(small_model, tmp_path: Path):
    """Under ZeRO-3 no rank's model holds any."""
    model, tokenizer, _ = _export(small_model("llama"), tmp_path / "a")
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    expected = _ours(model, _texts(tokenizer))
    for parameter in model.parameters():
        parameter.data = torch.empty(0)
    tokens = TokensConfig(max_length=64)
    save_reward_model(
        state, model, tokenizer, tmp_path / "b", chat_template=TEMPLATE, dtype=torch.float32, tokens=tokens
    )
    found = _plain_rewards(tmp_path / "b", _texts(tokenizer))
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
