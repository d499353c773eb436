"""The verb of the console script that trains with several settings and seeds, and says which setting is best.

As in ``cli/main.py``, the verb parses its arguments, calls one function and prints its result.
"""

import sys
from typing import Annotated

import typer

from pairwright.cli.options import TRAINING, AsJson, DryRun, Overwrite, Settings
from pairwright.terminal import escaped, one_per_line, say, say_json

app = typer.Typer()


@app.command(rich_help_panel=TRAINING)
def sweep(
    config: Annotated[str, typer.Option(metavar="FILE", help="TOML file with the configuration of all runs.")],
    output: Annotated[str, typer.Option(metavar="URL", help="Folder for the runs, one folder each, and sweep.json.")],
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
