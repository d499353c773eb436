"""The verbs of the console script that maintain tables.

As in ``cli/data_verbs.py``, each verb parses its arguments, calls one function and prints its result.
"""

import re
from datetime import timedelta
from typing import Annotated

import typer

from pairwright.cli.options import TABLES, AsJson, DryRun, Table
from pairwright.errors import ConfigError
from pairwright.terminal import say, say_json

app = typer.Typer()

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])|0")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _duration(text: str) -> timedelta:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ConfigError(f"--retention {text}: expected a time such as 30m, 24h or 7d, or 0")
    return timedelta(**{_UNITS[match[2]]: float(match[1])}) if match[2] else timedelta()


@app.command(rich_help_panel=TABLES)
def versions(
    url: Table,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of versions to list, the newest.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List a table's versions, and what each one changed."""
    from pairwright.data.table.version_log import format_version_log, version_log

    found = version_log(url, last=limit)
    say_json(found) if as_json else say(format_version_log(found))


@app.command(rich_help_panel=TABLES)
def restore(
    url: Table,
    version: Annotated[int, typer.Option(help="Version that becomes the newest one again.")],
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make an old version the newest one again. It becomes a new version with the same content; nothing is lost."""
    from pairwright.data.table.version_log import format_restored
    from pairwright.data.table.version_log import restore as run

    found = run(url, version, is_dry_run=dry_run)
    say_json(found) if as_json else say(format_restored(found))


@app.command(rich_help_panel=TABLES)
def diff(
    url: Table,
    first: Annotated[int, typer.Argument(metavar="A", help="A version.")],
    second: Annotated[int, typer.Argument(metavar="B", help="Another one.")],
    as_json: AsJson = False,
) -> None:
    """Compare two versions of a table. Lists the differences in sources, in records by id, and in totals."""
    from pairwright.cluster.sized_executor import EXECUTOR
    from pairwright.data.table.diff import diff as run
    from pairwright.data.table.diff import format_diff

    found = run(url, first, second, executor=EXECUTOR)
    say_json(found) if as_json else say(format_diff(found))


@app.command(rich_help_panel=TABLES)
def compact(
    url: Table,
    target_file_size: Annotated[
        int, typer.Option(metavar="BYTES", min=1, help="Maximum size of a merged file, compressed.")
    ] = 32 * 1024 * 1024,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Merge a table's small files into larger ones. The new version has the same rows in the same order."""
    from pairwright.cluster.sized_executor import EXECUTOR
    from pairwright.data.table.compact import compact as run

    summary = run(url, file_bytes=target_file_size, is_dry_run=dry_run, executor=EXECUTOR)
    say_json(summary.as_dict()) if as_json else say(summary.text())


@app.command(rich_help_panel=TABLES)
def vacuum(
    url: Table,
    retention: Annotated[
        str, typer.Option(metavar="TIME", help="Keep younger files, such as 30m, 24h or 7d: jobs may be writing them.")
    ] = "24h",
    keep_versions: Annotated[
        int | None, typer.Option(min=1, help="Remove all but the newest N versions; none is removed if not given.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Remove files that no version of a table names. Old versions are removed if asked."""
    from pairwright.data.table.vacuum import vacuum as run

    summary = run(url, older_than=_duration(retention), keep_versions=keep_versions, is_dry_run=dry_run)
    say_json(summary.as_dict()) if as_json else say(summary.text())


@app.command(rich_help_panel=TABLES)
def forget(
    url: Annotated[str, typer.Argument(metavar="URL", help="URL of an annotations table.")],
    annotator: Annotated[list[str], typer.Option(metavar="NAME", help="An annotator; may be repeated.")] = [],  # noqa: B006 - typer copies it
    prompt: Annotated[
        list[str],
        typer.Option(metavar="ID-OR-FILE", help="A prompt_id, or a file with the prompt; may be repeated."),
    ] = [],  # noqa: B006 - typer copies it
    exact: Annotated[
        bool, typer.Option("--exact", help="Match names exactly: `aB3` and `AB3` are two annotators.")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Erase an annotator or a prompt from a table. The new version is verified to hold neither."""
    from pairwright.cli.render import render_erasure, render_erasure_preview
    from pairwright.cluster.sized_executor import EXECUTOR
    from pairwright.data.table.erase import erase as run
    from pairwright.data.table.erase import preview_erasure

    if dry_run:
        found = preview_erasure(url, annotators=annotator, prompts=prompt, is_exact=exact, executor=EXECUTOR)
        say_json(found.as_dict()) if as_json else say(render_erasure_preview(found))
        return
    summary = run(url, annotators=annotator, prompts=prompt, is_exact=exact, executor=EXECUTOR)
    say_json(summary.as_dict()) if as_json else say(render_erasure(summary))
