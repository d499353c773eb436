"""Small models of every architecture are real, loadable and the same every time."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pairwright.errors import ModelError
from pairwright.model.tiny_models import ARCHITECTURES, new_tiny_model

TEXTS = ["the quick brown fox jumps over the lazy dog", "a reward is a number, and only differences count"] * 20
ENCODERS = ("bert", "roberta", "deberta-v2")
# Their tokenizers begin every text with a special token.
STARTS_WITH_SPECIAL = ("llama", "mistral", "phi3", "gemma3_text", "opt", *ENCODERS)


def make(directory: Path, architecture: str = "llama", **changes) -> Path:
    arguments = {
        "architecture": architecture,
        "texts": TEXTS,
        "vocab_size": 300,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 4,
        "max_positions": 48,
        "seed": 0,
    }
    return new_tiny_model(directory, **(arguments | changes))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_loads_as_a_reward_model_and_takes_its_longest_input(tmp_path: Path, architecture: str):
    directory = make(tmp_path, architecture)
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1, trust_remote_code=False)
    token_ids = torch.randint(5, len(tokenizer), (2, 48))
    rewards = model(input_ids=token_ids, attention_mask=torch.ones_like(token_ids)).logits
    assert rewards.shape == (2, 1)
    assert torch.isfinite(rewards).all()
    assert model.config.vocab_size == len(tokenizer) <= 300
    assert model.config.num_hidden_layers == 2
    assert model.config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tokenizer_reads_back_any_text_and_adds_its_own_special_tokens(tmp_path: Path, architecture: str):
    tokenizer = AutoTokenizer.from_pretrained(make(tmp_path, architecture), trust_remote_code=False)
    text = "naïve 狐 jumps over\n\nthe \t dog"
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(plain, clean_up_tokenization_spaces=False) == text
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    with_special_tokens = tokenizer(text)["input_ids"]
    added = len(with_special_tokens) - len(plain)
    assert added == (2 if architecture in ENCODERS else int(architecture in STARTS_WITH_SPECIAL))


def test_equal_arguments_give_equal_files_and_leave_the_random_state_alone(tmp_path: Path):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = make(tmp_path / "first")
    assert torch.equal(torch.rand(1), expected)
    second = make(tmp_path / "second")
    names = sorted(path.name for path in first.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_another_seed_gives_other_weights(tmp_path: Path):
    weights = [(make(tmp_path / str(seed), seed=seed) / "model.safetensors").read_bytes() for seed in (0, 1)]
    assert weights[0] != weights[1]


def test_a_chat_template_goes_with_the_tokenizer(tmp_path: Path):
    template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    tokenizer = AutoTokenizer.from_pretrained(make(tmp_path, chat_template=template), trust_remote_code=False)
    assert tokenizer.chat_template == template
    assert AutoTokenizer.from_pretrained(make(tmp_path / "without"), trust_remote_code=False).chat_template is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "llamas"}, "'llamas' is not one of llama, mistral"),
        ({"hidden_size": 18}, "hidden_size 18 is not a multiple of num_heads 4"),
        ({"vocab_size": 256}, "vocab_size 256 is too small to hold 256 bytes and 3 special tokens"),
    ],
)
def test_sizes_that_do_not_go_together_are_explained(tmp_path: Path, changes: dict, message: str):
    with pytest.raises(ModelError, match=message):
        make(tmp_path, **changes)
