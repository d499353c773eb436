"""What encoders need beside a flat row: positions as they count them, and each text's first token -> its reward.

A sequence-classification encoder pools the first token of a row; where a row holds many texts its own head modules are
called on the first token of each. Which modules these are is the architecture's, so it is listed here by model type;
the layout check proves it on the very model (layouts.py), and what is not listed runs padded.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pairwright.model.attention.interface import UnsupportedAttentionError
from pairwright.model.collate import Segments


def position_padding_idx(model: PreTrainedModel) -> int | None:
    """Return the index of padding in the table of positions: RoBERTa's kind counts from behind it; None elsewhere."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings") and module.padding_idx is not None:
            return module.padding_idx
    return None


def encoder_positions(model: PreTrainedModel, input_ids_RT: Tensor, position_ids_RT: Tensor) -> Tensor:
    """Return positions as the model would count them in each text alone, int64, shape (R, T)."""
    padding_idx = position_padding_idx(model)
    if padding_idx is None:
        return position_ids_RT
    # RoBERTa's kind skips tokens that are padding, by their id, also inside of a text.
    is_token_RT = (input_ids_RT != padding_idx).long()
    before_RT = is_token_RT.cumsum(dim=1) - is_token_RT
    start_RT = torch.arange(input_ids_RT.shape[1], device=input_ids_RT.device) - position_ids_RT
    count_RT = before_RT - before_RT.gather(1, start_RT) + is_token_RT
    return count_RT * is_token_RT + padding_idx


def reward_at_first_token(model: PreTrainedModel, hidden_TD: Tensor, segments: Segments) -> Tensor:
    """Return the reward of each text of a flat row from its last hidden states, shape (N,).

    Raises:
        UnsupportedAttentionError: if the architecture's head is not known here.
    """
    rewards = _HEADS.get(model.config.model_type)
    if rewards is None:
        raise UnsupportedAttentionError(f"the head of {type(model).__name__} is not known on rows of many texts")
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
