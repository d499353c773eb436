"""The verbs of the console script for files of settings: ``init`` starts a configuration, ``run`` runs a pipeline."""

import sys
from typing import Annotated

import typer

from pairwright.cli.options import DATA, TRAINING, AsJson, DryRun, Overwrite, Settings
from pairwright.errors import ConfigError
from pairwright.terminal import escaped, one_per_line, say, say_json

app = typer.Typer()


@app.command(rich_help_panel=DATA)
def init(
    file: Annotated[str | None, typer.Argument(help="The configuration to write, such as my.toml.")] = None,
    recipe: Annotated[str, typer.Option(metavar="NAME", help="What to start from; `list` prints them.")] = "list",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a configuration to start from. It holds every key, with its default and meaning."""
    from pairwright.config.annotated_file import RECIPES, annotated, is_annotated, read_recipe
    from pairwright.data.storage.outputs import put_output

    if recipe == "list":
        found = [read_recipe(name) for name in RECIPES]
        if as_json:
            say_json([{"name": one.name, "verb": one.verb, "about": one.header[0]} for one in found])
        else:
            lines = [f"{one.name:<20} {one.verb:<7} {one.header[0]}" for one in found]
            say(one_per_line([*lines, "write one with `pairwright init my.toml --recipe NAME`"]))
        return
    text = annotated(chosen := read_recipe(recipe))
    if file is None:
        raise ConfigError(f"a file to write is missing: `pairwright init my.toml --recipe {recipe}`")
    put_output(file, text.encode(), is_annotated, what="a configuration of `pairwright init`", overwrite=overwrite)
    if as_json:
        say_json({"file": file, "recipe": recipe, "verb": chosen.verb})
        return
    required = "set model.path, data.pairs and output, then " if chosen.verb == "train" else ""
    say(escaped(f"wrote {file}; {required}use it with `pairwright {chosen.verb} --config {file}`"))


@app.command(rich_help_panel=TRAINING)
def run(
    pipeline: Annotated[
        str, typer.Argument(metavar="PIPELINE.toml", help="TOML file with the stages; its keys: docs/pipelines.md.")
    ],
    settings: Settings = [],  # noqa: B006 - typer copies it
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline: ingest, expand, train, evaluate, score. What is done already, by digest, is skipped."""
    import msgspec

    from pairwright.config.pipeline import load_pipeline

    loaded = load_pipeline(pipeline, settings)
    from pairwright.cluster.pipeline_run import preview_pipeline, run_pipeline

    if dry_run:
        summary = preview_pipeline(loaded)
    else:
        summary = run_pipeline(loaded, log=sys.stderr if as_json else sys.stdout, overwrite=overwrite)
    say_json(msgspec.to_builtins(summary)) if as_json else say(summary.text())
