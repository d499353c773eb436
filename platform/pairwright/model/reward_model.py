"""Token rows -> one float32 reward a row, and a Hugging Face checkpoint -> the model that does it.

The model is transformers' own sequence-classification model with one label, so that what is trained here loads
anywhere. Only two things differ while we compute: the last linear layer runs in float32 whatever the dtype (in bfloat16
10.02 and 10.00 are one number), and decoders are pooled at a given position instead of at the last token that is not
the pad token, which is the wrong one wherever text ends in that token (TRAPS.md 1).
"""

import copy
import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from pairwright.data.storage.model_files import model_errors, other_head
from pairwright.errors import ModelError
from pairwright.model.attention import interface as attention
from pairwright.model.attention.last_token import LastLayer
from pairwright.model.checkpoint_weights import FoundWeights, read_weights
from pairwright.model.collate import MicroBatch, Segments
from pairwright.model.encoders import encoder_positions, position_padding_idx, reward_at_first_token
from pairwright.model.model_config import read_config

logger = logging.getLogger(__name__)

# What transformers calls the head of models that it pools at the last token; encoders call theirs otherwise.
DECODER_HEAD = "score"


class RewardHead(nn.Module):
    """A linear layer with one output that computes in float32 or wider, whatever the dtype of its weights.

    It is called as a module and holds the layer's own parameters under their own names, so ZeRO-3's gathering hooks see
    it and the state dict is that of the plain layer.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(dtype)
            return functional.linear(hidden.to(dtype), self.weight.to(dtype), bias)


class RewardModel(nn.Module):
    """A sequence-classification model with one label, called with rows of tokens.

    Args:
        model: with one label; its last linear layer is replaced by a ``RewardHead`` over the same parameters.
        export_config: what the exported model's ``config.json`` is made from.
        left_out: weights of a head under another name, in whose place a new one was drawn.

    Raises:
        ModelError: if the model does not have exactly one linear layer with one output above its backbone.
    """

    def __init__(
        self, model: PreTrainedModel, export_config: PreTrainedConfig, *, left_out: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.left_out = tuple(left_out)
        name, linear = find_head(model)
        model.set_submodule(name, RewardHead(linear))
        self.model = model
        self.export_config = export_config
        self.pools_last_token = name == DECODER_HEAD
        if self.pools_last_token:
            LastLayer(model)
        self._own_attention = model.config._attn_implementation or "eager"
        self._takes_flat_rows = False

    def forward(
        self,
        input_ids_RT: Tensor,
        position_ids_RT: Tensor,
        attention_mask_RT: Tensor | None,
        segments: Segments | None,
        last_N: Tensor,
    ) -> Tensor:
        """Return the reward of each completion, float32 (float64 from a float64 model), shape (N,).

        A reward depends on the tokens of its own text alone: not on the other completions, nor on how they are laid
        out, nor on how much padding stands on which side.

        Args:
            input_ids_RT: token ids, int64, shape (R, T).
            position_ids_RT: position of each token in its own text, int64, shape (R, T); encoders count by themselves.
            attention_mask_RT: 1 at tokens, 0 at padding, int64, shape (R, T); None for a flat row.
            segments: how a flat row is cut; None for padded rows.
            last_N: index of each completion's last token into the R * T tokens, int64, shape (N,); encoders pool in
                their own way instead.
        """
        if segments is not None:
            return self._rewards_of_flat_row(input_ids_RT, position_ids_RT, segments, last_N)
        assert attention_mask_RT is not None
        if not self.pools_last_token:
            # Encoders count positions from the first column and pool there, so tokens go before padding.
            order_RT = attention_mask_RT.argsort(dim=1, descending=True, stable=True)
            mask_RT = attention_mask_RT.gather(1, order_RT)
            return self.model(input_ids=input_ids_RT.gather(1, order_RT), attention_mask=mask_RT).logits[:, 0]
        hidden_RTD = self.model.base_model(
            input_ids=input_ids_RT, attention_mask=attention_mask_RT, position_ids=position_ids_RT, use_cache=False
        ).last_hidden_state
        return self.model.get_submodule(DECODER_HEAD)(hidden_RTD.flatten(0, 1)[last_N])[:, 0]

    def _rewards_of_flat_row(
        self, input_ids_RT: Tensor, position_ids_RT: Tensor, segments: Segments, last_N: Tensor
    ) -> Tensor:
        assert self._takes_flat_rows, "without take_flat_rows every text would see all that stand before it"
        # A mask of four dimensions is taken as it is: nothing is built from it, and ``attend`` does not look at it.
        nothing_masked = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=input_ids_RT.device)
        if self.pools_last_token:
            hidden_RTD = self.model.base_model(
                input_ids=input_ids_RT,
                attention_mask=nothing_masked,
                position_ids=position_ids_RT,
                use_cache=False,
                segments=segments,
            ).last_hidden_state
            return self.model.get_submodule(DECODER_HEAD)(hidden_RTD[0, last_N])[:, 0]
        hidden_RTD = self.model.base_model(
            input_ids=input_ids_RT,
            attention_mask=nothing_masked,
            position_ids=encoder_positions(self.model, input_ids_RT, position_ids_RT),
            segments=segments,
        ).last_hidden_state
        return reward_at_first_token(self.model, hidden_RTD[0], segments)

    def rewards(self, batch: MicroBatch) -> Tensor:
        """Return the reward of each completion of a micro-batch; under DeepSpeed call the engine instead."""
        return self(batch.input_ids_RT, batch.position_ids_RT, batch.attention_mask_RT, batch.segments, batch.last_N)

    def take_flat_rows(self, *, enabled: bool) -> None:
        """Let the model compute flat rows, through ``attention.attend``, or leave it as transformers loaded it.

        Raises:
            UnsupportedAttentionError: if the model knows no other attention than its own.
        """
        if enabled and not self.model._supports_attention_backend:
            raise attention.UnsupportedAttentionError(
                f"{type(self.model).__name__} takes no attention but its own implementation"
            )
        self.model.set_attn_implementation(attention.IMPLEMENTATION if enabled else self._own_attention)
        self._takes_flat_rows = enabled

    @property
    def drops_out(self) -> bool:
        """Whether anything is dropped at random in training mode."""
        modules = (module for module in self.model.modules() if isinstance(module, nn.Dropout))
        return any(rate > 0 for _, rate in _dropout_rates(self.model.config)) or any(module.p > 0 for module in modules)

    @property
    def vocab_size(self) -> int:
        """How many tokens the model knows."""
        return _embedding(self.model).num_embeddings

    @property
    def sliding_window(self) -> int | None:
        """How far back layers with a sliding window look, in tokens; None where no layer has one."""
        try:
            return self.model.config.get_text_config().sliding_window
        except AttributeError:
            return None

    @property
    def max_positions(self) -> int | None:
        """The longest row that the model has positions for, in tokens; None where its configuration names no limit."""
        try:
            limit = self.model.config.get_text_config().max_position_embeddings
        except AttributeError:
            return None
        padding_idx = position_padding_idx(self.model)
        return limit if padding_idx is None else limit - padding_idx - 1


def find_head(model: PreTrainedModel) -> tuple[str, nn.Linear]:
    """Return the name and the module of the linear layer that gives the reward."""
    backbone = f"{model.base_model_prefix}."
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 1 and not name.startswith(backbone)
    ]
    if len(found) != 1:
        names = ", ".join(name for name, _ in found) or "none"
        raise ModelError(
            f"{type(model).__name__} has {len(found)} linear layers with one output above its backbone ({names}), "
            "expected exactly one; this architecture is not supported"
        )
    return found[0]


# ------------------------------------------------------------------------------------------------ loading


def load_reward_model(
    path: str,
    *,
    dtype: torch.dtype,
    seed: int,
    dropout: bool,
    gradient_checkpointing: bool,
    pad_token_id: int | None,
    vocab_size: int | None,
) -> RewardModel:
    """Return a reward model from a causal, masked or sequence-classification checkpoint.

    The head of a sequence-classification checkpoint is kept; a new one is drawn from ``seed`` alone, normal with
    standard deviation 1/sqrt(hidden + 1) (Stiennon et al. 2020, arXiv:2009.01325, appendix B.1), equal on every rank.

    Args:
        path: directory or hub name.
        dtype: of weights and activations; rewards are float32 whatever it is.
        seed: of weights that the checkpoint does not have.
        dropout: whether the checkpoint's dropout rates hold while the model is in training mode, or are all 0. Either
            way train in training mode: gradient checkpointing is silently off outside of it.
        gradient_checkpointing: recompute activations in the backward pass.
        pad_token_id: of the tokenizer; the checkpoint's own if None.
        vocab_size: of the tokenizer; the embedding grows to it if it is smaller.

    Raises:
        ModelError: if there is no model, if it cannot give one reward a row, if weights are missing, or if the pad
            token does not fit it.
    """
    with model_errors(f"{path}: cannot be loaded as a sequence-classification model"):
        config = read_config(path)
        export_config = copy.deepcopy(config)
        if not dropout:
            _drop_nothing(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, weights = read_weights(path, config, dtype)
            is_new = _initialise_head(path, model, weights, seed)
            if vocab_size is not None and vocab_size > _embedding(model).num_embeddings:
                model.resize_token_embeddings(vocab_size, mean_resizing=False)
                export_config.get_text_config().vocab_size = vocab_size
        reward_model = RewardModel(model, export_config, left_out=weights.other_heads if is_new else ())
        if pad_token_id is not None:
            _set_pad_token(path, reward_model, pad_token_id)
        if gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return reward_model


def _drop_nothing(config: PreTrainedConfig) -> None:
    """Set every dropout rate of a configuration to 0, functional ones included."""
    for name, _ in _dropout_rates(config):
        setattr(config.get_text_config(), name, 0.0)


def _dropout_rates(config: PreTrainedConfig) -> list[tuple[str, float]]:
    return [
        (name, value)
        for name, value in config.get_text_config().to_dict().items()
        if "drop" in name and isinstance(value, float)
    ]


def _initialise_head(path: str, model: PreTrainedModel, weights: FoundWeights, seed: int) -> bool:
    """Draw the head if the checkpoint has none, and return whether that was so."""
    name, head = find_head(model)
    if f"{name}.weight" not in weights.missing:
        return False
    architectures = model.config.architectures or []
    if any(architecture.endswith("ForSequenceClassification") for architecture in architectures):
        why = "it was lost when the model was saved; save it again with its head"
        raise ModelError(
            f"{path}: config.json promises a head ({', '.join(architectures)}), but the weights have no {name}.weight: "
            f"{other_head(weights.other_heads) or why}"
        )
    generator = torch.Generator().manual_seed(seed)
    weight = torch.normal(0.0, (head.in_features + 1) ** -0.5, (1, head.in_features), generator=generator)
    with torch.no_grad():
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.zero_()
    logger.info("%s: new reward head %s, drawn from seed %d", path, name, seed)
    return True


def _set_pad_token(path: str, model: RewardModel, pad_token_id: int) -> None:
    embedding = _embedding(model.model)
    if not 0 <= pad_token_id < embedding.num_embeddings:
        raise ModelError(
            f"{path}: the tokenizer's pad token has id {pad_token_id}, but the model knows only "
            f"{embedding.num_embeddings} tokens; use the tokenizer that belongs to the model"
        )
    own = model.model.config.get_text_config().pad_token_id
    if not model.pools_last_token and own is not None and own != pad_token_id:
        raise ModelError(
            f"{path}: the tokenizer's pad token has id {pad_token_id}, but config.json says {own}, and encoders count "
            "positions by it; use the tokenizer that belongs to the model"
        )
    model.model.config.get_text_config().pad_token_id = pad_token_id
    model.export_config.get_text_config().pad_token_id = pad_token_id
    # The row named here gets no gradient; left at a checkpoint's pad == eos, the embedding of eos would never learn.
    embedding.padding_idx = pad_token_id


def _embedding(model: PreTrainedModel) -> nn.Embedding:
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    return embedding
