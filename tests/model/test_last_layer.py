"""The last layer of a decoder runs where rewards are read; test_layouts.py shows that rewards and gradients stay."""

import dataclasses

import numpy as np
import pytest
import torch

from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.model.attention.last_token import last_layer, narrowed
from pairwright.model.collate import MicroBatch, collate
from pairwright.model.reward_model import RewardModel
from ranked_groups import ranked_group

DECODERS = ["llama", "mistral", "phi3", "gemma3_text", "opt", "qwen2", "qwen3", "gpt2", "gpt_neox"]


def _groups(seed: int) -> list[TokenGroup]:
    rng = np.random.default_rng(seed)
    return [
        dataclasses.replace(
            group,
            prompt_ids=rng.integers(5, 200, 9, np.int32),
            completion_ids=[rng.integers(5, 200, 3 + number, np.int32) for number in range(len(group.completion_ids))],
        )
        for group in (ranked_group([[1, 2, 3]]), ranked_group([[2, 1]]))
    ]


def _rewards(model: RewardModel, batch: MicroBatch) -> torch.Tensor:
    return model(batch.input_ids_RT, batch.position_ids_RT, batch.attention_mask_RT, batch.segments, batch.last_N)


def _rows_seen(model: RewardModel, batch: MicroBatch) -> set[int]:
    """Return how many tokens reach the modules of the last layer that make no keys."""
    found = last_layer(model.model)
    assert found is not None
    seen: set[int] = set()
    # Before the hooks that narrow come these, so what is counted is what comes out of the module itself.
    handles = [
        module.register_forward_hook(lambda _m, _args, out: seen.add(out[..., 0].numel()), prepend=True)
        for module in narrowed(*found)
    ]
    _rewards(model, batch)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("architecture", DECODERS)
def test_only_tokens_that_are_read_pass_the_last_attention(load, architecture):
    model = load(architecture)
    model.accept_packed_sequences(enabled=True)
    assert _rows_seen(model, collate(_groups(0), 0, "shared")) == {5}
    assert _rows_seen(model, collate(_groups(0), 0, "packed")) == {5}
    padded = collate(_groups(0), 0, "padded")
    assert _rows_seen(model, padded) == {padded.input_ids_RT.numel()}


def test_a_layer_that_is_computed_again_reads_where_it_did_the_first_time(load):
    """Gradient checkpointing runs the layer in the backward pass, when another row may have gone through since."""
    gradients = []
    for recomputes in (False, True):
        model = load("llama", gradient_checkpointing=recomputes).train()
        model.accept_packed_sequences(enabled=True)
        reward_N = _rewards(model, collate(_groups(0), 0, "shared"))
        _rewards(model, collate(_groups(1)[:1], 0, "shared"))
        reward_N.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for found, right in zip(*gradients, strict=True):
        torch.testing.assert_close(found, right)
