"""How long storage that refuses is asked again: seconds of patience -> the pauses between the tries."""

from collections.abc import Iterator

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


def pauses(patience_seconds: float) -> Iterator[float]:
    """Yield the pause, in seconds, after each try that failed; it ends when there is no patience left.

    They double from one second to a minute and add up to the patience. No clock is read, so ranks that try together
    also pause, and give up, together.
    """
    left, pause = patience_seconds, FIRST_PAUSE_SECONDS
    while left > 0:
        yield min(pause, left)
        left -= pause
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
