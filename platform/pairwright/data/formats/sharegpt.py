"""ShareGPT pairs: a conversation, and two replies to it as one message each.

Layout after the preference data of LLaMA-Factory (its data/README.md, "Preference Dataset" of the ShareGPT format):
speakers are named by ``from``, and what they say stands in ``value``.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from pairwright.data.formats.record import Format, RecordError, typed
from pairwright.records import Annotation, Completion, Message

LAYOUT = '{"conversations": [{"from", "value"}, ...], "chosen": {"from", "value"}, "rejected": {"from", "value"}}'

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}


class _Said(msgspec.Struct, frozen=True, rename={"speaker": "from"}):
    speaker: str
    value: str


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    conversations: list[_Said]
    chosen: _Said
    rejected: _Said
    system: str | None = None
    id: str | int | None = None


def _judgements(record: _Record, content_id: str) -> tuple[Annotation]:
    prompt = [_message(said, f"$.conversations[{index}]") for index, said in enumerate(record.conversations)]
    if record.system:
        prompt.insert(0, Message(role="system", content=record.system))
    annotation = Annotation(
        id=content_id if record.id is None else str(record.id),
        prompt=prompt,
        completions=[_completion(record.chosen, "chosen"), _completion(record.rejected, "rejected")],
        ranks=[1, 2],
    )
    return (annotation,)


def _message(said: _Said, path: str) -> Message:
    role = _ROLES.get(said.speaker)
    if role is None:
        raise RecordError(f"expected one of {', '.join(_ROLES)}, got `{said.speaker}`", path=f"{path}.from")
    return Message(role=role, content=said.value)


def _completion(said: _Said, side: str) -> Completion:
    if _message(said, f"$.{side}").role != "assistant":
        raise RecordError(f"expected gpt, got `{said.speaker}`", path=f"$.{side}.from")
    return Completion(text=said.value, id=side)


def _fits(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("conversations"), list) and {"chosen", "rejected"} <= record.keys()


SHAREGPT = Format(name="sharegpt", layout=LAYOUT, fits=_fits, parser=lambda _: typed(_Record, LAYOUT, _judgements))
