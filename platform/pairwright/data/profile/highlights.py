"""Highlights of a report: the sentences at its top, the alarming ones first. Pure.

A threshold here decides only what is said at the top and how loudly; all metrics are in their sections anyway. What
looks wrong is always said; what is good fills the list up to MAX_HIGHLIGHTS.
"""

from collections.abc import Callable, Iterator
from typing import Literal

from pairwright.data.ingest.dedup import DUPLICATE_ID, are_ids_not_unique
from pairwright.data.profile.profile_schema import (
    Annotator,
    Highlight,
    Model,
    RepeatedText,
    SourceMetrics,
    TableMetrics,
)
from pairwright.terminal import counted, percent

MAX_HIGHLIGHTS = 5
"""Up to this number, what is good is said too."""

REFUSED_ALARM = 0.05
LONGER_ALARM = 0.70
LONGER_NOTE = 0.60
TIES_ALARM = 0.5
ALPHA_ALARM = 0.2
ALPHA_GOOD = 0.667
"""Krippendorff 2004, page 241: below it, conclusions are at most tentative."""
AGAINST_ALARM = 0.4
MIN_JUDGED = 50
"""Preferences compared with a majority, before an annotator is named at the top."""
CONCENTRATED = 0.9
SWAPPED = 0.8
"""Share of preferences against a majority, or against the scores: not taste, but two columns that were swapped."""
MIN_SCORED = 20
SCORES_NOTE = 0.05
FOOLED = 0.6
"""Share of comparisons that a text wins, whatever the prompt: its judges look fooled."""
SHORT_TEXT = 20
"""Characters; a text up to that length may well be the answer to many prompts (``Yes.``, ``B``)."""
ONE_TEXT = 0.5
"""Share of a model's completions; from there on, one text decides how strong the model looks."""
FEW_TEXTS = 0.1
"""The same, from where on it is said beside the strongest model."""
MARKED_ALARM = 0.01
MAX_NAMED = 3
SHOWN_CHARACTERS = 40
MIN_COMPARED = 20
"""Comparisons with other models, before a model is named as the strongest."""

_ORDER = {"alarm": 0, "note": 1, "good": 2}


def highlights(metrics: TableMetrics) -> list[Highlight]:
    """Return the sentences at the top of the report."""
    found = [highlight for rule in _RULES for highlight in rule(metrics)]
    bad = sum(highlight.level != "good" for highlight in found)
    return sorted(found, key=lambda highlight: _ORDER[highlight.level])[: max(bad, MAX_HIGHLIGHTS)]


def _empty(metrics: TableMetrics) -> Iterator[Highlight]:
    if not metrics.totals["annotations"]:
        yield Highlight(level="alarm", section="totals", text="The table holds no annotations.")


def _quarantined(metrics: TableMetrics) -> Iterator[Highlight]:
    refused, accepted = metrics.totals["refused"], metrics.totals["accepted"]
    if not refused:
        if accepted:
            yield Highlight(level="good", section="quarantine", text="No record was refused.")
        return
    share = refused / (refused + accepted)
    most = metrics.reasons[0] if metrics.reasons else None
    why = "" if most is None else f", {percent(most.records / refused)} of them for one reason: {most.reason}"
    text = f"{refused:,} of {counted(refused + accepted, 'record')} ({percent(share)}) refused{why}."
    yield Highlight(level="alarm" if share >= REFUSED_ALARM else "note", section="quarantine", text=text)


def _score_outliers(metrics: TableMetrics) -> Iterator[Highlight]:
    for outlier in metrics.scores.outliers[:1]:
        text = (
            f"The score {outlier.value:g} was given {outlier.completions:,} times, to models that get "
            f"{'lower' if outlier.is_high else 'higher'} scores elsewhere: look for an error in the export."
        )
        yield Highlight(level="alarm", section="scores", text=text)


def _longer(metrics: TableMetrics) -> Iterator[Highlight]:
    decisive, longer = metrics.totals["decisive"], metrics.totals["longer"]
    if not decisive:
        return
    share = longer / decisive
    text = f"The longer completion wins {percent(share)} of {decisive:,} decisive comparisons"
    if share >= LONGER_NOTE:
        level = "alarm" if share >= LONGER_ALARM else "note"
        yield Highlight(level=level, section="lengths", text=f"{text}: a reward model has to beat that to know more.")
    elif share <= 1 - LONGER_NOTE:
        level = "alarm" if share <= 1 - LONGER_ALARM else "note"
        yield Highlight(level=level, section="lengths", text=f"{text}: shortness alone would do well.")
    else:
        yield Highlight(level="good", section="lengths", text=f"{text}: length alone says little.")


def _ties(metrics: TableMetrics) -> Iterator[Highlight]:
    ties, comparisons = metrics.totals["ties"], metrics.totals["comparisons"]
    if comparisons and ties / comparisons >= TIES_ALARM:
        silent = next((row.annotations for row in metrics.tied_shares if row.at_least == 1), 0)
        text = (
            f"{percent(ties / comparisons)} of {comparisons:,} comparisons are ties; {silent:,} of "
            f"{counted(metrics.totals['annotations'], 'annotation')} have no preference at all."
        )
        yield Highlight(level="note", section="ties", text=text)


def _agreement(metrics: TableMetrics) -> Iterator[Highlight]:
    agreement = metrics.agreement
    if agreement.alpha is None:
        if metrics.totals["annotations"]:
            text = "No group was judged by two annotators, so their agreement is unknown."
            yield Highlight(level="note", section="annotators", text=text)
        return
    text = f"Annotators agree to an alpha (Krippendorff) of {agreement.alpha:.2f}"
    if agreement.same_direction is not None:
        text += (
            f"; where two both have a preference, it is the same one {percent(agreement.same_direction)} of the time"
        )
    level = "alarm" if agreement.alpha < ALPHA_ALARM else "note" if agreement.alpha < ALPHA_GOOD else "good"
    yield Highlight(level=level, section="annotators", text=f"{text}.")


def _against(metrics: TableMetrics) -> Iterator[Highlight]:
    def against(annotator: Annotator) -> float:
        return annotator.against_consensus or 0.0

    judged = [annotator for annotator in metrics.annotators if annotator.with_consensus >= MIN_JUDGED]
    worst = max(judged, key=against, default=None)
    if worst is not None and against(worst) >= AGAINST_ALARM:
        text = (
            f"{worst.name or 'Unnamed annotators'} went against the majority of the others in "
            f"{percent(against(worst))} of {worst.with_consensus:,} preferences"
            f"{_SWAPPED if against(worst) >= SWAPPED else ''}."
        )
        yield Highlight(level="alarm", section="annotators", text=text)


def _concentrated(metrics: TableMetrics) -> Iterator[Highlight]:
    if metrics.num_annotators < 2:
        return
    most, total = metrics.annotators[0], metrics.totals["annotations"]
    if most.annotations / total >= CONCENTRATED:
        text = f"{most.name or 'Unnamed annotators'} gave {percent(most.annotations / total)} of all annotations."
        yield Highlight(level="note", section="annotators", text=text)


def _models(metrics: TableMetrics) -> Iterator[Highlight]:
    components = metrics.models.components
    if len(components) > 1:
        text = (
            f"The models fall into {len(components):,} parts that were never compared with each other: strengths can "
            "be compared within a part only."
        )
        yield Highlight(level="note", section="models", text=text)
    known = [model for model in metrics.models.listed if model.comparisons >= MIN_COMPARED]
    gamed = _models_of_one_text(metrics)
    if known and known[0].name in gamed:
        other = next((model for model in known if model.name not in gamed), None)
        text = f"{_strongest(known[0], components[0])}, and {gamed[known[0].name]}: its judges look fooled"
        text += "." if other is None else f"; without such models {other.name} is the strongest."
        yield Highlight(level="alarm", section="models", text=text)
    elif known:
        level, doubt = _doubt_of(known[0], metrics)
        yield Highlight(level=level, section="models", text=f"{_strongest(known[0], components[0])}{doubt}.")


def _doubt_of(model: Model, metrics: TableMetrics) -> tuple[Literal["alarm", "note", "good"], str]:
    """Return how good it is that a model is the strongest, and what another finding says against it."""
    for uniform in metrics.uniform_judgements:
        if (uniform.entity, uniform.name, uniform.kind) == ("model", model.name, "won"):
            return "alarm", f", and wins every comparison in all {counted(uniform.judgements, 'completion')}"
    for repeated in metrics.repeated_texts:
        written = next((one.completions for one in repeated.models if one.name == model.name), 0)
        is_won_by_it = (repeated.wins or 0.0) >= FOOLED
        if written >= (1 if is_won_by_it else FEW_TEXTS * model.completions) and written:
            found = f", but {written:,} of its {counted(model.completions, 'completion')} are one text"
            wins = f" that wins {percent(repeated.wins or 0.0)} of its comparisons" if is_won_by_it else ""
            return ("alarm" if is_won_by_it else "note"), f"{found}{wins}"
    return "good", ""


def _strongest(model: Model, number: int) -> str:
    chance = percent(model.beats_average or 0.0)
    return f"{model.name} is the strongest of {counted(number, 'model')}: it would win {chance} against an average one"


def _models_of_one_text(metrics: TableMetrics) -> dict[str, str]:
    """Return the models of whose completions one text makes the most, and how many."""
    numbers = {model.name: model.completions for model in metrics.models.listed}
    return {
        model.name: f"{model.completions:,} of its {counted(numbers[model.name], 'completion')} are one text"
        for repeated in metrics.repeated_texts
        for model in repeated.models
        if model.completions >= ONE_TEXT * numbers.get(model.name, model.completions + 1)
    }


# ------------------------------------------------------------------------------------------ what looks wrong

_SWAPPED = ": chosen and rejected look swapped, so look at how it was exported"


def _repeated(metrics: TableMetrics) -> Iterator[Highlight]:
    def is_fooling(repeated: RepeatedText) -> bool:
        return repeated.characters > SHORT_TEXT and (repeated.wins or 0.0) >= FOOLED

    found = sorted(metrics.repeated_texts, key=lambda repeated: (not is_fooling(repeated), -repeated.prompts))
    if not found:
        return
    first = found[0]
    shown = " ".join((first.beginning or "").split())
    shown = f"{shown[:SHOWN_CHARACTERS]}..." if len(shown) > SHOWN_CHARACTERS else shown
    models = ", ".join(model.name for model in first.models)
    whose = f", by {models}{' and others' if first.num_models > len(first.models) else ''}" if models else ""
    wins = "" if first.wins is None else f" and wins {percent(first.wins)} of {first.decisive:,} decisive comparisons"
    more = f" Of {counted(metrics.num_repeated_texts - 1, 'more text')} the same is true." if len(found) > 1 else ""
    text = (
        f"One text ({shown}, {first.characters:,} characters{whose}) completes {first.prompts:,} of "
        f"{counted(metrics.totals['prompts'], 'prompt')}{wins}: `expand` leaves such texts out with "
        f"max_prompts_per_text.{more}"
    )
    yield Highlight(level="alarm" if is_fooling(first) else "note", section="models", text=text)


_KINDS = {
    "tied": "ties everything in all {} annotations",
    "longer": "prefers the longer one in all {} annotations",
    "first": "has the first-listed one best in all {} annotations",
    "last": "has the last-listed one best in all {} annotations",
    "won": "wins every comparison in all {} completions",
    "lost": "loses every comparison in all {} completions",
}


def _uniform_judgements(metrics: TableMetrics) -> Iterator[Highlight]:
    remedies = {
        "annotator": "perhaps a script, or a misread field; `expand` leaves it out with leave_out_annotators",
        "model": "a reward model need only tell who wrote a text; `expand` leaves it out with leave_out_models",
    }
    for entity, remedy in remedies.items():
        found = [uniform for uniform in metrics.uniform_judgements if uniform.entity == entity]
        if found:
            named = [
                f"{one.name} {_KINDS[one.kind].format(f'{one.judgements:,}')} (others: {percent(one.others)})"
                for one in found[:MAX_NAMED]
            ]
            more = (
                f", and {len(found) - MAX_NAMED:,} more {entity}s judge or are judged so"
                if len(found) > MAX_NAMED
                else ""
            )
            text = f"{'; '.join(named)}{more}: {remedy}."
            yield Highlight(level="alarm", section=f"{entity}s", text=text)


def _marks(metrics: TableMetrics) -> Iterator[Highlight]:
    number, total = metrics.totals["annotations_marked"], metrics.totals["annotations"]
    if not number:
        return
    named = ", ".join(f"{mark.mark} in {mark.annotations:,}" for mark in metrics.marks[:MAX_NAMED])
    more = f" and {len(metrics.marks) - MAX_NAMED:,} others" if len(metrics.marks) > MAX_NAMED else ""
    text = (
        f"{number:,} of {counted(total, 'annotation')} ({percent(number / total)}) hold template tokens or marks of "
        f"transcripts in their texts ({named}{more}), most of {metrics.marks[0].main_source}: if turns stand in one "
        "text there, ingest them as turns."
    )
    yield Highlight(level="alarm" if number / total >= MARKED_ALARM else "note", section="sources", text=text)


def _swapped(metrics: TableMetrics) -> Iterator[Highlight]:
    def against_scores(source: SourceMetrics) -> float:
        return source.against_scores or 0.0 if source.scored >= MIN_SCORED else 0.0

    worst = max(metrics.sources, key=against_scores, default=None)
    if worst is not None and against_scores(worst) >= SCORES_NOTE:
        level = "alarm" if against_scores(worst) >= SWAPPED else "note"
        text = (
            f"{worst.uri} prefers the completion with the lower score in {percent(against_scores(worst))} of "
            f"{worst.scored:,} comparisons{_SWAPPED if level == 'alarm' else ': look at some of them'}."
        )
        yield Highlight(level=level, section="sources", text=text)
    swapped = [
        source
        for source in metrics.sources
        if source.with_consensus >= MIN_JUDGED and (source.against_consensus or 0.0) >= SWAPPED
    ]
    if swapped:
        named = ", ".join(
            f"{source.uri} in {percent(source.against_consensus or 0.0)} of {source.with_consensus:,} preferences"
            for source in swapped[:MAX_NAMED]
        )
        text = f"Against the majority of the other annotators: {named}{_SWAPPED}."
        yield Highlight(level="alarm", section="sources", text=text)


def _duplicate_ids(metrics: TableMetrics) -> Iterator[Highlight]:
    for source in metrics.sources[:MAX_NAMED]:
        records = source.accepted + source.refused
        number = source.main_reason_records if (source.main_reason or "").startswith(DUPLICATE_ID) else 0
        if are_ids_not_unique(number, records):
            text = (
                f"{number:,} of {counted(records, 'record')} of {source.uri} were refused as duplicate ids: its ids "
                "seem to name prompts, or to be counted anew in each subset; ingest it again with another id, or with "
                "none."
            )
            yield Highlight(level="alarm", section="quarantine", text=text)


_RULES: tuple[Callable[[TableMetrics], Iterator[Highlight]], ...] = (
    _empty,
    _repeated,
    _uniform_judgements,
    _swapped,
    _duplicate_ids,
    _score_outliers,
    _against,
    _marks,
    _longer,
    _agreement,
    _models,
    _ties,
    _concentrated,
    _quarantined,
)
