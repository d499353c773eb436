"""Packed sequences for encoders: their position ids, and the reward at each text's first token.

A sequence-classification encoder pools the first token of a row; in a packed sequence its own head modules are called
on the first token of each text. The names of these modules depend on the architecture, so they are listed here by model
type. layout_check.py tests the result on the model itself; architectures that are not listed run padded.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pairwright.model.attention.interface import UnsupportedAttentionError
from pairwright.model.collate import Segments


def position_padding_idx(model: PreTrainedModel) -> int | None:
    """Return the padding index of the position embeddings, after which RoBERTa and its kin count; None for others."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings") and module.padding_idx is not None:
            return module.padding_idx
    return None


def encoder_positions(model: PreTrainedModel, input_ids_RT: Tensor, position_ids_RT: Tensor) -> Tensor:
    """Return positions as the model would count them in each text alone, int64, shape (R, T)."""
    padding_idx = position_padding_idx(model)
    if padding_idx is None:
        return position_ids_RT
    # RoBERTa and its kin skip tokens with the padding id, even inside of a text.
    is_token_RT = (input_ids_RT != padding_idx).long()
    before_RT = is_token_RT.cumsum(dim=1) - is_token_RT
    start_RT = torch.arange(input_ids_RT.shape[1], device=input_ids_RT.device) - position_ids_RT
    count_RT = before_RT - before_RT.gather(1, start_RT) + is_token_RT
    return count_RT * is_token_RT + padding_idx


def reward_at_first_token(model: PreTrainedModel, hidden_TD: Tensor, segments: Segments) -> Tensor:
    """Return the reward of each text of a packed sequence from its last hidden states, shape (N,).

    Raises:
        UnsupportedAttentionError: if the architecture's head is not listed.
    """
    rewards = _HEADS.get(model.config.model_type)
    if rewards is None:
        raise UnsupportedAttentionError(f"the head of {type(model).__name__} is not supported on packed sequences")
    return rewards(model, hidden_TD, segments)[:, 0]


def _first_ND(hidden_TD: Tensor, segments: Segments) -> Tensor:
    return hidden_TD[torch.tensor([start for start, _ in segments.completion_spans()], device=hidden_TD.device)]


def _bert(model: PreTrainedModel, hidden_TD: Tensor, segments: Segments) -> Tensor:
    pooled_ND = model.base_model.get_submodule("pooler")(_first_ND(hidden_TD, segments)[:, None])
    return model.get_submodule("classifier")(model.get_submodule("dropout")(pooled_ND))


def _roberta(model: PreTrainedModel, hidden_TD: Tensor, segments: Segments) -> Tensor:
    return model.get_submodule("classifier")(_first_ND(hidden_TD, segments)[:, None])


def _modernbert(model: PreTrainedModel, hidden_TD: Tensor, segments: Segments) -> Tensor:
    if model.config.classifier_pooling == "cls":
        pooled_ND = _first_ND(hidden_TD, segments)
    else:
        sizes = [end - start for start, end in segments.completion_spans()]
        pooled_ND = torch.stack([text_TD.mean(dim=0) for text_TD in hidden_TD.split(sizes)])
    head, drop, classifier = (model.get_submodule(name) for name in ("head", "drop", "classifier"))
    return classifier(drop(head(pooled_ND)))


_HEADS: dict[str, Callable[[PreTrainedModel, Tensor, Segments], Tensor]] = {
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
    "camembert": _roberta,
    "electra": _roberta,
    "modernbert": _modernbert,
}
