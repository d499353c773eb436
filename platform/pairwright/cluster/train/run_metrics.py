"""A run's records -> figures of its health, as Ray metrics: each node's agent serves them to Prometheus.

Gauges throughout, the counts too: a counter shows only once it has counted, and no alert can wait for that.
"""

import time
from typing import Any
from urllib.parse import quote

from ray.util.metrics import Gauge

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


class Health:
    """The health of one run, by its output; Prometheus sees ``ray_pairwright_training_*{run="..."}``."""

    def __init__(self, run: str) -> None:
        self.figures: dict[str, float] = {"restarts": 0, "skipped_steps": 0, "checkpoint_stall_seconds": 0.0}
        self._committed_at = time.monotonic()
        self._gauges = {
            name: Gauge(f"pairwright_training_{name}", description=text, tag_keys=("run",))
            for name, text in GAUGES.items()
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": label_value(run)})
        self.tell()

    def take(self, record: dict[str, Any]) -> None:
        """Take what a record says of the run's health."""
        match record["kind"]:
            case "step":
                self.figures |= {name: record[name] for name in ("step", "loss", "tokens_per_second")}
            case "skipped":
                self.figures |= {"step": record["step"], "skipped_steps": record["num_skipped"]}
            case "restart":
                self.figures["restarts"] += 1
            case "saved":
                self.figures["checkpoint_stall_seconds"] = record["waited_seconds"] + record["written_seconds"]
            case "committed":
                self._committed_at = time.monotonic()

    def tell(self) -> None:
        """Set the gauges."""
        self.figures["checkpoint_age_seconds"] = time.monotonic() - self._committed_at
        for name, value in self.figures.items():
            self._gauges[name].set(value)
