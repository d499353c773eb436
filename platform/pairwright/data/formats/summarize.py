"""OpenAI's summarize-from-feedback comparisons: a post or an article, two summaries, and a worker's choice.

Layout after the loader in openai/summarize_from_feedback (its ``comparisons`` configuration); a post becomes the query
that the paper's models saw (Stiennon et al. 2020, arXiv:2009.01325, and the tasks of its repository).
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from pairwright.data.formats.record import Format, RecordError, typed
from pairwright.records import Annotation, Completion

LAYOUT = (
    '{"info": {"post" | "article", "title", "subreddit"}, "summaries": [{"text", "policy"}, ...], "choice", "worker"}'
)


class _Info(msgspec.Struct, frozen=True, kw_only=True):
    id: str | None = None
    post: str | None = None
    title: str | None = None
    subreddit: str | None = None
    article: str | None = None


class _Summary(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    policy: str | None = None


class _Extra(msgspec.Struct, frozen=True, kw_only=True):
    confidence: int | None = None


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    info: _Info
    summaries: list[_Summary]
    choice: int
    worker: str | None = None
    batch: str | None = None
    split: str | None = None
    extra: _Extra | None = None


def _judgements(record: _Record, content_id: str) -> tuple[Annotation]:
    if not 0 <= record.choice < len(record.summaries):
        found = f"{record.choice} for {len(record.summaries)} summaries"
        raise RecordError(f"expected the index of a summary, got {found}", path="$.choice")
    annotation = Annotation(
        id=content_id,
        prompt=_prompt(record.info),
        completions=[Completion(text=summary.text, model=summary.policy) for summary in record.summaries],
        ranks=[1 if index == record.choice else 2 for index in range(len(record.summaries))],
        annotator=record.worker,
        metadata=_metadata(record),
    )
    return (annotation,)


def _prompt(info: _Info) -> str:
    if info.post is not None:
        return f"SUBREDDIT: r/{info.subreddit or ''}\n\nTITLE: {info.title or ''}\n\nPOST: {info.post}\n\nTL;DR:"
    if info.article is None:
        raise RecordError("expected `post` or `article`, got neither", path="$.info")
    return f"Title: {info.title or ''}\n\nArticle: {info.article}\n\nTL;DR:"


def _metadata(record: _Record) -> dict[str, str] | None:
    confidence = None if record.extra is None or record.extra.confidence is None else str(record.extra.confidence)
    said = {"post": record.info.id, "batch": record.batch, "split": record.split, "confidence": confidence}
    return {name: value for name, value in said.items() if value is not None} or None


def _fits(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("info"), dict) and {"summaries", "choice"} <= record.keys()


SUMMARIZE = Format(
    name="openai-summarize", layout=LAYOUT, fits=_fits, parser=lambda _: typed(_Record, LAYOUT, _judgements)
)
