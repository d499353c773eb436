"""The verbs of the console script that look after tables: versions, diff, compact, vacuum, forget, validate.

As in ``cli/main.py``, each verb parses its arguments, calls one function and prints what it returned.
"""

import re
from datetime import timedelta
from typing import Annotated

import typer

from pairwright.errors import ConfigError
from pairwright.terminal import say, say_json

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Table = Annotated[str, typer.Argument(metavar="URL", help="URL of a table.")]
app = typer.Typer()

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])|0")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _duration(text: str) -> timedelta:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ConfigError(f"--older-than {text}: expected a time such as 30m, 24h or 7d, or 0")
    return timedelta(**{_UNITS[match[2]]: float(match[1])}) if match[2] else timedelta()


@app.command()
def versions(
    url: Table,
    last: Annotated[int, typer.Option(min=1, help="How many of the newest versions to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List a table's versions: what each one is, and what it changed."""
    from pairwright.data.table.version_log import format_version_log, version_log

    found = version_log(url, last=last)
    say_json(found) if as_json else say(format_version_log(found))


@app.command()
def diff(
    url: Table,
    first: Annotated[int, typer.Argument(metavar="A", help="A version.")],
    second: Annotated[int, typer.Argument(metavar="B", help="Another one.")],
    as_json: AsJson = False,
) -> None:
    """Tell what version B of a table has against version A: sources, records by id, totals."""
    from pairwright.cluster.executor import EXECUTOR
    from pairwright.data.table.diff import diff as run
    from pairwright.data.table.diff import format_diff

    found = run(url, first, second, executor=EXECUTOR)
    say_json(found) if as_json else say(format_diff(found))


@app.command()
def formats(
    name: Annotated[str | None, typer.Argument(help="A layout, to see what becomes of its fields.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the layouts that `ingest` reads, each with an example record."""
    from pairwright.data.ingest.format_pages import format_list, format_list_text, format_text

    if as_json:
        say_json([one for one in format_list() if name in (None, one["name"])])
    else:
        say(format_list_text() if name is None else format_text(name))


@app.command()
def compact(
    url: Table,
    file_bytes: Annotated[int, typer.Option(min=1, help="Most bytes of a merged file, compressed.")] = 32 * 1024 * 1024,
    as_json: AsJson = False,
) -> None:
    """Make few larger files of many small ones: a new version with the same rows in the same order."""
    from pairwright.cluster.executor import EXECUTOR
    from pairwright.data.table.compact import compact as run

    summary = run(url, file_bytes=file_bytes, executor=EXECUTOR)
    say_json(summary.as_dict()) if as_json else say(summary.text())


@app.command()
def vacuum(
    url: Table,
    older_than: Annotated[
        str, typer.Option(help="Leave alone what is younger, such as 30m, 24h or 7d: jobs may be at work on it.")
    ] = "24h",
    keep_versions: Annotated[
        int | None, typer.Option(min=1, help="Remove older versions than this many; none is removed if not given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove files that no version of a table names, and old versions where asked."""
    from pairwright.data.table.vacuum import vacuum as run

    summary = run(url, older_than=_duration(older_than), keep_versions=keep_versions, is_dry_run=dry_run)
    say_json(summary.as_dict()) if as_json else say(summary.text())


@app.command()
def forget(
    url: Annotated[str, typer.Argument(metavar="URL", help="URL of an annotations table.")],
    annotator: Annotated[list[str], typer.Option(metavar="NAME", help="Who ranked; may be given again.")] = [],  # noqa: B006 - typer copies it
    prompt: Annotated[
        list[str],
        typer.Option(metavar="ID-OR-FILE", help="A prompt_id, or a file with the prompt; may be given again."),
    ] = [],  # noqa: B006 - typer copies it
    exact: Annotated[
        bool, typer.Option("--exact", help="Take names to the letter: where `aB3` and `AB3` are two annotators.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Commit a version without an annotator or a prompt, and prove that no file of it holds them."""
    from pairwright.cli.render import render_erasure
    from pairwright.cluster.executor import EXECUTOR
    from pairwright.data.table.erase import erase as run

    summary = run(url, annotators=annotator, prompts=prompt, is_exact=exact, executor=EXECUTOR)
    say_json(summary.as_dict()) if as_json else say(render_erasure(summary))


@app.command()
def validate(
    sources: Annotated[list[str], typer.Argument(help="Whatever `pairwright ingest` takes.")],
    against: Annotated[
        str | None, typer.Option(metavar="URL", help="An annotations table whose sources and ids count too.")
    ] = None,
    format: Annotated[str | None, typer.Option(metavar="NAME", help="Layout of the records, as for ingest.")] = None,  # noqa: A002 - named as the flag is
    config: Annotated[str | None, typer.Option(help="TOML file, as for ingest.")] = None,
    settings: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the configuration.")
    ] = [],  # noqa: B006 - typer copies it
    max_refused: Annotated[
        str | None,
        typer.Option(metavar="N|N%", help="End with 0 up to so many refused, or such a share; 0 by default."),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Findings to list.")] = 100,
    scratch: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where to work on several machines; a temporary folder if not given."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what `ingest` would refuse, without changing any table; exit status 1 where something would be."""
    from pairwright.cluster.executor import EXECUTOR
    from pairwright.config import IngestConfig, load_config
    from pairwright.data.ingest.dry_run import num_allowed
    from pairwright.data.ingest.dry_run import validate as run

    num_allowed(max_refused, 0)
    named = [] if format is None else [f"format={format}"]
    loaded = load_config(IngestConfig, config, [*settings, *named])
    findings = run(sources, loaded, against=against, limit=limit, scratch=scratch, executor=EXECUTOR)
    say_json(findings.as_dict()) if as_json else say(findings.text())
    if not findings.is_clean(max_refused):
        raise typer.Exit(1)
