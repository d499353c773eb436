"""The verdict on a model: sentences from the figures of its report, the alarming ones first. Pure.

A threshold here decides only what is said at the top and how loudly; every figure is in its section anyway. What is
said to be so is so with its whole 95 % interval; what is not is called unknown.
"""

from collections.abc import Iterator

from pairwright.evaluation.degenerate_texts import ANOTHER
from pairwright.evaluation.reports.report_schema import Report
from pairwright.evaluation.reports.report_text import percent, points, share
from pairwright.evaluation.statistics.intervals import Estimate
from pairwright.pages.page_sections import Level, Sentence, Verdict
from pairwright.terminal import counted, escaped

CHANCE = 0.5
KNOWS_NOTHING = 0.693
"""Log loss of a model that says 50 % everywhere: ln 2."""
ERROR_NOTE = 0.05
FEW_PROMPTS = 50
MAX_SLICES, MAX_TEXTS = 3, 2
_EXCERPT = 60


def verdict(report: Report) -> Verdict:
    """Return the verdict on a model."""
    found = [*_skill(report), *_data(report), *_poison(report), *_influence(report)]
    found += [*_length(report), *_confidence(report), *_weak(report)]
    found.sort(key=lambda one: ("alarm", "note", "good").index(one.level))
    return Verdict(*_headline(report, found), _summary(report), found)


def _headline(report: Report, found: list[Sentence]) -> tuple[str, Level]:
    alarms = [one for one in found if one.level == "alarm"]
    if any(one.section == "accuracy" for one in alarms):
        return "Do not use it: it is not shown to be better than a simpler rule", "alarm"
    if any(one.section == "lineage" for one in alarms):
        return "This is no measure of the model: it was trained on these pairs", "alarm"
    if any(one.section == "poison" for one in alarms):
        return "Do not train against it: a text without merit beats real completions", "alarm"
    if any(one.section == "length" for one in alarms):
        return "Do not train against it: it takes length for merit", "alarm"
    if alarms:
        return "Use it with care: read the alarms first", "alarm"
    if report.worst_slices:
        return "Use it, but not on the slices named below without a check", "note"
    return "Nothing was found that speaks against using it", "good"


def _summary(report: Report) -> str:
    overall, top = report.overall, report.ceiling
    parts = [
        f"Of held-out pairs, by weight, it puts the better completion first in {share(overall.accuracy)}; "
        if report.pairs.split == "validation"
        else f"Of the pairs of split {report.pairs.split} it puts the better completion first in "
        f"{share(overall.accuracy)}; ",
        f"always taking the longer text would get {share(overall.longer_wins)}. ",
        f"Annotators predict each other in {share(top.other_annotator)}; on the same pairs the model has "
        f"{percent(top.model.value)}."
        if top is not None
        else f"How far annotators agree, and so how much could be learned, is unknown: {report.ceiling_unknown}.",
    ]
    return "".join(parts)


def _skill(report: Report) -> Iterator[Sentence]:
    accuracy, longer = report.overall.accuracy, report.overall.longer_wins
    if accuracy.value is None or accuracy.interval is None:
        yield Sentence("alarm", "accuracy", "One prompt says nothing about others: evaluate on more prompts.")
        return
    if accuracy.interval[0] <= CHANCE:
        yield Sentence("alarm", "accuracy", f"Accuracy {share(accuracy)} may be chance: the interval holds 50 %.")
        return
    if longer.interval is None or longer.value is None:
        return
    points = f"{100 * abs(accuracy.value - longer.value):.1f} points"
    if accuracy.value <= longer.value:
        yield Sentence("alarm", "accuracy", f"It is {points} below the rule that the longer text wins.")
    elif accuracy.interval[0] <= longer.interval[1]:
        yield Sentence(
            "note", "accuracy", f"It is {points} above the rule that the longer text wins, and the intervals overlap."
        )
    else:
        yield Sentence("good", "accuracy", f"It is {points} above the rule that the longer text wins.")
    yield from _ceiling(report)


def _ceiling(report: Report) -> Iterator[Sentence]:
    top = report.ceiling
    if top is None or top.model.value is None or top.other_annotator.value is None:
        return
    difference = 100 * (top.other_annotator.value - top.model.value)
    if top.model.interval is not None and top.model.interval[1] < top.other_annotator.value:
        text = f"It is {difference:.1f} points below what one annotator knows of another: there is more to learn."
        yield Sentence("note", "annotators", text)
    else:
        text = "It predicts an annotator about as well as another annotator does: little is left to learn here."
        yield Sentence("good", "annotators", text)


def _data(report: Report) -> Iterator[Sentence]:
    if report.pairs.split == "train":
        yield Sentence("alarm", "lineage", "These are pairs of the training split, not held-out ones.")
    if report.method.prompts < FEW_PROMPTS:
        prompts = counted(report.method.prompts, "prompt")
        yield Sentence("note", "how", f"There are only {prompts}, so the intervals are wide: hold out more.")


def _poison(report: Report) -> Iterator[Sentence]:
    for row in [row for row in report.repeated_texts if row.metrics.is_suspect][:MAX_TEXTS]:
        authors = f" of {', '.join(map(escaped, row.metrics.authors[:2]))}" if row.metrics.authors else ""
        excerpt = escaped(row.text.strip()[:_EXCERPT])
        yield Sentence(
            "alarm",
            "poison",
            f"One text{authors} under {counted(row.metrics.prompts, 'prompt')} is above "
            f"{percent(row.metrics.model_worth.value)} of other completions: {excerpt}",
        )
    for row in report.degenerate_texts:
        if row.worth.interval is not None and row.worth.interval[0] > CHANCE:
            above = f"above {share(row.worth)} of real completions"
            if row.kind == ANOTHER:
                text = f"It hardly looks at the prompt: an answer to another prompt is {above}."
                yield Sentence("alarm", "degenerate", text)
            else:
                yield Sentence("alarm", "poison", f"{row.kind[:1].upper()}{row.kind[1:]} is {above}.")


def _length(report: Report) -> Iterator[Sentence]:
    shorter, longer = report.by_length.chosen_shorter.accuracy, report.by_length.chosen_longer.accuracy
    if shorter.value is None or shorter.interval is None or longer.value is None:
        return
    both = f"right in {share(shorter)} where the shorter text is better, in {share(longer)} where the longer one is"
    if shorter.interval[1] < CHANCE:
        yield Sentence("alarm", "length", f"It takes length for merit: {both}.")
    elif _is_apart(shorter, longer):
        yield Sentence("note", "length", f"It leans to the longer text: {both}.")
    elif shorter.interval[0] > CHANCE:
        yield Sentence("good", "length", f"It does not live on length: {both}.")


def _confidence(report: Report) -> Iterator[Sentence]:
    whole, before, after = report.calibration.whole, report.calibration.before, report.calibration.after
    error, loss = whole.expected_calibration_error, whole.log_loss
    if error is None or loss.value is None:
        return
    is_better = (
        after is not None
        and after.log_loss.value is not None
        and before.log_loss.value is not None
        and after.log_loss.value < before.log_loss.value
    )
    advice = f"; divide reward differences by {after.temperature:.2f}" if after is not None and is_better else ""
    if loss.interval is not None and loss.interval[0] > KNOWS_NOTHING:
        text = f"It is sure where it is wrong: log loss {loss.value:.3f}, where knowing nothing has 0.693{advice}."
        yield Sentence("alarm", "calibration", text)
    elif error > ERROR_NOTE:
        text = f"Its certainty is off by {100 * error:.1f} points on average{advice}."
        yield Sentence("note", "calibration", text)
    else:
        yield Sentence("good", "calibration", f"It knows how sure it is: calibration error {percent(error)}.")


def _weak(report: Report) -> Iterator[Sentence]:
    for row in report.worst_slices[:MAX_SLICES]:
        yield Sentence(
            "note",
            "slices",
            f"Weak at {row.kind.replace('_', ' ')} {escaped(row.name)}: {percent(row.accuracy)}, the rest "
            f"{percent(row.accuracy_of_rest)}.",
        )
    if report.num_likely_wrong:
        groups = counted(report.num_likely_wrong, "group")
        text = f"In {groups} it is over 90 % sure that an annotation is wrong: read the errors below."
        yield Sentence("note", "errors", text)
    if report.unexplained_annotators:
        names = ", ".join(map(escaped, report.unexplained_annotators[:MAX_SLICES]))
        yield Sentence("note", "annotators", f"It explains these annotators surely worse than the others: {names}.")


def _influence(report: Report) -> Iterator[Sentence]:
    if report.influence is None:
        return
    annotators, authors = report.influence.annotators, report.influence.authors
    for row in ([] if annotators is None else annotators.harmful())[:MAX_SLICES]:
        text = (
            f"Without annotator {escaped(row.source)} a small judge is surely better on the pairs of others: log "
            f"loss {row.others_log_loss.value:+.4f}, accuracy {points(row.others_accuracy)} points."
        )
        yield Sentence("note", "influence", text)
    for row in ([] if authors is None else authors.memorized())[:MAX_SLICES]:
        text = (
            f"What can be known of {escaped(row.source)} is known from its own pairs alone: a small judge has "
            f"{percent(row.own_accuracy_with.value)} of them right, without them {points(row.own_accuracy)} points."
        )
        yield Sentence("alarm", "influence", text)


def _is_apart(low: Estimate, high: Estimate) -> bool:
    return low.interval is not None and high.interval is not None and low.interval[1] < high.interval[0]
