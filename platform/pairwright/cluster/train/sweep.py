"""A sweep: plain training runs one after the other, an evaluation of each, and a table over their settings.

Each run is one that ``pairwright train`` would do, in a folder of its own. So the same command leaves finished runs as
they are, resumes one that was killed, and does the rest.
"""

from collections.abc import Callable, Sequence
from typing import Any, TextIO

import msgspec

from pairwright.cluster.models.evaluate_job import evaluate
from pairwright.cluster.train.driver import train
from pairwright.config.sweep_plan import PlannedRun, sweep_digest
from pairwright.data.storage.object_store import absolute_url, local_root, store_errors
from pairwright.data.storage.outputs import check_output, put_output
from pairwright.data.table.table import open_store
from pairwright.errors import TrainingError
from pairwright.evaluation.evaluation_report import report_json
from pairwright.evaluation.load_exported import open_exported
from pairwright.evaluation.reports.report_file import REPORT_NAME
from pairwright.evaluation.reports.sweep_table import Sweep, SweepRun, is_sweep, read_sweep, sweep_of
from pairwright.events import cause_of
from pairwright.records import UNREADABLE_JSON
from pairwright.runs.run_dir import RunFolder, read_object
from pairwright.terminal import escaped, say

SWEEP_NAME = "sweep.json"
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
    """Do the runs that are not finished, evaluate each, and write ``sweep.json``.

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
    ended = []
    for number, run in enumerate(runs, 1):
        say(escaped(f"run {number} of {len(runs)}: {run.name}"), to=log)
        ended.append(_ended(run, log))
    sweep = sweep_of(ended, digest)
    if show is not None:
        show(sweep)
    put_output(url, report_json(msgspec.to_builtins(sweep)), is_sweep, what=_WHAT, overwrite=may_replace)
    return sweep


def _ended(run: PlannedRun, log: TextIO) -> SweepRun:
    """Return a run after its end and its evaluation."""
    row = SweepRun(
        name=run.name, setting=run.setting, seed=run.seed, output=absolute_url(run.config.output), state="finished"
    )
    try:
        model = train(run.config, log=log).model
    except TrainingError as error:
        return msgspec.structs.replace(row, state="failed", error=cause_of(error))
    report_url = f"{row.output}/{REPORT_NAME}"
    report = _report(run, model, report_url)
    overall = report["overall"]
    return msgspec.structs.replace(
        row, report=report_url, accuracy=overall["accuracy"]["value"], log_loss=overall["log_loss"]["value"]
    )


def _report(run: PlannedRun, model: str, report_url: str) -> dict[str, Any]:
    """Return the report of a run's model: that of an earlier command of the sweep, or a new one."""
    content = _content(run.config.output, REPORT_NAME)
    if content is not None:
        try:
            found = msgspec.json.decode(content)
            if found["model"]["digest"] == open_exported(model).identity().digest:
                return found
        except (KeyError, TypeError, *UNREADABLE_JSON):
            pass
    summary = RunFolder(run.config.output).summary()
    assert summary is not None, "a run that has been trained has a summary"
    return evaluate(
        model,
        run.config.data.pairs,
        version=summary.data.version,
        split="validation",
        output=report_url,
        num_workers=1,
        use_gpu=run.config.workers.use_gpu,
        micro_batch_tokens=run.config.batches.micro_batch_tokens,
        overwrite=True,
    )


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
