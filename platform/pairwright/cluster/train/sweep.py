"""A sweep: plain training runs one after the other, an evaluation of each, a table and a page over their settings.

Each run is one that ``pairwright train`` would do, in a folder of its own. So the same command leaves finished runs as
they are, resumes one that was killed, and does the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import msgspec

from pairwright.cluster.models.compare_job import compare_measured
from pairwright.cluster.models.evaluate_job import Compute, MeasuredSplit, default_cache, measure, report_measured
from pairwright.cluster.train.driver import train
from pairwright.config.sweep_plan import PlannedRun, sweep_digest
from pairwright.data.storage.object_store import absolute_url, local_root, store_errors
from pairwright.data.storage.outputs import check_output, put_output
from pairwright.data.table.table import open_store
from pairwright.errors import TrainingError
from pairwright.evaluation.evaluation_report import report_json
from pairwright.evaluation.load_exported import ExportedModel, ModelIdentity, open_exported
from pairwright.evaluation.reports.comparison import COMPARISON
from pairwright.evaluation.reports.report_file import REPORT_NAME, page_url, report_in
from pairwright.evaluation.reports.sweep_table import Sweep, SweepRun, is_sweep, read_sweep, setting_text, sweep_of
from pairwright.events import cause_of
from pairwright.records import UNREADABLE_JSON
from pairwright.runs.run_dir import RunFolder, read_object
from pairwright.terminal import escaped, say

SWEEP_NAME, PAGE_NAME = "sweep.json", "report.html"
MAX_COMPARED = 10
"""Settings on the page of the comparison, the best ones: every two of them are compared."""
_WHAT = "a table of `pairwright sweep`"


def run_states(runs: Sequence[PlannedRun]) -> dict[str, str]:
    """Return what a sweep would do with each run: ``new``, ``resumed`` or ``finished``; nothing is started."""
    return {run.name: _state(run) for run in runs}


def run_sweep(
    runs: Sequence[PlannedRun],
    output: str,
    *,
    log: TextIO,
    overwrite: bool = False,
    show: Callable[[Sweep], None] | None = None,
) -> Sweep:
    """Do the runs that are not finished, evaluate each, and write ``sweep.json`` and a page that compares the settings.

    Args:
        runs: of ``plan_sweep``.
        output: URL of the sweep's folder.
        log: where lines go.
        overwrite: replace the table of another sweep; one of the same runs is replaced anyway.
        show: called with the table before it is written, because writing may fail.

    Raises:
        PairwrightError: as ``train`` and ``evaluate``; a run that fails for good is a row, and the others go on.
        StoppedError: if SIGTERM stopped it; the same command goes on.
    """
    url, digest = f"{absolute_url(output)}/{SWEEP_NAME}", sweep_digest(runs)
    may_replace = overwrite or _is_of(output, digest)
    check_output(url, is_sweep, what=_WHAT, overwrite=may_replace)
    page = report_in(output)
    COMPARISON.check(page, overwrite=may_replace)
    ended = []
    for number, run in enumerate(runs, 1):
        say(escaped(f"run {number} of {len(runs)}: {run.name}"), to=log)
        ended.append(_ended(run, log))
    sweep = sweep_of([one.row for one in ended], digest)
    if show is not None:
        show(sweep)
    put_output(url, report_json(msgspec.to_builtins(sweep)), is_sweep, what=_WHAT, overwrite=may_replace)
    say(escaped(f"wrote {url}"), to=log)
    if _compare(sweep, ended, page, overwrite=may_replace):
        say(escaped(f"wrote {page} and {page_url(page)}"), to=log)
    return sweep


@dataclass(frozen=True)
class _Ended:
    """A run after its end, and its model, none of a run that failed.

    ``found`` holds the rewards of the held-out pairs; None where an earlier command wrote the report.
    """

    run: PlannedRun
    row: SweepRun
    model: ExportedModel | None = None
    found: MeasuredSplit | None = None


def _ended(run: PlannedRun, log: TextIO) -> _Ended:
    """Return a run after its end and its evaluation."""
    row = SweepRun(
        name=run.name, setting=run.setting, seed=run.seed, output=absolute_url(run.config.output), state="finished"
    )
    try:
        model = open_exported(train(run.config, log=log).model)
    except TrainingError as error:
        return _Ended(run, msgspec.structs.replace(row, state="failed", error=cause_of(error)))
    report_url, identity = f"{row.output}/{REPORT_NAME}", model.identity()
    report, found = _earlier_report(run, identity), None
    if report is None:
        found = _measured(run, model)
        report = report_measured(identity, found, output=report_url, overwrite=True)
    overall = report["overall"]
    row = msgspec.structs.replace(
        row, report=report_url, accuracy=overall["accuracy"]["value"], log_loss=overall["log_loss"]["value"]
    )
    return _Ended(run, row, model, found)


def _measured(run: PlannedRun, model: ExportedModel) -> MeasuredSplit:
    """Return the rewards of a run's model on the held-out pairs of the table that it was trained on."""
    summary = RunFolder(run.config.output).summary()
    assert summary is not None, "a run that has been trained has a summary"
    return measure(
        model,
        run.config.data.pairs,
        version=summary.data.version,
        split="validation",
        compute=Compute(1, run.config.workers.use_gpu, run.config.batches.micro_batch_tokens),
        cache=default_cache(model.path, None),
    )


def _earlier_report(run: PlannedRun, identity: ModelIdentity) -> dict[str, Any] | None:
    """Return the report that an earlier command of the sweep wrote of this very model, with its page."""
    content = _content(run.config.output, REPORT_NAME)
    if content is None or _content(run.config.output, PAGE_NAME) is None:
        return None
    try:
        found = msgspec.json.decode(content)
        return found if found["model"]["digest"] == identity.digest else None
    except (KeyError, TypeError, *UNREADABLE_JSON):
        return None


def _compare(sweep: Sweep, ended: Sequence[_Ended], url: str, *, overwrite: bool) -> bool:
    """Write the comparison of the settings, their seeds as runs of one model; False where none is left to compare.

    What an earlier command compared stays as it is if no run is new.
    """
    best = [setting_text(one.setting) for one in sweep.settings if one.accuracy is not None][:MAX_COMPARED]
    if not best or (all(one.found is None for one in ended) and _content(*url.rsplit("/", 1)) is not None):
        return bool(best)
    models: dict[str, list[tuple[ModelIdentity, MeasuredSplit]]] = {name: [] for name in best}
    for one in ended:
        name = setting_text(one.row.setting)
        if one.model is not None and name in models:
            models[name].append((one.model.identity(), one.found or _measured(one.run, one.model)))
    compare_measured(models, ended[0].run.config.data.pairs, output=url, overwrite=overwrite)
    return True


def _state(run: PlannedRun) -> str:
    root = local_root(run.config.output)
    if root is not None and not root.is_dir():
        return "new"
    folder = RunFolder(run.config.output)
    return "finished" if folder.summary() is not None else "resumed" if folder.has_progress() else "new"


def _is_of(output: str, digest: str) -> bool:
    """Return whether the table there is of the same runs."""
    content = _content(output, SWEEP_NAME)
    found = None if content is None else read_sweep(content)
    return found is not None and found.sweep_digest == digest


def _content(folder: str, name: str) -> bytes | None:
    root = local_root(folder)
    if root is not None and not root.is_dir():
        return None
    with store_errors(folder):
        return read_object(open_store(folder), name)
