"""Retry with exponential backoff for storage errors."""

import time
from collections.abc import Callable, Iterator

from pairwright.errors import StoreError

FIRST_DELAY_SECONDS = 1.0
MAX_DELAY_SECONDS = 60.0


def backoff_delays(retry_seconds: float) -> Iterator[float]:
    """Yield the delay, in seconds, after each failed try; ends when the retry budget is used up.

    Delays double from one second to a minute and add up to the budget. No clock is read, so ranks that try together
    also wait, and give up, together.
    """
    left, delay = retry_seconds, FIRST_DELAY_SECONDS
    while left > 0:
        yield min(delay, left)
        left -= delay
        delay = min(2 * delay, MAX_DELAY_SECONDS)


def retry_with_backoff(store: Callable[[], None], retry_seconds: float, on_retry: Callable[[str, float], None]) -> None:
    """Call ``store``, and retry with exponential backoff after errors of the disk or the storage.

    Args:
        store: stores it; called again after an OSError or a StoreError.
        retry_seconds: retry budget, in seconds.
        on_retry: called after a failed try, with the reason and the seconds until the next try.

    Raises:
        StoreError: if the last try failed too.
    """
    for delay in backoff_delays(retry_seconds):
        try:
            return store()
        except (OSError, StoreError) as error:
            on_retry(str(error).partition("\n")[0], delay)
        time.sleep(delay)
    try:
        return store()
    except OSError as error:
        raise StoreError(str(error).partition("\n")[0]) from None
