"""LoRA: what is trained, where the adapters stand, and that a merged export gives the adapted model's rewards."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from pairwright.config import LoraConfig, TokensConfig
from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.errors import ModelError
from pairwright.model.collate import collate
from pairwright.model.lora import KeptAdapter, add_adapters, merge_adapters, save_adapter
from pairwright.model.model_export import choose_pad_token, save_reward_model
from pairwright.model.reward_model import RewardModel

DECODERS = ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi3", "gpt2", "gpt_neox", "opt"]
ENCODERS = ["bert", "roberta", "modernbert", "deberta-v2"]
CONFIG = LoraConfig(rank=3, alpha=12.0)
TOLERANCE = 1e-5


def adapted(load: Callable[..., RewardModel], architecture: str, *, config: LoraConfig = CONFIG) -> RewardModel:
    """Return a model whose adapters and head look trained: far from where they started."""
    model = load(architecture)
    add_adapters(model, config, seed=5)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def make_groups(random_group: Callable[..., TokenGroup]) -> list[TokenGroup]:
    draw = np.random.default_rng(3)
    return [random_group(draw, num_completions=k, vocab=(10, 250)) for k in (2, 4)]


@torch.no_grad()
def rewards(model: RewardModel, groups: list[TokenGroup]) -> Tensor:
    return model.rewards(collate(groups, 0, "padded"))


def trained_names(model: RewardModel) -> list[str]:
    return [name for name, parameter in model.model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("architecture", DECODERS + ENCODERS)
def test_plain_transformers_gives_an_export_the_adapted_model_s_rewards(
    load, small_model, random_group, tmp_path: Path, architecture: str
) -> None:
    """Pitfall 24: adapters merged, head kept, GPT-2's transposed layers too."""
    groups = make_groups(random_group)
    start = rewards(load(architecture), groups)
    model = adapted(load, architecture)
    tokenizer = AutoTokenizer.from_pretrained(small_model(architecture), trust_remote_code=False)
    choose_pad_token(tokenizer)
    save_reward_model(
        model.state_dict(),
        model,
        tokenizer,
        tmp_path,
        chat_template="{{ messages }}",
        dtype=torch.float32,
        tokens=TokensConfig(),
    )
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=False).eval()
    texts = [torch.tensor([[*g.prompt_ids.tolist(), *ids.tolist()]]) for g in groups for ids in g.completion_ids]
    with torch.no_grad():
        found = torch.cat([plain(input_ids=text).logits[:, 0] for text in texts])
    expected = rewards(model, groups)
    assert (expected - start).abs().min() > 100 * TOLERANCE
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "roberta", "gpt_neox"])
def test_peft_gives_a_kept_adapter_over_the_starting_model_the_same_rewards(
    load, small_model, random_group, tmp_path: Path, architecture: str
) -> None:
    base, groups = small_model(architecture), make_groups(random_group)
    model = adapted(load, architecture)
    save_adapter(model.state_dict(), model, KeptAdapter(CONFIG, str(base)), tmp_path)
    torch.manual_seed(99)  # of the head, which the adapter replaces
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, trust_remote_code=False)
    found = PeftModel.from_pretrained(plain, tmp_path).eval()
    texts = [torch.tensor([[*g.prompt_ids.tolist(), *ids.tolist()]]) for g in groups for ids in g.completion_ids]
    with torch.no_grad():
        reward_N = torch.cat([found(input_ids=text).logits[:, 0] for text in texts])
    torch.testing.assert_close(reward_N, rewards(model, groups), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "roberta", "modernbert"])
def test_adapters_stand_in_every_linear_layer_of_the_backbone_and_the_head_is_trained_in_full(
    load, architecture: str
) -> None:
    before = load(architecture)
    prefix = f"{before.model.base_model_prefix}."
    linear, above = set(), set()
    for name, module in before.model.named_modules():
        below_head = name.startswith(prefix) and not name.endswith("pooler.dense")
        if below_head and isinstance(module, (nn.Linear, Conv1D)):
            linear.add(name)
        elif name and not below_head:
            above |= {f"{name}.{own}" for own, _ in module.named_parameters(recurse=False)}
    assert above
    model = load(architecture)
    add_adapters(model, CONFIG, seed=0)
    adapters = {f"{name}.lora_{letter}.default.weight" for name in linear for letter in "AB"}
    assert set(trained_names(model)) == adapters | above


def test_new_adapters_change_no_reward(load, random_group) -> None:
    groups = make_groups(random_group)
    model = load("llama")
    before = rewards(model, groups)
    add_adapters(model, CONFIG, seed=0)
    assert torch.equal(rewards(model, groups), before)


def test_first_weights_come_from_the_seed_alone_and_leave_the_generator_as_it_was(load) -> None:
    states = []
    for drawn_before, seed in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(drawn_before)
        model = load("llama")
        state = torch.get_rng_state()
        add_adapters(model, CONFIG, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        states.append({name: w.clone() for name, w in model.state_dict().items() if "lora_A" in name})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_target_modules_are_names_or_ends_of_names(load) -> None:
    model = load("llama")
    add_adapters(model, LoraConfig(target_modules=("v_proj", "layers.1.mlp.up_proj")), seed=0)
    layers = {name.partition(".lora_")[0] for name in trained_names(model) if ".lora_" in name}
    assert layers == {f"model.layers.{i}.self_attn.v_proj" for i in (0, 1)} | {"model.layers.1.mlp.up_proj"}


@pytest.mark.parametrize("name", ["query", "proj", "score", "embed_tokens"])
def test_a_target_that_no_layer_below_the_head_has_is_refused_with_the_names_that_there_are(load, name: str) -> None:
    with pytest.raises(ModelError, match=rf"'{name}' matches no linear layer .*q_proj, k_proj, v_proj, o_proj"):
        add_adapters(load("llama"), LoraConfig(target_modules=("q_proj", name)), seed=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_bfloat16_weights_are_merged_in_float32_and_rounded_once(load, architecture: str) -> None:
    model = adapted(load, architecture).to(torch.bfloat16)
    state = model.state_dict()
    merged = merge_adapters(state, model)
    assert merged.keys() == load(architecture).state_dict().keys()
    layers = [name.removesuffix(".lora_A.default.weight") for name in state if ".lora_A." in name]
    for layer in layers:
        a, b = (state[f"{layer}.lora_{letter}.default.weight"].double() for letter in "AB")
        product = 12.0 / 3 * torch.einsum("or,ri->io" if architecture == "gpt2" else "or,ri->oi", b, a)
        exact = state[f"{layer}.base_layer.weight"].double() + product
        torch.testing.assert_close(merged[f"{layer}.weight"].double(), exact, rtol=1e-6, atol=1e-6)


def test_a_state_dict_without_adapters_stays_what_it_is(load) -> None:
    model = load("bert")
    state = model.state_dict()
    merged = merge_adapters(state, model)
    assert merged.keys() == state.keys()
    assert all(merged[name] is state[name] for name in state)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_dropout_of_the_adapters_is_theirs_alone(load, random_group, architecture: str) -> None:
    """A rate of 0 changes nothing in training mode; another one does, and not in evaluation."""
    groups = make_groups(random_group)
    plain = adapted(load, architecture).train()
    expected = rewards(plain, groups)
    dropping = adapted(load, architecture, config=LoraConfig(rank=3, alpha=12.0, dropout=0.5))
    assert torch.equal(rewards(dropping.eval(), groups), expected)
    dropping.train()
    torch.manual_seed(0)
    first = rewards(dropping, groups)
    assert (first - expected).abs().max() > 1e-3
    torch.manual_seed(0)
    assert torch.equal(rewards(dropping, groups), first)
