"""Adapter for OpenAI's summarize-from-feedback comparisons: a post or an article, two summaries, a worker's choice.

Layout after the loader in openai/summarize_from_feedback (its ``comparisons`` configuration); a post becomes the query
that the paper's models saw (Stiennon et al. 2020, arXiv:2009.01325, and the tasks of its repository).
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from pairwright.config import IngestConfig
from pairwright.data.ingest.fields.adapter import Format, Judgements, Reading, RecordError, content_id, schema_mismatch
from pairwright.data.ingest.fields.other_fields import handle_unread_fields
from pairwright.data.ingest.fields.paths import KnownPaths, compile_path, named
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


_KNOWN_PATHS = KnownPaths(
    [
        compile_path("", path)[0]
        for path in [
            "info.id",
            "info.post",
            "info.title",
            "info.subreddit",
            "info.article",
            "summaries[].text",
            "summaries[].policy",
            "choice",
            "worker",
            "batch",
            "split",
            "extra.confidence",
        ]
    ]
)


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    info: _Info
    summaries: list[_Summary]
    choice: int
    worker: str | None = None
    batch: str | None = None
    split: str | None = None
    extra: _Extra | None = None


_UNUSED = ("summaries[].note", "info.site", "extra.confidences")
"""Notes on how a summary was made and shown."""


class SummaryReader:
    """Parser of comparisons."""

    def __init__(self, config: IngestConfig) -> None:
        self.reading = Reading()
        self._fields = config.fields

    def __call__(self, line: bytes, /) -> Judgements:
        """Return the one annotation in a line.

        Raises:
            RecordError, msgspec.DecodeError, UnicodeDecodeError, RecursionError: if it is no such record.
        """
        fields: Any = msgspec.json.decode(line)
        try:
            annotation = _annotation(msgspec.convert(fields, _Record, strict=False), content_id(line))
        except msgspec.ValidationError as error:
            raise schema_mismatch(error, LAYOUT) from None
        metadata = dict(annotation.metadata or {})
        others = []
        for steps, value in _KNOWN_PATHS.others(fields):
            if named(steps) in _UNUSED:
                self.reading.unused.add(named(steps))
            else:
                others.append((steps, value))
        handle_unread_fields(others, annotation, metadata, self.reading, self._fields)
        self.reading.describe([("prompt", "info"), ("winner", "choice")])
        return (msgspec.structs.replace(annotation, metadata=metadata or None),)


def _annotation(record: _Record, content_id: str) -> Annotation:
    if not 0 <= record.choice < len(record.summaries):
        found = f"{record.choice} for {len(record.summaries)} summaries"
        raise RecordError(f"expected the index of a summary, got {found}", path="$.choice")
    return Annotation(
        id=content_id,
        prompt=_prompt(record.info),
        completions=[Completion(text=summary.text, model=summary.policy) for summary in record.summaries],
        ranks=[1 if index == record.choice else 2 for index in range(len(record.summaries))],
        annotator=record.worker,
        metadata=_metadata(record),
    )


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


def _matches(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("info"), dict) and {"summaries", "choice"} <= record.keys()


SUMMARIZE = Format(
    name="openai-summarize",
    layout=LAYOUT,
    matches=_matches,
    parser=SummaryReader,
    what="OpenAI's summarize-from-feedback comparisons: a post or an article, two summaries, a worker's choice.",
    examples=(
        '{"info": {"id": "t3_abc", "post": "My cat sits on my keyboard all day.", "title": "Cat trouble", '
        '"subreddit": "cats"}, "summaries": [{"text": " Cat sits on keyboard.", "policy": "sup4"}, {"text": '
        '" Cats are nice.", "policy": "ref"}], "choice": 0, "worker": "wkr1", "batch": "batch3", "split": '
        '"train"}',
    ),
)
