"""Makes a driver notice a host that vanished without a word, so that its tasks run again elsewhere after a minute.

A host whose packets are dropped closes no connection. Ray 2.60 then leaves a task that was there waiting for an answer
until gRPC's keepalive gives up, after 300 and another 120 s (ray-project/ray#31640, #44692), though the head declared
the node dead long before; actors do not wait. Ray's servers take pings as often as this, also in a call without data.
Without this an ingestion ended 434 s after a host was cut off (2026-11-29, ``tests/cluster/test_several_hosts.py``).
"""

import os

_SETTINGS = {"RAY_grpc_client_keepalive_time_ms": "20000", "RAY_grpc_client_keepalive_timeout_ms": "40000"}
"""Ping after so long without data, and give up when no answer comes for so long."""


def set_keepalive() -> None:
    """Set both for this process, before ``ray.init``, unless the environment says otherwise."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
