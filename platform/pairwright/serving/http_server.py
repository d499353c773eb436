"""Runs the application in this process with uvicorn: who may connect, idle and slow connections, draining on SIGTERM.

uvicorn closes a connection that is idle behind an answer, but waits for ever for the first request's headers, and its
limit on connections counts idle ones against everybody. Here an idle connection is closed after ``IDLE_SECONDS``, and
one connection too many closes the one that has been idle longest.
"""

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pairwright.errors import ConfigError
from pairwright.serving.application import RewardApplication
from pairwright.serving.request_limits import MIN_TOKEN_CHARACTERS

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "PAIRWRIGHT_TOKEN"  # noqa: S105 - its name
IDLE_SECONDS = 20.0
"""How long a connection may stay without a whole request's headers."""
MAX_CONNECTIONS = 1000
DRAIN_SECONDS = 30
_BACKLOG = 2048


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections there may be, and how long one may be idle."""

    max_connections: int = MAX_CONNECTIONS
    idle_seconds: float = IDLE_SECONDS


def read_token(token_file: str | None) -> str | None:
    """Return the bearer token of a file, or else of ``PAIRWRIGHT_TOKEN``; None if there is neither.

    Raises:
        ConfigError: if it cannot be read or is too short.
    """
    where = token_file or TOKEN_VARIABLE
    try:
        token = os.environ.get(TOKEN_VARIABLE) if token_file is None else Path(token_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: cannot be read ({error}); write a token of one line into it") from None
    if token is None:
        return None
    token = token.strip()
    if len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or not token.isprintable():
        raise ConfigError(
            f"{where}: the token has {len(token)} characters, expected at least {MIN_TOKEN_CHARACTERS} printable ASCII "
            "ones; make one with `openssl rand -hex 32`"
        )
    return token


def check_host(host: str, token: str | None, *, is_open: bool) -> None:
    """Refuse to listen off loopback without a token.

    Raises:
        ConfigError: unless a token is set or ``is_open`` says that none is wanted.
    """
    if token is None and not is_open and not _is_loopback(host):
        raise ConfigError(
            f"--host {host} can be reached from other machines, and there is no token; set --token-file or "
            f"{TOKEN_VARIABLE}, or say --no-auth"
        )


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 is any free one.

    Raises:
        ConfigError: if the address is wrong or taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error}; choose another --port") from None


def make_server(application: RewardApplication, limits: ConnectionLimits | None = None) -> uvicorn.Server:
    """Return a server, to be run with a socket that listens."""
    kept = Connections(limits or ConnectionLimits())
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its other lines say what ours say
    config = uvicorn.Config(
        application.asgi(),
        http=kept.protocol(),
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(kept.limits.idle_seconds),
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    return _Server(config, application, kept)


def serve(application: RewardApplication, listening: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT, then finish those that were accepted and return."""
    # uvicorn raises the signal again once it has ended; without handlers of ours that would kill this process.
    earlier = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        make_server(application).run(sockets=[listening])
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


class Connections:
    """The open connections of a server."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._open: dict[Any, float] = {}
        """Each protocol with the time since when it has been idle, oldest first."""

    def protocol(self) -> type[H11Protocol]:
        """Return uvicorn's protocol for a connection, as one that is counted here."""
        connections = self

        class CountedProtocol(H11Protocol):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                connections.add(self)

            def data_received(self, data: bytes) -> None:
                before = self.cycle
                super().data_received(data)
                if self.cycle is not before:  # a whole request's headers have come
                    connections.touch(self)

            def connection_lost(self, exc: Exception | None) -> None:
                connections.remove(self)
                super().connection_lost(exc)

        return CountedProtocol

    def add(self, connection: H11Protocol) -> None:
        """Count a connection; one too many closes the one that has been idle longest."""
        self._open[connection] = time.monotonic()
        if len(self._open) > self.limits.max_connections:
            self._mark_busy()
            idle = next((one for one in self._open if not _is_busy(one)), connection)
            self._close(idle)

    def touch(self, connection: H11Protocol) -> None:
        """Note that a request has begun."""
        if self._open.pop(connection, None) is not None:
            self._open[connection] = time.monotonic()

    def remove(self, connection: H11Protocol) -> None:
        """Forget a connection that was closed."""
        self._open.pop(connection, None)

    def close_idle(self) -> None:
        """Close the connections that have been idle for too long."""
        self._mark_busy()
        now = time.monotonic()
        for connection in [one for one, since in self._open.items() if now - since > self.limits.idle_seconds]:
            self._close(connection)

    def _mark_busy(self) -> None:
        """Move connections with a request in progress to the end, idle since now."""
        now = time.monotonic()
        for connection in [one for one in self._open if _is_busy(one)]:
            del self._open[connection]
            self._open[connection] = now

    def _close(self, connection: H11Protocol) -> None:
        self._open.pop(connection, None)
        connection.transport.close()


def _is_busy(connection: H11Protocol) -> bool:
    """Return whether a request's headers have arrived and its answer has not been sent."""
    return connection.cycle is not None and not connection.cycle.response_complete


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, application: RewardApplication, connections: Connections) -> None:
        super().__init__(config)
        self._application = application
        self._connections = connections
        self._last_check = time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        # Called ten times a second.
        if time.monotonic() - self._last_check > min(1.0, self._connections.limits.idle_seconds / 4):
            self._last_check = time.monotonic()
            self._connections.close_idle()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._application.is_draining = True
        logger.info("draining: requests that were accepted are answered, at most %d s", DRAIN_SECONDS)
        await asyncio.sleep(0)
        await super().shutdown(sockets)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
