"""Bytes that a forward pass keeps for its backward pass."""

from collections.abc import Callable

import torch
from torch import Tensor


def stored_bytes(model: torch.nn.Module, forward: Callable[[], Tensor]) -> int:
    """Return the bytes of the storages that a forward keeps for its backward, weights and their casts left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    # Kept alive until they are counted, or a freed one's address could stand for the next.
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    shapes = {tuple(parameter.shape) for parameter in model.parameters() if parameter.ndim == 2}
    return sum(
        tensor.untyped_storage().nbytes()
        for address, tensor in kept.items()
        # Autocast's copies of weights are as many whatever the layout.
        if address not in weights and tuple(tensor.shape) not in shapes and tuple(tensor.shape[::-1]) not in shapes
    )
