"""Configuration of `ingest`: formats, field paths, connectors, limits."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, model_validator

from pairwright.config.fields import FieldPaths, LayoutFile
from pairwright.config.section import PositiveInt, Section


class ConnectorConfig(Section):
    """What external sources need besides their connection URL."""

    query: str | None = None
    """SQL whose rows are the records, for the URL of a database; `?table=NAME` in the URL needs none."""
    iceberg: dict[str, SecretStr] = {}
    """Properties of the Iceberg catalog, as PyIceberg names them; a value `$NAME` is read from the environment."""
    delta: dict[str, SecretStr] = {}
    """Storage options of a Delta table, beside the usual environment variables; `$NAME` likewise."""
    kafka: dict[str, SecretStr] = {}
    """Settings of the Kafka consumer, as librdkafka names them; `$NAME` likewise."""
    connect_timeout_seconds: PositiveInt = 30
    """Fail a PostgreSQL source that has not accepted the connection after so long."""
    statement_timeout_seconds: PositiveInt = 3600
    """Fail a database whose query has not ended after so long."""
    query_memory_bytes: PositiveInt = 256 * 1024 * 1024
    """Fail a SQLite source whose query takes more memory in SQLite itself; its rows are fetched 512 at a time."""


class SourceLimits(Section):
    """Limits on sources: a record above a limit is refused alone, a source above one fails; messages name the limit."""

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


class CellConfig(Section):
    """How CSV files and spreadsheets are written, where that is not recognised."""

    delimiter: Literal["comma", "semicolon", "tab", "pipe"] | None = None
    """What separates the cells of a CSV file; recognised by its first rows if not set."""
    encoding: str | None = None
    """Encoding of a CSV file, such as cp1252 or latin-1; UTF-8, or UTF-16 by its byte-order mark, if not set."""
    sheet: str | None = None
    """Sheet of a workbook to read, by its name; the first one if not set."""

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        if self.encoding is not None:
            try:
                "".encode(self.encoding)
            except (LookupError, ValueError):
                raise ValueError(
                    f"encoding {self.encoding!r} is not known; expected utf-8, utf-16, cp1252, latin-1 or another one "
                    "that Python has"
                ) from None
        return self


class IngestConfig(Section):
    """How input records become annotations."""

    format: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,60}$")] = "auto"
    """Layout of the records, by name or as FILE.toml; auto recognises it by the first records of each source."""
    fields: FieldPaths | None = None
    """Where a record keeps its parts; or what is different in the layout that ``format`` names or is recognised."""
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
    split_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024 * 1024
    """Bytes of one uncompressed source that one task reads."""
    cells: CellConfig = CellConfig()
    """How CSV files and spreadsheets are written."""
    limits: SourceLimits = SourceLimits()
    """Limits on sources."""
    connectors: ConnectorConfig = ConnectorConfig()
    """What databases, lakehouse tables and topics need besides their URLs."""

    @model_validator(mode="before")
    @classmethod
    def _file_of_a_layout(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not str(values.get("format", "")).endswith(".toml"):
            return values
        path = values["format"]
        try:
            layout = LayoutFile.model_validate(tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise ValueError(f"format: {path} cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"format: {path} is not a TOML file: {error}") from None
        changes = values.get("fields") or {}
        given = changes.given() if isinstance(changes, FieldPaths) else dict(changes)
        return {**values, "format": "fields", "fields": layout.fields.given() | given}

    @model_validator(mode="after")
    def _fields_belong_to_their_format(self) -> Self:
        is_whole = self.fields is not None and self.fields.is_whole
        if is_whole and self.format not in ("auto", "fields"):
            raise ValueError(
                f"[fields] and format = {self.format!r} both say where completions stand; leave one of them out"
            )
        if self.format == "fields" and not is_whole:
            raise ValueError("format = 'fields' needs a table [fields] that says where a record keeps its parts")
        return self
