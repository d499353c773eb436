"""The shape of ``report.json`` (schemas/report.v1.json): every metric is a value with its 95 % interval.

The parts are the results of evaluation/statistics as they are; what a figure means is said there, and in
docs/evaluation.md.
"""

from typing import Annotated, Literal

import msgspec

from pairwright.evaluation.degenerate_texts import DegenerateText
from pairwright.evaluation.influence.leave_out import InfluenceOf
from pairwright.evaluation.load_exported import ModelIdentity
from pairwright.evaluation.statistics.best_of_n import BestOfN
from pairwright.evaluation.statistics.bias import AuthorRating, FeaturePreference, LengthBias
from pairwright.evaluation.statistics.calibration import Calibration
from pairwright.evaluation.statistics.ceiling import AnnotatorFit, Ceiling
from pairwright.evaluation.statistics.pair_metrics import PartMetrics
from pairwright.evaluation.statistics.rank_correlation import RankCorrelation
from pairwright.evaluation.statistics.slices import WorstSlice
from pairwright.evaluation.statistics.suspects import LeastSure, LikelyWrong
from pairwright.evaluation.statistics.text_repeats import RepeatedText

FORMAT_VERSION = 1

Count = Annotated[int, msgspec.Meta(ge=0)]


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """How the intervals were made."""

    interval: Annotated[float, msgspec.Meta(description="share of such intervals that hold the truth")]
    resampled: Literal["prompts"] = "prompts"
    prompts: Count
    clusters: Annotated[Count, msgspec.Meta(description="what is drawn: prompts, or groups of prompts where many")]
    resamples: Count
    seed: int
    equal_rewards: Literal["half"] = "half"


class DataIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """The data of an evaluation."""

    url: str
    version: int
    digest: str
    split: str
    pairs: Annotated[Count, msgspec.Meta(description="of the split in the table; `overall` has those evaluated")]
    tokens: Annotated[
        dict[str, int | float],
        msgspec.Meta(description="totals of the whole tokens table, all splits: kept, truncated and dropped"),
    ]


class ByLength(msgspec.Struct, frozen=True, kw_only=True):
    """The model's metrics by which completion of a pair has the longer text."""

    chosen_longer: PartMetrics
    chosen_shorter: PartMetrics
    equal_length: PartMetrics


class Repeated(msgspec.Struct, frozen=True, kw_only=True):
    """A text under several prompts, with its beginning."""

    text: Annotated[str, msgspec.Meta(description="its first 200 characters")]
    group_id: Annotated[str, msgspec.Meta(description="the first group that holds it")]
    completion: Annotated[int, msgspec.Meta(description="index in that group of the pairs table")]
    metrics: RepeatedText


class Influence(msgspec.Struct, frozen=True, kw_only=True):
    """What leaving out an annotator or an author changes, by a small judge trained again without it."""

    train_groups: Annotated[Count, msgspec.Meta(description="that the judge is trained on: all, or a sample")]
    held_out_groups: Count
    features: Annotated[Count, msgspec.Meta(description="of a completion: counts of its tokens, and its length")]
    annotators: Annotated[InfluenceOf | None, msgspec.Meta(description="most harmful first; null where unknown")]
    annotators_unknown: str = ""
    authors: Annotated[
        InfluenceOf | None,
        msgspec.Meta(description="of completions; those first of whom the judge knows least without their own pairs"),
    ]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The evaluation of a model on the pairs of a split."""

    format_version: Literal[1] = FORMAT_VERSION
    created_at: str
    code_version: str
    model: ModelIdentity
    pairs: DataIdentity
    method: Method
    overall: PartMetrics
    ceiling: Annotated[Ceiling | None, msgspec.Meta(description="null where no group has two annotations")]
    ceiling_unknown: Annotated[str, msgspec.Meta(description="why the ceiling is null")] = ""
    by_subset: dict[str, PartMetrics]
    by_num_completions: dict[str, PartMetrics]
    by_length: ByLength
    slices: Annotated[dict[str, dict[str, PartMetrics]], msgspec.Meta(description="kind -> name -> metrics")]
    worst_slices: Annotated[list[WorstSlice], msgspec.Meta(description="surely worse than the rest, worst first")]
    slices_tested: Annotated[Count, msgspec.Meta(description="the p-values are adjusted for that many")]
    calibration: Calibration
    best_of_n: list[BestOfN]
    rank_correlation: RankCorrelation
    length: LengthBias
    features: list[FeaturePreference]
    authors: Annotated[list[AuthorRating], msgspec.Meta(description="who wrote the completions; over-rated first")]
    repeated_texts: list[Repeated]
    degenerate_texts: list[DegenerateText]
    likely_wrong: Annotated[list[LikelyWrong], msgspec.Meta(description="the first 50")]
    num_likely_wrong: Annotated[Count, msgspec.Meta(description="groups with such a pair, at most 1,000")]
    least_sure: Annotated[list[LeastSure], msgspec.Meta(description="the first 50")]
    annotators: Annotated[list[AnnotatorFit], msgspec.Meta(description="least explained first")]
    unexplained_annotators: list[str]
    influence: Annotated[Influence | None, msgspec.Meta(description="null unless asked for with --influence")] = None
    pairs_again: Annotated[
        Count,
        msgspec.Meta(description="of the pairs in `overall`: counted again because their group is in another subset"),
    ] = 0
