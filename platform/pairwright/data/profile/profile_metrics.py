"""Computes the metrics of a report from its aggregates: shares, quantiles and rankings. Pure.

Lists are cut at MAX_LISTED rows, the largest first, and a number beside each says how many there are. So the report on
a million annotators is as long as that on a thousand.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pairwright import __version__
from pairwright.data.profile.aggregates import Aggregates, History, QuarantineCounts
from pairwright.data.profile.annotators_and_models import (
    Row,
    agreement,
    annotator,
    contested,
    largest,
    models_by_strength,
    rows_by_annotator,
    share,
)
from pairwright.data.profile.counts import COUNTS, NUM_TOP_PROMPTS, RATIO_STEPS_PER_OCTAVE, STEPS_PER_OCTAVE
from pairwright.data.profile.highlights import highlights
from pairwright.data.profile.profile_schema import (
    MAX_LISTED,
    Comparisons,
    Depth,
    Growth,
    Prompt,
    RankLengths,
    RatioMetrics,
    Reason,
    ScoreCount,
    Scores,
    SourceMetrics,
    TableFacts,
    TableMetrics,
    TiedShare,
)
from pairwright.data.profile.suspicious import (
    marks,
    num_marked,
    repeated_texts,
    score_outliers,
    uniform_judgements,
)
from pairwright.data.table.table import Manifest, Source

MAX_SCORE_VALUES = 41
"""More distinct scores than that are put into as many bins of equal width."""


def build_metrics(
    table: TableFacts,
    manifest: Manifest,
    history: History,
    quarantined: QuarantineCounts,
    aggregates: Aggregates,
) -> TableMetrics:
    """Return the metrics of a version."""
    totals = {row["name"]: row["count"] for row in aggregates["totals"].to_pylist()}
    totals |= _source_totals(manifest.sources)
    totals |= {"annotations_marked": num_marked(aggregates["marks"])}
    sizes = aggregates["sizes"]
    repeated, uniform = repeated_texts(aggregates, totals["prompts"]), uniform_judgements(aggregates)
    rows = rows_by_annotator(aggregates["annotator_rows"])
    metrics = TableMetrics(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=__version__,
        table=table,
        highlights=[],
        totals=totals,
        num_reasons=len({reason for _, reason, _ in quarantined.counts}),
        reasons=_reasons(quarantined),
        num_sources=len(manifest.sources),
        sources=_sources(manifest, quarantined, aggregates["by_source"]),
        num_sizes=len(sizes["num_completions"].unique()),
        by_num_completions=_comparisons(sizes, "num_completions"),
        num_subsets=len(sizes["subset"].unique()),
        by_subset=_comparisons(sizes, "subset"),
        tied_shares=_tied_shares(aggregates["tied_shares"]),
        lengths_by_rank=_lengths_by_rank(aggregates),
        longer_by_ratio=_longer_by_ratio(aggregates),
        agreement=agreement(aggregates, totals),
        num_annotators=aggregates["annotators"].num_rows,
        annotators=[
            annotator(row, rows.get(row["annotator"], ())) for row in largest(aggregates["annotators"], "annotations")
        ],
        contested=contested(aggregates["contested"]),
        models=models_by_strength(aggregates["models"], aggregates.get("matchups")),
        scores=_scores(aggregates["scores"]),
        num_versions=history.num_versions,
        growth=_growth(aggregates["growth"], history),
        annotations_per_group=[
            Depth(annotations=row["num_annotations"], groups=row["groups"])
            for row in aggregates["depth"].sort_by("num_annotations").slice(0, MAX_LISTED).to_pylist()
        ],
        prompts=[_prompt(row) for row in largest(aggregates["prompts"], "annotations")[:NUM_TOP_PROMPTS]],
        num_repeated_texts=len(repeated),
        repeated_texts=repeated[:MAX_LISTED],
        num_uniform_judgements=len(uniform),
        uniform_judgements=uniform[:MAX_LISTED],
        marks=marks(aggregates["marks"]),
    )
    return msgspec.structs.replace(metrics, highlights=highlights(metrics))


def _source_totals(sources: Sequence[Source]) -> dict[str, int]:
    return {
        "lines": sum(source.lines for source in sources),
        "accepted": sum(source.accepted for source in sources),
        "refused": sum(source.refused for source in sources),
        "blank": sum(source.blank for source in sources),
        "erased": sum(source.erased for source in sources),
    }


# ------------------------------------------------------------------------------- quarantine and sources


def _reasons(quarantined: QuarantineCounts) -> list[Reason]:
    records: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    for _, reason, number in quarantined.counts:
        records[reason] += number
        sources[reason] += 1
    return [
        Reason(reason=reason, records=number, sources=sources[reason], examples=quarantined.examples.get(reason, []))
        for reason, number in records.most_common(MAX_LISTED)
    ]


def _sources(manifest: Manifest, quarantined: QuarantineCounts, by_source: pa.Table) -> list[SourceMetrics]:
    main: dict[str, tuple[int, str]] = {}
    for uri, reason, number in quarantined.counts:
        main[uri] = max(main.get(uri, (0, "")), (number, reason))
    judged = {row["source"]: row for row in by_source.to_pylist()}
    nothing = dict.fromkeys(by_source.column_names, 0)
    largest = sorted(manifest.sources, key=lambda source: (-source.refused, -source.lines, source.uri))
    return [
        SourceMetrics(
            uri=source.uri,
            format=source.format,
            lines=source.lines,
            accepted=source.accepted,
            refused=source.refused,
            blank=source.blank,
            erased=source.erased,
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
            decisive=row["decisive"],
            ties=row["ties"],
            longer=row["longer"],
            shorter=row["shorter"],
            longer_wins=share(row["longer"], row["decisive"]),
        )
        for row in rows
    ]


def _tied_shares(table: pa.Table) -> list[TiedShare]:
    """Return the annotations without ties, those with up to each tenth of ties, and those with ties alone."""
    counts = dict(zip(table["tenth"].to_pylist(), table["annotations"].to_pylist(), strict=True))
    bounds = [(-1, 0.0, 0.0), *((tenth, tenth / 10, (tenth + 1) / 10) for tenth in range(10)), (10, 1.0, 1.0)]
    return [TiedShare(at_least=low, below=high, annotations=counts.get(tenth, 0)) for tenth, low, high in bounds]


def _lengths_by_rank(aggregates: Aggregates) -> list[RankLengths]:
    if "lengths" not in aggregates:
        return []
    table = aggregates["lengths"].sort_by([("rank", "ascending"), ("step", "ascending")])
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
    """Return quantiles of lengths that are counted by steps, each the middle of its step."""
    below = np.cumsum(numbers) / numbers.sum()
    indices = np.searchsorted(below, np.array(wanted) - 1e-12)
    return [float(2 ** ((steps[index] + 0.5) / STEPS_PER_OCTAVE)) for index in indices]


def _longer_by_ratio(aggregates: Aggregates) -> list[RatioMetrics]:
    if "ratios" not in aggregates:
        return []
    rows = aggregates["ratios"].sort_by("step").to_pylist()
    last = rows[-1]["step"] if rows else 0
    return [
        RatioMetrics(
            at_least=2 ** (row["step"] / RATIO_STEPS_PER_OCTAVE),
            below=None if row["step"] == last else 2 ** ((row["step"] + 1) / RATIO_STEPS_PER_OCTAVE),
            decisive=row["decisive"],
            longer_wins=row["longer"] / row["decisive"],
        )
        for row in rows
    ]


# ------------------------------------------------------------------------------ scores, versions, prompts


def _scores(table: pa.Table) -> Scores:
    every = table.group_by("value", use_threads=False).aggregate([("completions", "sum")]).sort_by("value")
    values, numbers = every["value"].to_numpy(), every["completions_sum"].to_numpy()
    outliers = score_outliers(table)
    return Scores(
        completions=int(numbers.sum()),
        lowest=float(values[0]) if len(values) else None,
        highest=float(values[-1]) if len(values) else None,
        num_values=len(values),
        histogram=_histogram(values, numbers),
        num_outliers=len(outliers),
        outliers=outliers[:MAX_LISTED],
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
