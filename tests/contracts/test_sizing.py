"""The page on sizing holds what its program computes, and the program follows its inputs."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIZING = runpy.run_path(str(ROOT / "benchmarks/sizing.py"))


def test_the_page_holds_what_the_program_prints() -> None:
    found = SIZING["BLOCK"].search(SIZING["PAGE"].read_text())
    assert found is not None
    assert found[0] == SIZING["tables"](SIZING["Assumptions"]()), "run `python benchmarks/sizing.py --write`"


def test_parameters_are_those_of_the_models_that_are_named() -> None:
    counts = [decoder.outline.num_parameters / 1e9 for decoder in SIZING["DECODERS"]]
    # Without the output layer, which a reward model does not have: 1.24, 7.50 and 69.5 billion.
    assert counts == pytest.approx([1.236, 7.505, 69.5], rel=2e-3)


def test_flops_of_a_group_are_eight_for_each_parameter_and_token_and_those_of_attention() -> None:
    given = SIZING["Assumptions"]()
    for decoder in SIZING["DECODERS"]:
        linear = 8 * decoder.shape.linear_parameters * (512 + 4 * 256)
        flops = SIZING["group_flops"](decoder, given)
        assert linear < flops < 1.25 * linear
        half = replace(given, prompt_tokens=256, completion_tokens=128)
        assert SIZING["group_flops"](decoder, half) < flops / 2


def test_a_model_takes_the_fewest_gpus_that_hold_it() -> None:
    given = SIZING["Assumptions"]()
    large = SIZING["DECODERS"][-1]
    gpus, num_bytes = SIZING["fewest_gpus"](large, given)
    assert num_bytes <= 0.85 * 80e9
    assert gpus * 0.85 * 80e9 > 16 * large.outline.num_parameters
    assert SIZING["fewest_gpus"](large, replace(given, gpu_memory_gb=160))[0] < gpus
