"""Builds the report of an evaluation, ``report.json``: a pure function of the rows of evaluation/group_rows.py.

Every part has the accuracy of the rule that the longer text wins: accuracy alone does not show whether a model learned
more than that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec
import numpy as np

from pairwright import __version__
from pairwright.evaluation.degenerate_texts import DegenerateReward, degenerate_texts
from pairwright.evaluation.load_exported import ModelIdentity
from pairwright.evaluation.reports.report_schema import ByLength, DataIdentity, Influence, Method, Repeated, Report
from pairwright.evaluation.statistics.best_of_n import best_of_n
from pairwright.evaluation.statistics.bias import author_ratings, feature_preferences, length_bias
from pairwright.evaluation.statistics.calibration import Calibration, calibrate
from pairwright.evaluation.statistics.ceiling import AnnotatorFit, Ceiling, Judgements, ceiling
from pairwright.evaluation.statistics.intervals import CONFIDENCE, SEED
from pairwright.evaluation.statistics.pair_arrays import PairArrays
from pairwright.evaluation.statistics.pair_metrics import PairTerms, PartMetrics
from pairwright.evaluation.statistics.rank_correlation import rank_correlation
from pairwright.evaluation.statistics.slices import Slice, slices_of, worst_slices
from pairwright.evaluation.statistics.suspects import LeastSure, LikelyWrong, least_sure, likely_wrong, unexplained
from pairwright.evaluation.statistics.text_repeats import RepeatedText, repeated_texts
from pairwright.terminal import safe_json

NUM_LISTED = 50
"""Rows of a list of suspects in the report; files of findings have up to 1,000."""
NUM_CHARACTERS = 200
ONE_ANNOTATION = "no group has annotations of two annotators"
UNREAD = "the annotations were not read"

ReadTexts: TypeAlias = Callable[[Sequence[str]], Mapping[str, Mapping[str, Any]]]
"""Ids of groups -> their rows of the pairs table."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What an evaluation measured."""

    arrays: PairArrays
    judgements: Judgements | str = UNREAD
    """The single annotations, or why they are not known."""
    degenerate: Sequence[DegenerateReward] = ()


@dataclass(frozen=True, slots=True)
class Findings:
    """What deserves a second look, and what the report says of it."""

    calibration: Calibration
    ceiling: Ceiling | None
    ceiling_unknown: str
    fits: list[AnnotatorFit]
    unexplained: list[str]
    likely_wrong: list[LikelyWrong]
    least_sure: list[LeastSure]


def find(measured: Measured, terms: PairTerms, overall: PartMetrics) -> Findings:
    """Return the pairs, groups and annotators that deserve a second look."""
    calibration = calibrate(terms.arrays, terms.resamples)
    temperature = calibration.temperature or 1.0
    top, fits, unknown = None, [], measured.judgements
    if isinstance(measured.judgements, Judgements):
        top, fits = ceiling(terms, measured.judgements)
        top, unknown = (top, "") if top.groups else (None, ONE_ANNOTATION)
    assert isinstance(unknown, str)
    return Findings(
        calibration=calibration,
        ceiling=top,
        ceiling_unknown=unknown,
        fits=fits,
        unexplained=[fit.annotator for fit in unexplained(fits, overall.accuracy.value)],
        likely_wrong=likely_wrong(terms.arrays, temperature),
        least_sure=least_sure(terms.arrays, temperature),
    )


def build_report(
    measured: Measured,
    model: ModelIdentity,
    pairs: DataIdentity,
    read_texts: ReadTexts | None = None,
    influence: Influence | None = None,
) -> tuple[dict[str, Any], Findings]:
    """Return the report as JSON-able values, in the shape of ``schemas/report.v1.json``, and all findings."""
    arrays = measured.arrays
    terms = PairTerms.of(arrays)
    overall = terms.metrics()
    found = find(measured, terms, overall)
    slices = [(one, terms.metrics(one.is_in_P, once=one.once)) for one in slices_of(arrays)]
    worst, num_tested = worst_slices(terms, slices)
    by_kind = _by_kind(slices)
    report = Report(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=__version__,
        model=model,
        pairs=pairs,
        method=_method(terms),
        overall=overall,
        ceiling=found.ceiling,
        ceiling_unknown=found.ceiling_unknown,
        by_subset=by_kind.pop("subset", {}),
        by_num_completions=by_kind.pop("num_completions", {}),
        by_length=_by_length(terms),
        slices=by_kind,
        worst_slices=worst,
        slices_tested=num_tested,
        calibration=found.calibration,
        best_of_n=best_of_n(arrays, terms.resamples),
        rank_correlation=rank_correlation(arrays, terms.resamples),
        length=length_bias(arrays, terms.resamples),
        features=feature_preferences(terms),
        authors=author_ratings(terms),
        repeated_texts=_repeated(arrays, repeated_texts(terms), read_texts),
        degenerate_texts=degenerate_texts(arrays, measured.degenerate, terms.resamples),
        likely_wrong=found.likely_wrong[:NUM_LISTED],
        num_likely_wrong=len(found.likely_wrong),
        least_sure=found.least_sure[:NUM_LISTED],
        annotators=found.fits,
        unexplained_annotators=found.unexplained,
        influence=influence,
        pairs_again=int((arrays.repeats_P - 1).sum()),
    )
    return msgspec.json.decode(msgspec.json.encode(report)), found


def report_json(report: dict[str, Any]) -> bytes:
    """Return the content of ``report.json``, indented, with unprintable characters escaped."""
    return safe_json(msgspec.json.format(msgspec.json.encode(report).decode(), indent=2)).encode() + b"\n"


def _method(terms: PairTerms) -> Method:
    num_resamples, num_clusters = terms.resamples.counts_BC.shape
    return Method(
        interval=CONFIDENCE,
        prompts=terms.arrays.num_prompts,
        clusters=num_clusters,
        resamples=num_resamples,
        seed=SEED,
    )


def _by_kind(slices: Sequence[tuple[Slice, PartMetrics]]) -> dict[str, dict[str, PartMetrics]]:
    by_kind: dict[str, dict[str, PartMetrics]] = {}
    for one, metrics in slices:
        by_kind.setdefault(one.kind, {})[one.name] = metrics
    return by_kind


def _by_length(terms: PairTerms) -> ByLength:
    longer_by_P = terms.arrays.longer_by_P
    return ByLength(
        chosen_longer=terms.metrics(longer_by_P > 0),
        chosen_shorter=terms.metrics(longer_by_P < 0),
        equal_length=terms.metrics(longer_by_P == 0),
    )


def _repeated(arrays: PairArrays, rows: Sequence[RepeatedText], read_texts: ReadTexts | None) -> list[Repeated]:
    groups = [arrays.group_ids[int(arrays.group_N[row.completion])] for row in rows]
    index = [int(np.int64(arrays.index_N[row.completion])) for row in rows]
    texts = read_texts(groups) if read_texts is not None and groups else {}

    def beginning(group: str, position: int) -> str:
        return texts[group]["completions"][position]["text"][:NUM_CHARACTERS] if group in texts else ""

    return [
        Repeated(text=beginning(group, position), group_id=group, completion=position, metrics=row)
        for row, group, position in zip(rows, groups, index, strict=True)
    ]
