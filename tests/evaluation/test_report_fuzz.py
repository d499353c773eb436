"""A report is whole for any evaluation, however small or odd: no crash, every number finite, in its interval."""

from typing import Any

import msgspec
import numpy as np
import pytest

from evaluations import DATA, IDENTITY
from pair_groups import Judged, arrays_of, drawn_groups
from pairwright.evaluation.evaluation_report import Measured, build_report, report_json
from pairwright.evaluation.reports.report_schema import Report
from pairwright.evaluation.reports.report_text import format_report

ODD = {
    "one pair": [Judged(0, [[1, 2]], [1.0, 0.0])],
    "one prompt": [Judged(0, [[1, 2, 3]], [1.0, 0.0, 2.0]) for _ in range(5)],
    "constant rewards": [Judged(n, [[1, 2, 3, 3]], [7.0] * 4) for n in range(30)],
    "always right": [Judged(n, [[1, 2]], [9.0, -9.0]) for n in range(30)],
    "always wrong": [Judged(n, [[1, 2]], [-9.0, 9.0]) for n in range(30)],
    "huge rewards": [Judged(n, [[1, 2, 3]], [3e30, -3e30, 0.0]) for n in range(12)],
    "tiny rewards": [Judged(n, [[1, 2, 3]], [3e-30, -3e-30, 0.0]) for n in range(12)],
    "empty texts": [Judged(n, [[2, 1]], [0.0, 1.0], lengths=[0, 0], prompt_characters=0) for n in range(25)],
    "annotators who contradict": [Judged(n, [[1, 2], [2, 1]], [0.5, 0.1], annotators=("a", "b")) for n in range(25)],
    "margins": [Judged(n, [[1, 2, 3]], [2.0, 1.0, 3.0], margins={(0, 1): n % 5, (1, 2): 0.5}) for n in range(25)],
    "hostile names": [Judged(n, [[1, 2]], [1.0, 0.0], subsets=("[red]\x1b[2J", "\u202ex")) for n in range(25)],
}


def numbers_in(value: Any, path: str = "$") -> dict[str, float]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in numbers_in(inner, f"{path}.{key}").items()}
    if isinstance(value, list):
        return {k: v for at, inner in enumerate(value) for k, v in numbers_in(inner, f"{path}[{at}]").items()}
    return {path: float(value)} if isinstance(value, int | float) else {}


def check_estimates(value: Any, path: str = "$") -> None:
    """Every interval holds its value."""
    if isinstance(value, dict):
        if value.keys() == {"value", "interval"} and value["interval"] is not None:
            low, high = value["interval"]
            assert low <= value["value"] <= high, path
        for key, inner in value.items():
            check_estimates(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            check_estimates(inner, f"{path}[{at}]")


def check(groups: list[Judged]) -> dict[str, Any]:
    report, _ = build_report(Measured(arrays_of(groups)), IDENTITY, DATA)
    assert msgspec.json.decode(report_json(report), type=Report)
    assert all(np.isfinite(number) for number in numbers_in(report).values())
    check_estimates(report)
    text = format_report(report)
    assert "\x1b" not in text
    assert "nan" not in text.lower().split()
    return report


@pytest.mark.parametrize("name", list(ODD))
def test_an_odd_evaluation_has_a_whole_report(name: str) -> None:
    check(ODD[name])


def test_the_report_does_not_depend_on_the_order_of_the_annotations() -> None:
    groups = drawn_groups(np.random.default_rng(1), 30)
    one = check(groups)
    for group in groups:
        group.rankings = group.rankings[::-1]
    other = check(groups)
    assert numbers_in(one) == pytest.approx(numbers_in(other), rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_random_evaluations_have_whole_reports(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = drawn_groups(rng, int(rng.integers(1, 60)), groups_per_prompt=int(rng.integers(1, 4)))
    report = check(groups)
    assert sum(part["pairs"] for part in report["by_subset"].values()) == report["overall"]["pairs"]
    assert sum(part["pairs"] for part in report["by_length"].values()) == report["overall"]["pairs"]
