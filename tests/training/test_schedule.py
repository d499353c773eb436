"""The learning rate's schedule against the papers' words."""

import math

import pytest

from pairwright.config import OptimizerConfig
from pairwright.training.schedule import learning_rate_at

CONFIG = OptimizerConfig(learning_rate=2.0, warmup_ratio=0.1, min_lr_ratio=0.1)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 100, 1001])
def test_the_last_step_of_the_run_has_exactly_the_final_rate(num_steps: int) -> None:
    """Pitfall 11: with a length multiplied by the epochs twice the rate never gets there."""
    config = CONFIG.model_copy(update={"warmup_ratio": 0.0})
    last = learning_rate_at(num_steps - 1, num_steps, config)
    assert last == pytest.approx(0.2 if num_steps > 1 else 2.0, rel=1e-12)


def test_warm_up_climbs_linearly_to_the_peak() -> None:
    assert [learning_rate_at(step, 100, CONFIG) for step in range(10)] == pytest.approx(
        [0.2 * (i + 1) for i in range(10)]
    )
    assert learning_rate_at(10, 100, CONFIG) == pytest.approx(2.0)


def test_decay_is_a_cosine_and_never_rises() -> None:
    rates = [learning_rate_at(step, 100, CONFIG) for step in range(10, 100)]
    assert rates == sorted(rates, reverse=True)
    middle = 0.2 + 1.8 * 0.5 * (1 + math.cos(math.pi * 45 / 89))
    assert learning_rate_at(55, 100, CONFIG) == pytest.approx(middle, rel=1e-12)


def test_rate_is_a_function_of_the_step_alone() -> None:
    assert learning_rate_at(37, 100, CONFIG) == learning_rate_at(37, 100, CONFIG)
