r"""Anthropic's HH-RLHF: two transcripts in one string each, which differ in the assistant's last reply.

Layout after the card of Anthropic/hh-rlhf ("Each line of the jsonl file contains a pair of texts, one chosen and one
rejected"): turns begin with ``\n\nHuman:`` and ``\n\nAssistant:``. The prompt is the turns that both begin with; a pair
whose conversations part earlier is refused, since its completions would be conversations.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from pairwright.data.formats.record import Format, typed
from pairwright.data.formats.turns import is_transcript, shared_prompt, transcript
from pairwright.records import Annotation, Completion

LAYOUT = r'{"chosen": "\n\nHuman: ...\n\nAssistant: ...", "rejected": "\n\nHuman: ...\n\nAssistant: ..."}'


class _Record(msgspec.Struct, frozen=True):
    chosen: str
    rejected: str


def _judgements(record: _Record, content_id: str) -> tuple[Annotation]:
    chosen, rejected = transcript(record.chosen, "$.chosen"), transcript(record.rejected, "$.rejected")
    prompt, better, worse = shared_prompt(chosen, rejected)
    completions = [Completion(text=better, id="chosen"), Completion(text=worse, id="rejected")]
    return (Annotation(id=content_id, prompt=prompt, completions=completions, ranks=[1, 2]),)


def _fits(record: Mapping[str, Any]) -> bool:
    return "conversations" not in record and all(is_transcript(record.get(name)) for name in ("chosen", "rejected"))


HH_RLHF = Format(name="hh-rlhf", layout=LAYOUT, fits=_fits, parser=lambda _: typed(_Record, LAYOUT, _judgements))
