"""The verbs of the console script that put models beside others: on public benchmarks, and on the same pairs.

As in ``cli/main.py``, each verb parses its arguments, calls one function and prints its result.
"""

from typing import Annotated

import typer

from pairwright.cli.options import MODELS, AsJson, MicroBatchTokens, NumWorkers, Overwrite, Split, UseGpu, Version
from pairwright.errors import ConfigError
from pairwright.terminal import say, say_json

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
    output: Annotated[str | None, typer.Option(help="File for the comparison, JSON; none if not given.")] = None,
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
