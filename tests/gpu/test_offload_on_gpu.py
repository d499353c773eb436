"""CPU offload where it moves anything: weights and optimizer in the CPU's memory, forward and backward on the GPU."""

from pathlib import Path

import pytest
import torch

from zero_runs import LAYOUTS, Results, case, run_ranks
from zero_world import LORA, World, changes, full_reference, lora_reference, make_world, relative_difference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: on a CPU offload moves nothing"),
]

GRADIENT_TOLERANCE = 1e-5
CHANGE_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(Path(tmp_path_factory.mktemp("zero")))


@pytest.fixture(scope="module")
def found(world: World) -> Results:
    cases = [
        case(
            world,
            f"{kind} zero{stage}",
            stage,
            layout=LAYOUTS[stage - 1],
            lora=LORA if kind == "lora" else None,
            offload_optimizer=True,
            offload_parameters=stage == 3,
            resumes=True,
        )
        for kind in ("full", "lora")
        for stage in (1, 2, 3)
    ]
    return run_ranks(world, 1, cases, device="cuda")


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_training_with_offload_changes_the_weights_as_plain_torch_does(
    world: World, found: Results, kind: str, stage: int
) -> None:
    reference = (full_reference if kind == "full" else lora_reference)(world)
    run = found[f"{kind} zero{stage}"]
    assert relative_difference(run["gradients"][0], reference["gradient"]) < GRADIENT_TOLERANCE
    assert relative_difference(changes(run, reference), reference["change"]) < CHANGE_TOLERANCE
