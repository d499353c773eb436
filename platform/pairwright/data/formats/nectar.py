r"""Nectar: seven answers to a prompt, ranked by a judge model.

Layout after the schema in the card of berkeley-nest/Nectar: the prompt is a transcript of ``\n\nHuman:`` and
``\n\nAssistant:`` turns that ends where the answer begins.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from pairwright.data.formats.record import Format, is_list_of, typed, whole
from pairwright.data.formats.turns import Prompt, is_transcript, transcript
from pairwright.records import Annotation, Completion

LAYOUT = r'{"prompt": "\n\nHuman: ...\n\nAssistant: ", "answers": [{"answer", "model", "rank"}, ...]}'


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    answer: str
    rank: int | float
    model: str | None = None


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    prompt: str
    answers: list[_Answer]
    source: list[str] | str | None = None
    good_natured: bool | None = None


def _judgements(record: _Record, content_id: str) -> tuple[Annotation]:
    annotation = Annotation(
        id=content_id,
        prompt=_prompt(record.prompt),
        completions=[Completion(text=answer.answer, model=answer.model) for answer in record.answers],
        ranks=[whole(answer.rank, f"$.answers[{index}].rank") for index, answer in enumerate(record.answers)],
        metadata=_metadata(record),
    )
    return (annotation,)


def _prompt(prompt: str) -> Prompt:
    if not is_transcript(prompt):
        return prompt
    turns = transcript(prompt, "$.prompt")
    return turns[:-1] if turns[-1].role == "assistant" and not turns[-1].content else turns


def _metadata(record: _Record) -> dict[str, str] | None:
    metadata = {}
    if record.source:
        metadata["source"] = record.source if isinstance(record.source, str) else ", ".join(record.source)
    if record.good_natured is not None:
        metadata["good_natured"] = str(record.good_natured).lower()
    return metadata or None


def _fits(record: Mapping[str, Any]) -> bool:
    return "prompt" in record and is_list_of(record.get("answers"), "answer", "rank")


NECTAR = Format(name="nectar", layout=LAYOUT, fits=_fits, parser=lambda _: typed(_Record, LAYOUT, _judgements))
