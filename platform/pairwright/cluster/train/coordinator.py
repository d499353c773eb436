"""The one small actor between ranks and driver: records go up through it, what the driver asks for comes down.

Apart from progress.py, so that a rank need not import what draws bars and writes event files.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import ray

from pairwright.cluster.train.heartbeat import Beat


@dataclass(frozen=True, slots=True)
class Asked:
    """What the driver asks of the ranks."""

    stop: str | None = None
    """The signal for which the run is to stop."""
    num_saves: int = 0
    """How many checkpoints were asked for so far."""
    save: str = ""
    """Why the last one."""


class Board:
    """Holds the records that the driver has not taken yet."""

    def __init__(self) -> None:
        self._records: list[dict[str, Any]] = []
        self._asked = Asked()
        self._beats: dict[int, Beat] = {}
        self._ended: set[str] = set()
        self._refusal: str | None = None

    @ray.method
    def refuse(self, reason: str) -> None:
        """Keep why no further start of the ranks can help."""
        self._refusal = self._refusal or reason

    @ray.method
    def refusal(self) -> str | None:
        return self._refusal

    @ray.method
    def beat(self, beat: Beat) -> bool:
        """Take a rank's beat and return whether its group is to end."""
        self._beats[beat.rank] = beat
        return beat.attempt in self._ended

    @ray.method
    def beats(self) -> list[Beat]:
        """Return the newest beat of each rank."""
        return list(self._beats.values())

    @ray.method
    def end(self, attempt: str) -> None:
        """Have the ranks of a group end themselves."""
        self._ended.add(attempt)

    @ray.method
    def put(self, record: dict[str, Any]) -> Asked:
        """Keep a record; the answer is what the driver asks for."""
        self._records.append(record | {"time": round(time.time(), 3)})
        return self._asked

    @ray.method
    def ask_to_stop(self, signal_name: str) -> None:
        self._asked = replace(self._asked, stop=signal_name)

    @ray.method
    def ask_to_save(self, reason: str) -> None:
        self._asked = replace(self._asked, num_saves=self._asked.num_saves + 1, save=reason)

    @ray.method
    def take(self) -> list[dict[str, Any]]:
        taken, self._records = self._records, []
        return taken
