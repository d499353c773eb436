"""Which steps a run may leave out, and when it stops."""

import pytest

from pairwright.config import TrainingConfig
from pairwright.errors import NotFiniteError, TrainingError
from pairwright.training.loop import with_skipped

ERROR = NotFiniteError("step 9: the loss is not finite in the micro-batches with groups 0123")


def test_by_default_the_first_one_stops_the_run() -> None:
    with pytest.raises(NotFiniteError, match="groups 0123"):
        with_skipped((), 9, ERROR, TrainingConfig())


def test_as_many_as_allowed_are_skipped_over_all_starts_and_one_more_stops_the_run_naming_them() -> None:
    training = TrainingConfig(on_non_finite="skip", max_skipped_steps=3)
    before_a_restart = with_skipped(with_skipped((), 2, ERROR, training), 5, ERROR, training)
    after_it = with_skipped(before_a_restart, 9, ERROR, training)
    assert after_it == (2, 5, 9)
    with pytest.raises(TrainingError, match=r"groups 0123.*Steps 2, 5, 9 .*max_skipped_steps allows \(3\)"):
        with_skipped(after_it, 10, ERROR, training)
