"""Preference targets leave nothing behind when they go to a device."""

import dataclasses

import torch

from pairwright.model.targets import PreferenceTargets
from ranked_groups import ranked_group


def test_all_of_the_targets_go_to_the_device() -> None:
    targets = PreferenceTargets.of([ranked_group([[1, 3, 2]]), ranked_group([[1, 1, 2, 2]], ties="half")])
    moved = targets.to("meta")
    for found, before in ((moved, targets), (moved.stages, targets.stages)):
        for field in dataclasses.fields(found):
            tensor, original = getattr(found, field.name), getattr(before, field.name)
            if isinstance(tensor, torch.Tensor):
                assert (tensor.device.type, tensor.shape, tensor.dtype) == ("meta", original.shape, original.dtype)
            else:
                assert field.name == "stages"
