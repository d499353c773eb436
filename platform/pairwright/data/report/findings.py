"""Figures of a report -> the three to five sentences that matter most, the alarming ones first. Pure.

A threshold here decides only what is said at the top and how loudly; every figure stands in its section all the same.
"""

from collections.abc import Callable, Iterator

from pairwright.data.report.contract import Annotator, Figures, Finding

MAX_FINDINGS = 5

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

_ORDER = {"alarm": 0, "note": 1, "good": 2}


def findings(figures: Figures) -> list[Finding]:
    """Return the sentences at the top of the report, at most five."""
    found = [finding for rule in _RULES for finding in rule(figures)]
    return sorted(found, key=lambda finding: _ORDER[finding.level])[:MAX_FINDINGS]


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
            f"{percent(against(worst))} of {worst.with_consensus:,} preferences."
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
    best = next((model for model in figures.models.listed if model.low is not None), None)
    if best is not None and best.beats_average is not None and best.low is not None and best.high is not None:
        text = (
            f"{best.name} is the strongest of {parts[0]:,} models: it would win {percent(best.beats_average)} "
            f"(95 % interval {100 * best.low:.1f} to {100 * best.high:.1f}) against an average one."
        )
        yield Finding(level="good", section="models", text=text)


_RULES: tuple[Callable[[Figures], Iterator[Finding]], ...] = (
    _empty,
    _scores,
    _against,
    _longer,
    _agreement,
    _models,
    _ties,
    _concentrated,
    _refused,
)
