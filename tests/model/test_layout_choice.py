"""The check at the start of a run: takes the layout that a model computes rightly, and sees each way to do it wrongly.

The wrong ways are those of pitfall 5, built here as what a layer would do: a kernel that lets texts see each other, a
window that is counted by place in the row, positions counted through.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from pairwright.errors import ConfigError
from pairwright.model.attention.cpu import attend_on_cpu
from pairwright.model.attention.interface import KERNELS
from pairwright.model.attention.sdpa import Rule
from pairwright.model.collate import Segments
from pairwright.model.layout_check import LayoutChoice, choose_layout
from pairwright.model.reward_model import RewardModel
from short_windows import load_small, with_short_windows

DECODERS = ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi3", "gpt2", "gpt_neox", "opt"]
ENCODERS = ["bert", "roberta", "modernbert"]
CHOSEN = {**dict.fromkeys(DECODERS, "shared"), **dict.fromkeys(ENCODERS, "packed"), "deberta-v2": "padded"}
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def load(small_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., RewardModel]:
    return lambda architecture, **keywords: load_small(
        with_short_windows(small_model(architecture), tmp_path / architecture), **keywords
    )


def _choose(model: RewardModel, wanted: Any = "auto") -> LayoutChoice:
    pad_token_id = model.export_config.get_text_config().pad_token_id
    return choose_layout(model, wanted, pad_token_id=pad_token_id, max_length=96, device="cpu")


@PRECISIONS
@pytest.mark.parametrize(("architecture", "layout"), CHOSEN.items())
def test_the_layout_that_computes_least_is_chosen(load, architecture, layout, dtype):
    assert _choose(load(architecture, dtype=dtype)).layout == layout


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("architecture", ["gpt2", "bert", "deberta-v2"])
def test_the_check_leaves_the_model_as_it_was(load, architecture, dropout):
    model = load(architecture, dropout=dropout, gradient_checkpointing=True).train()
    assert model.drops_out == dropout
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.random.get_rng_state()
    _choose(model)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert _choose(model.eval()).layout == CHOSEN[architecture]
    assert not model.training


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_a_layout_can_be_asked_for(load, layout):
    assert _choose(load("llama"), layout).layout == layout


@pytest.mark.parametrize(
    ("architecture", "layout"), [("deberta-v2", "shared"), ("deberta-v2", "packed"), ("bert", "shared")]
)
def test_a_layout_asked_for_in_vain_is_an_error(load, architecture, layout):
    with pytest.raises(ConfigError, match=f'batches.layout is "{layout}"'):
        _choose(load(architecture), layout)


# ------------------------------------------------------------------------------------- what a model may do wrongly


def _ignores_what_it_is_told(query: Tensor, key: Tensor, value: Tensor, _: Segments, rule: Rule) -> Tensor:
    """DeBERTa's way, were it let: plain attention over the row."""
    shared = query.shape[1] != key.shape[1]
    out = scaled_dot_product_attention(
        query, key, value, is_causal=rule.is_causal, scale=rule.scaling, enable_gqa=shared
    )
    return out.transpose(1, 2)


def _sees_the_completions_before(query: Tensor, key: Tensor, value: Tensor, row: Segments, rule: Rule) -> Tensor:
    """A hand-made mask over prompt and completions: rejected may look at chosen."""
    joined = tuple((sum(completions),) for completions in row.completion_tokens_G)
    return attend_on_cpu(query, key, value, Segments(row.prompt_tokens_G, joined), rule)


def _leaves_the_window_out(query: Tensor, key: Tensor, value: Tensor, row: Segments, rule: Rule) -> Tensor:
    return attend_on_cpu(query, key, value, row, dataclasses.replace(rule, window=None))


def _window_one_too_long(query: Tensor, key: Tensor, value: Tensor, row: Segments, rule: Rule) -> Tensor:
    window = None if rule.window is None else rule.window + 1
    return attend_on_cpu(query, key, value, row, dataclasses.replace(rule, window=window))


def _counts_the_window_in_the_row(query: Tensor, key: Tensor, value: Tensor, row: Segments, rule: Rule) -> Tensor:
    """A mask of four dimensions on a sliding window: the prompt is as far as it stands in the row."""
    num_tokens = query.shape[2]
    text = torch.arange(num_tokens)
    mask = torch.zeros(num_tokens, num_tokens, dtype=torch.bool)
    start = 0
    for prompt, completions in zip(row.prompt_tokens_G, row.completion_tokens_G, strict=True):
        own, first = slice(start, start + prompt), start + prompt
        mask[own, own] = True
        for size in completions:
            mask[first : first + size, own] = mask[first : first + size, first : first + size] = True
            first += size
        start = first
    distance = text[:, None] - text
    mask &= (distance >= 0) & (distance < (rule.window or num_tokens))
    shared = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=rule.scaling, enable_gqa=shared
    ).transpose(1, 2)


@PRECISIONS
@pytest.mark.parametrize(
    ("architecture", "wrong", "right_layout"),
    [
        *((name, _ignores_what_it_is_told, "padded") for name in ("llama", "gpt2", "bert", "modernbert")),
        *((name, _sees_the_completions_before, "padded") for name in ("llama", "gemma3_text", "opt")),
        *((name, _leaves_the_window_out, "padded") for name in ("mistral", "gemma3_text", "modernbert")),
        # Where no prompt is shared, a token is as far away in the row as in its text.
        *((name, _counts_the_window_in_the_row, "packed") for name in ("mistral", "gemma3_text")),
    ],
)
def test_attention_to_the_wrong_tokens_is_seen(load, monkeypatch, architecture, wrong, right_layout, dtype):
    monkeypatch.setitem(KERNELS, "cpu", wrong)
    choice = _choose(load(architecture, dtype=dtype))
    assert choice.layout == right_layout
    assert "rewards differ from padded" in choice.reason


@pytest.mark.parametrize("architecture", ["mistral", "phi3", "gemma3_text", "modernbert"])
def test_a_window_one_token_too_long_is_seen(load, monkeypatch, architecture):
    monkeypatch.setitem(KERNELS, "cpu", _window_one_too_long)
    assert _choose(load(architecture)).layout == "padded"


@PRECISIONS
def test_positions_counted_through_the_row_are_seen(load, dtype):
    """Older OPT's way: position_ids accepted, and counted from the mask all the same."""
    model = load("opt", dtype=dtype)

    def count_through(_: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, Any]:
        positions = keywords["position_ids"]
        if positions.shape[0] == 1:
            keywords = keywords | {"position_ids": torch.arange(positions.shape[1])[None] % 96}
        return arguments, keywords

    embed = model.model.get_submodule("model.decoder.embed_positions")
    embed.register_forward_pre_hook(count_through, with_kwargs=True)
    assert _choose(model).layout == "padded"


def test_attention_of_another_kind_is_declined_by_name(small_model, tmp_path):
    """Gemma 2 caps what its queries and keys give; here nothing does."""
    tokenizer = AutoTokenizer.from_pretrained(small_model("llama"), trust_remote_code=False)
    config = AutoConfig.for_model(
        "gemma2",
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        num_labels=1,
    )
    AutoModelForSequenceClassification.from_config(config, trust_remote_code=False).save_pretrained(tmp_path)
    choice = _choose(load_small(tmp_path))
    assert choice.layout == "padded"
    assert "softcap" in choice.reason


def test_what_agrees_with_nothing_is_not_taken(load):
    """NaN in the rewards: no comparison may pass for agreement."""
    model = load("llama")
    with torch.no_grad():
        model.model.get_input_embeddings().weight.fill_(float("nan"))
    assert _choose(model).layout == "padded"
