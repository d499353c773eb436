"""Wire formats of vLLM and SGLang, in the style of OpenAI's: classify, pooling, score, rerank, embeddings.

``input`` is text that is rendered already, or its token ids; ``messages`` are rendered with the model's template.
``score`` and ``rerank`` take a query and documents, which are read as a prompt and its completions. Shapes as of vLLM
0.32 and as verl's clients read them. Rewards are raw: a request for a sigmoid is refused.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from pairwright.errors import DataError
from pairwright.serving.wire_format import (
    Answer,
    Call,
    Item,
    Tokens,
    conversation,
    decode,
    refuse_set,
    texts_or_tokens,
)

_RAW = "expected false or null, got true; this server gives raw rewards, and a sigmoid would be another score"
_ROUNDED = 'expected "float" or null; this server sends floats'


class _Common(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Fields that every format takes."""

    model: str | None = None
    user: str | None = None
    request_id: str | None = None
    priority: int = 0
    use_activation: bool | None = None
    activation: bool | None = None
    """Its older name."""
    truncate_prompt_tokens: int | None = None
    truncation_side: str | None = None
    encoding_format: str | None = None


class PoolingRequest(_Common, kw_only=True):
    """What classify, pooling and embeddings take."""

    input: str | list[str | int | list[int]] | None = None
    messages: list[dict[str, Any]] | None = None
    tools: Any = None
    add_special_tokens: bool | None = None
    """Without effect: BOS is there exactly once either way."""
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    dimensions: int | None = None
    task: str | None = None


class ScoreRequestBody(_Common, kw_only=True):
    """What vLLM's ``/score`` takes, under its present names and its older ones."""

    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None


class RerankRequest(_Common, kw_only=True):
    """What vLLM's ``/rerank`` takes."""

    query: str
    documents: list[str]
    top_n: int = 0


def classify(body: bytes) -> Call:
    """``POST /classify`` of vLLM, which verl's reward loop posts to as well."""

    def data(answer: Answer) -> list[dict[str, Any]]:
        return [
            {"index": index, "label": "reward", "probs": [reward], "num_classes": 1}
            for index, reward in enumerate(answer.rewards)
        ]

    return _pooled(body, "classify", data)


def pooling(body: bytes) -> Call:
    """``POST /pooling`` of vLLM."""

    def data(answer: Answer) -> list[dict[str, Any]]:
        return [{"index": index, "object": "pooling", "data": [r]} for index, r in enumerate(answer.rewards)]

    return _pooled(body, "pool", data)


def embeddings(body: bytes) -> Call:
    """``POST /v1/embeddings`` as SGLang serves reward models: an embedding of one number, the reward."""

    def data(answer: Answer) -> list[dict[str, Any]]:
        return [{"index": index, "object": "embedding", "embedding": [r]} for index, r in enumerate(answer.rewards)]

    return _pooled(body, "embd", data)


def score(body: bytes) -> Call:
    """``POST /score`` of vLLM: a query with each document, or queries and documents in pairs."""
    request = decode(body, ScoreRequestBody)
    queries = _listed(request.queries if request.queries is not None else request.text_1, "queries")
    documents = _listed(request.documents if request.documents is not None else request.text_2, "documents")
    if len(queries) == 1:
        pairs = [(queries[0], documents)]
    elif len(queries) == len(documents):
        pairs = [(query, [document]) for query, document in zip(queries, documents, strict=True)]
    else:
        raise DataError(f"$.queries: expected one, or as many as documents ({len(documents)}), got {len(queries)}")
    items: list[Item] = [conversation({"prompt": query, "completions": texts}) for query, texts in pairs if texts]

    def data(answer: Answer) -> list[dict[str, Any]]:
        return [{"index": index, "object": "score", "score": r} for index, r in enumerate(answer.rewards)]

    return _call(request, items, "score", data)


def rerank(body: bytes) -> Call:
    """``POST /rerank`` of vLLM: documents by their rewards as completions of the query, highest first."""
    request = decode(body, RerankRequest)

    def reply(answer: Answer) -> dict[str, Any]:
        ranked = sorted(enumerate(answer.rewards), key=lambda item: -item[1])
        results = [
            {"index": index, "document": {"text": request.documents[index]}, "relevance_score": reward}
            for index, reward in ranked[: request.top_n if request.top_n > 0 else None]
        ]
        head = {"id": request.request_id or f"rerank-{uuid.uuid4().hex}", "model": answer.model}
        return {**head, "usage": _usage(answer), "results": results}

    documents = {"prompt": request.query, "completions": request.documents}
    _refuse_other_scores(request)
    return Call([conversation(documents)] if request.documents else [], reply, request.truncate_prompt_tokens)


def _pooled(body: bytes, name: str, data: Callable[[Answer], Any]) -> Call:
    request = decode(body, PoolingRequest)
    if (request.input is None) == (request.messages is None):
        raise DataError(
            "expected one of the fields input and messages; the latter are rendered with the model's template"
        )
    refuse_set("add_generation_prompt", is_set=request.add_generation_prompt, why="a reward needs a whole reply")
    refuse_set("continue_final_message", is_set=request.continue_final_message, why="a reward needs a whole reply")
    refuse_set("chat_template", is_set=request.chat_template is not None, why="the model's own template is used")
    refuse_set("dimensions", is_set=request.dimensions not in (None, 1), why="a reward has one dimension")
    refuse_set("task", is_set=request.task not in (None, "classify", "embed", "token_classify"), why="use classify")
    return _call(request, _items(request), name, data)


def _items(request: PoolingRequest) -> list[Item]:
    if request.messages is not None:
        fields = {"messages": request.messages, "tools": request.tools}
        return [conversation({**fields, "chat_template_kwargs": request.chat_template_kwargs})]
    refuse_set("tools", is_set=bool(request.tools), why="only messages are rendered, input is rendered already")
    refuse_set(
        "chat_template_kwargs",
        is_set=bool(request.chat_template_kwargs),
        why="only messages are rendered, input is rendered already",
    )
    given: str | Tokens = [] if request.input is None else request.input
    return texts_or_tokens(given, "$.input")


def _call(request: _Common, items: Sequence[Item], name: str, data: Callable[[Answer], Any]) -> Call:
    _refuse_other_scores(request)

    def reply(answer: Answer) -> Mapping[str, Any]:
        return {
            "id": request.request_id or f"{name}-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": answer.model,
            "data": data(answer),
            "usage": _usage(answer),
        }

    limit = request.truncate_prompt_tokens
    return Call(items, reply, max_length=None if limit == -1 else limit)


def _refuse_other_scores(request: _Common) -> None:
    refuse_set("use_activation", is_set=bool(request.use_activation), why=_RAW)
    refuse_set("activation", is_set=bool(request.activation), why=_RAW)
    refuse_set("encoding_format", is_set=request.encoding_format not in (None, "float"), why=_ROUNDED)
    limit = request.truncate_prompt_tokens
    is_wrong = limit is not None and limit < 1 and limit != -1
    refuse_set("truncate_prompt_tokens", is_set=is_wrong, why=f"expected 1 or more, or -1, got {limit}")
    refuse_set("truncation_side", is_set=request.truncation_side not in (None, "right"), why="expected right or null")


def _usage(answer: Answer) -> dict[str, int]:
    total = sum(answer.num_tokens)
    return {"prompt_tokens": total, "total_tokens": total, "completion_tokens": 0}


def _listed(given: str | list[str] | None, name: str) -> list[str]:
    if given is None:
        raise DataError(f"missing field `{name}`")
    return [given] if isinstance(given, str) else given
