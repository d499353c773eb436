"""Measures how long ranks wait for each other under the plans of model/batching/plan.py, and the time of planning.

    python benchmarks/plan_quality.py

Groups are InstructGPT's: 4 to 9 completions each; prompts and completions of lognormal length (sigma 0.5, medians 200
and 150 tokens, from 8 to 900). Costs are those of model/batching/cost_model.py for a model of a billion parameters.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import numpy as np

from pairwright.data.tokens.token_group import GroupColumns, GroupSizes
from pairwright.model.batching.cost_model import ATTENTION_FLOP_COST, MICRO_BATCH_OVERHEAD_TOKENS, ModelShape, overhead
from pairwright.model.batching.plan import PASSES_UNSPLIT, PlanQuality, Rules, plan_micro_batches, quality_of
from pairwright.model.collate import Layout
from pairwright.training.order import group_indices

LLAMA_1B = ModelShape(linear_parameters=973_000_000, attention_width=16 * 2048)
BUDGET = 16384
SEEDS = 20
LAYOUTS = get_args(Layout)
COLUMNS = (
    "| groups | layout | ranks | rounds | idle | padding | step / perfect balance | bound for unsplit groups "
    "| planning, ms |"
)


def main() -> None:
    lines = [COLUMNS, "|" + "---|" * 9]
    for num_groups in (64, 512):
        for layout in LAYOUTS:
            for world_size in (2, 8, 64, 512):
                lines.append(_line(num_groups, layout, world_size))
                print(lines[-1], flush=True)
    growth = ["| groups in the table | columns, bytes a group | one step's plan, ms (median of 50) |", "|---|---|---|"]
    for num_groups in (10**6, 10**7, 10**8):
        growth.append(_growth(num_groups))
        print(growth[-1], flush=True)
    name = f"plan_quality_{os.cpu_count()}cpu_{datetime.now(UTC):%Y-%m-%d}.md"
    (Path(__file__).parent / "results" / name).write_text(_report(lines, growth))


def _groups(num_groups: int, seed: int) -> tuple[GroupSizes, Callable[[int], list[int]]]:
    rng = np.random.default_rng(seed)

    def lengths(median: int, num: int) -> list[int]:
        return np.clip(rng.lognormal(np.log(median), 0.5, num), 8, 900).astype(int).tolist()

    prompts = np.array(lengths(200, num_groups))
    completions = [lengths(150, int(rng.integers(4, 10))) for _ in range(num_groups)]
    sizes = GroupSizes(
        num_completions_G=np.array([len(tokens) for tokens in completions]),
        prompt_tokens_G=prompts,
        completion_tokens_G=np.array([sum(tokens) for tokens in completions]),
        longest_row_tokens_G=prompts + np.array([max(tokens) for tokens in completions]),
    )
    return sizes, completions.__getitem__


def _line(num_groups: int, layout: Layout, world_size: int) -> str:
    rules = Rules(layout=layout, shape=LLAMA_1B, world_size=world_size, micro_batch_tokens=BUDGET)
    qualities, perfect, bound, seconds = [], [], [], []
    for seed in range(SEEDS):
        groups = _groups(num_groups, seed)
        started = time.process_time()
        plan = plan_micro_batches(*groups, rules)
        seconds.append(time.process_time() - started)
        qualities.append(quality_of(plan, rules))
        alone = [_alone(groups[0], g, rules) for g in range(num_groups)]
        perfect.append(PASSES_UNSPLIT * sum(alone) / world_size)
        bound.append(max(perfect[-1], PASSES_UNSPLIT * max(alone)) + PASSES_UNSPLIT * overhead(rules.shape))
    return (
        f"| {num_groups} | {layout} | {world_size} | {statistics.mean(q.num_forwards for q in qualities):.1f} "
        f"| {_spread(_idle(qualities))} | {statistics.mean(q.padding_share for q in qualities):.0%} "
        f"| {_spread(_ratio(qualities, perfect), 2)} | {np.mean(np.divide(bound, perfect)):.2f} "
        f"| {1e3 * statistics.median(seconds):.1f} |"
    )


def _alone(sizes: GroupSizes, g: int, rules: Rules) -> float:
    """Return the cost of a group in a micro-batch of its own."""
    one = GroupSizes(
        num_completions_G=sizes.num_completions_G[g : g + 1],
        prompt_tokens_G=sizes.prompt_tokens_G[g : g + 1],
        completion_tokens_G=sizes.completion_tokens_G[g : g + 1],
        longest_row_tokens_G=sizes.longest_row_tokens_G[g : g + 1],
    )
    alone = Rules(layout=rules.layout, shape=rules.shape, world_size=1, micro_batch_tokens=10**9)
    return plan_micro_batches(one, lambda _: [], alone).unsplit[0][0].cost


def _idle(qualities: list[PlanQuality]) -> list[float]:
    return [100 * quality.idle_share for quality in qualities]


def _ratio(qualities: list[PlanQuality], perfect: list[float]) -> list[float]:
    return [quality.time / time for quality, time in zip(qualities, perfect, strict=True)]


def _spread(values: list[float], digits: int = 1) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def _growth(num_groups: int) -> str:
    """Time one step's plan, from the step's number on, over a table of so many groups: 512 of them for 64 ranks."""
    columns, groups_per_step = GroupColumns.empty(num_groups), 512
    rng = np.random.default_rng(0)
    for start in range(0, num_groups, 10**6):
        part = slice(start, start + 10**6)
        completions = rng.integers(4, 10, 10**6)
        columns.num_completions_G[part] = completions
        columns.num_pairs_G[part] = completions * (completions - 1) // 2
        columns.prompt_tokens_G[part] = np.clip(rng.lognormal(np.log(200), 0.5, 10**6), 8, 900)
        columns.completion_tokens_G[part] = completions * 170
        columns.longest_row_tokens_G[part] = columns.prompt_tokens_G[part] + 250
        columns.weight_G[part] = 1.0
    rows = rng.permutation(num_groups) if num_groups <= 10**7 else np.arange(num_groups)[::-1]
    rules = Rules(layout="shared", shape=LLAMA_1B, world_size=64, micro_batch_tokens=BUDGET)
    seconds = []
    for step in range(50):
        started = time.process_time()
        mine = rows[group_indices(num_groups, seed=0, epoch=0, step=step, groups_per_step=groups_per_step)]
        float(columns.weight_G[mine].sum())
        sizes = columns.sizes_of(mine)
        plan_micro_batches(sizes, lambda g, sizes=sizes: [170] * int(sizes.num_completions_G[g]), rules)
        seconds.append(time.process_time() - started)
    num_bytes = sum(column.itemsize for column in columns) + rows.itemsize
    return f"| {num_groups:,} | {num_bytes} | {1e3 * statistics.median(seconds):.1f} |"


def _report(lines: list[str], growth: list[str]) -> str:
    return "\n".join(
        [
            "# Plans: how long ranks wait, how much is padding, how long planning takes",
            "",
            f"`python benchmarks/plan_quality.py`, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPUs, Python "
            f"{platform.python_version()}, numpy {np.__version__}. {SEEDS} steps each, mean ± standard deviation. "
            "Costs by the cost model: a shape of a billion parameters, a FLOP of attention "
            f"{ATTENTION_FLOP_COST:g} of a linear layer, a fixed cost of {MICRO_BATCH_OVERHEAD_TOKENS} tokens a pass; "
            f"at most {BUDGET} tokens a forward pass. Planning in CPU time.",
            "",
            "- idle: share of all ranks' time that they wait for the costliest micro-batch of a round, in %.",
            "- step / perfect balance: time of the step over that of the same groups, unpadded against each other, if "
            "work could be split at will, fixed costs included.",
            "- bound for unsplit groups: the same ratio of the best possible plan that splits no group.",
            "",
            *lines,
            "",
            "## Growth",
            "",
            "From the number of a step to the plan of its 512 groups for 64 ranks: order, columns, plan.",
            "",
            *growth,
            "",
        ]
    )


if __name__ == "__main__":
    main()
