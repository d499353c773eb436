"""The page of learn_real.py: what its runs say, from the lines that they left.

Accuracy is over untied held-out pairs, equal rewards half right; intervals are 95 % by bootstrap over prompts, of the
mean over the seeds (evaluation/statistics). Sides are compared on the same pairs.
"""

# ruff: noqa: N802, N815 - shape suffixes: S seeds, P pairs, F fields

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pairwright.evaluation.statistics.intervals import Estimate, Resamples
from pairwright.evaluation.statistics.paired_comparison import PairedDifference, paired_difference

REPORT = Path(__file__).parent / "results" / f"learn_real_{os.cpu_count()}cpu_{datetime.now(UTC):%Y-%m-%d}.md"
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation of all seeds of one setting."""

    name: str
    epoch: float
    step: int
    seconds: float
    """CPU seconds of training, mean over the seeds."""
    pairs_SPF: Floats
    """Of each seed and pair: prompt, difference of rewards, difference of characters, whether poisoned."""
    on_top: str

    @property
    def right_P(self) -> Floats:
        """How right each pair is, mean over the seeds."""
        return ((self.pairs_SPF[:, :, 1] > 0) + 0.5 * (self.pairs_SPF[:, :, 1] == 0)).mean(axis=0)

    @property
    def accuracy(self) -> float:
        """Mean over pairs and seeds."""
        return float(self.right_P.mean())

    def longer_P(self) -> Floats:
        """How right the longer one is on each pair."""
        characters_P = self.pairs_SPF[0, :, 2]
        return (characters_P > 0) + 0.5 * (characters_P == 0)

    def prompt_P(self) -> NDArray[np.int64]:
        """Index of each pair's prompt."""
        return self.pairs_SPF[0, :, 0].astype(np.int64)

    def poisoned_P(self) -> NDArray[np.bool_]:
        """Whether each pair holds a completion of the poisoned source."""
        return self.pairs_SPF[0, :, 3] > 0


def read_points(results: Path) -> dict[str, list[Point]]:
    """Return the points of each setting, all its seeds together, in the order of training."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in results.read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        runs[name_of(run["settings"])].append(run)
    return {name: _points(name, found) for name, found in runs.items()}


def name_of(settings: dict[str, Any]) -> str:
    """Return a setting in words: what differs from the first row's."""
    if settings["side"] == "trl":
        return "TRL"
    parts = ["one epoch" if settings["epochs"] == 1 else f"{settings['epochs']} epochs"]
    parts += [f"{settings['pair_weight']} weights", f"rate {settings['learning_rate']:g}"]
    if settings.get("groups", 320) != 320:
        parts.append(f"{settings['groups']} groups")
    if settings["max_length"] != 256:
        parts.append(f"{settings['max_length']} tokens")
    if settings["groups_per_step"] != 4:
        parts.append(f"{settings['groups_per_step']} groups a step")
    if settings.get("ties") == "half":
        parts.append("ties as half a vote each way")
    if settings["loss"] != "bradley_terry":
        parts.append(settings["loss"])
    if settings["text"] == "joined":
        parts.append("prompt and completion joined")
    if settings["text"] == "segments":
        parts.append("with segment ids")
    if settings["dropout"]:
        parts.append("dropout")
    if settings["without_poisoned"]:
        parts.append("trained without NullModel")
    return ", ".join(parts)


def _points(name: str, runs: Sequence[dict[str, Any]]) -> list[Point]:
    return [
        Point(
            name,
            points[0]["epoch"],
            points[0]["step"],
            float(np.mean([point["cpu_seconds"] for point in points])),
            np.array([point["pairs"] for point in points], float),
            ", ".join(f"{point['poisoned_on_top'][0]} of {point['poisoned_on_top'][1]}" for point in points),
        )
        for points in zip(*(run["points"] for run in runs), strict=True)
    ]


def write_report(results: Path, machine: str) -> None:
    """Write the page."""
    points = read_points(results)
    sizes = json.loads(results.read_text(encoding="utf-8").splitlines()[0])["sizes"]  # of the setting of the first run
    resamples = Resamples.of(int(next(iter(points.values()))[0].prompt_P().max()) + 1)
    text = [
        "# What a small encoder learns from real rankings",
        "",
        f"`python benchmarks/learn_real.py run rankings_dev.jsonl.zst --encoder MiniLM --results FILE`, {machine}.",
        "",
        f"{sizes['groups']} groups with an untied pair to train on, {sizes['held_out']} of held-out prompts "
        f"({len(resamples.cluster_Q)} prompts) to evaluate, 256 tokens a text, one thread, bfloat16 "
        f"autocast, layout `{sizes['layout']}`; 4 groups a step where nothing else is said (TRL: its default of 8 "
        "pairs, rate 1e-4 falling linearly, one epoch). CPU seconds of training alone, one thread; other processes "
        "shared the machine.",
        "",
        "## At the end of each run",
        "",
        _finals(points, resamples),
        "",
        "## Accuracy against CPU seconds",
        "",
        _curves(points),
        "",
        "## Against TRL",
        "",
        *_against_trl(points, resamples),
    ]
    REPORT.write_text("\n".join(text) + "\n", encoding="utf-8")


def _finals(points: dict[str, list[Point]], resamples: Resamples) -> str:
    heading = (
        "| setting | seeds | steps | accuracy | of each seed | without the pairs of NullModel | chosen is shorter | "
        "log loss there | NullModel on top |\n|---|---|---|---|---|---|---|---|---|"
    )
    first = next(iter(points.values()))[-1]
    rows = [heading, _row("the longer one", first, first.longer_P(), resamples, ["", ""])]
    rows += [_final_row(found[-1], resamples) for found in points.values()]
    return "\n".join(rows)


def _final_row(point: Point, resamples: Resamples) -> str:
    by_seed = ", ".join(f"{100 * _right(seed).mean():.1f}" for seed in point.pairs_SPF)
    return _row(point.name, point, point.right_P, resamples, [f"{point.step}", by_seed])


def _row(name: str, point: Point, right_P: Floats, resamples: Resamples, middle: Sequence[str]) -> str:
    prompt_P, poisoned_P = point.prompt_P(), point.poisoned_P()
    shorter_P = point.pairs_SPF[0, :, 2] < 0
    loss_P = np.logaddexp(0, -point.pairs_SPF[:, :, 1]).mean(axis=0)
    is_rule = not middle[0]
    cells = [name, "" if is_rule else f"{len(point.pairs_SPF)}", middle[0]]
    cells += [_shown(resamples.mean(right_P, prompt_P, is_share=True)), middle[1]]
    cells += [_shown(resamples.mean(right_P[~poisoned_P], prompt_P[~poisoned_P], is_share=True))]
    cells += [f"{100 * right_P[shorter_P].mean():.1f}", "" if is_rule else f"{loss_P[shorter_P].mean():.2f}"]
    cells += ["" if is_rule else point.on_top]
    return f"| {' | '.join(cells)} |"


def _curves(points: dict[str, list[Point]]) -> str:
    rows = ["| setting | epochs: CPU seconds, accuracy |", "|---|---|"]
    for name, found in points.items():
        cells = [f"{point.epoch:.2g}: {point.seconds:.0f} s, {100 * point.accuracy:.1f}" for point in found]
        rows.append(f"| {name} | {'; '.join(cells)} |")
    return "\n".join(rows)


def _against_trl(points: dict[str, list[Point]], resamples: Resamples) -> list[str]:
    if "TRL" not in points:
        return ["No run of TRL is in the file."]
    best = max(points["TRL"], key=lambda point: point.accuracy)
    lines = [f"TRL's best: {100 * best.accuracy:.1f} % at {best.seconds:.0f} s.", ""]
    for name, found in points.items():
        if name == "TRL" or len(found[0].pairs_SPF) < len(best.pairs_SPF):
            continue
        reached = next((point for point in found if point.accuracy >= best.accuracy), None)
        when = (
            "does not get there"
            if reached is None
            else f"gets there in {reached.seconds:.0f} s, {reached.seconds / best.seconds:.2f} of TRL's time"
        )
        at_its_time = [point for point in found if point.seconds <= best.seconds]
        if not at_its_time:
            continue
        ours = at_its_time[-1]
        apart = paired_difference(best.right_P, ours.right_P, np.ones(len(best.right_P)), best.prompt_P(), resamples)
        lines.append(
            f"- {name}: {when}; its last point up to TRL's time ({ours.seconds:.0f} s) is {_difference(apart)} points."
        )
    return lines


def _difference(apart: PairedDifference) -> str:
    value, interval = apart.difference.value, apart.difference.interval
    assert value is not None
    assert interval is not None
    return f"{100 * value:+.1f} ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}, p = {apart.p_value:.3f})"


def _right(pairs_PF: Floats) -> Floats:
    return (pairs_PF[:, 1] > 0) + 0.5 * (pairs_PF[:, 1] == 0)


def _shown(estimate: Estimate) -> str:
    assert estimate.value is not None
    assert estimate.interval is not None
    low, high = estimate.interval
    return f"{100 * estimate.value:.1f} ({100 * low:.1f}-{100 * high:.1f})"
