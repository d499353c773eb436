"""Record types and the Arrow schemas of the tables that hold them.

Records by the million are msgspec structs (parse and validation in one pass); what lives inside the process is a
frozen dataclass in the module that makes it. Every field of a table is described here and nowhere else: the files
under ``schemas/`` are written from this module by ``pairwright schemas``.
"""

from typing import Literal, TypeAlias

import msgspec
import pyarrow as pa

UNREADABLE_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that msgspec raises over bytes that are not the JSON that they should be: deep nesting is the last of them."""

PreferenceStrength: TypeAlias = Literal["significantly better", "better", "slightly better", "negligibly better"]
"""How much better the better of two completions is."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a prompt."""

    role: str
    content: str
    extra: str | None = None
    """JSON object of what else a chat template may show of the turn: tool_calls, reasoning_content, ..."""


class Completion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One answer to a prompt."""

    text: str
    id: str | None = None
    model: str | None = None
    extra: str | None = None
    """JSON object of what else a chat template may show of the reply."""


class Annotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One annotator's judgement of one group: one native input line.

    Exactly one of ``ranks``, ``scores`` and ``order`` carries the judgement; ``grade`` says how much better the better
    of two completions is.
    """

    id: str
    prompt: str | list[Message]
    completions: list[Completion]
    ranks: list[int] | None = None
    scores: list[float] | None = None
    order: list[str | list[str]] | None = None
    grade: PreferenceStrength | None = None
    annotator: str | None = None
    created_at: str | None = None
    subset: str | None = None
    metadata: dict[str, str] | None = None
    context: str | None = None
    """JSON object of what the chat template is given beside the turns: tools, chat_template_kwargs."""


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """An input record that was refused: one line of ``quarantine/*.jsonl``."""

    source: str
    line: int
    path: str
    reason: str
    record: str

    def __str__(self) -> str:
        where = f" at {self.path}" if self.path not in ("", "$") else ""
        return f"{self.source}:{self.line}: {self.reason}{where}"


def _field(
    name: str,
    type_: pa.DataType,
    meaning: str,
    *,
    nullable: bool = False,
    unit: str | None = None,
    since: int | None = None,
) -> pa.Field:
    """Return a column; ``since`` is the version of its contract that added it: it is nullable, and stands last."""
    metadata = {"meaning": meaning} | ({"unit": unit} if unit else {}) | ({"since": str(since)} if since else {})
    return pa.field(name, type_, nullable=nullable or since is not None, metadata=metadata)


MESSAGE_V1 = pa.struct(
    [pa.field("role", pa.string(), nullable=False), pa.field("content", pa.string(), nullable=False)]
)
COMPLETION_V1 = pa.struct(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("model", pa.string()),
    ]
)
_EXTRA = pa.field("extra", pa.string())
MESSAGE, COMPLETION = pa.struct([*MESSAGE_V1, _EXTRA]), pa.struct([*COMPLETION_V1, _EXTRA])
PAIR = pa.struct(
    [
        pa.field("chosen", pa.int16(), nullable=False),
        pa.field("rejected", pa.int16(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("margin", pa.float32()),
    ]
)

_GROUP_ID = _field("group_id", pa.string(), "hash of the prompt and the set of completion texts, 32 hex digits")
_PROMPT_ID = _field("prompt_id", pa.string(), "hash of the normalised prompt, 32 hex digits; decides the split")
_PROMPT = _field("prompt", pa.list_(MESSAGE), "the turns before the completion; a plain string is one user turn")
_COMPLETIONS = _field("completions", pa.list_(COMPLETION), "what was ranked; `id` is the index where none was given")
_SUBSET = _field("subset", pa.string(), "part of the data that is reported on its own", nullable=True)
_MORE_SUBSETS = _field(
    "more_subsets", pa.list_(pa.string()), "the other subsets that annotations of the group name, sorted", since=2
)
_METADATA = _field("metadata", pa.map_(pa.string(), pa.string()), "whatever else the source said", nullable=True)
_CONTEXT = _field(
    "context",
    pa.string(),
    "JSON object of what the chat template is given beside the turns: tools, chat_template_kwargs",
    since=2,
)
_SPLIT = _field("split", pa.string(), "train or validation, by hash of the normalised prompt")

ANNOTATIONS_SCHEMA = pa.schema(
    [
        _field("id", pa.string(), "the annotation's own id, unique in the table"),
        _GROUP_ID,
        _PROMPT_ID,
        _PROMPT,
        _COMPLETIONS,
        _field("ranks", pa.list_(pa.int32()), "rank of each completion, 1 = best, equal = tie, without gaps"),
        _field(
            "scores", pa.list_(pa.float64()), "score of each completion, higher is better, where given", nullable=True
        ),
        _field("grade", pa.string(), "how much better the better of two completions is, where given", nullable=True),
        _field("annotator", pa.string(), "who ranked", nullable=True),
        _field("created_at", pa.timestamp("us", tz="UTC"), "when", nullable=True),
        _SUBSET,
        _METADATA,
        _field("source", pa.string(), "URI of the source that held the record"),
        _field("line", pa.int64(), "line of the record in that source, from 1", unit="line"),
        _CONTEXT,
    ]
)

PAIRS_SCHEMA = pa.schema(
    [
        _GROUP_ID,
        _PROMPT_ID,
        _PROMPT,
        _COMPLETIONS,
        _field(
            "pairs", pa.list_(PAIR), "chosen and rejected as indices into completions; weight; wanted margin if any"
        ),
        _field("num_annotations", pa.int32(), "how many annotations of the group went in", unit="annotations"),
        _field("annotators", pa.list_(pa.string()), "who ranked, sorted, without repeats"),
        _SPLIT,
        _SUBSET,
        _METADATA,
        _CONTEXT,
        _MORE_SUBSETS,
    ]
)


TOKENS_SCHEMA = pa.schema(
    [
        _GROUP_ID,
        _SPLIT,
        _SUBSET,
        _field(
            "prompt_ids", pa.list_(pa.int32()), "longest common token prefix of the full tokenisations", unit="tokens"
        ),
        _field(
            "completion_ids",
            pa.list_(pa.list_(pa.int32())),
            "what follows it, one list a kept completion",
            unit="tokens",
        ),
        _field("completion_index", pa.list_(pa.int16()), "index of each kept completion in the pairs table's group"),
        _field("num_characters", pa.list_(pa.int32()), "length of each kept completion's text", unit="characters"),
        _field("pairs", pa.list_(PAIR), "chosen and rejected as indices into completion_ids"),
        _MORE_SUBSETS,
    ]
)


def _first_version(schema: pa.Schema) -> pa.Schema:
    """Return a schema as it was before turns and completions had an ``extra``, and before the columns of version 2."""
    items = {"prompt": MESSAGE_V1, "completions": COMPLETION_V1}
    fields = [field for field in schema if b"since" not in (field.metadata or {})]
    return pa.schema([f.with_type(pa.list_(items[f.name])) if f.name in items else f for f in fields])


ANNOTATIONS_SCHEMA_V1, PAIRS_SCHEMA_V1 = _first_version(ANNOTATIONS_SCHEMA), _first_version(PAIRS_SCHEMA)
TOKENS_SCHEMA_V1 = _first_version(TOKENS_SCHEMA)
"""What files hold where no row says anything that version 2 added, and all files that were written before it."""

INDEX_FILE_SCHEMA = pa.schema(
    [
        _field(
            "directory",
            pa.list_(
                pa.struct(
                    [pa.field("first", pa.uint64(), nullable=False), pa.field("checksum", pa.uint64(), nullable=False)]
                )
            ),
            "for each block of 1,024 entries its first entry, and the BLAKE2b checksum of its bytes, 8 bytes long",
        ),
        _field(
            "entries",
            pa.list_(pa.uint64()),
            "sorted: the first 48 bits of the 64-bit BLAKE2b hash of an id, then the number of its data file, 16 bits",
        ),
    ]
)
"""What stands in an index file, one after the other; the files are no Arrow files."""

SCORES_SCHEMA = pa.schema(
    [
        _field("id", pa.string(), "id of the input record"),
        _field("completion_id", pa.string(), "id of the completion, its index where none was given"),
        _field("reward", pa.float32(), "the model's reward; only differences within one prompt mean anything"),
        _field("num_tokens", pa.int32(), "length of prompt and completion", unit="tokens"),
    ]
)
