"""Wire formats of Hugging Face's text-embeddings-inference (TEI): predict and rerank, with raw scores.

A sequence of two texts is a prompt and its completion, rendered with the model's template; of one text, a text that is
rendered already. TEI gives a sigmoid unless a request says ``raw_scores``; here scores are raw unless it says false.
"""

from typing import Any

import msgspec

from pairwright.errors import DataError
from pairwright.serving.wire_format import Answer, Call, Item, conversation, decode, refuse_set

_RAW = "expected true or nothing, got false; this server gives raw rewards, and a sigmoid would be another score"
_LABEL = "reward"


class PredictRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A text, a pair ``[text, text]``, or a list of sequences ``[[text], [text, text], ...]``."""

    inputs: str | list[str | list[str]]
    truncate: bool | None = None
    truncation_direction: str | None = None
    raw_scores: bool | None = None


class RankRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A query and texts: a prompt and its completions."""

    query: str
    texts: list[str]
    truncate: bool | None = None
    truncation_direction: str | None = None
    raw_scores: bool | None = None
    return_text: bool = False


def predict(body: bytes) -> Call:
    """``POST /predict`` of TEI."""
    request = decode(body, PredictRequest)
    _refuse_other_scores(request)
    given = [request.inputs] if isinstance(request.inputs, str) else request.inputs
    if given and all(isinstance(one, str) for one in given):
        sequences, is_batch = [[one for one in given if isinstance(one, str)]], False
    else:
        sequences, is_batch = [one for one in given if isinstance(one, list)], True
    if is_batch and len(sequences) != len(given):
        raise DataError("$.inputs: expected a text, a pair of texts, or a list of lists of one or two texts")

    def reply(answer: Answer) -> Any:
        found = [[{"score": reward, "label": _LABEL}] for reward in answer.rewards]
        return found if is_batch else found[0]

    return Call([_item(one, f"$.inputs[{index}]") for index, one in enumerate(sequences)], reply)


def rerank(body: bytes) -> Call:
    """``POST /rerank`` of TEI: texts by their rewards as completions of the query, highest first."""
    request = decode(body, RankRequest)
    _refuse_other_scores(request)

    def reply(answer: Answer) -> list[dict[str, Any]]:
        ranked = sorted(enumerate(answer.rewards), key=lambda item: -item[1])
        text = (lambda index: {"text": request.texts[index]}) if request.return_text else (lambda _: {})
        return [{"index": index, **text(index), "score": reward} for index, reward in ranked]

    texts = {"prompt": request.query, "completions": request.texts}
    return Call([conversation(texts)] if request.texts else [], reply)


def _item(texts: list[str], path: str) -> Item:
    if len(texts) not in (1, 2):
        raise DataError(f"{path}: expected one text or a pair, got {len(texts)} texts")
    if len(texts) == 1:
        return texts[0]
    return conversation({"prompt": texts[0], "completions": texts[1:]})


def _refuse_other_scores(request: PredictRequest | RankRequest) -> None:
    refuse_set("raw_scores", is_set=request.raw_scores is False, why=_RAW)
    left = (request.truncation_direction or "right").lower() != "right"
    refuse_set("truncation_direction", is_set=left, why="expected right or nothing")
