"""The contract of ``pairwright report --json``: the metrics of an annotations table (schemas/table_report.v1.json)."""

from typing import Annotated, Literal

import msgspec

FORMAT_VERSION = 1
MAX_LISTED = 1000
"""Most rows of one list in the JSON; a number beside each list says how many there are."""

Kind = Literal["tied", "longer", "first", "last", "won", "lost"]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class TableFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What was reported on: a version of an annotations table."""

    url: str
    version: int
    digest: str
    created_at: str
    files: int
    bytes: int
    followed: Annotated[list[str], msgspec.Meta(description="tables made from it that led here, newest first")]


class Highlight(msgspec.Struct, frozen=True, kw_only=True):
    """One of the things that matter most, in a sentence."""

    level: Literal["alarm", "note", "good"]
    section: Annotated[str, msgspec.Meta(description="id of the section of the page that shows it")]
    text: str


class QuarantinedRecord(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One quarantined record: an example of its reason."""

    source: str
    line: int
    path: str
    reason: str
    record: str


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Records quarantined for one reason."""

    reason: str
    records: int
    sources: Annotated[int, msgspec.Meta(description="how many sources have such records")]
    examples: list[QuarantinedRecord]


class SourceMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the records of one source."""

    uri: str
    format: str
    lines: int
    accepted: int
    refused: int
    blank: int
    erased: int
    main_reason: Annotated[str | None, msgspec.Meta(description="most frequent reason of its quarantined records")]
    main_reason_records: Annotated[int, msgspec.Meta(description="records quarantined for it")] = 0
    scored: Annotated[int, msgspec.Meta(description="decisive comparisons of two different scores")] = 0
    against_scores: Annotated[Share | None, msgspec.Meta(description="of these: the lower score is preferred")] = None
    with_consensus: Annotated[int, msgspec.Meta(description="as of an annotator")] = 0
    against_consensus: Annotated[Share | None, msgspec.Meta(description="as of an annotator")] = None


class Comparisons(msgspec.Struct, frozen=True, kw_only=True):
    """Comparisons of two completions of a group, by subset or by K; each annotation counts."""

    name: str | None
    annotations: int
    groups: int
    comparisons: int
    decisive: int
    ties: int
    longer: Annotated[int, msgspec.Meta(description="decisive ones that the longer completion won, in characters")]
    shorter: Annotated[int, msgspec.Meta(description="those that the shorter one won")]
    longer_wins: Annotated[Share | None, msgspec.Meta(description="longer / decisive")]


class TiedShare(msgspec.Struct, frozen=True, kw_only=True):
    """Annotations by the share of their comparisons that are ties."""

    at_least: Share
    below: Annotated[float, msgspec.Meta(description="1 is within only where at_least is 1")]
    annotations: int


class RankLengths(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths of the completions of one rank, in characters; quantiles are within 5 %."""

    rank: int
    completions: int
    mean: float
    tenth: Annotated[float, msgspec.Meta(description="10 % are shorter")]
    median: float
    ninetieth: Annotated[float, msgspec.Meta(description="10 % are longer")]


class RatioMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Untied comparisons by how many times longer the longer completion is."""

    at_least: float
    below: float | None
    decisive: int
    longer_wins: Share


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """How far the annotators of a group agree."""

    shared_groups: Annotated[int, msgspec.Meta(description="groups that several annotators judged")]
    alpha: Annotated[
        float | None,
        msgspec.Meta(description="Krippendorff's, ordinal, of completions' places; 1 = full agreement, 0 = chance"),
    ]
    alpha_by_num_completions: dict[str, float | None]
    same: Annotated[Share | None, msgspec.Meta(description="of comparisons by two annotators: same outcome or tie")]
    same_direction: Annotated[Share | None, msgspec.Meta(description="of those where both prefer a side: the same")]


class AnnotatorRow(msgspec.Struct, frozen=True, kw_only=True):
    """One annotation of an annotator, texts shortened."""

    source: str
    line: int
    prompt: str | None
    preferred: Annotated[str | None, msgspec.Meta(description="text of the completion that the annotator ranked best")]
    preferred_by_others: Annotated[str | None, msgspec.Meta(description="the best one of the others, by mean rank")]
    with_consensus: int
    against_consensus: Annotated[int, msgspec.Meta(description="preferences of it against the majority of the others")]


class ContestedCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """One completion of a contested group, its text shortened."""

    text: str | None
    model: str | None


class ContestedJudgement(msgspec.Struct, frozen=True, kw_only=True):
    """Who ranked the completions of a contested group how, in the order of ``completions``."""

    annotator: str | None
    ranks: list[int]


class ContestedGroup(msgspec.Struct, frozen=True, kw_only=True):
    """One of the groups whose annotators are most opposed."""

    group_id: str
    opposite: Annotated[int, msgspec.Meta(description="comparisons of two annotators with opposite preferences")]
    decisive_by_both: Annotated[int, msgspec.Meta(description="those where both have a preference")]
    prompt: str | None
    num_completions: int
    completions: list[ContestedCompletion]
    num_judgements: int
    judgements: list[ContestedJudgement]


class Annotator(msgspec.Struct, frozen=True, kw_only=True):
    """One annotator."""

    name: str | None
    annotations: int
    comparisons: int
    ties: int
    longer_wins: Share | None
    shared: Annotated[int, msgspec.Meta(description="comparisons with another annotator's judgement of the same two")]
    same: Annotated[Share | None, msgspec.Meta(description="of these: the same outcome, a tie being one")]
    same_direction: Annotated[Share | None, msgspec.Meta(description="of those where both prefer a side: the same")]
    with_consensus: Annotated[
        int, msgspec.Meta(description="preferences on two completions between which the others have a majority")
    ]
    against_consensus: Annotated[Share | None, msgspec.Meta(description="of these: against that majority")]
    rows: Annotated[
        list[AnnotatorRow], msgspec.Meta(description="annotations that went most against the majority of the others")
    ] = []


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model that wrote completions."""

    name: str
    completions: int
    mean_characters: float
    comparisons: Annotated[int, msgspec.Meta(description="with completions of other models")]
    points: Annotated[Share | None, msgspec.Meta(description="share of them won, a tie being half")]
    component: Annotated[
        int | None, msgspec.Meta(description="connected component of the graph of comparisons; 0 the largest")
    ]
    strength: Annotated[float | None, msgspec.Meta(description="Bradley-Terry log-odds, mean 0 in its component")]
    beats_average: Annotated[Share | None, msgspec.Meta(description="probability to win against a model of strength 0")]


class ModelCompletions(msgspec.Struct, frozen=True, kw_only=True):
    """How many of some completions one model wrote."""

    name: str
    completions: int


class RepeatedText(msgspec.Struct, frozen=True, kw_only=True):
    """One text that completes many prompts."""

    beginning: str | None
    characters: int
    prompts: int
    completions: Annotated[int, msgspec.Meta(description="counted once an annotation")]
    decisive: Annotated[int, msgspec.Meta(description="its decisive comparisons with completions of other text")]
    wins: Annotated[Share | None, msgspec.Meta(description="of these: it is preferred")]
    num_models: int
    models: Annotated[list[ModelCompletions], msgspec.Meta(description="the three that wrote most of them")]


class UniformJudgements(msgspec.Struct, frozen=True, kw_only=True):
    """An annotator or a model all of whose judgements are of one kind, though others' are not."""

    entity: Literal["annotator", "model"]
    name: str
    kind: Annotated[
        Kind,
        msgspec.Meta(description="everything tied; only longer, first-listed or last-listed best; all won; all lost"),
    ]
    judgements: int
    others: Annotated[Share, msgspec.Meta(description="share of the others' judgements that are of this kind")]


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    """Annotations with one template token or transcript mark in their texts."""

    mark: str
    annotations: int
    num_sources: int
    main_source: str


class Models(msgspec.Struct, frozen=True, kw_only=True):
    """Models, the strongest first, one connected component after the other."""

    number: int
    components: Annotated[list[int], msgspec.Meta(description="models in each connected component, largest first")]
    not_fitted: Annotated[
        int, msgspec.Meta(description="models without a comparison with another one, or beyond the limit")
    ]
    listed: list[Model]


class ScoreCount(msgspec.Struct, frozen=True, kw_only=True):
    """Completions with one score, rounded to three significant digits."""

    value: float
    completions: int


class ScoreOutlier(msgspec.Struct, frozen=True, kw_only=True):
    """A score value whose completions come from models that the other scores do not fit."""

    value: float
    completions: int
    share: Annotated[Share, msgspec.Meta(description="of the scores of named models")]
    mean_elsewhere: Annotated[float, msgspec.Meta(description="mean of the other scores of its completions' models")]
    expected: Annotated[float, msgspec.Meta(description="the same mean over all lower values, or all higher ones")]
    is_high: Annotated[bool, msgspec.Meta(description="whether lower values are the expectation")]


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """The scores of all annotations that have any."""

    completions: int
    lowest: float | None
    highest: float | None
    num_values: int
    histogram: Annotated[list[ScoreCount], msgspec.Meta(description="by value, or by equal steps if there are many")]
    num_outliers: int
    outliers: list[ScoreOutlier]


class VersionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What one version holds."""

    version: int
    created_at: str
    operation: str
    annotations: int
    refused: int
    sources: int


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """One version, and how much of what the reported version holds came with it."""

    held: VersionFacts
    new_annotations: int
    new_groups: int
    new_prompts: int


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One of the prompts with the most annotations."""

    prompt_id: str
    text: Annotated[str, msgspec.Meta(description="start of its last turn")]
    annotations: int
    groups: int


class Depth(msgspec.Struct, frozen=True, kw_only=True):
    """Groups with one number of annotations."""

    annotations: int
    groups: int


class TableMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What `pairwright report` measures of an annotations table."""

    format_version: Literal[1] = FORMAT_VERSION
    created_at: str
    code_version: str
    table: TableFacts
    highlights: list[Highlight]
    totals: dict[str, int]
    num_reasons: int
    reasons: list[Reason]
    num_sources: int
    sources: list[SourceMetrics]
    num_sizes: int
    by_num_completions: list[Comparisons]
    num_subsets: int
    by_subset: list[Comparisons]
    tied_shares: list[TiedShare]
    lengths_by_rank: list[RankLengths]
    longer_by_ratio: list[RatioMetrics]
    agreement: Agreement
    num_annotators: int
    annotators: list[Annotator]
    models: Models
    scores: Scores
    num_versions: int
    growth: list[Growth]
    annotations_per_group: list[Depth]
    prompts: list[Prompt]
    num_repeated_texts: Annotated[
        int, msgspec.Meta(description="texts that complete many prompts; see docs/report.md")
    ] = 0
    repeated_texts: list[RepeatedText] = []
    num_uniform_judgements: int = 0
    uniform_judgements: list[UniformJudgements] = []
    marks: list[Marks] = []
    contested: Annotated[
        list[ContestedGroup], msgspec.Meta(description="groups with the largest share of opposite preferences")
    ] = []


def metrics_json(metrics: TableMetrics) -> str:
    """Return the metrics as JSON, indented."""
    return msgspec.json.format(msgspec.json.encode(metrics), indent=2).decode()
