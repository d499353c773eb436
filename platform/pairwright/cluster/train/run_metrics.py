"""Metrics of a run as Ray gauges, which each node's agent serves to Prometheus.

Counts are gauges too: a counter shows only once it has counted, and no alert can wait for that.
"""

import time
from urllib.parse import quote

from ray.util.metrics import Gauge

from pairwright.events import CheckpointCommitted, Event

_MARKS = "/:.-_~+=,@()!*$&;|[]{}<>^ "

GAUGES = {
    "step": "Optimizer steps taken",
    "loss": "Loss of the last step",
    "tokens_per_second": "Tokens per second of the last step",
    "checkpoint_age_seconds": "Seconds since the newest checkpoint was committed, or since the start",
    "checkpoint_stall_seconds": "For how long training stood still for the newest checkpoint",
    "restarts": "How often this command replaced lost workers",
    "skipped_steps": "Steps of the run skipped because loss or gradient was not finite",
}


def label_value(text: str) -> str:
    """Return a text as a value of a label: printable ASCII, different for different texts.

    Ray 2.60 raises UnicodeEncodeError at any other. All but letters, digits and common marks is percent-encoded.
    """
    return quote(text, safe=_MARKS, errors="surrogatepass")


class RunMetrics:
    """The metrics of one run, labelled with its output: ``ray_pairwright_training_*{run="..."}`` in Prometheus."""

    def __init__(self, run: str) -> None:
        self.values: dict[str, float] = {"restarts": 0, "skipped_steps": 0, "checkpoint_stall_seconds": 0.0}
        self._committed_at = time.monotonic()
        self._gauges = {
            name: Gauge(f"pairwright_training_{name}", description=text, tag_keys=("run",))
            for name, text in GAUGES.items()
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": label_value(run)})
        self.publish()

    def add(self, event: Event) -> None:
        """Take the metrics of an event."""
        self.values |= event.metrics
        self.values["restarts"] += event.counts_as_restart
        if isinstance(event, CheckpointCommitted):
            self._committed_at = time.monotonic()

    def publish(self) -> None:
        """Set the gauges."""
        self.values["checkpoint_age_seconds"] = time.monotonic() - self._committed_at
        for name, value in self.values.items():
            self._gauges[name].set(value)
