"""The ASGI application: routes of all wire formats, errors as JSON, health, metrics and the models' cards.

It is the same in one process and in each replica of Ray Serve.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from pairwright import __version__
from pairwright.errors import DataError, PairwrightError
from pairwright.serving import wire_openai, wire_rewards, wire_tei
from pairwright.serving.request_limits import RefusedError, RequestLimits
from pairwright.serving.reward_service import QueueFullError, RewardService, ServedModel
from pairwright.serving.serving_metrics import by_replica
from pairwright.serving.wire_format import Answer, Call, NotJsonError

logger = logging.getLogger(__name__)

LOG_SECONDS = 60.0
_CLIENT_CLOSED = 499
"""nginx's status for a client that went away; nobody receives it."""
_DRAINING = "this server is shutting down; ask another one"


class _WhichRerank(msgspec.Struct):
    texts: Any = None


def _rerank(body: bytes) -> Call:
    """Return a call of ``/rerank``, a path that vLLM and TEI share: the latter has texts, the former documents."""
    try:
        is_tei = msgspec.json.decode(body, type=_WhichRerank).texts is not None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        is_tei = False  # the format's own decoder says what is wrong
    return wire_tei.rerank(body) if is_tei else wire_openai.rerank(body)


FORMATS: Mapping[str, Callable[[bytes], Call]] = {
    "/v1/rewards": wire_rewards.rewards,
    "/get_reward": wire_rewards.get_reward,
    "/classify": wire_openai.classify,
    "/pooling": wire_openai.pooling,
    "/score": wire_openai.score,
    "/v1/score": wire_openai.score,
    "/rerank": _rerank,
    "/v1/rerank": wire_openai.rerank,
    "/v1/embeddings": wire_openai.embeddings,
    "/v1/score/evaluation": wire_rewards.score_evaluation,
    "/predict": wire_tei.predict,
}
"""Path of each format and its decoder; all are POST."""


class RewardApplication:
    """Handlers of one server.

    Args:
        service: answers calls.
        limits: on requests.
        is_logging_requests: whether each request is a line of the log.
        replicas_metrics: returns the metrics of each replica behind the address, by its name; None for one process.
    """

    def __init__(
        self,
        service: RewardService,
        limits: RequestLimits,
        *,
        is_logging_requests: bool = False,
        replicas_metrics: Callable[[], Awaitable[Mapping[str, str]]] | None = None,
    ) -> None:
        self._service = service
        self._limits = limits
        self._is_logging_requests = is_logging_requests
        self._replicas_metrics = replicas_metrics
        self._started = int(time.time())
        self._computing: asyncio.Task[None] | None = None
        self.is_draining = False

    def asgi(self) -> Starlette:
        """Return the application; it computes from its lifespan's start to its end."""
        routes = [Route(path, self._scored(path, parse), methods=["POST"]) for path, parse in FORMATS.items()]
        routes += [
            Route("/health", self._health),
            Route("/metrics", self._guarded(self._metrics)),
            Route("/v1/models", self._guarded(self._models)),
        ]
        handlers: Any = {HTTPException: _of_http}
        return Starlette(routes=routes, lifespan=self._lifespan, exception_handlers=handlers)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._computing = asyncio.create_task(self._service.run())
        tasks = [self._computing, asyncio.create_task(self._log_rates())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _scored(self, path: str, parse: Callable[[bytes], Call]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            started = time.monotonic()
            response = await self._answered(request, parse)
            seconds = time.monotonic() - started
            self._service.metrics.count_request(path, response.status_code, seconds)
            if self._is_logging_requests:
                logger.info("%s %d %.1f ms", path, response.status_code, 1000 * seconds)
            return response

        return handle

    async def _answered(self, request: Request, parse: Callable[[bytes], Call]) -> Response:
        try:
            self._limits.check_token(request)
            if self.is_draining:
                raise RefusedError(503, _DRAINING, {"Retry-After": "1"})
            body = await self._limits.read_body(request)
        except RefusedError as error:
            return _error(error.status, str(error), error.headers)
        except ClientDisconnect:
            self._service.metrics.count_gone()
            return Response(status_code=_CLIENT_CLOSED)
        try:
            call = parse(body)
            answer = await _unless_gone(request, self._service.answer(call))
            if answer is None:
                self._service.metrics.count_gone()
                return Response(status_code=_CLIENT_CLOSED)
            return _json(call.reply(answer))
        except NotJsonError as error:
            return _error(400, str(error))
        except DataError as error:
            return _error(422, str(error))
        except QueueFullError as error:
            wait = error.retry_after_seconds
            message = f"more than {self._service.max_queue:,} texts wait; try again in {wait} s"
            return _error(429, message, {"Retry-After": str(wait)})
        except PairwrightError as error:
            logger.error("%s", error)
            return _error(500, str(error))
        except Exception:
            logger.exception("a request failed")
            return _error(500, "an unexpected error; the server's log has it")
        finally:
            self._limits.release(len(body))

    def _guarded(self, handler: Callable[[], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            try:
                self._limits.check_token(request)
            except RefusedError as error:
                return _error(error.status, str(error), error.headers)
            return await handler()

        return handle

    async def _health(self, _: Request) -> Response:
        """Answer 200 while the server takes requests: it starts only after the models' self-checks."""
        if self.is_draining:
            return _json({"status": "draining"}, 503)
        if self._computing is None or self._computing.done():
            return _json({"status": "failed"}, 503)
        return _json({"status": "ready"})

    async def _metrics(self) -> Response:
        own = self._service.metrics.text()
        text = own if self._replicas_metrics is None else by_replica(await self._replicas_metrics())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _models(self) -> Response:
        replicas = {} if self._replicas_metrics is None else {"replicas": sorted(await self._replicas_metrics())}
        return _json(self.cards() | replicas)

    def cards(self) -> dict[str, Any]:
        """Return what ``/v1/models`` says: each model's identity and limits, and how they are served."""
        cards = [_card(model, self._started) for model in self._service.models]
        shown = {"object": "list", "data": cards, "served_as": self._service.name, "pairwright": __version__}
        return {**shown, "normalized": self._service.is_normalized, "max_queue": self._service.max_queue}

    async def _log_rates(self) -> None:
        while True:
            await asyncio.sleep(LOG_SECONDS)
            rates = self._service.metrics.reset_rates()
            if rates.requests:
                logger.info("%s", rates.line(LOG_SECONDS))


def _card(model: ServedModel, created: int) -> dict[str, Any]:
    scorer = model.scorer
    return {
        "id": model.name,
        "object": "model",
        "created": created,
        "owned_by": "pairwright",
        "digest": scorer.identity.digest,
        "dtype": scorer.identity.dtype,
        "layout": scorer.layout,
        "exact": scorer.is_exact,
        "max_model_len": scorer.rules.max_length,
        "overlong": scorer.rules.overlong,
        "special_in_text": scorer.rules.special_in_text,
        "micro_batch_tokens": scorer.micro_batch_tokens,
        "data": msgspec.to_builtins(scorer.trained_on),
        "normalization": msgspec.to_builtins(scorer.rules.normalization),
    }


async def _unless_gone(request: Request, work: Any) -> Answer | None:
    """Return the answer, or None if the client went away first; the work is cancelled then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for one in (task, gone):
            one.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error in the shape that OpenAI's clients read."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return _json({"error": {"message": message, "type": kind, "code": status}}, status, headers)


async def _of_http(_: Request, error: HTTPException) -> Response:
    known = ", ".join(FORMATS)
    message = f"no such path; there are {known}" if error.status_code == 404 else str(error.detail)
    return _error(error.status_code, message, error.headers)
