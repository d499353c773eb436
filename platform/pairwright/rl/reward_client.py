"""A client of ``pairwright serve`` for RL loops: every reward that was asked for, or an error; never a None or a 0.0.

A server that is starting, restarted, full or lost is asked again until a deadline. A request that is wrong fails at
once. It imports the standard library and the package's exceptions, so that a rollout worker can use it as it is.
"""

import http.client
import json
import math
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from pairwright.addresses import shown_address
from pairwright.errors import ConfigError, RewardError

Prompt: TypeAlias = str | Sequence[dict[str, Any]]
Completion: TypeAlias = str | dict[str, Any]

TOKEN_VARIABLE = "PAIRWRIGHT_TOKEN"  # noqa: S105 - its name
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
_MAX_REASON = 300
_NO_ROUTE_YET = "Ping http://.../-/routes for available routes."
"""In the answer of Ray Serve's proxy while a deployment starts, or is deployed again."""


class RewardClient:
    """Asks a reward server.

    Args:
        url: of the server, such as ``http://127.0.0.1:8600``; several are asked in turn where one fails.
        token: its bearer token; that of ``PAIRWRIGHT_TOKEN`` if None.
        request_seconds: how long one try may take.
        deadline_seconds: how long all tries of one call may take together.
        num_connections: requests of ``rewards_of_groups`` at once.

    Raises:
        ConfigError: if a URL is not one of a server.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        token: str | None = None,
        *,
        request_seconds: float = 60,
        deadline_seconds: float = 300,
        num_connections: int = 16,
    ) -> None:
        self._urls = [_checked(one) for one in ([url] if isinstance(url, str) else url)]
        if not self._urls:
            raise ConfigError("expected the URL of a reward server, got none")
        self._token = token if token is not None else os.environ.get(TOKEN_VARIABLE)
        self._request_seconds = request_seconds
        self._deadline_seconds = deadline_seconds
        self._num_connections = num_connections

    def rewards(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float]:
        """Return the reward of each completion of a prompt, in their order.

        Args:
            prompt: text of a user's turn, or messages.
            completions: texts, or objects with ``text`` and what the chat template shows beside it.

        Raises:
            RewardError: if there is not a finite reward for each when the deadline is over, or the request is wrong.
        """
        completions = list(completions)
        reply = self._reply("/v1/rewards", {"prompt": prompt, "completions": completions})
        rewards = reply.get("rewards") if isinstance(reply, dict) else None
        if not isinstance(rewards, list) or len(rewards) != len(completions):
            found = len(rewards) if isinstance(rewards, list) else "none"
            raise RewardError(f"{self._shown}: expected {len(completions)} rewards, got {found}; is it pairwright's?")
        for index, reward in enumerate(rewards):
            if not isinstance(reward, int | float) or isinstance(reward, bool) or not math.isfinite(reward):
                raise RewardError(f"{self._shown}: the reward of completion {index} is {reward!r}, expected a number")
        return [float(reward) for reward in rewards]

    def rewards_of_groups(self, groups: Sequence[tuple[Prompt, Sequence[Completion]]]) -> list[list[float]]:
        """Return the rewards of several prompts' completions, asked for at once.

        Raises:
            RewardError: as ``rewards``.
        """
        if len(groups) < 2:
            return [self.rewards(prompt, completions) for prompt, completions in groups]
        with ThreadPoolExecutor(min(self._num_connections, len(groups))) as pool:
            return list(pool.map(lambda group: self.rewards(*group), groups))

    @property
    def _shown(self) -> str:
        return ", ".join(shown_address(url) for url in self._urls)

    def _reply(self, path: str, content: Any) -> Any:
        try:
            body = json.dumps(content, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise RewardError(f"{self._shown}: the request is no JSON: {error}") from None
        deadline = time.monotonic() + self._deadline_seconds
        tries = 0
        while True:
            url = self._urls[tries % len(self._urls)]
            left = deadline - time.monotonic()
            tries += 1
            status, text, retry_after = self._post(url + path, body, min(self._request_seconds, max(left, 0.1)))
            if status == 200:
                try:
                    return json.loads(text)
                except ValueError:
                    raise RewardError(f"{shown_address(url)}: the reply is no JSON: {text[:_MAX_REASON]!r}") from None
            reason = _reason(status, text)
            if status is not None and status < 500 and status not in (408, 429) and not _is_starting(status, text):
                raise RewardError(f"{shown_address(url)}: {reason}; the same request would be refused again")
            pause = max(retry_after, _pause(tries))
            if time.monotonic() + pause >= deadline:
                raise RewardError(
                    f"{self._shown}: no rewards after {tries} tries in {self._deadline_seconds:g} s; the last: "
                    f"{reason}; look at the server, or raise deadline_seconds"
                )
            time.sleep(pause)

    def _post(self, url: str, body: bytes, seconds: float) -> tuple[int | None, str, float]:
        """Return the status, None where no reply came, with the reply or the error, and seconds to wait."""
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=seconds)
        headers = {"Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            connection.request("POST", parts.path, body, headers)
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
            return response.status, text, _seconds(response.headers.get("Retry-After"))
        except (OSError, http.client.HTTPException) as error:
            return None, f"{type(error).__name__}: {error}", 0.0
        finally:
            connection.close()


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or parts.query:
        raise ConfigError(
            f"{shown_address(url)}: expected the URL of a reward server, such as http://127.0.0.1:8600, without a user"
        )
    return url.rstrip("/")


def _reason(status: int | None, text: str) -> str:
    if status is None:
        return text[:_MAX_REASON]
    try:
        message = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = text
    return f"status {status}: {str(message)[:_MAX_REASON]}"


def _is_starting(status: int, text: str) -> bool:
    """Return whether Ray Serve has no application at the path yet; a 404 of the server's own is final."""
    return status == 404 and _NO_ROUTE_YET in text


def _pause(tries: int) -> float:
    """Return the seconds before the next try: twice as long each time, less a random part, so that clients spread."""
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (tries - 1)) * random.uniform(0.5, 1)  # noqa: S311


def _seconds(header: str | None) -> float:
    try:
        return min(max(float(header or 0), 0.0), _LONGEST_PAUSE)
    except ValueError:
        return 0.0
