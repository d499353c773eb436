"""Runs a reward server in a thread, on loopback and a free port: the real application, sockets and all."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pairwright.serving.application import RewardApplication
from pairwright.serving.http_server import ConnectionLimits, listen, make_server
from pairwright.serving.request_limits import RequestLimits
from pairwright.serving.reward_service import RewardService, ServiceSettings, load_service


def service_of(*models: Path, **changes: Any) -> RewardService:
    settings: dict[str, Any] = {
        "models": tuple(map(str, models)),
        "combine": "mean",
        "is_normalized": False,
        "micro_batch_tokens": None,
        "max_wait_seconds": 0.005,
        "max_queue": 1000,
        "is_exact": False,
        "use_gpu": False,
    }
    return load_service(ServiceSettings(**settings | changes))


@contextmanager
def running(
    service: RewardService, limits: RequestLimits | None = None, connections: ConnectionLimits | None = None
) -> Iterator[str]:
    """Yield the address of a server."""
    listening = listen("127.0.0.1", 0)
    application = RewardApplication(service, limits or RequestLimits(None))
    server = make_server(application, connections)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


def asked(url: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Return the status and the decoded reply to a POST of JSON or bytes, or to a GET without a body."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, _decoded(reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _decoded(error.read())


def free_port() -> int:
    """Return a port that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def metric(url: str, name: str) -> float:
    """Return the value of a metric without labels."""
    _, text = asked(f"{url}/metrics")
    lines = [line.split() for line in str(text).splitlines()]
    return next(float(line[1]) for line in lines if line[0] == name)


def _decoded(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode()
