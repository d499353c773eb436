"""A step that could not be taken -> the run stops, or goes on without it: as configured, and up to a cap.

The cap is over the whole run, so the steps skipped so far travel in its checkpoints. Their numbers, not a count: so
one who reads ``summary.json`` can look at what the groups of these steps have in common.
"""

from pairwright.config import TrainingConfig
from pairwright.errors import NotFiniteError, TrainingError


def with_skipped(
    skipped: tuple[int, ...], step: int, error: NotFiniteError, training: TrainingConfig
) -> tuple[int, ...]:
    """Return the skipped steps with one more, if the configuration lets the run go on without it.

    Raises:
        TrainingError: if it does not, or not so often.
    """
    if training.on_non_finite == "stop":
        raise error
    if len(skipped) == training.max_skipped_steps:
        raise TrainingError(
            f"{error}. Steps {', '.join(map(str, skipped))} were skipped for that before, as many as "
            f"training.max_skipped_steps allows ({training.max_skipped_steps})"
        )
    return (*skipped, step)
