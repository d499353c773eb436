"""Metrics of a report on an annotations table: each against a loop, a package or a simulation that shares no code."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from annotation_tables import annotation_row, annotations_table, real_rows
from pairwright.config import ExpandConfig
from pairwright.data.identity import content_hashes
from pairwright.data.pairs.build_pairs import expand_groups
from pairwright.data.profile.aggregates import (
    NUM_EXAMPLES,
    Aggregates,
    QuarantineCounts,
    count_quarantined,
    decode,
    encode,
    merge,
)
from pairwright.data.profile.agreement import alpha
from pairwright.data.profile.annotators_and_models import fit
from pairwright.data.profile.counts import count
from pairwright.data.profile.suspicious import score_outliers
from pairwright.errors import DataError
from pairwright.records import Rejection
from report_tables import random_rows


def counted(rows: list[dict[str, Any]]) -> Aggregates:
    return count(annotations_table(rows), {})


def totals(aggregates: Aggregates) -> dict[str, int]:
    return {row["name"]: row["count"] for row in aggregates["totals"].to_pylist()}


def plain(aggregates: Aggregates) -> dict[str, list[dict[str, Any]]]:
    return {name: sorted(table.to_pylist(), key=repr) for name, table in aggregates.items()}


# ------------------------------------------------------------------------------------------------- counts


SAME_TOTALS = (
    "annotations",
    "duplicates",
    "groups",
    "comparisons",
    "decisive",
    "ties",
    "identical",
    "identical_ties",
    "conflicting",
)
"""Totals that `expand` and `report` both have."""


def test_totals_are_those_of_expand() -> None:
    rows = random_rows(200)
    found = totals(counted([*rows, rows[7]]))
    _, expected = expand_groups(annotations_table([*rows, rows[7]]), ExpandConfig())
    assert {name: found[name] for name in SAME_TOTALS} == {name: expected[name] for name in SAME_TOTALS}
    assert found["annotations_of_one_again"] == expected["repeat_annotations"]
    assert min(found[name] for name in SAME_TOTALS) > 0


GRADED = annotation_row("1", ["a", "b"], [1, 2], annotator="ann", grade="better")


@pytest.mark.parametrize(
    ("others", "num_annotations"),
    [
        ({"source": "copy.jsonl", "line": 7}, 1),
        ({"grade": "slightly better"}, 2),
        ({"ranks": [2, 1]}, 2),
        ({"scores": [2.0, 1.0]}, 2),
        ({"annotator": "bob"}, 2),
        ({"id": "2"}, 2),
        ({"subset": "facts"}, 2),
        ({"metadata": {"key": "value"}}, 2),
        ({"created_at": 1_000_000}, 2),
        ({"completions": GRADED["completions"][::-1], "ranks": [2, 1]}, 2),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_an_annotation_is_the_same_again_if_all_that_its_record_says_is_equal(
    others: dict[str, Any], num_annotations: int
) -> None:
    """One definition: that by which `ingest` refuses a duplicate; a race of two ingestions can bring both."""
    table = annotations_table([GRADED, GRADED | others, GRADED])
    assert len(np.unique(content_hashes(table), axis=0)) == num_annotations
    found = totals(count(table, {}))
    _, expected = expand_groups(table, ExpandConfig())
    for name in SAME_TOTALS:
        assert found[name] == expected[name], name
    assert (found["annotations"], found["duplicates"]) == (num_annotations, 3 - num_annotations)


def test_aggregates_do_not_depend_on_how_prompts_are_parted_or_rows_ordered() -> None:
    rows = random_rows(120)
    whole = counted(rows)
    parts: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows[::-1]:
        parts[int(row["prompt_id"][:8], 16) % 3].append(row)
    merged = merge(decode(encode(counted(part))) for part in parts.values())
    assert set(merged) == set(whole)
    top = [sorted(table["prompts"]["annotations"].to_pylist())[-20:] for table in (merged, whole)]
    assert top[0] == top[1]
    for aggregates in (merged, whole):
        del aggregates["prompts"]  # each part has a top of its own
    assert plain(merged) == plain(whole)


def test_the_longer_completion_wins_what_a_loop_counts_on_the_real_file() -> None:
    rows = real_rows()
    aggregates = counted(rows)
    assert [totals(aggregates)[name] for name in ("decisive", "longer", "shorter")] == [18_099, 13_844, 4_220]
    by_subset: Counter[str] = Counter()
    for row in rows:
        judged = zip(row["ranks"], row["completions"], strict=True)
        for (rank, one), (other_rank, other) in combinations(judged, 2):
            longer = len(one["text"]) - len(other["text"])
            by_subset[row["subset"]] += (other_rank - rank) * longer > 0
    found: Counter[str] = Counter()
    for size in aggregates["sizes"].to_pylist():
        found[size["subset"]] += size["longer"]
    assert found == by_subset


def test_a_group_counts_in_each_subset_that_annotations_put_it_under() -> None:
    from pairwright.data.profile.profile_metrics import _comparisons

    rows = random_rows(90, seed=3)
    for number, row in enumerate(rows):
        row["subset"] = ["easy", "hard", None][number * 7 % 3]
    sizes = counted(rows)["sizes"]
    by_subset = {found.name: found.groups for found in _comparisons(sizes, "subset")}
    groups = {(row["subset"], row["group_id"]) for row in rows}
    assert by_subset == Counter(subset for subset, _ in groups)
    assert sum(by_subset.values()) > len({group for _, group in groups})
    by_size = {found.name: found.groups for found in _comparisons(sizes, "num_completions")}
    assert by_size == Counter(str(len(row["completions"])) for row in {row["group_id"]: row for row in rows}.values())


def test_quantiles_of_lengths_are_within_five_percent() -> None:
    from pairwright.data.profile.profile_metrics import _lengths_by_rank

    rows = real_rows()
    lengths: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        if max(row["ranks"]) > 1:
            for rank, completion in zip(row["ranks"], row["completions"], strict=True):
                lengths[rank].append(len(completion["text"]))
    for found in _lengths_by_rank(counted(rows))[:4]:
        assert found.mean == pytest.approx(np.mean(lengths[found.rank]))
        expected = np.quantile(lengths[found.rank], [0.1, 0.5, 0.9])
        assert [found.tenth, found.median, found.ninetieth] == pytest.approx(expected.tolist(), rel=0.05)


def test_groups_and_prompts_are_new_in_the_first_version_that_had_them() -> None:
    first = annotation_row("1", ["a", "b"], [1, 2], prompt="p", source="one.jsonl")
    again = annotation_row("2", ["a", "b"], [2, 1], prompt="p", source="two.jsonl")
    other = annotation_row("3", ["a", "c"], [2, 1], prompt="p", source="two.jsonl")
    aggregates = count(annotations_table([other, again, first]), {"one.jsonl": 1, "two.jsonl": 4})
    assert plain(aggregates)["growth"] == [
        {"version": 1, "annotations": 1, "groups": 1, "prompts": 1},
        {"version": 4, "annotations": 2, "groups": 1, "prompts": 0},
    ]


def test_annotations_of_other_texts_under_one_group_id_are_refused() -> None:
    one, other = annotation_row("1", ["a", "b"], [1, 2]), annotation_row("2", ["a", "c"], [1, 2])
    with pytest.raises(DataError, match="annotations 1 and 2 list different completions"):
        counted([one, other | {"group_id": one["group_id"]}])


# ---------------------------------------------------------------------------------------------- agreement


def test_agreement_is_what_a_loop_over_annotators_finds() -> None:
    rows = random_rows(150, seed=3)
    expected: dict[str | None, Counter[str]] = defaultdict(Counter)
    for raters in first_of_each(rows).values():
        for me in raters:
            others = [rater for rater in raters if rater is not me]
            for one, other in combinations(sorted(outcomes(me)), 2):
                if one[0] == other[0] or not others:
                    continue
                mine = np.sign(outcomes(me)[other] - outcomes(me)[one])
                theirs = [np.sign(outcomes(rater)[other] - outcomes(rater)[one]) for rater in others]
                counts = expected[me["annotator"]]
                counts["shared"] += len(theirs)
                counts["same"] += sum(side == mine for side in theirs)
                counts["decisive_by_both"] += sum(side * mine != 0 for side in theirs)
                counts["opposite"] += sum(side * mine < 0 for side in theirs)
                counts["with_consensus"] += mine * sum(theirs) != 0
                counts["against_consensus"] += mine * sum(theirs) < 0
    found = {row["annotator"]: row for row in counted(rows)["annotators"].to_pylist()}
    for annotator, counts in expected.items():
        assert {name: found[annotator][name] for name in counts} == counts


@pytest.mark.parametrize(
    ("size", "package"), [(2, -0.08570772058823528), (3, 0.025254248793411094), (5, -0.02911020264434705)]
)
def test_alpha_of_one_k_is_krippendorffs_by_definition_and_that_of_the_package(size: int, package: float) -> None:
    rows = [row for row in random_rows(60, seed=size, sizes=(size, size)) if row["annotator"]]
    units: list[list[float]] = []
    for raters in first_of_each(rows).values():
        places = [mean_places(rater) for rater in raters]
        units += [[held[text] for held in places] for text in places[0]]
    expected = alpha_by_definition(units)
    # krippendorff 0.9.0, alpha(..., level_of_measurement="ordinal"), on these units: under the GPL, so not installed.
    assert expected == pytest.approx(package, abs=1e-12)
    overall, by_size = alpha(counted(rows)["coincidences"])
    assert by_size == {size: pytest.approx(expected, abs=1e-12)}
    assert overall == pytest.approx(expected, abs=1e-12)


def alpha_by_definition(units: list[list[float]]) -> float:
    """Return Krippendorff's ordinal alpha by loops over pairs of values (Krippendorff 2004, chapter 11)."""
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    number = Counter(values)

    def distance(one: float, other: float) -> float:
        least, most = sorted((one, other))
        between = sum(count for value, count in number.items() if least <= value <= most)
        return (between - (number[one] + number[other]) / 2) ** 2

    def mean_distance(pairs: Iterable[tuple[float, float]]) -> float:
        return float(np.mean([distance(*pair) for pair in pairs]))

    observed = sum(len(unit) * mean_distance(combinations(unit, 2)) for unit in units) / len(values)
    return 1 - observed / mean_distance(combinations(values, 2))


def test_alpha_over_several_k_lies_between_theirs_and_is_one_for_copies() -> None:
    rows = random_rows(60, most_annotations=1, annotators=("ann",))
    copies = [row | {"id": f"copy {row['id']}", "annotator": "bob"} for row in rows]
    overall, by_size = alpha(counted([*rows, *copies])["coincidences"])
    assert overall == pytest.approx(1)
    mixed = alpha(counted(random_rows(90))["coincidences"])
    values = [value for value in mixed[1].values() if value is not None]
    assert min(values) <= mixed[0] <= max(values)  # type: ignore[operator]
    assert set(by_size) == {2, 3, 4, 5, 6}


def test_nothing_is_said_of_agreement_where_nobody_shares_a_group() -> None:
    assert alpha(counted(random_rows(20, most_annotations=1))["coincidences"]) == (None, {})


def first_of_each(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["id"]):
        held = groups[row["group_id"]]
        if row["annotator"] is None or row["annotator"] not in [rater["annotator"] for rater in held]:
            held.append(row)
    return groups


def outcomes(row: dict[str, Any]) -> dict[tuple[str, int], int]:
    """Return (text, how many of this text came before) -> rank."""
    found: dict[tuple[str, int], int] = {}
    for completion, rank in zip(row["completions"], row["ranks"], strict=True):
        text = completion["text"]
        found[text, sum(name == text for name, _ in found)] = rank
    return found


def mean_places(row: dict[str, Any]) -> dict[tuple[str, int], float]:
    ranks = outcomes(row)
    ordered = sorted(ranks.values())
    return {
        text: float(np.mean([place for place, other in enumerate(ordered, 1) if other == rank]))
        for text, rank in sorted(ranks.items())
    }


# -------------------------------------------------------------------------------------------- Bradley-Terry


def matchups(rows: list[tuple[str, str, int, int]]) -> pa.Table:
    names = ("one", "other", "comparisons", "points")
    return pa.table({name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})


def test_strengths_are_those_that_plain_gradient_ascent_finds() -> None:
    random = np.random.default_rng(0)
    names = [f"m{i}" for i in range(6)]
    rows = [(a, b, 9, int(random.integers(0, 19))) for a, b in combinations(names, 2) if random.random() < 0.8]
    found = fit(matchups(rows))
    assert found.names == names
    theta = np.zeros(6)
    for _ in range(20_000):
        slope = 0.5 - 1 / (1 + np.exp(-theta))
        for one, other, number, points in rows:
            i, j = names.index(one), names.index(other)
            missing = points / 2 - number / (1 + np.exp(theta[j] - theta[i]))
            slope[i] += missing
            slope[j] -= missing
        theta += 0.01 * slope
    assert found.strength_M == pytest.approx(theta - theta.mean(), abs=1e-6)


def test_models_that_win_or_lose_everything_and_parts_that_never_met_have_finite_strengths() -> None:
    found = fit(matchups([("a", "b", 5, 10), ("b", "c", 5, 10), ("x", "y", 3, 0)]))
    assert found.component_M.tolist() == [0, 0, 0, 1, 1]
    assert np.isfinite(found.strength_M).all()
    assert (np.diff(found.strength_M[:3]) < 0).all()
    assert found.strength_M[3] < found.strength_M[4]
    assert [found.strength_M[:3].sum(), found.strength_M[3:].sum()] == pytest.approx([0, 0], abs=1e-9)


def test_matchups_of_models_are_the_comparisons_of_their_completions() -> None:
    rows = random_rows(60, seed=5)
    expected: Counter[tuple[str, str]] = Counter()
    points: Counter[tuple[str, str]] = Counter()
    for row in rows:
        judged = zip(row["ranks"], row["completions"], strict=True)
        for (rank, one), (other_rank, other) in combinations(judged, 2):
            if one["text"] == other["text"]:
                continue
            names = sorted([(one["model"], rank), (other["model"], other_rank)])
            pair = names[0][0], names[1][0]
            expected[pair] += 1
            points[pair] += 1 + int(np.sign(names[1][1] - names[0][1]))
    found = counted(rows)["matchups"].to_pylist()
    assert {(row["one"], row["other"]): row["comparisons"] for row in found} == expected
    assert {(row["one"], row["other"]): row["points"] for row in found} == points


# --------------------------------------------------------------------------------------------------- scores


def scores_table(scores: dict[str, list[float]]) -> pa.Table:
    rows = [(name, value, number) for name, values in scores.items() for value, number in Counter(values).items()]
    names = ("model", "value", "completions")
    return pa.table({name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})


def given_scores(*, step: float, seed: int = 0) -> dict[str, list[float]]:
    random = np.random.default_rng(seed)
    return {
        f"m{i}": np.clip(np.round(random.normal(mean, 1.5, 800) / step) * step, 1, 9).tolist()
        for i, mean in enumerate(np.linspace(4, 7.5, 17))
    }


def test_tens_that_should_be_ones_are_outliers() -> None:
    """UltraFeedback's error, as it can show: apart from the other scores, and right beside frequent ones."""
    scores = given_scores(step=0.5)
    spoilt = {name: [10.0 if value <= 2 else value for value in values] for name, values in scores.items()}
    assert [outlier.value for outlier in score_outliers(scores_table(spoilt))] == [10.0]
    low = {name: [min(value, 7.0) for value in values] for name, values in spoilt.items()}
    apart = {n: [10.0 if s == 10 else v for s, v in zip(spoilt[n], low[n], strict=True)] for n in scores}
    assert [outlier.value for outlier in score_outliers(scores_table(apart))] == [10.0]


def test_ones_that_should_be_tens_are_outliers() -> None:
    spoilt = {
        name: [0.0 if value >= 8.5 else value for value in values] for name, values in given_scores(step=0.5).items()
    }
    assert [(one.value, one.is_high) for one in score_outliers(scores_table(spoilt))] == [(0.0, False)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("step", [0.5, 1.0, 0.01])
def test_scores_as_people_give_them_are_no_outliers(step: float, seed: int) -> None:
    scores = given_scores(step=step, seed=seed)
    inner = {name: [value for value in values if 1 < value < 9] for name, values in scores.items()}
    assert score_outliers(scores_table(inner)) == []


def test_scores_of_one_model_or_of_none_have_no_outliers() -> None:
    assert score_outliers(scores_table({"m": [1.0] * 30 + [10.0] * 30})) == []
    assert score_outliers(counted([])["scores"]) == []


# ---------------------------------------------------------------------------------------------- quarantine


def test_quarantined_records_add_up_with_the_first_examples_of_each_reason() -> None:
    def refused(source: str, line: int, found: str) -> Rejection:
        return Rejection(source=source, line=line, path="$.ranks[3]", reason=f"expected 1, got {found}", record="x")

    parts = [count_quarantined([refused("b", line, str(line)) for line in range(9)])]
    parts += [count_quarantined([refused("a", line, "?") for line in (7, 3)]), count_quarantined([])]
    merged = QuarantineCounts.merged(parts)
    assert merged.counts == [("a", "expected 1 at $.ranks[]", 2), ("b", "expected 1 at $.ranks[]", 9)]
    (examples,) = merged.examples.values()
    assert [(example.source, example.line) for example in examples] == [("a", 3), ("a", 7), ("b", 0)]
    assert len(examples) == NUM_EXAMPLES
    assert QuarantineCounts.merged(parts[::-1]) == merged


def test_reasons_without_end_are_bounded() -> None:
    rejections = [Rejection(source="s", line=i, path="$", reason=f"bad {i}", record="") for i in range(3000)]
    found = QuarantineCounts.merged([count_quarantined(rejections[:1500]), count_quarantined(rejections[1500:])])
    assert sum(number for _, _, number in found.counts) == 3000
    assert len(found.counts) <= 502
