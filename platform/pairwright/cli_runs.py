"""The verbs of the console script that look after training runs: checkpoints.

As in ``cli.py``, each verb parses its arguments, calls one function and prints what it returned.
"""

from typing import Annotated

import typer

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

    from pairwright.cluster.checkpoints import format_checkpoints, kept_checkpoints

    found = kept_checkpoints(run, verify=verify)
    print(msgspec.json.format(msgspec.json.encode(found)).decode() if as_json else format_checkpoints(found))
    if any(kept.committed and kept.damage is not None for kept in found.checkpoints):
        raise typer.Exit(1)
