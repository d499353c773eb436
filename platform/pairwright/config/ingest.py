"""How records are read: formats, field paths, readers, limits."""

from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator

from pairwright.config.section import PositiveInt, Section

FormatName = Literal[
    "auto",
    "native",
    "fields",
    "trl",
    "sharegpt",
    "hh-rlhf",
    "ultrafeedback",
    "nectar",
    "openai-summarize",
    "label-studio",
    "argilla",
]


class FieldPaths(Section):
    """Where a foreign JSON record keeps each part of an annotation: dotted paths, ``[]`` for each of a list.

    ``completions`` names the list (``answers``); the paths below it are relative to one of its items.
    """

    prompt: str
    """Path of the prompt: a string, or a list of {role, content}."""
    completions: str
    """Path of the list of completions."""
    text: str | None = None
    """Path of a completion's text within one item; none if the item is the text itself."""
    completion_id: str | None = None
    """Path of a completion's id within one item."""
    model: str | None = None
    """Path of the name of the model that wrote it, within one item."""
    rank: str | None = None
    """Path of a completion's rank within one item, 1 = best."""
    score: str | None = None
    """Path of a completion's score within one item, higher is better."""
    ranks: str | None = None
    """Path of the list of ranks, where it stands beside the completions."""
    scores: str | None = None
    """Path of the list of scores, where it stands beside the completions."""
    grade: str | None = None
    """Path of the grade of two completions: significantly better, better, slightly better or negligibly better."""
    id: str | None = None
    """Path of the record's id; a hash of the record where there is none."""
    annotator: str | None = None
    """Path of who ranked."""
    subset: str | None = None
    """Path of the subset."""
    created_at: str | None = None
    """Path of the time of the judgement, ISO 8601."""
    metadata: dict[str, str] = {}
    """Name in metadata -> path of its value, kept as a string."""

    @model_validator(mode="after")
    def _exactly_one_judgement(self) -> Self:
        given = [name for name in ("rank", "score", "ranks", "scores") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none of them"
            raise ValueError(
                f"exactly one of rank, score, ranks and scores says how completions were judged; found {found}"
            )
        return self


class ReaderConfig(Section):
    """What a source that is no file needs beside its address."""

    query: str | None = None
    """SQL whose rows are the records, for the URL of a database; `?table=NAME` in the URL needs none."""
    iceberg: dict[str, SecretStr] = {}
    """Properties of the Iceberg catalog, as PyIceberg names them; a value `$NAME` is read from the environment."""
    delta: dict[str, SecretStr] = {}
    """Storage options of a Delta table, beside the usual environment variables; `$NAME` likewise."""
    kafka: dict[str, SecretStr] = {}
    """Settings of the Kafka consumer, as librdkafka names them; `$NAME` likewise."""
    connect_timeout_seconds: PositiveInt = 30
    """Fail a PostgreSQL source that does not let us in for so long."""
    statement_timeout_seconds: PositiveInt = 3600
    """Fail a database whose query has not ended after so long."""
    query_memory_bytes: PositiveInt = 256 * 1024 * 1024
    """Fail a SQLite source whose query takes more memory in SQLite itself; its rows are fetched 512 at a time."""


class SourceLimits(Section):
    """What a source may cost: a record above a limit is refused alone, a source above one fails; both by its name."""

    max_record_bytes: PositiveInt = 16 * 1024 * 1024
    """Refuse a record (a line, an item, a row) of more bytes as JSON."""
    max_judgements: PositiveInt = 1000
    """Refuse a record (a task of Label Studio, a record of Argilla) that holds more judgements."""
    max_columns: PositiveInt = 1000
    """Fail a CSV file or a table of more columns, and refuse a record of Label Studio or Argilla of more fields."""
    max_text_ratio: PositiveInt = 200
    """Fail a source whose text is more than so many times its stored bytes; up to 16 MB of text are always taken."""
    max_batch_bytes: PositiveInt = 512 * 1024 * 1024
    """Fail a compressed Arrow record batch, or the pages of a Parquet row group, that need more memory at a time."""
    max_refused_records: PositiveInt = 100_000
    """Fail a source of which more records are refused, if more are refused than accepted."""


class IngestConfig(Section):
    """How input records become annotations."""

    format: FormatName = "auto"
    """Layout of the records; auto recognises it by the first records of each source, and takes [fields] if given."""
    fields: FieldPaths | None = None
    """Where a record of any other layout keeps its parts."""
    buckets: tuple[str, ...] | None = None
    """Label Studio: names of a ranker's buckets, best first; items of one bucket are tied, `_` is the unsorted list."""
    max_completions: PositiveInt = 64
    """Refuse a record that ranks more completions."""
    max_characters: PositiveInt = 1_000_000
    """Refuse a record with a longer prompt, completion or metadata (names and values together), in characters."""
    max_turns: PositiveInt = 1000
    """Refuse a record whose prompt has more turns."""
    max_metadata: PositiveInt = 1000
    """Refuse a record with more entries in its metadata."""
    max_label_characters: PositiveInt = 1000
    """Refuse a record with a longer id, annotator, subset, role, model or name in metadata, in characters."""
    range_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024 * 1024
    """Bytes of one uncompressed source that one task reads."""
    limits: SourceLimits = SourceLimits()
    """What a source may cost."""
    reader: ReaderConfig = ReaderConfig()
    """What databases, lakehouse tables and topics need beside their addresses."""

    @model_validator(mode="after")
    def _fields_belong_to_their_format(self) -> Self:
        if self.fields is not None and self.format not in ("auto", "fields"):
            raise ValueError(
                f"[fields] and format = {self.format!r} both say what a record looks like; leave one of them out"
            )
        if self.fields is None and self.format == "fields":
            raise ValueError("format = 'fields' needs a table [fields] that says where a record keeps its parts")
        return self
