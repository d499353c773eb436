"""The verbs of the console script that look after training runs: checkpoints, export.

As in ``cli/main.py``, each verb parses its arguments, calls one function and prints what it returned.
"""

from dataclasses import asdict
from typing import Annotated

import typer

from pairwright.terminal import escaped, say, say_json

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
app = typer.Typer()


@app.command()
def checkpoints(
    run: Annotated[str, typer.Argument(help="Output folder of a training run, or its URL.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and compare its hash.")] = False,
    as_json: AsJson = False,
) -> None:
    """List a run's checkpoints, and which one its next start goes on from; exit status 1 on damage."""
    import msgspec

    from pairwright.runs.checkpoints import format_checkpoints, kept_checkpoints

    found = kept_checkpoints(run, verify=verify)
    say_json(msgspec.to_builtins(found)) if as_json else say(format_checkpoints(found))
    if any(kept.committed and kept.corruption is not None for kept in found.checkpoints):
        raise typer.Exit(1)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Output folder of a training run, or its URL.")],
    into: Annotated[str, typer.Option(help="Directory or URL for the model; must not hold anything yet.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="NAME|STEP|best", help="Which; the one that the run goes on from if not given."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Where the run's starting model lies now, if it was moved.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint's model as the plain Hugging Face directory that the run would have exported then."""
    from pairwright.runs.export_run import export_checkpoint

    exported = export_checkpoint(run, checkpoint=checkpoint, into=into, model=model)
    if as_json:
        say_json(asdict(exported))
        return
    say(escaped(f"model   {exported.into}, of step {exported.step} (checkpoint {exported.checkpoint})"))
