"""Limits on what a client may send: a token, a body's size and the time to send it, and bytes of all bodies at once."""

import asyncio
import hmac
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import Request

MAX_BODY_BYTES = 8 << 20
MAX_BODIES_BYTES = 256 << 20
"""Of all requests that are being read or answered."""
BODY_SECONDS = 30.0
MIN_TOKEN_CHARACTERS = 16


class RefusedError(Exception):
    """A request that is answered with an error status before it is parsed."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


@dataclass(slots=True)
class RequestLimits:
    """Limits of one server, and the bytes that it holds."""

    token: str | None
    """Bearer token that every request but ``/health`` must bring; None for none."""
    max_body_bytes: int = MAX_BODY_BYTES
    body_seconds: float = BODY_SECONDS
    max_bodies_bytes: int = MAX_BODIES_BYTES
    _num_bytes: int = 0

    def check_token(self, request: Request) -> None:
        """Refuse a request without the token; the comparison takes the same time for every wrong one.

        Raises:
            RefusedError: 401.
        """
        if self.token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode(), self.token.encode())
        if scheme.lower() != "bearer" or not is_right:
            raise RefusedError(401, "expected the header `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"})

    async def read_body(self, request: Request) -> bytes:
        """Return a request's body; ``release`` it afterwards.

        Raises:
            RefusedError: 413 if it is too large, 408 if it comes too slowly, 429 if too much is in memory.
        """
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > self.max_body_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.body_seconds):
                async for part in _stream(request):
                    size += len(part)
                    self._num_bytes += len(part)
                    if size > self.max_body_bytes:
                        raise self._too_large()
                    if self._num_bytes > self.max_bodies_bytes:
                        raise RefusedError(429, "too many bytes of requests are in memory", {"Retry-After": "1"})
                    parts.append(part)
        except TimeoutError:
            self.release(size)
            message = f"the body took more than {self.body_seconds:g} s to arrive"
            raise RefusedError(408, message, {"Connection": "close"}) from None
        except BaseException:
            self.release(size)
            raise
        return b"".join(parts)

    def release(self, num_bytes: int) -> None:
        """Take a body's bytes off those in memory."""
        self._num_bytes -= num_bytes

    def _too_large(self) -> RefusedError:
        message = f"the body is larger than {self.max_body_bytes:,} bytes, which is the limit; send several requests"
        return RefusedError(413, message, {"Connection": "close"})


async def _stream(request: Request) -> AsyncIterator[bytes]:
    async for part in request.stream():
        if part:
            yield part
