"""Compares models on the same pairs: differences with intervals and p-values, and where the models disagree.

A model may be several runs, such as seeds: its accuracy is their mean, and their spread stands beside it. An interval
is over prompts and says nothing of other seeds; a difference smaller than the spread of seeds is not one of recipes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations, pairwise
from typing import Annotated, Literal

import msgspec
import numpy as np

from pairwright import __version__
from pairwright.evaluation.evaluation_report import ReadTexts
from pairwright.evaluation.load_exported import ModelIdentity
from pairwright.evaluation.reports.report_file import ReportKind
from pairwright.evaluation.reports.report_schema import Count, DataIdentity
from pairwright.evaluation.reports.report_text import percent, percent_interval, points, points_interval
from pairwright.evaluation.statistics.intervals import Estimate, Resamples, holm
from pairwright.evaluation.statistics.pair_arrays import Floats, Ints, PairArrays
from pairwright.evaluation.statistics.paired_comparison import (
    PairedDifference,
    accuracy_of_runs,
    common_pairs,
    paired_difference,
)
from pairwright.evaluation.statistics.slices import MIN_PROMPTS, SIGNIFICANCE, Slice, slices_of
from pairwright.records import UNREADABLE_JSON
from pairwright.terminal import counted, escaped, one_per_line

NUM_EXAMPLES = 10
NUM_SLICES = 50
NUM_CHARACTERS = 200
_SHOWN = 5


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A metric over one model's runs."""

    runs: Count
    mean: float
    standard_deviation: Annotated[float | None, msgspec.Meta(description="of the runs; null for one")]
    lowest: float
    highest: float


class ComparedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model: a run, or several runs that differ in their seed."""

    name: str
    runs: list[ModelIdentity]
    accuracy: Annotated[Estimate, msgspec.Meta(description="on the common pairs, the mean over the runs")]
    accuracy_of_runs: list[float]
    spread: Spread


class SliceDifference(msgspec.Struct, frozen=True, kw_only=True):
    """The difference in one slice."""

    kind: str
    name: str
    result: PairedDifference
    p_value: Annotated[float, msgspec.Meta(description="adjusted for the number of slices")]


class Disagreement(msgspec.Struct, frozen=True, kw_only=True):
    """A pair that one model has right and the other wrong."""

    group_id: str
    chosen: int
    rejected: int
    right: Literal["first", "second"]
    reward_margin_first: float
    reward_margin_second: float
    prompt: Annotated[str, msgspec.Meta(description="the beginning of the last turn")] = ""
    chosen_text: str = ""
    rejected_text: str = ""


class ModelDifference(msgspec.Struct, frozen=True, kw_only=True):
    """Two models: accuracy of the second minus that of the first."""

    first: str
    second: str
    result: PairedDifference
    p_value: Annotated[float | None, msgspec.Meta(description="adjusted for the number of comparisons")]
    slices: Annotated[list[SliceDifference], msgspec.Meta(description="of enough prompts, smallest p first")]
    disagreements: Annotated[list[Disagreement], msgspec.Meta(description="surest first, of each side")]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A comparison of models on the pairs that all of them can be given."""

    format_version: Literal[1] = 1
    created_at: str
    code_version: str
    pairs: DataIdentity
    common_pairs: Count
    common_prompts: Count
    longer_wins: Estimate
    models: list[ComparedModel]
    differences: list[ModelDifference]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model of a comparison: a name, and the evaluation of each of its runs."""

    name: str
    runs: Sequence[tuple[ModelIdentity, PairArrays]]


def compare_models(candidates: Sequence[Candidate], *, pairs: DataIdentity, read_texts: ReadTexts) -> Comparison:
    """Return the comparison of every two models.

    Raises:
        ValueError: if the models have no pair in common.
    """
    every = [arrays for candidate in candidates for _, arrays in candidate.runs]
    rows = common_pairs(every)
    if not len(rows[0]):
        raise ValueError("no pair is left that every model can be given")
    base = _restricted(every[0], rows[0])
    difference_RP = np.stack([arrays.difference_P[kept] for arrays, kept in zip(every, rows, strict=True)])
    starts = np.cumsum([0, *(len(candidate.runs) for candidate in candidates)])
    of_models = [difference_RP[start:end] for start, end in pairwise(starts.tolist())]
    resamples = Resamples.of(base.num_prompts)
    weight_P = base.weight_P * base.repeats_P
    longer = accuracy_of_runs(base.longer_by_P[None].astype(np.float64))
    return Comparison(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=__version__,
        pairs=pairs,
        common_pairs=len(rows[0]),
        common_prompts=len(np.unique(base.prompt_P)),
        longer_wins=resamples.ratio(weight_P * longer, weight_P, base.prompt_P, is_share=True),
        models=[
            _model(candidate, difference, weight_P, base, resamples)
            for candidate, difference in zip(candidates, of_models, strict=True)
        ],
        differences=_differences([one.name for one in candidates], of_models, base, resamples, read_texts),
    )


def spread_of(values: Sequence[float]) -> Spread:
    """Return the spread of one metric over runs, one at least."""
    return Spread(
        runs=len(values),
        mean=float(np.mean(values)),
        standard_deviation=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        lowest=min(values),
        highest=max(values),
    )


def is_comparison(content: bytes) -> bool:
    """Return whether a file's content is a comparison, which a newer one may replace."""
    try:
        return bool(msgspec.json.decode(content, type=Comparison))
    except UNREADABLE_JSON:
        return False


COMPARISON = ReportKind("compare", "a comparison of `pairwright compare`", is_comparison)


def format_comparison(found: Comparison) -> str:
    """Return the comparison as plain text."""
    return one_per_line(_lines(found))


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return a short name of each model: the last part of its path that tells it from the others."""
    short = {name: _short(name) for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in names}


def _short(name: str) -> str:
    paths = [path.rstrip("/").removesuffix("/model") for path in name.split(",") if path]
    last = paths[0].rpartition("/")[2] or name
    return last if len(paths) == 1 else f"{last} and {counted(len(paths) - 1, 'more run')}"


def _restricted(arrays: PairArrays, rows: Ints) -> PairArrays:
    names = ("group_P", "chosen_P", "rejected_P", "weight_P", "margin_P")
    return replace(arrays, **{name: getattr(arrays, name)[rows] for name in names})


def _model(
    candidate: Candidate, difference_RP: Floats, weight_P: Floats, base: PairArrays, resamples: Resamples
) -> ComparedModel:
    right_P = accuracy_of_runs(difference_RP)
    of_runs = [float((weight_P * accuracy_of_runs(row[None])).sum() / weight_P.sum()) for row in difference_RP]
    return ComparedModel(
        name=candidate.name,
        runs=[identity for identity, _ in candidate.runs],
        accuracy=resamples.ratio(weight_P * right_P, weight_P, base.prompt_P, is_share=True),
        accuracy_of_runs=of_runs,
        spread=spread_of(of_runs),
    )


def _differences(
    names: Sequence[str],
    of_models: Sequence[Floats],
    base: PairArrays,
    resamples: Resamples,
    read_texts: ReadTexts,
) -> list[ModelDifference]:
    found, slices = [], list(slices_of(base))
    weight_P = base.weight_P * base.repeats_P
    for first, second in combinations(range(len(names)), 2):
        right = accuracy_of_runs(of_models[first]), accuracy_of_runs(of_models[second])
        found.append(
            ModelDifference(
                first=names[first],
                second=names[second],
                result=paired_difference(*right, weight_P, base.prompt_P, resamples),
                p_value=None,
                slices=_slices(slices, right, base, resamples),
                disagreements=_disagreements(
                    base, of_models[first].mean(axis=0), of_models[second].mean(axis=0), read_texts
                ),
            )
        )
    adjusted = holm(np.array([1.0 if one.result.p_value is None else one.result.p_value for one in found]))
    return [msgspec.structs.replace(one, p_value=float(p)) for one, p in zip(found, adjusted, strict=True)]


def _slices(
    slices: Sequence[Slice], right: tuple[Floats, Floats], base: PairArrays, resamples: Resamples
) -> list[SliceDifference]:
    rows = []
    for one in slices:
        kept = np.flatnonzero(one.is_in_P)
        prompt = base.prompt_P[kept]
        if len(np.unique(prompt)) >= MIN_PROMPTS:
            weight = base.weight_P[kept] * (1 if one.once else base.repeats_P[kept])
            rows.append((one, paired_difference(right[0][kept], right[1][kept], weight, prompt, resamples)))
    adjusted = holm(np.array([1.0 if result.p_value is None else result.p_value for _, result in rows]))
    found = [
        SliceDifference(kind=one.kind, name=one.name, result=result, p_value=float(p_value))
        for (one, result), p_value in zip(rows, adjusted, strict=True)
    ]
    return sorted(found, key=lambda row: (row.p_value, -abs(row.result.difference.value or 0.0)))[:NUM_SLICES]


def _disagreements(base: PairArrays, first_P: Floats, second_P: Floats, read_texts: ReadTexts) -> list[Disagreement]:
    """Return the pairs on which one model is right and the other wrong, surest first, of each side, one a group."""
    found = []
    sides: list[tuple[Literal["first", "second"], Floats, Floats]] = [
        ("first", first_P, second_P),
        ("second", second_P, first_P),
    ]
    for side, right_P, wrong_P in sides:
        scale = [float(np.std(values)) or 1.0 for values in (right_P, wrong_P)]
        sure_P = np.minimum(right_P / scale[0], -wrong_P / scale[1])
        rows = np.flatnonzero(sure_P > 0)
        rows = rows[np.argsort(-sure_P[rows], kind="stable")]
        rows = rows[np.sort(np.unique(base.group_P[rows], return_index=True)[1])][:NUM_EXAMPLES]
        found += [
            Disagreement(
                group_id=base.group_ids[int(base.group_P[row])],
                chosen=int(base.index_N[base.chosen_P[row]]),
                rejected=int(base.index_N[base.rejected_P[row]]),
                right=side,
                reward_margin_first=float(first_P[row]),
                reward_margin_second=float(second_P[row]),
            )
            for row in rows.tolist()
        ]
    return _with_texts(found, read_texts)


def _with_texts(rows: Sequence[Disagreement], read_texts: ReadTexts) -> list[Disagreement]:
    texts = read_texts([row.group_id for row in rows]) if rows else {}
    found = []
    for row in rows:
        group = texts[row.group_id]
        found.append(
            msgspec.structs.replace(
                row,
                prompt=group["prompt"][-1]["content"][:NUM_CHARACTERS],
                chosen_text=group["completions"][row.chosen]["text"][:NUM_CHARACTERS],
                rejected_text=group["completions"][row.rejected]["text"][:NUM_CHARACTERS],
            )
        )
    return found


def _lines(found: Comparison) -> Iterator[str]:
    pairs = found.pairs
    yield (
        f"pairs  {pairs.url} version {pairs.version}, split {pairs.split}: {found.common_pairs:,} pairs of "
        f"{found.common_prompts:,} prompts that every model can be given"
    )
    yield ""
    for model in found.models:
        spread = model.spread
        runs = (
            ""
            if spread.standard_deviation is None
            else (
                f"; {spread.runs} runs {100 * spread.lowest:.1f} to {100 * spread.highest:.1f}, "
                f"standard deviation {100 * spread.standard_deviation:.2f}"
            )
        )
        yield f"{_percent(model.accuracy)}  {escaped(model.name)}{runs}"
    yield f"{_percent(found.longer_wins)}  the longer text wins"
    short = {name: escaped(text) for name, text in short_names([model.name for model in found.models]).items()}
    for one in found.differences:
        yield ""
        yield from _difference_lines(one, short)


def _difference_lines(one: ModelDifference, short: Mapping[str, str]) -> Iterator[str]:
    yield f"{short[one.second]} less {short[one.first]}"
    p = "-" if one.p_value is None else f"{one.p_value:.4f}"
    verdict = "they differ" if one.p_value is not None and one.p_value < SIGNIFICANCE else "no difference is shown"
    apart = percent(one.result.disagreement)
    yield f"  {_difference(one.result.difference)} points, p {p}: {verdict}; they disagree on {apart} of pairs"
    significant = [row for row in one.slices if row.p_value < SIGNIFICANCE]
    if not significant:
        yield f"  no slice of {len(one.slices)} differs surely"
    for row in significant[:_SHOWN]:
        where = f"{row.kind.replace('_', ' ')} {escaped(row.name)}"
        yield f"  {where}: {_difference(row.result.difference)} points in {row.result.prompts:,} prompts"
    for row in [row for side in ("first", "second") for row in one.disagreements if row.right == side][::NUM_EXAMPLES]:
        name = one.first if row.right == "first" else one.second
        yield f"  right is {short[name]} alone: {escaped(row.prompt[:70])}"


def _percent(estimate: Estimate) -> str:
    return f"{percent(estimate.value):>7} {percent_interval(estimate)}"


def _difference(estimate: Estimate) -> str:
    return f"{points(estimate)} {points_interval(estimate)}"
