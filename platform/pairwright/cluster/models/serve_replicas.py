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
_COUNT = re.compile(r"(\d+)(?::(\d+))?")


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """How many replicas, and how they are reached."""

    least: int
    most: int
    host: str
    port: int
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
        application = RewardApplication(
            load_service(settings),
            RequestLimits(replicas.token),
            is_logging_requests=replicas.is_logging_requests,
        )
        self._asgi = application.asgi()

    def __serve_build_asgi_app__(self) -> Starlette:
        return self._asgi


def serve_replicas(settings: ServiceSettings, replicas: ReplicaSettings) -> None:
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
        serve.start(http_options=HTTPOptions(host=replicas.host, port=replicas.port), proxy_location="HeadOnly")
        try:
            serve.run(reward_deployment(settings, replicas), name=APPLICATION, route_prefix="/")
            shown = f"{replicas.host}:{replicas.port}"
            say(escaped(f"serving {', '.join(settings.models)} in {replicas.least} replicas at http://{shown}"))
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


def reward_deployment(settings: ServiceSettings, replicas: ReplicaSettings) -> Any:
    """Return the deployment of the replicas, bound to its settings: what Ray Serve runs."""
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
