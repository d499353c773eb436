"""The table of a sweep: mean, least and most over seeds, best setting first."""

import statistics

import msgspec
import pytest

from pairwright.evaluation.reports.sweep_table import SweepRun, format_sweep, is_sweep, read_sweep, sweep_of


def run(rate: float, seed: int, accuracy: float | None, log_loss: float | None = 0.5) -> SweepRun:
    setting = {"optimizer.learning_rate": rate}
    if accuracy is None:
        return SweepRun(name="x", setting=setting, seed=seed, output="o", state="failed", error="loss is nan")
    return SweepRun(
        name="x", setting=setting, seed=seed, output="o", state="finished", accuracy=accuracy, log_loss=log_loss
    )


def test_a_setting_has_mean_least_and_most_of_its_seeds_and_the_best_stands_first() -> None:
    accuracies = [0.70, 0.75, 0.77]
    sweep = sweep_of([run(1e-5, 0, 0.6), *(run(3e-5, seed, value) for seed, value in enumerate(accuracies))], "d")
    best, other = sweep.settings
    assert best.setting == {"optimizer.learning_rate": 3e-5}
    assert best.accuracy is not None
    assert other.accuracy is not None
    assert (best.accuracy.runs, best.accuracy.lowest, best.accuracy.highest) == (3, 0.70, 0.77)
    assert best.accuracy.mean == pytest.approx(statistics.mean(accuracies))
    assert best.accuracy.standard_deviation == pytest.approx(statistics.stdev(accuracies))
    assert (other.accuracy.mean, other.accuracy.standard_deviation) == (0.6, None)
    text = format_sweep(sweep)
    assert "74.0 % (70.0 to 77.0)" in text
    assert "the best two settings differ by 14.0 points, seeds of one setting by up to 7.0" in text


def test_a_failed_run_counts_in_no_mean_and_is_named() -> None:
    sweep = sweep_of([run(1e-5, 0, None), run(3e-5, 0, 0.7), run(3e-5, 1, None)], "d")
    assert [one.accuracy and one.accuracy.runs for one in sweep.settings] == [1, None]
    assert format_sweep(sweep).count("failed: x: loss is nan") == 2


def test_a_table_is_read_again_and_nothing_else_is_taken_for_one() -> None:
    sweep = sweep_of([run(1e-5, 0, 0.6)], "d")
    assert read_sweep(msgspec.json.encode(sweep)) == sweep
    assert not is_sweep(b'{"format_version": 1}')
    assert not is_sweep(b"\xff")
