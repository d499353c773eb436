"""The reward model: transformers' sequence-classification model with one label, and a head in float32.

The exported model loads in plain transformers. Two things differ while it computes here. The last linear layer runs in
float32 whatever the dtype: in bfloat16 10.02 and 10.00 are the same number. And a decoder is pooled at a given
position: plain transformers pools at the last token that is not the pad token and ignores the attention mask, so with
pad == eos it scores the token before the end of the text (transformers issue 35352, TRL issue 937).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from pairwright.errors import ModelError
from pairwright.model.attention import interface as attention
from pairwright.model.collate import MicroBatch, Segments
from pairwright.model.encoders import encoder_positions, position_padding_idx, reward_at_first_token

# Transformers' name for the head of models that it pools at the last token; the heads of encoders have other names.
DECODER_HEAD = "score"

StoredWeight = Callable[[], Tensor]
"""Reads a weight that is still in its file, in the file's dtype."""


class RewardHead(nn.Module):
    """A linear layer with one output that computes in float32 or wider, whatever the dtype of its weights.

    It is a module and holds the layer's own parameters under their own names, so ZeRO-3's gathering hooks find it, and
    the state dict is that of the plain layer.
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
        export_config: source of the exported model's ``config.json``.
        cpu_kernels: whether packed sequences use our kernels for CPUs (model/attention/interface.py).
        ignored_heads: the checkpoint's weights of a head of another name, which a new head replaces.
        stored_weights: how to read each weight that is still in the checkpoint; it is NaN until the engine reads it.
        read_because: why all weights were read although they were to stay in the checkpoint; None if they were not.

    Raises:
        ModelError: if the model does not have exactly one linear layer with one output above its backbone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        export_config: PreTrainedConfig,
        *,
        cpu_kernels: bool,
        ignored_heads: Sequence[str] = (),
        stored_weights: dict[nn.Parameter, StoredWeight] | None = None,
        read_because: str | None = None,
    ) -> None:
        super().__init__()
        self.ignored_heads = tuple(ignored_heads)
        self.stored_weights = stored_weights or {}
        self.read_because = read_because
        name, linear = find_head(model)
        model.set_submodule(name, RewardHead(linear))
        self.model = model
        self.export_config = export_config
        self.pools_last_token = name == DECODER_HEAD
        self._packed_attention = attention.prepare(model, cpu_kernels=cpu_kernels, is_decoder=self.pools_last_token)
        self._own_attention = model.config._attn_implementation or "eager"
        self._accepts_packed = False

    def forward(
        self,
        input_ids_RT: Tensor,
        position_ids_RT: Tensor,
        attention_mask_RT: Tensor | None,
        segments: Segments | None,
        last_N: Tensor,
    ) -> Tensor:
        """Return the reward of each completion, float32 (float64 from a float64 model), shape (N,).

        A reward depends on the tokens of its own text alone: not on other completions, nor on the layout, nor on the
        padding on either side.

        Args:
            input_ids_RT: token ids, int64, shape (R, T).
            position_ids_RT: position of each token in its own text, int64, shape (R, T); encoders count by themselves.
            attention_mask_RT: 1 at tokens, 0 at padding, int64, shape (R, T); None for a packed sequence.
            segments: boundaries of the texts in a packed sequence; None for padded rows.
            last_N: index of each completion's last token into the R * T tokens, int64, shape (N,); encoders ignore it
                and pool in their own way.
        """
        if segments is not None:
            return self._rewards_of_packed_sequence(input_ids_RT, position_ids_RT, segments, last_N)
        assert attention_mask_RT is not None
        if not self.pools_last_token:
            # Encoders count positions from the first column and pool there, so padding moves to the right.
            order_RT = attention_mask_RT.argsort(dim=1, descending=True, stable=True)
            mask_RT = attention_mask_RT.gather(1, order_RT)
            return self.model(input_ids=input_ids_RT.gather(1, order_RT), attention_mask=mask_RT).logits[:, 0]
        hidden_RTD = self.model.base_model(
            input_ids=input_ids_RT, attention_mask=attention_mask_RT, position_ids=position_ids_RT, use_cache=False
        ).last_hidden_state
        return self.model.get_submodule(DECODER_HEAD)(hidden_RTD.flatten(0, 1)[last_N])[:, 0]

    def _rewards_of_packed_sequence(
        self, input_ids_RT: Tensor, position_ids_RT: Tensor, segments: Segments, last_N: Tensor
    ) -> Tensor:
        assert self._accepts_packed, "without accept_packed_sequences every text would see those before it"
        # transformers passes a mask of four dimensions through as it is, and ``attend`` ignores it.
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

    def accept_packed_sequences(self, *, enabled: bool) -> None:
        """Switch to our attention, which computes packed sequences, or back to the one that transformers loaded.

        Raises:
            UnsupportedAttentionError: if the model cannot use another attention than its own.
        """
        if enabled and not self.model._supports_attention_backend:
            raise attention.UnsupportedAttentionError(
                f"{type(self.model).__name__} cannot use another attention implementation than its own"
            )
        self.model.set_attn_implementation(self._packed_attention if enabled else self._own_attention)
        self._accepts_packed = enabled

    @property
    def drops_out(self) -> bool:
        """Whether any dropout is active in training mode."""
        modules = (module for module in self.model.modules() if isinstance(module, nn.Dropout))
        return any(rate > 0 for _, rate in dropout_rates(self.model.config)) or any(module.p > 0 for module in modules)

    @property
    def vocab_size(self) -> int:
        """Size of the model's vocabulary."""
        return embedding_of(self.model).num_embeddings

    @property
    def sliding_window(self) -> int | None:
        """Length of the sliding window, in tokens; None if no layer has one."""
        try:
            return self.model.config.get_text_config().sliding_window
        except AttributeError:
            return None

    @property
    def max_positions(self) -> int | None:
        """The longest row that the model has positions for, in tokens; None if its configuration names no limit."""
        return max_positions(self.model)


def max_positions(model: PreTrainedModel) -> int | None:
    """Return the longest row that a model has positions for, in tokens; None if its configuration names no limit."""
    try:
        limit = model.config.get_text_config().max_position_embeddings
    except AttributeError:
        return None
    padding_idx = position_padding_idx(model)
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


def dropout_rates(config: PreTrainedConfig) -> list[tuple[str, float]]:
    """Return the name and value of every dropout rate in a configuration, functional ones included."""
    return [
        (name, value)
        for name, value in config.get_text_config().to_dict().items()
        if "drop" in name and isinstance(value, float)
    ]


def embedding_of(model: PreTrainedModel) -> nn.Embedding:
    """Return the model's token embedding."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    return embedding
