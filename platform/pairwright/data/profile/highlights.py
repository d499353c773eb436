"""Figures of a report -> the sentences that matter most, the alarming ones first. Pure.

A threshold here decides only what is said at the top and how loudly; every figure stands in its section all the same.
What looks wrong is always said; what is good fills the list up to a few.
"""

from collections.abc import Callable, Iterator

from pairwright.data.ingest.dedup import DUPLICATE_ID, are_ids_not_unique
from pairwright.data.profile.profile_schema import Annotator, Figures, Finding, Model, RepeatedText, SourceFigures

MAX_FINDINGS = 5
"""Up to here what is good is said too."""

REFUSED_ALARM = 0.05
LONGER_ALARM = 0.70
LONGER_NOTE = 0.60
TIES_ALARM = 0.5
ALPHA_ALARM = 0.2
ALPHA_GOOD = 0.667
"""Krippendorff 2004, page 241: below it, conclusions are at most tentative."""
AGAINST_ALARM = 0.4
MIN_JUDGED = 50
"""Preferences held against a majority, before an annotator is named at the top."""
CONCENTRATED = 0.9
SWAPPED = 0.8
"""Of preferences against a majority, or of scores against the ranks: no taste, but two columns that were exchanged."""
MIN_SCORED = 20
SCORES_NOTE = 0.05
FOOLED = 0.6
"""A text under many prompts that wins more often than that, whatever was asked."""
SHORT_TEXT = 20
"""Characters: up to here a text may well be the answer to many prompts (``Yes.``, ``B``)."""
ONE_TEXT = 0.5
"""Of a model's completions: from here on one text says how strong the model is."""
MARKED_ALARM = 0.01
MAX_NAMED = 3
SHOWN_CHARACTERS = 40

_ORDER = {"alarm": 0, "note": 1, "good": 2}


def findings(figures: Figures) -> list[Finding]:
    """Return the sentences at the top of the report."""
    found = [finding for rule in _RULES for finding in rule(figures)]
    bad = sum(finding.level != "good" for finding in found)
    return sorted(found, key=lambda finding: _ORDER[finding.level])[: max(bad, MAX_FINDINGS)]


def percent(share: float) -> str:
    """Return a share as a percentage with one decimal, never 0 or 100 for what is not."""
    if 0 < share < 0.0005:
        return "under 0.1 %"
    if 0.9995 <= share < 1:
        return "over 99.9 %"
    return f"{100 * share:.1f} %"


def _empty(figures: Figures) -> Iterator[Finding]:
    if not figures.totals["annotations"]:
        yield Finding(level="alarm", section="totals", text="The table holds no annotations.")


def _refused(figures: Figures) -> Iterator[Finding]:
    refused, accepted = figures.totals["refused"], figures.totals["accepted"]
    if not refused:
        if accepted:
            yield Finding(level="good", section="refused", text="No record was refused.")
        return
    share = refused / (refused + accepted)
    most = figures.reasons[0] if figures.reasons else None
    why = "" if most is None else f", {percent(most.records / refused)} of them for one reason: {most.reason}"
    text = f"{refused:,} of {refused + accepted:,} records ({percent(share)}) were refused{why}."
    yield Finding(level="alarm" if share >= REFUSED_ALARM else "note", section="refused", text=text)


def _scores(figures: Figures) -> Iterator[Finding]:
    bulges = figures.scores.bulges
    if not bulges:
        return
    bulge = bulges[0]
    whose = "" if bulge.name is None else f" of {bulge.party} {bulge.name}"
    what = (
        "more often than the scores around it can explain"
        if bulge.kind == "second_peak"
        else "to models whose other scores do not fit it"
    )
    text = f"The score {bulge.value:g} was given {bulge.completions:,} times{whose}, {what}: look for a wrong export."
    yield Finding(level="alarm", section="scores", text=text)


def _longer(figures: Figures) -> Iterator[Finding]:
    untied, longer = figures.totals["untied"], figures.totals["longer"]
    if not untied:
        return
    share = longer / untied
    text = f"The longer completion wins {percent(share)} of {untied:,} untied comparisons"
    if share >= LONGER_NOTE:
        level = "alarm" if share >= LONGER_ALARM else "note"
        yield Finding(level=level, section="lengths", text=f"{text}: a reward model has to beat that to know more.")
    elif share <= 1 - LONGER_NOTE:
        level = "alarm" if share <= 1 - LONGER_ALARM else "note"
        yield Finding(level=level, section="lengths", text=f"{text}: shortness alone would do well.")
    else:
        yield Finding(level="good", section="lengths", text=f"{text}: length alone says little.")


def _ties(figures: Figures) -> Iterator[Finding]:
    ties, comparisons = figures.totals["ties"], figures.totals["comparisons"]
    if comparisons and ties / comparisons >= TIES_ALARM:
        silent = next((row.annotations for row in figures.tied_shares if row.at_least == 1), 0)
        text = (
            f"{percent(ties / comparisons)} of {comparisons:,} comparisons are ties; {silent:,} of "
            f"{figures.totals['annotations']:,} annotations prefer nothing at all."
        )
        yield Finding(level="note", section="ties", text=text)


def _agreement(figures: Figures) -> Iterator[Finding]:
    agreement = figures.agreement
    if agreement.alpha is None:
        if figures.totals["annotations"]:
            text = "No group was judged by two annotators, so nothing can be said of their agreement."
            yield Finding(level="note", section="annotators", text=text)
        return
    text = f"Annotators agree to an alpha (Krippendorff) of {agreement.alpha:.2f}"
    if agreement.same_direction is not None:
        text += f"; where two both prefer a side, it is the same one {percent(agreement.same_direction)} of the time"
    level = "alarm" if agreement.alpha < ALPHA_ALARM else "note" if agreement.alpha < ALPHA_GOOD else "good"
    yield Finding(level=level, section="annotators", text=f"{text}.")


def _against(figures: Figures) -> Iterator[Finding]:
    def against(annotator: Annotator) -> float:
        return annotator.against_consensus or 0.0

    judged = [annotator for annotator in figures.annotators if annotator.with_consensus >= MIN_JUDGED]
    worst = max(judged, key=against, default=None)
    if worst is not None and against(worst) >= AGAINST_ALARM:
        text = (
            f"{worst.name or 'Unnamed annotators'} went against the majority of the others in "
            f"{percent(against(worst))} of {worst.with_consensus:,} preferences"
            f"{_SWAPPED if against(worst) >= SWAPPED else ''}."
        )
        yield Finding(level="alarm", section="annotators", text=text)


def _concentrated(figures: Figures) -> Iterator[Finding]:
    if figures.num_annotators < 2:
        return
    most, total = figures.annotators[0], figures.totals["annotations"]
    if most.annotations / total >= CONCENTRATED:
        text = f"{most.name or 'Unnamed annotators'} gave {percent(most.annotations / total)} of all annotations."
        yield Finding(level="note", section="annotators", text=text)


def _models(figures: Figures) -> Iterator[Finding]:
    parts = figures.models.parts
    if len(parts) > 1:
        text = (
            f"The models fall into {len(parts):,} parts that were never compared with each other: strengths cannot be "
            "compared between parts."
        )
        yield Finding(level="note", section="models", text=text)
    known = [model for model in figures.models.listed if model.low is not None and model.beats_average is not None]
    gamed = _models_of_one_text(figures)
    if known and known[0].name in gamed:
        other = next((model for model in known if model.name not in gamed), None)
        text = f"{_strongest(known[0], parts[0])}, and {gamed[known[0].name]}: its judges look fooled"
        text += "." if other is None else f"; without such models {other.name} is the strongest."
        yield Finding(level="alarm", section="models", text=text)
    elif known:
        yield Finding(level="good", section="models", text=f"{_strongest(known[0], parts[0])}.")


def _strongest(model: Model, number: int) -> str:
    low, high = model.low or 0.0, model.high or 0.0
    return (
        f"{model.name} is the strongest of {number:,} models: it would win {percent(model.beats_average or 0.0)} "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f}) against an average one"
    )


def _models_of_one_text(figures: Figures) -> dict[str, str]:
    """Return the models of whose completions one text makes the most, and how many."""
    numbers = {model.name: model.completions for model in figures.models.listed}
    return {
        model.name: f"{model.completions:,} of its {numbers[model.name]:,} completions are one text"
        for repeated in figures.repeated_texts
        for model in repeated.models
        if model.completions >= ONE_TEXT * numbers.get(model.name, model.completions + 1)
    }


# ------------------------------------------------------------------------------------------ what looks wrong

_SWAPPED = ": chosen and rejected look swapped, so look at how it was exported"


def _repeated(figures: Figures) -> Iterator[Finding]:
    def is_fooling(repeated: RepeatedText) -> bool:
        return repeated.characters > SHORT_TEXT and (repeated.wins or 0.0) >= FOOLED

    found = sorted(figures.repeated_texts, key=lambda repeated: (not is_fooling(repeated), -repeated.prompts))
    if not found:
        return
    first = found[0]
    shown = " ".join((first.beginning or "").split())
    shown = f"{shown[:SHOWN_CHARACTERS]}..." if len(shown) > SHOWN_CHARACTERS else shown
    models = ", ".join(model.name for model in first.models)
    whose = f", by {models}{' and others' if first.num_models > len(first.models) else ''}" if models else ""
    wins = "" if first.wins is None else f" and wins {percent(first.wins)} of {first.untied:,} untied comparisons"
    more = f" {figures.num_repeated_texts - 1:,} more texts stand under many prompts." if len(found) > 1 else ""
    text = (
        f"One text ({shown}, {first.characters:,} characters{whose}) completes {first.prompts:,} of "
        f"{figures.totals['prompts']:,} prompts{wins}: `expand` leaves such texts out with max_prompts_per_text.{more}"
    )
    yield Finding(level="alarm" if is_fooling(first) else "note", section="models", text=text)


_KINDS = {
    "tied": "ties everything in all {} annotations",
    "longer": "prefers the longer one in all {} annotations",
    "first": "has the first-listed one best in all {} annotations",
    "last": "has the last-listed one best in all {} annotations",
    "won": "wins every comparison in all {} completions",
    "lost": "loses every comparison in all {} completions",
}


def _all_alike(figures: Figures) -> Iterator[Finding]:
    remedies = {
        "annotator": "perhaps a script, or a misread field; `expand` leaves it out with leave_out_annotators",
        "model": "a reward model need only tell who wrote a text; `expand` leaves it out with leave_out_models",
    }
    for party, remedy in remedies.items():
        found = [alike for alike in figures.alike if alike.party == party]
        if found:
            named = [
                f"{alike.name} {_KINDS[alike.kind].format(f'{alike.judgements:,}')} (others: {percent(alike.others)})"
                for alike in found[:MAX_NAMED]
            ]
            more = f", and {len(found) - MAX_NAMED:,} more {party}s are alike" if len(found) > MAX_NAMED else ""
            text = f"{'; '.join(named)}{more}: {remedy}."
            yield Finding(level="alarm", section=f"{party}s", text=text)


def _marks(figures: Figures) -> Iterator[Finding]:
    number, total = figures.totals["annotations_marked"], figures.totals["annotations"]
    if not number:
        return
    named = ", ".join(f"{mark.mark} in {mark.annotations:,}" for mark in figures.marks[:MAX_NAMED])
    more = f" and {len(figures.marks) - MAX_NAMED:,} others" if len(figures.marks) > MAX_NAMED else ""
    text = (
        f"{number:,} of {total:,} annotations ({percent(number / total)}) hold template tokens or marks of transcripts "
        f"in their texts ({named}{more}), most of {figures.marks[0].main_source}: if turns stand in one text there, "
        "ingest them as turns."
    )
    yield Finding(level="alarm" if number / total >= MARKED_ALARM else "note", section="sources", text=text)


def _swapped(figures: Figures) -> Iterator[Finding]:
    def against_scores(source: SourceFigures) -> float:
        return source.against_scores or 0.0 if source.scored >= MIN_SCORED else 0.0

    worst = max(figures.sources, key=against_scores, default=None)
    if worst is not None and against_scores(worst) >= SCORES_NOTE:
        level = "alarm" if against_scores(worst) >= SWAPPED else "note"
        text = (
            f"{worst.uri} prefers the completion with the lower score in {percent(against_scores(worst))} of "
            f"{worst.scored:,} comparisons{_SWAPPED if level == 'alarm' else ': look at some of them'}."
        )
        yield Finding(level=level, section="sources", text=text)
    swapped = [
        source
        for source in figures.sources
        if source.with_consensus >= MIN_JUDGED and (source.against_consensus or 0.0) >= SWAPPED
    ]
    if swapped:
        named = ", ".join(
            f"{source.uri} in {percent(source.against_consensus or 0.0)} of {source.with_consensus:,} preferences"
            for source in swapped[:MAX_NAMED]
        )
        text = f"Against the majority of the other annotators: {named}{_SWAPPED}."
        yield Finding(level="alarm", section="sources", text=text)


def _duplicate_ids(figures: Figures) -> Iterator[Finding]:
    for source in figures.sources[:MAX_NAMED]:
        records = source.accepted + source.refused
        number = source.main_reason_records if (source.main_reason or "").startswith(DUPLICATE_ID) else 0
        if are_ids_not_unique(number, records):
            text = (
                f"{number:,} of {records:,} records of {source.uri} were refused as duplicate ids: its ids seem to "
                "name prompts, or to be counted anew in each subset; ingest it again with another id, or with none."
            )
            yield Finding(level="alarm", section="refused", text=text)


_RULES: tuple[Callable[[Figures], Iterator[Finding]], ...] = (
    _empty,
    _repeated,
    _all_alike,
    _swapped,
    _duplicate_ids,
    _scores,
    _against,
    _marks,
    _longer,
    _agreement,
    _models,
    _ties,
    _concentrated,
    _refused,
)
