"""How long storage that refuses is asked again: seconds of patience -> the pauses between the tries."""

import time
from collections.abc import Callable, Iterator

from pairwright.errors import StoreError

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


def with_patience(store: Callable[[], None], patience_seconds: float, refused: Callable[[str, float], None]) -> None:
    """Store something, trying again where the disk or the storage refuses it.

    Args:
        store: stores it; called again after an OSError or a StoreError.
        patience_seconds: how long in all.
        refused: told why a try failed, and how many seconds later the next one follows.

    Raises:
        StoreError: if the last try failed too.
    """
    for pause in pauses(patience_seconds):
        try:
            return store()
        except (OSError, StoreError) as error:
            refused(str(error).partition("\n")[0], pause)
        time.sleep(pause)
    try:
        return store()
    except OSError as error:
        raise StoreError(str(error).partition("\n")[0]) from None
