"""What a person writes to steer a run: TOML in, frozen and validated pydantic models out.

Unknown keys are refused, every default lives here and nowhere else, and a check across fields names both fields and
the remedy. ``load_config`` is the only way in, so that every verb reports a mistake in the same words.
"""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from pairwright.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound="Section")
PositiveInt = Annotated[int, Field(ge=1)]
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
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """One table of a configuration file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


# ------------------------------------------------------------------------------------------------- ingest


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
    """Refuse a record with a longer prompt or completion, in characters."""
    range_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024 * 1024
    """Bytes of one uncompressed source that one task reads."""
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


# ------------------------------------------------------------------------------------------------- expand


class ExpandConfig(Section):
    """How a group's rankings become weighted pairs."""

    pair_weight: Literal["comparisons", "group", "uniform"] = "comparisons"
    """comparisons: 1/C(K,2) a pair (Ouyang et al. 2022, eq. 1); group: a group's pairs sum to 1; uniform: 1 a pair."""
    ties: Literal["drop", "half"] = "drop"
    """drop: a tie gives no pair; half: both directions at half weight."""
    margin: Literal["none", "score_gap", "grade"] = "none"
    """score_gap: chosen's score less rejected's; grade: by margin_table; the mean of the annotations that agree."""
    margin_table: Literal["small", "large"] = "small"
    """Margins of the four grades (Touvron et al. 2023, table 27): small: 1, 2/3, 1/3 and 0; large: 3, 2, 1 and 0."""
    margin_scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the margin."""
    validation_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the prompts, by hash, that is held out; a prompt never changes sides while this stays the same."""
    near_duplicates: Literal["keep", "drop_train"] = "keep"
    """drop_train: leave out train groups whose prompt is nearly that of a validation prompt; keep: do not look."""
    near_duplicate_threshold: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Prompts at least this alike are near-duplicates: Jaccard similarity of their shingles."""
    shingle_characters: PositiveInt = 5
    """Characters in a row that make a shingle."""
    decontaminate: list[str] = []
    """Evaluation sets (sources with a ``prompt`` in each record, or tables); groups that overlap one are left out."""
    overlap_words: Annotated[int, Field(ge=0)] = 13
    """Words in a row that a prompt may not share with an evaluation prompt; 0: only near-duplicates of one overlap."""


# -------------------------------------------------------------------------------------------------- train


class ModelConfig(Section):
    """What training starts from."""

    path: str
    """Directory (or hub name) of a Hugging Face causal or sequence-classification model with its tokenizer."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    dropout: bool = False
    """Keep the model's own dropout; off by default, since reward models overfit less than they lose signal."""


class DataConfig(Section):
    """What it trains on."""

    pairs: str
    """URL of a pairs table."""
    version: PositiveInt | None = None
    """Version of it; the newest when the run starts if not given (and then recorded)."""


class TokensConfig(Section):
    """How groups become tokens."""

    max_length: Annotated[int, Field(ge=8)] = 2048
    """Longest prompt and completion together, in tokens."""
    overlong: Literal["drop", "truncate"] = "drop"
    """drop: a longer completion goes, with its pairs; truncate: it loses its end. Both are counted and shown."""
    chat_template: str | None = None
    """Jinja chat template (text, or path of a .jinja file); the tokenizer's own if not given, else a plain one."""
    cache: str | None = None
    """URL of the token cache; by default ``tokens/`` beside the run's output."""


class BatchesConfig(Section):
    """How much goes into a step, and into a forward."""

    groups_per_step: PositiveInt = 64
    """Groups (prompts) in a global batch; InstructGPT: 64."""
    micro_batch_tokens: PositiveInt = 16384
    """Most tokens of one forward on one rank, padding included. Changes speed and memory, never the result."""


class LossConfig(Section):
    """The Bradley-Terry loss."""

    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Probability that a label is wrong (conservative Bradley-Terry)."""
    use_margin: bool = True
    """Subtract a pair's margin, where it has one, from the reward difference."""


class OptimizerConfig(Section):
    """AdamW and the schedule of its learning rate."""

    learning_rate: Annotated[float, Field(gt=0)] = 9e-6
    """Peak learning rate; InstructGPT's 6B reward model: 9e-6."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay; not applied to biases and norms."""
    warmup_fraction: Fraction = 0.03
    """Share of the steps in which the rate climbs linearly; Llama 2: 3 %."""
    final_fraction: Fraction = 0.1
    """Rate at the last step as a share of the peak, reached by a cosine; InstructGPT: 10 %."""
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    """Clip the global gradient norm to this; a huge value never clips."""


class EngineConfig(Section):
    """DeepSpeed."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the model's weights and activations; rewards, loss and optimizer are float32 always."""


class TrainingConfig(Section):
    """How long, and what is kept on the way."""

    epochs: PositiveInt = 1
    """Passes over the groups; reward models overfit from the second on (Ouyang et al. 2022)."""
    max_steps: PositiveInt | None = None
    """Stop after this many steps; the schedule ends there too."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the order, the head's initial weights and dropout."""
    log_every_steps: PositiveInt = 10
    """Steps between two lines of the log."""
    evaluate_every_steps: PositiveInt | None = None
    """Steps between two evaluations on the validation split; only at the end if not given."""
    checkpoint_every_steps: PositiveInt = 100
    """Steps between two checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """How many of the newest checkpoints are kept."""


class WorkersConfig(Section):
    """The processes that train."""

    num_workers: PositiveInt = 1
    """Ranks: processes that train, one GPU each where GPUs are used."""
    use_gpu: bool = False
    """Give each worker a GPU."""
    cpus_per_worker: PositiveInt = 1
    """CPUs that Ray reserves for each worker."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often lost workers are replaced before the run gives up."""


class TrainConfig(Section):
    """A whole training run; one file under jobs/recipes/ is one of these."""

    output: str
    """URL of the run: checkpoints, TensorBoard events, training.json and the model directory go below it."""
    model: ModelConfig
    data: DataConfig
    tokens: TokensConfig = TokensConfig()
    batches: BatchesConfig = BatchesConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    engine: EngineConfig = EngineConfig()
    training: TrainingConfig = TrainingConfig()
    workers: WorkersConfig = WorkersConfig()

    @model_validator(mode="after")
    def _budget_holds_a_completion(self) -> Self:
        if self.batches.micro_batch_tokens < self.tokens.max_length:
            raise ValueError(
                f"batches.micro_batch_tokens ({self.batches.micro_batch_tokens}) is smaller than tokens.max_length "
                f"({self.tokens.max_length}), so the longest completion fits no micro-batch; raise the first or lower "
                "the second"
            )
        return self


# ------------------------------------------------------------------------------------------------ loading


def load_config(kind: type[ConfigT], path: str | None, overrides: Sequence[str] = ()) -> ConfigT:
    """Return the configuration in a TOML file, with ``section.key=value`` overrides on top.

    An override's value is read as TOML, and as a plain string where it is not TOML (``model.path=runs/x``).

    Raises:
        ConfigError: if the file is missing or is not TOML, if a key is unknown, or if a value is not allowed.
    """
    values = _read_toml(path) if path is not None else {}
    for override in overrides:
        _apply_override(values, override)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, kind, path or "command line")) from None


def config_digest(config: Section) -> str:
    """Return the SHA-256 of a resolved configuration, 64 hex digits; equal configurations, equal digests."""
    return digest_of(config.model_dump(mode="json"))


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value, 64 hex digits, whatever the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; recipes to start from are in jobs/recipes/") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: expected section.key=value, such as --set optimizer.learning_rate=1e-5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, name = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section")
    values[name] = value


def _explain(error: ValidationError, kind: type[Section], origin: str) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        known = ", ".join(_keys_at(kind, problem["loc"][:-1]))
        match problem["type"]:
            case "extra_forbidden":
                lines.append(f"{where}: unknown key; known here: {known}")
            case "missing":
                lines.append(f"{where}: missing; set it in the file or with --set {where}=...")
            case "value_error":
                reason = problem["msg"].removeprefix("Value error, ")
                lines.append(f"{where}: {reason}" if where else reason)
            case _:
                lines.append(f"{where}: found {problem['input']!r}: {problem['msg']}")
    return "\n".join(f"{origin}: {line}" for line in lines)


def _keys_at(kind: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    for part in path:
        field = kind.model_fields.get(str(part))
        candidates = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        kind = nested[0]
    return list(kind.model_fields)
