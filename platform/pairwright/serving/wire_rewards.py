"""Wire formats whose reply is a list of rewards: our own, OpenRLHF's and LLaMA-Factory's.

Shapes are those that the clients read, August 2026. Texts of the latter two are rendered already.
"""

import uuid
from typing import Any

import msgspec

from pairwright.errors import DataError
from pairwright.serving.wire_format import Answer, Call, conversation, decode


class RewardsRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A prompt and its completions: texts, or objects with ``text`` and what a chat template shows beside it."""

    prompt: Any
    completions: list[Any]
    tools: Any = None
    chat_template_kwargs: Any = None
    id: Any = None
    model: str | None = None


class RewardsReply(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A reward for each completion, float32, in their order."""

    model: str
    rewards: list[float]
    num_tokens: list[int]
    """Of each completion with its prompt, as the model read them."""
    id: str | None = None
    members: dict[str, list[float]] = {}
    """Each model's rewards, where several are served as one."""


class OpenRlhfRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What OpenRLHF's remote reward client posts: whole texts, special tokens kept."""

    query: str | list[str]
    prompts: Any = None
    labels: Any = None


class LlamaFactoryRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What LLaMA-Factory's PPO client posts: rendered texts under the name of messages."""

    messages: list[str]
    model: str | None = None
    max_length: int | None = None


def rewards(body: bytes) -> Call:
    """``POST /v1/rewards``: a prompt's completions, rendered with the model's template."""
    request = decode(body, RewardsRequest)
    name = None if request.id is None else str(request.id)

    def reply(answer: Answer) -> RewardsReply:
        return RewardsReply(
            id=name,
            model=answer.model,
            rewards=list(answer.rewards),
            num_tokens=list(answer.num_tokens),
            members={member: list(found) for member, found in answer.members.items()},
        )

    if not request.completions:
        return Call([], reply)
    known = ("prompt", "completions", "tools", "chat_template_kwargs")
    return Call([conversation({field: getattr(request, field) for field in known})], reply)


def get_reward(body: bytes) -> Call:
    """``POST /get_reward`` of OpenRLHF. ``scores``, by which it filters, are the rewards, as in its own server."""
    request = decode(body, OpenRlhfRequest)
    texts = [request.query] if isinstance(request.query, str) else request.query
    return Call(texts, lambda answer: {"rewards": answer.rewards, "scores": answer.rewards, "extra_logs": {}})


def score_evaluation(body: bytes) -> Call:
    """``POST /v1/score/evaluation`` of LLaMA-Factory."""
    request = decode(body, LlamaFactoryRequest)
    if request.max_length is not None and request.max_length < 1:
        raise DataError(f"$.max_length: expected at least 1, got {request.max_length}")

    def reply(answer: Answer) -> dict[str, Any]:
        return {
            "id": f"scoreval-{uuid.uuid4().hex}",
            "object": "score.evaluation",
            "model": answer.model,
            "scores": answer.rewards,
        }

    return Call(request.messages, reply, max_length=request.max_length)
