"""Sums of a report -> its figures: shares, quantiles, rankings, in the shape of contract.py. Pure.

Lists are cut at MAX_LISTED rows, the largest first, and beside each stands how many there are: the report of a table
with a million annotators is as long as that of one with a thousand.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pairwright import __version__
from pairwright.data.profile.aggregates import Sums
from pairwright.data.profile.annotators_and_models import (
    Row,
    Strengths,
    agreement,
    annotator,
    largest,
    models_by_strength,
    share,
)
from pairwright.data.profile.counts import COUNTS, NUM_TOP_PROMPTS, RATIO_STEPS_PER_OCTAVE, STEPS_PER_OCTAVE
from pairwright.data.profile.growth import History
from pairwright.data.profile.highlights import findings
from pairwright.data.profile.profile_schema import (
    MAX_LISTED,
    Comparisons,
    Depth,
    Figures,
    Growth,
    Prompt,
    RankLengths,
    RatioFigures,
    Reason,
    ScoreCount,
    Scores,
    SourceFigures,
    TableFacts,
    TiedShare,
)
from pairwright.data.profile.quarantine_counts import RefusedSums
from pairwright.data.profile.score_outliers import bulges
from pairwright.data.profile.suspects import all_alike, marks, num_marked, repeated_texts
from pairwright.data.table.table import Manifest, Source

__all__ = ["Figures", "Strengths", "TableFacts", "build_figures"]

MAX_SCORE_VALUES = 41
"""More distinct scores than that are shown in as many steps of equal width."""


def build_figures(
    table: TableFacts,
    manifest: Manifest,
    history: History,
    refused: RefusedSums,
    sums: Sums,
    strengths: Strengths | None,
) -> Figures:
    """Return the figures of a version."""
    totals = {row["name"]: row["count"] for row in sums["totals"].to_pylist()}
    totals |= _accounts(manifest.sources)
    totals |= {"annotations_marked": num_marked(sums["marks"])}
    sizes = sums["sizes"]
    repeated, alike = repeated_texts(sums, totals["prompts"]), all_alike(sums)
    figures = Figures(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=__version__,
        table=table,
        findings=[],
        totals=totals,
        num_reasons=len({reason for _, reason, _ in refused.counts}),
        reasons=_reasons(refused),
        num_sources=len(manifest.sources),
        sources=_sources(manifest, refused, sums["by_source"]),
        num_sizes=len(sizes["num_completions"].unique()),
        by_num_completions=_comparisons(sizes, "num_completions"),
        num_subsets=len(sizes["subset"].unique()),
        by_subset=_comparisons(sizes, "subset"),
        tied_shares=_tied_shares(sums["tied_shares"]),
        lengths_by_rank=_lengths_by_rank(sums),
        longer_by_ratio=_longer_by_ratio(sums),
        agreement=agreement(sums, totals),
        num_annotators=sums["annotators"].num_rows,
        annotators=[annotator(row) for row in largest(sums["annotators"], "annotations")],
        models=models_by_strength(sums["models"], strengths),
        scores=_scores(sums["scores"]),
        num_versions=history.num_versions,
        growth=_growth(sums["growth"], history),
        annotations_per_group=[
            Depth(annotations=row["num_annotations"], groups=row["groups"])
            for row in sums["depth"].sort_by("num_annotations").slice(0, MAX_LISTED).to_pylist()
        ],
        prompts=[_prompt(row) for row in largest(sums["prompts"], "annotations")[:NUM_TOP_PROMPTS]],
        num_repeated_texts=len(repeated),
        repeated_texts=repeated[:MAX_LISTED],
        num_alike=len(alike),
        alike=alike[:MAX_LISTED],
        marks=marks(sums["marks"]),
    )
    return msgspec.structs.replace(figures, findings=findings(figures))


def _accounts(sources: Sequence[Source]) -> dict[str, int]:
    return {
        "lines": sum(source.lines for source in sources),
        "accepted": sum(source.accepted for source in sources),
        "refused": sum(source.refused for source in sources),
        "blank": sum(source.blank for source in sources),
        "forgotten": sum(source.forgotten for source in sources),
    }


# ----------------------------------------------------------------------------------- refused and sources


def _reasons(refused: RefusedSums) -> list[Reason]:
    records: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    for _, reason, number in refused.counts:
        records[reason] += number
        sources[reason] += 1
    return [
        Reason(reason=reason, records=number, sources=sources[reason], examples=refused.examples.get(reason, []))
        for reason, number in records.most_common(MAX_LISTED)
    ]


def _sources(manifest: Manifest, refused: RefusedSums, by_source: pa.Table) -> list[SourceFigures]:
    main: dict[str, tuple[int, str]] = {}
    for uri, reason, number in refused.counts:
        main[uri] = max(main.get(uri, (0, "")), (number, reason))
    judged = {row["source"]: row for row in by_source.to_pylist()}
    nothing = dict.fromkeys(by_source.column_names, 0)
    largest = sorted(manifest.sources, key=lambda source: (-source.refused, -source.lines, source.uri))
    return [
        SourceFigures(
            uri=source.uri,
            format=source.format,
            lines=source.lines,
            accepted=source.accepted,
            refused=source.refused,
            blank=source.blank,
            forgotten=source.forgotten,
            main_reason=main[source.uri][1] if source.uri in main else None,
            main_reason_records=main[source.uri][0] if source.uri in main else 0,
            scored=row["scored"],
            against_scores=share(row["against_scores"], row["scored"]),
            with_consensus=row["with_consensus"],
            against_consensus=share(row["against_consensus"], row["with_consensus"]),
        )
        for source in largest[:MAX_LISTED]
        for row in [judged.get(source.uri, nothing)]
    ]


# ---------------------------------------------------------------------------------- comparisons, lengths


def _comparisons(sizes: pa.Table, key: str) -> list[Comparisons]:
    """Return the counts by subset (the most annotations first) or by K (ascending)."""
    names = ("annotations", "groups", "groups_of_subset", *COUNTS)
    added = sizes.group_by(key, use_threads=False).aggregate([(name, "sum") for name in names])
    added = added.select([key, *(f"{name}_sum" for name in names)]).rename_columns([key, *names])
    is_size = key == "num_completions"
    rows = added.sort_by(key).slice(0, MAX_LISTED).to_pylist() if is_size else largest(added, "annotations")
    return [
        Comparisons(
            name=None if row[key] is None else str(row[key]),
            annotations=row["annotations"],
            groups=row["groups" if is_size else "groups_of_subset"],
            comparisons=row["comparisons"],
            untied=row["untied"],
            ties=row["ties"],
            longer=row["longer"],
            shorter=row["shorter"],
            longer_wins=share(row["longer"], row["untied"]),
        )
        for row in rows
    ]


def _tied_shares(table: pa.Table) -> list[TiedShare]:
    """Return none, above 0 to 0.1, ... up to below 1, and all."""
    counts = dict(zip(table["tenth"].to_pylist(), table["annotations"].to_pylist(), strict=True))
    bounds = [(-1, 0.0, 0.0), *((tenth, tenth / 10, (tenth + 1) / 10) for tenth in range(10)), (10, 1.0, 1.0)]
    return [TiedShare(at_least=low, below=high, annotations=counts.get(tenth, 0)) for tenth, low, high in bounds]


def _lengths_by_rank(sums: Sums) -> list[RankLengths]:
    if "lengths" not in sums:
        return []
    table = sums["lengths"].sort_by([("rank", "ascending"), ("step", "ascending")])
    ranks = table["rank"].to_numpy()
    found = []
    for rank in np.unique(ranks)[:MAX_LISTED].tolist():
        rows = table.filter(pa.array(ranks == rank))
        number, characters = rows["completions"].to_numpy(), rows["characters"].to_numpy()
        tenth, median, ninetieth = _quantiles(rows["step"].to_numpy(), number, (0.1, 0.5, 0.9))
        found.append(
            RankLengths(
                rank=rank,
                completions=int(number.sum()),
                mean=float(characters.sum() / number.sum()),
                tenth=tenth,
                median=median,
                ninetieth=ninetieth,
            )
        )
    return found


def _quantiles(steps: NDArray, numbers: NDArray, wanted: Sequence[float]) -> list[float]:
    """Return quantiles of values counted in steps, each the middle of its step."""
    below = np.cumsum(numbers) / numbers.sum()
    places = np.searchsorted(below, np.array(wanted) - 1e-12)
    return [float(2 ** ((steps[place] + 0.5) / STEPS_PER_OCTAVE)) for place in places]


def _longer_by_ratio(sums: Sums) -> list[RatioFigures]:
    if "ratios" not in sums:
        return []
    rows = sums["ratios"].sort_by("step").to_pylist()
    last = rows[-1]["step"] if rows else 0
    return [
        RatioFigures(
            at_least=2 ** (row["step"] / RATIO_STEPS_PER_OCTAVE),
            below=None if row["step"] == last else 2 ** ((row["step"] + 1) / RATIO_STEPS_PER_OCTAVE),
            untied=row["untied"],
            longer_wins=row["longer"] / row["untied"],
        )
        for row in rows
    ]


# ------------------------------------------------------------------------------ scores, versions, prompts


def _scores(table: pa.Table) -> Scores:
    every = table.filter(pc.field("party") == "all").sort_by("value")
    values, numbers = every["value"].to_numpy(), every["completions"].to_numpy()
    found = bulges(table)
    return Scores(
        completions=int(numbers.sum()),
        lowest=float(values[0]) if len(values) else None,
        highest=float(values[-1]) if len(values) else None,
        num_values=len(values),
        histogram=_histogram(values, numbers),
        num_bulges=len(found),
        bulges=found[:MAX_LISTED],
    )


def _histogram(values: NDArray, numbers: NDArray) -> list[ScoreCount]:
    if len(values) > MAX_SCORE_VALUES:
        width = (values[-1] - values[0]) / MAX_SCORE_VALUES
        step = np.minimum(((values - values[0]) / width).astype(np.int64), MAX_SCORE_VALUES - 1)
        numbers = np.bincount(step, numbers, minlength=MAX_SCORE_VALUES).astype(np.int64)
        values = values[0] + width * (np.arange(MAX_SCORE_VALUES) + 0.5)
    return [
        ScoreCount(value=value, completions=number)
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True)
    ]


def _growth(table: pa.Table, history: History) -> list[Growth]:
    new = {row["version"]: row for row in table.to_pylist()}
    nothing = {"annotations": 0, "groups": 0, "prompts": 0}
    return [
        Growth(
            held=held,
            new_annotations=new.get(held.version, nothing)["annotations"],
            new_groups=new.get(held.version, nothing)["groups"],
            new_prompts=new.get(held.version, nothing)["prompts"],
        )
        for held in history.versions
    ]


def _prompt(row: Row) -> Prompt:
    return Prompt(
        prompt_id=row["prompt_id"], text=row["prompt"] or "", annotations=row["annotations"], groups=row["groups"]
    )
