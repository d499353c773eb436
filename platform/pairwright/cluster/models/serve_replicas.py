"""Runs the reward application in several replicas of a Ray Serve deployment, behind one address.

Each replica is the application of ``serving/`` with a model of its own. Ray Serve starts a lost one again; a request
that it held is answered with a 500, which our client sends again.
"""

import logging
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions
from starlette.applications import Starlette

from pairwright.cluster.session import ray_session
from pairwright.errors import ConfigError
from pairwright.serving.application import RewardApplication
from pairwright.serving.request_limits import RequestLimits
from pairwright.serving.reward_service import ServiceSettings, load_service
from pairwright.terminal import escaped, say

APPLICATION = "pairwright-rewards"
DRAIN_SECONDS = 30
_HEALTH_SECONDS = 5
_METRICS_SECONDS = 5
_COUNT = re.compile(r"(\d+)(?::(\d+))?")


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """How many replicas, and what each asks of requests."""

    least: int
    most: int
    token: str | None
    is_logging_requests: bool

    @staticmethod
    def counts(text: str) -> tuple[int, int]:
        """Return the least and most replicas that ``N`` or ``LEAST:MOST`` says.

        Raises:
            ConfigError: if it says nothing of the kind.
        """
        match = _COUNT.fullmatch(text)
        least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= least <= most:
            raise ConfigError(f"--replicas is {text}, expected N or LEAST:MOST, such as 2 or 1:8")
        return least, most


@serve.ingress()
class RewardReplica:
    """One replica: loads the models when Ray Serve makes it, and is ready after their self-checks."""

    def __init__(self, settings: ServiceSettings, replicas: ReplicaSettings) -> None:
        service = load_service(settings)
        application = RewardApplication(
            service,
            RequestLimits(replicas.token),
            is_logging_requests=replicas.is_logging_requests,
            replicas_metrics=self._all_metrics,
        )
        self._service = service
        self._asgi = application.asgi()

    def __serve_build_asgi_app__(self) -> Starlette:
        return self._asgi

    def own_metrics(self) -> tuple[str, str]:
        """Return this replica's name and its metrics, in Prometheus's text format."""
        return serve.get_replica_context().replica_id.unique_id, self._service.metrics.text().decode()

    async def _all_metrics(self) -> dict[str, str]:
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        answers = handle.broadcast("own_metrics")
        try:
            found = await answers.results_async(timeout_s=_METRICS_SECONDS, return_exceptions=True)
        except TimeoutError:  # one of them is being lost
            found = [self.own_metrics()]
        return dict(one for one in found if not isinstance(one, BaseException))


def serve_replicas(settings: ServiceSettings, replicas: ReplicaSettings, *, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, then let the replicas answer what they hold.

    On a cluster (``RAY_ADDRESS``) a proxy listens on the head node; else on this machine.

    Raises:
        ConfigError: if this machine has fewer CPUs or GPUs than replicas.
        ClusterError: if Ray cannot be started or reached, or no replica starts.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    kind = "GPU" if settings.use_gpu else "CPU"
    with ray_session(), _signals() as stopping:
        _check_resources(kind, replicas.least)
        serve.start(http_options=HTTPOptions(host=host, port=port), proxy_location="HeadOnly")
        try:
            serve.run(deployment_of(settings, replicas), name=APPLICATION, route_prefix="/")
            say(escaped(f"serving {', '.join(settings.models)} in {replicas.least} replicas at http://{host}:{port}"))
            stopping.wait()
        finally:
            serve.shutdown()


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM or SIGINT sets, in place of the handlers that Ray has set."""
    stopping = threading.Event()
    earlier = {number: signal.signal(number, lambda *_: stopping.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopping
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def deployment_of(settings: ServiceSettings, replicas: ReplicaSettings) -> Any:
    """Return the Ray Serve application, bound to its settings."""
    scaling: dict[str, Any] = {"num_replicas": replicas.least}
    if replicas.most > replicas.least:
        bounds = AutoscalingConfig(min_replicas=replicas.least, max_replicas=replicas.most)
        scaling = {"autoscaling_config": bounds}
    deployment: Any = serve.deployment(
        RewardReplica,
        # By default five: larger batches would never form.
        max_ongoing_requests=settings.max_queue,
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        ray_actor_options={"num_cpus": 1, "num_gpus": int(settings.use_gpu)},
        **scaling,
    )
    return deployment.bind(settings, replicas)


def _check_resources(kind: str, num_replicas: int) -> None:
    found = int(ray.cluster_resources().get(kind, 0))
    if num_replicas > found:
        raise ConfigError(
            f"--replicas asks for {num_replicas} and each takes a {kind}, but there are {found}; ask for fewer"
        )
