"""A run's configuration -> the model that it starts from, the same on every rank and in every process."""

from transformers import PreTrainedTokenizerFast

from pairwright.config import TrainConfig
from pairwright.model.lora import add_adapters
from pairwright.model.reward_model import RewardModel, load_reward_model
from pairwright.training.engine import DTYPES


def starting_model(config: TrainConfig, tokenizer: PreTrainedTokenizerFast, *, pad_token_id: int) -> RewardModel:
    """Return the model before the first step, its adapters added where the run trains some.

    Args:
        config: of the run.
        tokenizer: of ``config.model.path``, with its pad token chosen.
        pad_token_id: the id of that.

    Raises:
        ModelError: if the model cannot be used.
    """
    model = load_reward_model(
        config.model.path,
        dtype=DTYPES[config.engine.precision],
        seed=config.training.seed,
        dropout=config.model.dropout,
        gradient_checkpointing=config.model.gradient_checkpointing,
        pad_token_id=pad_token_id,
        vocab_size=len(tokenizer),
    )
    if config.lora is not None:
        add_adapters(model, config.lora, seed=config.training.seed)
    return model
