"""One text, one reward: alone, in any batch, padded on either side, in any dtype, for every architecture."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pairwright.model.reward_model import RewardModel

DECODERS = ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi3", "gpt2", "gpt_neox", "opt"]
ENCODERS = ["bert", "roberta", "modernbert", "deberta-v2"]
ARCHITECTURES = DECODERS + ENCODERS
TOLERANCE = 2e-5


def _texts() -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [rng.integers(10, 260, length).tolist() for length in (1, 2, 5, 17, 33, 40)]


Rows = tuple[Tensor, Tensor, Tensor, None, Tensor]


def _rows(texts: list[list[int]], *, pad: int, left: int = 0, right: int = 0) -> Rows:
    """Return the model's arguments for padded rows, with ``left`` and at least ``right`` padding around each text."""
    width = left + max(map(len, texts)) + right
    ids = torch.full((len(texts), width), pad)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, left : left + len(text)] = torch.tensor(text)
        mask[row, left : left + len(text)] = 1
    return _arguments(ids, mask, [left + len(text) - 1 for text in texts])


def _padded_left(texts: list[list[int]], *, pad: int) -> Rows:
    """Return rows padded on the left only, as generation pads them."""
    ids, _, mask, _, _ = _rows([text[::-1] for text in texts], pad=pad)
    return _arguments(ids.flip(1), mask.flip(1), [ids.shape[1] - 1] * len(texts))


def _arguments(ids: Tensor, mask: Tensor, last: list[int]) -> Rows:
    num_rows, width = ids.shape
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return ids, positions, mask, None, torch.arange(num_rows) * width + torch.tensor(last)


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, load: Callable[..., RewardModel]) -> RewardModel:
    return load(request.param)


@torch.no_grad()
def test_a_text_has_the_same_reward_alone_in_any_batch_and_padded_on_either_side(model):
    texts, pad = _texts(), model.export_config.pad_token_id
    alone = torch.cat([model(*_rows([text], pad=pad)) for text in texts])
    assert alone.dtype == torch.float32
    assert alone.std() > 1000 * TOLERANCE  # texts differ far more than the tolerance
    batches = {
        "one batch": _rows(texts, pad=pad),
        "more padding": _rows(texts, pad=pad, right=9),
        "padded left": _padded_left(texts, pad=pad),
        "padded on both sides": _rows(texts, pad=pad, left=4, right=3),
    }
    for name, rows in batches.items():
        torch.testing.assert_close(
            model(*rows), alone, rtol=TOLERANCE, atol=TOLERANCE, msg=f"{name}: {model(*rows)} {alone}"
        )
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
    shuffled = model(*_rows([texts[i] for i in order], pad=pad))
    torch.testing.assert_close(shuffled, alone[order], rtol=TOLERANCE, atol=TOLERANCE)


# RoBERTa tells padding by its token, and its tokenizer pads with no other.
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "roberta"])
@torch.no_grad()
def test_what_the_padding_holds_does_not_matter(load, architecture):
    model = load(architecture)
    ids, *others = _rows(_texts(), pad=model.export_config.pad_token_id)
    other = torch.where(others[1] == 1, ids, 77)
    torch.testing.assert_close(model(other, *others), model(ids, *others), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("architecture", DECODERS)
@torch.no_grad()
def test_text_that_ends_in_the_pad_token_is_scored_at_its_end(load, architecture):
    """Plain pooling would take the token before it (pitfall 1)."""
    model = load(architecture)
    pad = model.export_config.pad_token_id
    texts = [[20, 30, 40, pad], [50, 60, 70, 80, 90, pad]]
    alone = torch.cat([model(*_rows([text], pad=pad)) for text in texts])
    torch.testing.assert_close(model(*_rows(texts, pad=pad)), alone, rtol=TOLERANCE, atol=TOLERANCE)
    before = torch.cat([model(*_rows([text[:-1]], pad=pad)) for text in texts])
    assert (alone - before).abs().min() > 1000 * TOLERANCE


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_rewards_of_a_bfloat16_model_are_float32_all_the_way_from_the_head(load, architecture):
    model = load(architecture, dtype=torch.bfloat16)
    hidden = []
    name = next(name for name, module in model.model.named_modules() if type(module).__name__ == "RewardHead")
    head = model.model.get_submodule(name)
    head.register_forward_pre_hook(lambda _, arguments: hidden.append(arguments[0]))
    rewards = model(*_rows(_texts(), pad=model.export_config.pad_token_id))
    assert rewards.dtype == torch.float32
    assert (rewards != rewards.bfloat16().float()).any()
    exact = hidden[0].double() @ head.weight.double().T + (0.0 if head.bias is None else head.bias.double())
    torch.testing.assert_close(rewards.double(), exact[:, 0], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_head_stays_float32_under_autocast(load):
    model = load("llama")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rewards = model(*_rows(_texts(), pad=0))
    assert rewards.dtype == torch.float32
    assert (rewards != rewards.bfloat16().float()).any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_a_row_may_be_as_long_as_the_model_has_positions(load, architecture):
    model = load(architecture)
    assert model.max_positions == 96
    assert model(*_rows([[20] * 96], pad=model.export_config.pad_token_id)).isfinite().all()


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "bert", "roberta", "llama"])
@torch.no_grad()
def test_without_dropout_training_mode_gives_the_same_rewards(load, architecture):
    model = load(architecture)
    rows = _rows(_texts(), pad=model.export_config.pad_token_id)
    expected = model(*rows)
    assert torch.equal(model.train()(*rows), expected)


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "bert", "roberta"])
@torch.no_grad()
def test_with_dropout_training_mode_drops(load, architecture):
    model = load(architecture, dropout=True).train()
    rows = _rows(_texts(), pad=model.export_config.pad_token_id)
    assert not torch.equal(model(*rows), model(*rows))


def test_the_reward_is_the_head_at_the_last_token(load):
    model = load("gpt_neox", dtype=torch.float64)
    with torch.no_grad():
        rows = _rows([[20, 30, 40]], pad=0)
        hidden = model.model.base_model(input_ids=rows[0]).last_hidden_state[0, 2]
        expected = float(hidden @ model.state_dict()["model.score.weight"][0])
        assert float(model(*rows)[0]) == pytest.approx(expected, rel=1e-12)
