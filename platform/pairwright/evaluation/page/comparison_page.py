"""Renders the page of a comparison: which model is better, how sure that is, and where they disagree."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pairwright.data.table.manifest import Manifest
from pairwright.evaluation.evaluation_report import ReadTexts
from pairwright.evaluation.page.comparison_sections import (
    detailed,
    differences,
    disagreements,
    lineage,
    models,
    slices,
)
from pairwright.evaluation.page.lineage import Ancestor, ancestors
from pairwright.evaluation.page.pair_examples import MAX_NAME, MAX_NAMES, MAX_PROMPT, MAX_TEXT, beginning, conversation
from pairwright.evaluation.page.run_history import RunHistory, read_history
from pairwright.evaluation.reports.comparison import (
    COMPARISON,
    ComparedModel,
    Comparison,
    Disagreement,
    ModelDifference,
    short_names,
)
from pairwright.evaluation.reports.report_text import percent, points, points_interval, share
from pairwright.evaluation.statistics.slices import SIGNIFICANCE
from pairwright.pages.html_pages import render_sections
from pairwright.pages.page_sections import Example, Level, Section, Sentence, Side, Verdict
from pairwright.pages.word_differences import different_words
from pairwright.terminal import counted, escaped

TEMPLATE = "comparison_page.html.j2"
MAX_SENTENCES = 6


@dataclass(frozen=True, slots=True)
class ComparisonContent:
    """What the page shows beside the comparison.

    Attributes:
        texts: group id -> its row of the pairs table, of the groups that models disagree on.
        histories: path of a model -> the run that it lies in; None where it lies in none.
        made_from: the pairs table, and what it was made from.
    """

    texts: Mapping[str, Mapping[str, Any]]
    histories: Mapping[str, RunHistory | None]
    made_from: Sequence[Ancestor] = ()


def comparison_content(found: Comparison, manifest: Manifest, read_texts: ReadTexts) -> ComparisonContent:
    """Return what the page of a comparison shows beside it."""
    groups = {row.group_id for one in detailed(found) for row in one.disagreements}
    return ComparisonContent(
        texts=read_texts(sorted(groups)) if groups else {},
        histories={run.path: read_history(run.path) for model in found.models for run in model.runs},
        made_from=ancestors(found.pairs.url, manifest),
    )


def render_comparison(found: Comparison, content: ComparisonContent) -> str:
    """Return the page of a comparison."""
    short = short_names([model.name for model in found.models])
    examples = [
        _example(row, one, content.texts[row.group_id], short)
        for one in detailed(found)
        for row in one.disagreements
        if row.group_id in content.texts
    ]
    sections: list[Section | None] = [
        models(found, short),
        differences(found, short),
        slices(found, short),
        disagreements(found, len(examples)),
        lineage(found, content.histories, content.made_from),
    ]
    return render_sections(
        TEMPLATE,
        Path(__file__).parent,
        mark=COMPARISON.mark,
        verdict=comparison_verdict(found, short),
        tiles=_tiles(found, short),
        sections=[section for section in sections if section is not None],
        examples=examples,
        report=found,
    )


def comparison_verdict(found: Comparison, short: Mapping[str, str]) -> Verdict:
    """Return which model is the best, and how sure that is."""
    ranked = sorted(found.models, key=lambda model: -(model.accuracy.value or 0.0))
    sentences = [*_of_data(found), *_of_length(ranked[0], found), *_of_differences(found, short)]
    sentences += [*_of_seeds(found, short), *_of_slices(found, short)]
    sentences.sort(key=lambda one: ("alarm", "note", "good").index(one.level))
    name = escaped(short[ranked[0].name])
    summary = (
        f"Of {counted(found.common_pairs, 'pair')} of {counted(found.common_prompts, 'prompt')} {name} has "
        f"{share(ranked[0].accuracy)} right; always taking the longer text would get {share(found.longer_wins)}."
    )
    return Verdict(*_headline(found, ranked, name, short), summary, sentences)


def _headline(
    found: Comparison, ranked: Sequence[ComparedModel], name: str, short: Mapping[str, str]
) -> tuple[str, Level]:
    if len(ranked) == 1:
        return f"{name} alone: there is nothing to compare it with", "note"
    with_best = [one for one in found.differences if ranked[0].name in (one.first, one.second)]
    unsure = [one.second if one.first == ranked[0].name else one.first for one in with_best if not is_sure(one)]
    if not unsure:
        others = escaped(short[ranked[1].name]) if len(ranked) == 2 else f"the other {len(ranked) - 1}"
        return f"{name} is better than {others}", "good"
    if len(unsure) == len(with_best):
        return "No model is shown to be better than the others" if len(ranked) > 2 else "No difference is shown", "note"
    others = ", ".join(escaped(short[other]) for other in unsure[:3]) + (", ..." if len(unsure) > 3 else "")
    return f"{name} leads, but is not shown to be better than {others}", "note"


def is_sure(one: ModelDifference) -> bool:
    """Return whether two models differ by more than chance."""
    return one.p_value is not None and one.p_value < SIGNIFICANCE


def _of_data(found: Comparison) -> Iterator[Sentence]:
    if found.pairs.split == "train":
        yield Sentence("alarm", "lineage", "These are pairs of the training split, not held-out ones.")


def _of_length(best: ComparedModel, found: Comparison) -> Iterator[Sentence]:
    value, longer = best.accuracy.value, found.longer_wins.value
    if value is None or longer is None:
        return
    distance = f"{100 * abs(value - longer):.1f} points"
    if value <= longer:
        yield Sentence("alarm", "models", f"Even the best is {distance} below the rule that the longer text wins.")
    else:
        yield Sentence("good", "models", f"The best is {distance} above the rule that the longer text wins.")


def _of_differences(found: Comparison, short: Mapping[str, str]) -> Iterator[Sentence]:
    for one in detailed(found)[:MAX_SENTENCES]:
        ahead, behind = (one.second, one.first) if (one.result.difference.value or 0) >= 0 else (one.first, one.second)
        size = f"{points(one.result.difference)} points {points_interval(one.result.difference)}"
        if is_sure(one):
            text = f"{escaped(short[ahead])} is better than {escaped(short[behind])}: {size}, p {one.p_value:.4f}."
            yield Sentence("good", "differences", text)
        else:
            text = (
                f"{escaped(short[one.first])} and {escaped(short[one.second])} are not shown to differ: {size}; they "
                f"disagree on {percent(one.result.disagreement)} of the weight."
            )
            yield Sentence("note", "differences", text)


def _of_seeds(found: Comparison, short: Mapping[str, str]) -> Iterator[Sentence]:
    spreads = {model.name: model.spread for model in found.models}
    if all(spread.runs == 1 for spread in spreads.values()):
        text = "Each model is one run, so what other seeds would do is unknown: `sweep --seeds` trains several."
        yield Sentence("note", "models", text)
        return
    for one in detailed(found):
        width, name = max((spreads[name].highest - spreads[name].lowest, name) for name in (one.first, one.second))
        size = abs(one.result.difference.value or 0.0)
        if spreads[name].runs > 1 and size < width:
            text = (
                f"{escaped(short[one.first])} and {escaped(short[one.second])} differ by {100 * size:.1f} points, the "
                f"runs of {escaped(short[name])} by {100 * width:.1f}: seeds may be all of it."
            )
            yield Sentence("note", "models", text)
            return


def _of_slices(found: Comparison, short: Mapping[str, str]) -> Iterator[Sentence]:
    """Name slices in which the model that is behind overall is surely ahead."""
    for one in detailed(found):
        overall = one.result.difference.value or 0.0
        for row in one.slices:
            value = row.result.difference.value or 0.0
            if row.p_value < SIGNIFICANCE and value * overall < 0:
                ahead = escaped(short[one.second if value > 0 else one.first])
                where = f"{row.kind.replace('_', ' ')} {escaped(row.name)}"
                text = f"Behind overall, {ahead} is ahead at {where}: {points(row.result.difference)} points."
                yield Sentence("note", "slices", text)
                return


def _tiles(found: Comparison, short: Mapping[str, str]) -> list[tuple[str, str]]:
    ranked = sorted(found.models, key=lambda model: -(model.accuracy.value or 0.0))
    return [
        *((short[model.name][:24], percent(model.accuracy.value)) for model in ranked[:4]),
        ("Longer wins", percent(found.longer_wins.value)),
        ("Pairs", f"{found.common_pairs:,}"),
        ("Prompts", f"{found.common_prompts:,}"),
    ]


def _example(
    row: Disagreement, difference: ModelDifference, group: Mapping[str, Any], short: Mapping[str, str]
) -> Example:
    completions = [group["completions"][index] for index in (row.chosen, row.rejected)]
    texts = [completion["text"] for completion in completions]
    pieces = different_words(*(text[:MAX_TEXT] for text in texts))
    prompt = conversation(group["prompt"])
    names = {"first": short[difference.first], "second": short[difference.second]}
    right, wrong = names[row.right], names["second" if row.right == "first" else "first"]
    margins = (row.reward_margin_first, row.reward_margin_second)
    sides = [
        Side(title, "", author and author[:MAX_NAME], side, max(0, len(text) - MAX_TEXT))
        for title, author, side, text in zip(
            ("Annotators prefer", "Annotators reject"),
            (completion["model"] for completion in completions),
            pieces,
            texts,
            strict=True,
        )
    ]
    longer = len(texts[0]) - len(texts[1])
    return Example(
        summary=f"{right} alone is right: {beginning(prompt[-MAX_PROMPT:])}",
        prompt=prompt[-MAX_PROMPT:],
        is_cut=len(prompt) > MAX_PROMPT,
        sides=(sides[0], sides[1]),
        slices=[
            f"{right} right, {wrong} wrong",
            "chosen longer" if longer > 0 else "chosen shorter" if longer < 0 else "equal length",
            f"{len(group['completions'])} completions",
            *([] if group["subset"] is None else [f"subset {escaped(group['subset'][:MAX_NAME])}"]),
            *(f"annotator {escaped(name[:MAX_NAME])}" for name in group["annotators"][:MAX_NAMES]),
        ],
        source=f"reward margin {margins[0]:+.3g} of {names['first']}, {margins[1]:+.3g} of {names['second']}; "
        f"group {row.group_id}",
    )
