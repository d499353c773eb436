"""A small exported reward model for tests, and its rewards by plain transformers: nothing of ours in between."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pairwright.config import TokensConfig
from pairwright.data.tokens.chat_template import resolve_template
from pairwright.data.tokens.tokenizer import load_tokenizer
from pairwright.model.load_model import load_reward_model
from pairwright.model.model_export import choose_pad_token, save_reward_model
from pairwright.model.tiny_models import new_tiny_model

TEXTS = ["Why is the sky blue?", "Because of scattering.", "It is not; it is green, at least in my town."] * 4


def export_small_model(
    directory: Path,
    *,
    max_length: int = 128,
    overlong: str = "drop",
    special_in_text: str = "split",
    architecture: str = "llama",
    dtype: torch.dtype = torch.float32,
    chat_template: str | None = None,
) -> Path:
    """Write a random reward model as a training run would export it, and return its directory."""
    base = new_tiny_model(
        directory / "base",
        architecture=architecture,
        texts=TEXTS,
        vocab_size=300,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        max_positions=512,
        seed=1,
        chat_template=chat_template,
    )
    rules = {"max_length": max_length, "overlong_policy": overlong, "special_in_text": special_in_text}
    tokens = TokensConfig.model_validate(rules)
    return export_of(base, directory / "model", tokens, dtype=dtype)


def export_of(base: Path, model: Path, tokens: TokensConfig, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write the export of a reward model whose head is new, over a causal or a classifying base, and return where."""
    tokenizer = load_tokenizer(str(base))
    reward_model = load_reward_model(
        str(base),
        dtype=dtype,
        seed=2,
        dropout=False,
        gradient_checkpointing=False,
        pad_token_id=choose_pad_token(tokenizer),
        vocab_size=len(tokenizer),
        cpu_kernels=True,
    )
    save_reward_model(
        reward_model.state_dict(),
        reward_model,
        tokenizer,
        model,
        chat_template=resolve_template(tokenizer, tokens),
        dtype=dtype,
        tokens=tokens,
    )
    return model


def plain_rewards(model: Path, prompt: Sequence[dict[str, str]], texts: Sequence[str]) -> list[float]:
    """Return the reward of each completion, one at a time, by what anybody who loads the export would write."""
    network, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(model, trust_remote_code=False).eval(),
        AutoTokenizer.from_pretrained(model, trust_remote_code=False),
    )
    rewards = []
    for text in texts:
        conversation = [*prompt, {"role": "assistant", "content": text}]
        shown = tokenizer.apply_chat_template(conversation, tokenize=False)
        with torch.no_grad():
            rewards.append(
                network(**tokenizer(shown, add_special_tokens=False, return_tensors="pt")).logits[0, 0].item()
            )
    return rewards
