"""Handles the fields of a record that no path reads: kept in metadata, known to mean nothing, or a reason to refuse it.

A field that nothing was read from may change what was judged: a system prompt, a score under another name. So only
names that say where a record comes from pass, and values that repeat what another field says.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from pairwright.config import FieldPaths
from pairwright.data.ingest.fields.adapter import Reading, RecordError
from pairwright.data.ingest.fields.conversation_turns import is_transcript, read_conversation
from pairwright.data.ingest.fields.paths import Steps, named, opened
from pairwright.records import Annotation, Message


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


KEPT_NAMES = _names(
    """source sources dataset dataset_name data_source origin category categories subcategory domain topic
    topics task task_type tag tags language lang locale country license version split type kind difficulty
    level turn turns num_turns length num_tokens token_count num_correct num_incorrect total_completions date
    time timestamp tstamp created updated updated_at url link uuid hash sha sha256 md5 metadata meta
    additional_metadata generation_model reward_model judge_model anony"""
)
"""Fields that say where a record comes from or what it is about: kept in metadata, wherever they are found."""
_KEPT_ENDINGS = ("_id", "_ids", "_sha256", "_hash", "_url", "_source")
IGNORED_NAMES = _names(
    """index idx row __index_level_0__ __null_dask_index__ level_0 _id __fragment_index __batch_index"""
)
"""Numbers of rows that programs add when they write a table."""
CONTEXT_NAMES = _names(
    """system system_prompt history tools functions images image audio audios video videos input context
    messages chat_template_kwargs"""
)
"""Fields that say in which context completions were judged: refused even where a user's [fields] leaves them out."""
_UNNAMED = "Unnamed: 0"
_NOTHING_IN_ITEMS = _names(
    """role from id lang language author author_name author_profile date created created_at timestamp url
    selected replies parent_id deleted synthetic review_count review_result emojis user_id"""
)
"""Fields below others that say who wrote something and when, not what was judged."""


def handle_unread_fields(
    others: Iterable[tuple[Steps, Any]],
    annotation: Annotation,
    metadata: dict[str, str],
    reading: Reading,
    configured: FieldPaths | None = None,
    *,
    is_own: bool = False,
) -> None:
    """Keep, ignore or refuse the fields of a record that no path reads.

    Args:
        others: their paths and values.
        annotation: what was read from the record.
        metadata: what it keeps, added to.
        reading: what is said of the source, added to.
        configured: [fields] of the configuration, if any.
        is_own: the user gave all paths: other fields are not used, except those of the context, which are refused.

    Raises:
        RecordError: if one is neither known nor configured; it is named.
    """
    keep, ignore = ((), ()) if configured is None else (configured.keep, configured.ignore)
    for steps, value in others:
        found = (
            _configured_fate(steps, keep, ignore) or fate(steps) or ("unused" if repeats(value, annotation) else None)
        )
        if found is None and is_own and not (len(steps) == 1 and str(steps[0]).lower() in CONTEXT_NAMES):
            found = "unused"
        if found is None:
            raise unplaced(named(steps))
        if found == "kept":
            metadata.setdefault(named(steps), as_text(value))
            reading.kept.add(named(steps))
        else:
            reading.unused.add(named(steps))


def _configured_fate(steps: Steps, keep: Sequence[str], ignore: Sequence[str]) -> str | None:
    name = named(steps)
    return "kept" if name in keep else "unused" if name in ignore else None


def unplaced(field: str) -> RecordError:
    """Return the error for a field that is neither read nor known."""
    return RecordError(
        f"expected fields that have a place in this layout, got `{field[:100]}` as well; it may change what was "
        "judged, so give its path in [fields] (system, tools, ...), or name it in fields.keep or fields.ignore",
        path=f"$.{field}",
    )


def fate(steps: Steps) -> str | None:
    """Return what becomes of a field by its name: kept, unused; None where it may mean something."""
    name = steps[-1]
    if not isinstance(name, str):
        return None
    if len(steps) > 1:
        if name in _NOTHING_IN_ITEMS or name in KEPT_NAMES or name.endswith(_KEPT_ENDINGS):
            return "unused"
        return None
    if name in IGNORED_NAMES or name == _UNNAMED or not name:
        return "unused"
    small = name.lower().replace("-", "_")
    return "kept" if small in KEPT_NAMES or small.endswith(_KEPT_ENDINGS) else None


def repeats(value: Any, annotation: Annotation) -> bool:
    """Return whether a field only repeats the annotation."""
    prompt = annotation.prompt
    texts = {prompt.strip()} if isinstance(prompt, str) else {turn.content.strip() for turn in prompt}
    texts |= {completion.text.strip() for completion in annotation.completions}
    scores = annotation.scores or []
    if isinstance(value, list) and scores and len(value) == len(scores) and all(item in scores for item in value):
        return True
    try:
        leaves = list(_leaves(opened(value)))
    except RecordError:
        return False
    return bool(leaves) and all(isinstance(leaf, str) and leaf.strip() in texts for leaf in leaves)


def _leaves(value: Any) -> Iterator[Any]:
    """Yield the texts of a value: of a conversation, what is said; of a list, its items."""
    if isinstance(value, dict):
        if len(value) != 2 or not ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()):
            yield None
            return
        yield value["content"] if "content" in value else value["value"]
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif is_transcript(value):
        yield from (turn.content for turn in read_conversation(value, "$") if isinstance(turn, Message))
    else:
        yield value


def as_text(value: Any) -> str:
    """Return a value as metadata hold it: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
