"""A step whose loss or gradient is not finite changes nothing, under real DeepSpeed on two ranks.

Three ways to get there, each through one group on one rank: a weight that is NaN (loss and gradient), an embedding
near float32's limit whose square overflows in the norm's backward pass (gradient alone), and an infinite margin (loss
alone). The oracle is a run that never saw these steps: its weights after the same good ones are equal to the bit.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from pairwright.data.table.table import Table
from pairwright.data.tokens.tokenize_groups import TokenGroup, groups_to_table
from zero_runs import Results, case, run_ranks
from zero_world import LORA, World, make_groups

NAN_TOKEN, HUGE_TOKEN = 270, 271
NAN, HUGE, INFINITE = 8, 9, 10
"""Rows of the bad groups, behind the eight good ones."""
STEPS = [
    (0, [0, 1, 2, 3, NAN]),
    (1, [0, 1, 2, 3]),
    (2, [4, HUGE, 5, 6, 7]),
    (3, [4, 5, 6, 7]),
    (4, [INFINITE, 0, 2, 4, 6]),
    (5, [0, 2, 4, 6]),
]


def spoilt_tokens(folder: Path, *, num_bad: int = 3) -> Path:
    """Write the good groups and, behind them, the first of the three bad ones."""
    groups = make_groups(seed=1)
    bad = [with_token(groups[2], NAN_TOKEN), with_token(groups[2], HUGE_TOKEN)]
    bad.append(dataclasses.replace(groups[2], margin_P=np.full(len(groups[2].margin_P), np.inf, np.float32)))
    named = [dataclasses.replace(group, group_id=f"{100 + row:032x}") for row, group in enumerate(bad, start=NAN)]
    table = Table(str(folder / f"spoilt_tokens_{num_bad}"), "tokens")
    rows = groups_to_table([*groups, *named[:num_bad]], ["train"] * (len(groups) + num_bad))
    path = table.local_path(table.write_data(rows, compress=False))
    assert path is not None
    return path


def with_token(group: TokenGroup, token: int) -> TokenGroup:
    return dataclasses.replace(group, prompt_ids=np.array([token, *group.prompt_ids], np.int32))


def spoilt_model(world: World) -> Path:
    """Write the Llama model with one embedding that is NaN and one whose square is no float32."""
    model = AutoModelForSequenceClassification.from_pretrained(world["llama"], trust_remote_code=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[NAN_TOKEN] = torch.nan
        model.get_input_embeddings().weight[HUGE_TOKEN] = 3e38
    model.save_pretrained(world["folder"] / "spoilt_llama")
    return world["folder"] / "spoilt_llama"


def settings() -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield every stage in both precisions, and what they are combined with."""
    for stage in range(4):
        for precision in ("fp32", "bf16"):
            yield f"zero{stage} {precision}", stage, {"precision": precision}
    for stage in (1, 2, 3):
        offload = {"offload_optimizer": True, "offload_parameters": stage == 3}
        yield f"offload zero{stage}", stage, {"micro_batch_tokens": 100_000, **offload}
    yield "split", 2, {"layout": "shared", "micro_batch_tokens": 50}
    yield "lora", 3, {"layout": "packed", "lora": LORA}


QUICK = {"zero0 fp32", "zero2 bf16", "zero3 fp32"}
NAMES = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow], id=name) for name, _, _ in settings()]


@pytest.fixture(scope="module")
def runs(world: World) -> Callable[[str], Results]:
    """Return a function from a name to every run of its kind, quick or slow, twice: with the bad steps and without."""
    shared = {"tokens": str(spoilt_tokens(world["folder"])), "model": str(spoilt_model(world))}
    good = [STEPS[1], STEPS[3], STEPS[5]]

    @cache
    def of_kind(*, is_quick: bool) -> Results:
        cases = [
            case(world, f"{name} {kind}", stage, **values, **shared, steps=steps)
            for name, stage, values in settings()
            for kind, steps in (("spoilt", STEPS), ("undisturbed", good))
            if (name in QUICK) == is_quick
        ]
        return run_ranks(world, 2, cases)

    return lambda name: of_kind(is_quick=name in QUICK)


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_step_changes_no_weight_and_the_next_ones_go_as_if_it_had_not_been(
    runs: Callable[[str], Results], name: str
) -> None:
    spoilt, undisturbed = runs(name)[f"{name} spoilt"], runs(name)[f"{name} undisturbed"]
    assert [found["unchanged"] for found in spoilt["refused"]] == [True, True, True]
    assert len(undisturbed["figures"]) == 3
    assert not undisturbed["refused"]
    assert spoilt["figures"] == undisturbed["figures"]
    for tensor, expected in undisturbed["state"].items():
        np.testing.assert_array_equal(spoilt["state"][tensor], expected, err_msg=tensor)


@pytest.mark.parametrize("name", NAMES)
def test_the_bad_group_is_named_where_its_loss_shows_it(runs: Callable[[str], Results], name: str) -> None:
    by_weight, by_gradient, by_margin = (found["message"] for found in runs(name)[f"{name} spoilt"]["refused"])
    assert f"{100 + NAN:032x}" in by_weight
    assert "the gradient is not finite" in by_gradient
    assert f"{100 + HUGE:032x}" in by_gradient
    assert f"{100 + INFINITE:032x}" in by_margin


@pytest.mark.slow
def test_skipped_steps_count_over_a_resume_and_the_run_ends_in_the_same_weights(world: World, tmp_path: Path) -> None:
    # One of nine groups is bad, so one of an epoch's three steps is: three in all.
    shared = {"tokens": str(spoilt_tokens(tmp_path, num_bad=1)), "model": str(spoilt_model(world)), "num_steps": 3}

    def whole_run(name: str, folder: str, *, most: int = 10, stops_after: int | None = None) -> dict[str, Any]:
        (tmp_path / folder).mkdir(exist_ok=True)
        of_loop = {"checkpoints": str(tmp_path / folder), "every": 2, "groups_per_step": 4, "stops_after": stops_after}
        training = {"on_non_finite": "skip", "max_skipped_steps": most}
        return case(world, name, 2, **shared) | of_loop | {"training": training}

    first = run_ranks(
        world,
        2,
        [
            whole_run("whole", "whole"),
            whole_run("stopped", "again", stops_after=4),
            whole_run("stopped too", "too often", stops_after=4),
        ],
        ranks="loop_ranks",
    )
    then = run_ranks(
        world, 2, [whole_run("again", "again"), whole_run("too often", "too often", most=2)], ranks="loop_ranks"
    )
    whole, again = first["whole"], then["again"]
    assert [(step - 1) // 3 for step in whole["skipped"]] == [0, 1, 2]
    kinds = [record["kind"] for record in again["records"] if record["kind"] != "phase"]
    assert kinds[0] == "resumed"
    assert again["skipped"] == whole["skipped"]
    for tensor, expected in whole["change"].items():
        np.testing.assert_array_equal(again["change"][tensor], expected, err_msg=tensor)
    first_two = ", ".join(map(str, whole["skipped"][:2]))
    assert f"Steps {first_two} were skipped for that before" in then["too often"]["error"]
