"""LoRA, offload, recomputed activations and dropout under real DeepSpeed, ZeRO 0-3, two ranks, on every layout.

The oracle is that of zero_world.py: plain torch in float64, one completion and one pair at a time.
"""

import math
from collections.abc import Callable
from typing import get_args

import pytest

from pairwright.config import DeepSpeedConfig
from pairwright.model.collate import Layout
from zero_runs import LAYOUTS, Results
from zero_world import Reference, changes, relative_difference

# Measured in November 2026 over all of these: gradient at most 7.7e-7, change of the weights 1.1e-5.
GRADIENT_TOLERANCE = 2e-6
LOSS_TOLERANCE = 2e-6
CHANGE_TOLERANCE = 1e-4
BF16_LOSS_TOLERANCE = 1e-3
BF16_GRADIENT_TOLERANCE = 2e-2
# Adapters as large as the weights here, and rounded like them: measured 3.4e-3 and 2.3e-2.
LORA_BF16_LOSS_TOLERANCE = 1e-2
LORA_BF16_GRADIENT_TOLERANCE = 5e-2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_lora_s_gradient_is_that_of_its_formula(
    runs: Callable[[int], Results], lora_reference: Reference, stage: int, layout: str
) -> None:
    found = runs(2)[f"lora zero{stage} {layout}"]
    assert found["figures"][0]["loss"] == pytest.approx(lora_reference["loss"], rel=LOSS_TOLERANCE)
    difference = relative_difference(found["gradients"][0], lora_reference["gradient"])
    print(f"LoRA, ZeRO-{stage}, {layout}: relative gradient difference {difference:.1e}")
    assert difference < GRADIENT_TOLERANCE


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_lora_goes_on_from_a_checkpoint_as_plain_torch_goes_on(
    runs: Callable[[int], Results], lora_reference: Reference, stage: int
) -> None:
    """The last step is taken by a new engine, made from the starting model and what was saved."""
    found = runs(2)[f"lora zero{stage} shared"]
    losses = [figures["loss"] for figures in found["figures"]]
    assert losses == pytest.approx(lora_reference["losses"], rel=LOSS_TOLERANCE)
    difference = relative_difference(changes(found, lora_reference), lora_reference["change"])
    print(f"LoRA, ZeRO-{stage}: weights changed by {difference:.1e} more or less")
    assert difference < CHANGE_TOLERANCE


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_lora_checkpoint_holds_adapters_and_head_alone(
    runs: Callable[[int], Results], lora_reference: Reference, stage: int
) -> None:
    assert set(runs(2)[f"lora zero{stage} shared"]["saved"]) <= lora_reference["start"].keys()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lora_in_bf16_follows_its_formula_as_closely_as_its_rounding_allows(
    runs: Callable[[int], Results], lora_reference: Reference, layout: str
) -> None:
    found = runs(2)[f"lora bf16 {layout}"]
    difference = relative_difference(found["gradients"][0], lora_reference["gradient"])
    loss = found["figures"][0]["loss"]
    print(f"LoRA bf16, {layout}: loss {loss / lora_reference['loss'] - 1:.1e}, gradient {difference:.1e}")
    assert loss == pytest.approx(lora_reference["loss"], rel=LORA_BF16_LOSS_TOLERANCE)
    assert difference < LORA_BF16_GRADIENT_TOLERANCE
    assert found["figures"][-1]["loss"] < found["figures"][0]["loss"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recomputed_activations_give_the_same_gradient(
    runs: Callable[[int], Results], full_reference: Reference, layout: str
) -> None:
    found = runs(2)[f"checkpointing {layout}"]
    difference = relative_difference(found["gradients"][0], full_reference["gradient"])
    print(f"gradient checkpointing, {layout}: relative gradient difference {difference:.1e}")
    assert difference < GRADIENT_TOLERANCE


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_training_with_offload_and_a_checkpoint_between_changes_the_weights_as_plain_torch_does(
    runs: Callable[[int], Results], full_reference: Reference, stage: int
) -> None:
    found = runs(2)[f"offload zero{stage} fp32"]
    assert relative_difference(found["gradients"][0], full_reference["gradient"]) < GRADIENT_TOLERANCE
    norm = math.sqrt(sum(float((g**2).sum()) for g in full_reference["gradient"].values()))
    assert found["figures"][0]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    losses = [figures["loss"] for figures in found["figures"]]
    assert losses == pytest.approx(full_reference["losses"], rel=LOSS_TOLERANCE)
    difference = relative_difference(changes(found, full_reference), full_reference["change"])
    print(f"offload, ZeRO-{stage}: weights changed by {difference:.1e} more or less")
    assert difference < CHANGE_TOLERANCE


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offload_in_bf16_follows_the_reference_as_closely_as_its_rounding_allows(
    runs: Callable[[int], Results], full_reference: Reference, stage: int
) -> None:
    found = runs(2)[f"offload zero{stage} bf16"]
    difference = relative_difference(found["gradients"][0], full_reference["gradient"])
    assert found["figures"][0]["loss"] == pytest.approx(full_reference["loss"], rel=BF16_LOSS_TOLERANCE)
    assert difference < BF16_GRADIENT_TOLERANCE
    assert found["figures"][-1]["loss"] < found["figures"][0]["loss"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dropout_comes_from_the_seed_also_where_activations_are_recomputed(
    runs: Callable[[int], Results], layout: str
) -> None:
    """Two runs draw the same masks, and a recomputed forward those of the first: one gradient, step after step."""
    off, on, recomputed = (runs(2)[f"dropout {kind} {layout}"] for kind in ("off", "on", "recomputed"))
    for step in range(2):
        assert relative_difference(recomputed["gradients"][step], on["gradients"][step]) < GRADIENT_TOLERANCE
    assert relative_difference(on["gradients"][0], off["gradients"][0]) > 0.01


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_groups_over_the_budget_train_as_in_one_piece(
    runs: Callable[[int], Results], full_reference: Reference, world_size: int, stage: int
) -> None:
    """Their parts lie on both ranks, and the smaller groups, whole, beside them."""
    found = runs(world_size)[f"split zero{stage}"]
    losses = [figures["loss"] for figures in found["figures"]]
    assert losses == pytest.approx(full_reference["losses"], rel=LOSS_TOLERANCE)
    gradient = relative_difference(found["gradients"][0], full_reference["gradient"])
    change = relative_difference(changes(found, full_reference), full_reference["change"])
    print(f"divided, ZeRO-{stage}, {world_size} ranks: gradient off by {gradient:.1e}, weights' change by {change:.1e}")
    assert gradient < GRADIENT_TOLERANCE
    assert change < CHANGE_TOLERANCE


def test_dropout_of_split_groups_is_drawn_alike_where_activations_are_recomputed(
    runs: Callable[[int], Results],
) -> None:
    on, recomputed = (runs(2)[f"split dropout {kind}"]["gradients"][0] for kind in ("on", "recomputed"))
    assert relative_difference(recomputed, on) < GRADIENT_TOLERANCE


def test_the_stages_and_layouts_of_these_tests_are_all_there_are() -> None:
    """A new one has to be tried here too."""
    assert set(get_args(Layout)) == set(LAYOUTS)
    assert set(get_args(DeepSpeedConfig.model_fields["zero_stage"].annotation)) == {0, 1, 2, 3}
