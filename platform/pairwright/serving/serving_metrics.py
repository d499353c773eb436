"""Counts what a server does, as Prometheus metrics and as one line a minute."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1)


@dataclass(slots=True)
class Rates:
    """Sums since the last line of the log."""

    requests: int = 0
    refused: int = 0
    texts: int = 0
    tokens: int = 0
    computed: int = 0

    def line(self, seconds: float) -> str:
        """Return the line of the log."""
        saved = 0 if not self.tokens else 100 * (self.tokens - self.computed) / self.tokens
        return (
            f"{self.requests / seconds:,.1f} requests/s, {self.texts / seconds:,.1f} rewards/s, "
            f"{self.computed / seconds:,.0f} tokens/s; {saved:.0f} % of all tokens saved by shared prompts, "
            f"{self.refused:,} requests refused"
        )


class ServingMetrics:
    """The metrics of one server; one instance a process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.rates = Rates()
        self._requests = self._counter("requests", "Requests answered.", "path", "status")
        self._texts = self._counter("texts", "Texts whose reward was computed.")
        self._tokens = self._counter("tokens", "Tokens of these texts, each text with its prompt.")
        self._computed = self._counter("tokens_computed", "Tokens that went through the model.")
        self._saved = self._counter("prompt_tokens_saved", "Tokens of prompts that were shared, not computed again.")
        self._cut = self._counter("texts_cut", "Texts over the limit that the model's rule cut.")
        self._completed = self._counter("texts_completed", "Rendered texts that lacked the template's end.")
        self._gone = self._counter("clients_gone", "Requests whose client went away before the answer.")
        self._waiting = Gauge("pairwright_queue_texts", "Texts accepted and not yet answered.", registry=self._registry)
        self._latency = self._histogram("request_seconds", "From a request's headers to its answer.", _SECONDS, "path")
        self._forward = self._histogram("forward_seconds", "One forward pass.", _SECONDS)
        self._fill = self._histogram(
            "batch_fill", "Tokens of a forward pass as a share of what it is filled to.", _SHARES
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"pairwright_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"pairwright_{name}", text, labels, buckets=buckets, registry=self._registry)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(path, str(status)).inc()
        self._latency.labels(path).observe(seconds)
        self.rates.requests += 1
        self.rates.refused += status >= 400

    def count_gone(self) -> None:
        """Count a request whose client went away."""
        self._gone.inc()

    def count_texts(self, num_cut: int, num_completed: int) -> None:
        """Count what was done to texts as they were tokenised."""
        self._cut.inc(num_cut)
        self._completed.inc(num_completed)

    def count_forward(self, num_texts: int, num_given: int, num_computed: int, seconds: float, filled: int) -> None:
        """Count a forward pass: its texts, their tokens, and the tokens that were computed."""
        self._texts.inc(num_texts)
        self._tokens.inc(num_given)
        self._computed.inc(num_computed)
        self._saved.inc(num_given - num_computed)
        self._forward.observe(seconds)
        self._fill.observe(min(1.0, num_computed / filled))
        self.rates.texts += num_texts
        self.rates.tokens += num_given
        self.rates.computed += num_computed

    def set_waiting(self, num_texts: int) -> None:
        """Set the number of texts that wait for their reward."""
        self._waiting.set(num_texts)

    def reset_rates(self) -> Rates:
        """Return the sums since the last call, and start anew."""
        found, self.rates = self.rates, Rates()
        return found

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)


@dataclass(slots=True)
class _Family:
    """One metric: its comment lines, and its samples of every replica."""

    comments: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)


def by_replica(texts: Mapping[str, str]) -> bytes:
    """Return the metrics of several replicas as one text, each sample with the label ``replica``.

    Args:
        texts: each replica's metrics in Prometheus's text format, by the replica's name.
    """
    families: dict[str, _Family] = {}
    for replica, text in sorted(texts.items()):
        family = _Family()
        for line in text.splitlines():
            if line.startswith("#"):
                family = families.setdefault(line.split()[2], _Family())
                if line not in family.comments:
                    family.comments.append(line)
                continue
            name, brace, others = line.partition("{")
            head, _, value = line.partition(" ")
            own = f'replica="{replica}"'
            family.samples.append(f"{name}{{{own},{others}" if brace else f"{head}{{{own}}} {value}")
    lines = [line for family in families.values() for line in (*family.comments, *family.samples)]
    return "".join(f"{line}\n" for line in lines).encode()
