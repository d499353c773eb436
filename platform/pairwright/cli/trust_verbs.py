"""The verbs of the console script that put models beside others: benchmarks, comparison, sweeps over settings.

As in ``cli/main.py``, each verb parses its arguments, calls one function and prints its result.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pairwright.cli.options import (
    MODELS,
    TRAINING,
    AsJson,
    DryRun,
    MicroBatchTokens,
    NumWorkers,
    Overwrite,
    Settings,
    Split,
    UseGpu,
    Version,
)
from pairwright.errors import ConfigError
from pairwright.terminal import escaped, one_per_line, say, say_json

app = typer.Typer()


@app.command(rich_help_panel=MODELS)
def benchmark(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] FILE...",
            help="Model directory, and files of benchmarks; with --scores, files alone, or none for RewardMATH.",
        ),
    ] = None,
    scores: Annotated[
        str | None, typer.Option(help="File of rewards that somebody else computed; no model is loaded then.")
    ] = None,
    use_gpu: UseGpu = False,
    micro_batch_tokens: MicroBatchTokens = 16384,
    as_json: AsJson = False,
) -> None:
    """Score a model on public benchmarks by file: RewardBench 1 and 2, RM-Bench, RewardMATH, JudgeBench, PPE."""
    given = arguments or []
    if scores is None and len(given) < 2:
        raise ConfigError("expected a model and at least one file of a benchmark, or --scores FILE instead of a model")
    import msgspec

    from pairwright.evaluation.benchmarks.benchmark_run import format_benchmarks, run_benchmarks

    model, files = (None, given) if scores is not None else (given[0], given[1:])
    table = run_benchmarks(files, model=model, scores=scores, use_gpu=use_gpu, micro_batch_tokens=micro_batch_tokens)
    say_json(msgspec.to_builtins(table)) if as_json else say(format_benchmarks(table))


@app.command(rich_help_panel=MODELS)
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL_A MODEL_B...", help="Model directories; several seeds of one model with commas between."
        ),
    ],
    pairs: Annotated[str, typer.Option(help="URL of a pairs table.")],
    version: Version = None,
    split: Annotated[Split, typer.Option(help="Which split.")] = "validation",
    output: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Folder for report.json and report.html, or a file .json; none by default."),
    ] = None,
    num_workers: NumWorkers = 1,
    use_gpu: UseGpu = False,
    micro_batch_tokens: MicroBatchTokens = 16384,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Compare models on the same held-out pairs: difference with interval and p-value, and where they disagree."""
    import msgspec

    from pairwright.cluster.models.compare_job import compare as run
    from pairwright.cluster.models.evaluate_job import Compute
    from pairwright.evaluation.reports.comparison import format_comparison
    from pairwright.evaluation.reports.report_file import page_url, report_in

    run(
        models,
        pairs,
        version=version,
        split=split,
        output=output,
        overwrite=overwrite,
        compute=Compute(num_workers, use_gpu, micro_batch_tokens),
        show=lambda found: say_json(msgspec.to_builtins(found)) if as_json else say(format_comparison(found)),
    )
    if output is not None and not as_json:
        url = report_in(output).removeprefix(f"{Path.cwd()}/")
        say(escaped(f"wrote {url} and {page_url(url)}"))


@app.command(rich_help_panel=TRAINING)
def sweep(
    config: Annotated[str, typer.Option(metavar="FILE", help="TOML file with the configuration of all runs.")],
    output: Annotated[
        str, typer.Option(metavar="URL", help="Folder for the runs, one folder each, sweep.json and report.html.")
    ],
    vary: Annotated[
        list[str],
        typer.Option(metavar="KEY=VALUE,VALUE", help="A key with the values to try; repeatable, all combinations."),
    ] = [],  # noqa: B006 - typer copies it
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each setting, from training.seed on.")] = 3,
    settings: Settings = [],  # noqa: B006 - typer copies it
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Train with several settings and seeds, one run after the other, and compare. Resumes where it was killed."""
    from pairwright.config.sweep_plan import plan_sweep

    runs = plan_sweep(config, settings, vary, num_seeds=seeds, output=output)
    from pairwright.cli.early_checks import check_training

    for run in runs:
        check_training(run.config)
    import msgspec

    from pairwright.cluster.train.sweep import run_states, run_sweep
    from pairwright.evaluation.reports.sweep_table import format_sweep

    if dry_run:
        states = run_states(runs)
        if as_json:
            shown = [{"name": run.name, "setting": run.setting, "seed": run.seed} for run in runs]
            say_json([one | {"state": states[str(one["name"])]} for one in shown])
        else:
            say(one_per_line(escaped(f"{states[run.name]:<9} {run.name}") for run in runs))
        return
    done = run_sweep(
        runs,
        output,
        log=sys.stderr if as_json else sys.stdout,
        overwrite=overwrite,
        show=lambda found: say_json(msgspec.to_builtins(found)) if as_json else say(format_sweep(found)),
    )
    if any(run.state == "failed" for run in done.runs):
        raise typer.Exit(1)
