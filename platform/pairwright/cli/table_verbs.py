"""The verbs of the console script that maintain tables, and those that check and list sources.

As in ``cli/main.py``, each verb parses its arguments, calls one function and prints its result.
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
    """List a table's versions, and what each one changed."""
    from pairwright.data.table.version_log import format_version_log, version_log

    found = version_log(url, last=last)
    say_json(found) if as_json else say(format_version_log(found))


@app.command()
def restore(
    url: Table,
    version: Annotated[int, typer.Option(help="Version that becomes the newest one again.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make an old version the newest one again. It becomes a new version with the same content; nothing is lost."""
    from pairwright.data.table.version_log import format_restored
    from pairwright.data.table.version_log import restore as run

    found = run(url, version, is_dry_run=dry_run)
    say_json(found) if as_json else say(format_restored(found))


@app.command()
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


@app.command()
def formats(
    name: Annotated[str | None, typer.Argument(help="A layout, to see how its fields are read.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the record layouts that `ingest` reads. Each is shown with an example record."""
    from pairwright.data.ingest.adapters.format_pages import format_list, format_list_text, format_text

    if as_json:
        say_json([one for one in format_list() if name in (None, one["name"])])
    else:
        say(format_list_text() if name is None else format_text(name))


@app.command()
def compact(
    url: Table,
    file_bytes: Annotated[int, typer.Option(min=1, help="Maximum size of a merged file, compressed.")] = 32
    * 1024
    * 1024,
    as_json: AsJson = False,
) -> None:
    """Merge a table's small files into larger ones. The new version has the same rows in the same order."""
    from pairwright.cluster.sized_executor import EXECUTOR
    from pairwright.data.table.compact import compact as run

    summary = run(url, file_bytes=file_bytes, executor=EXECUTOR)
    say_json(summary.as_dict()) if as_json else say(summary.text())


@app.command()
def vacuum(
    url: Table,
    older_than: Annotated[
        str, typer.Option(help="Keep younger files, such as 30m, 24h or 7d: jobs may be writing them.")
    ] = "24h",
    keep_versions: Annotated[
        int | None, typer.Option(min=1, help="Remove all but the newest N versions; none is removed if not given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove files that no version of a table names. Old versions are removed if asked."""
    from pairwright.data.table.vacuum import vacuum as run

    summary = run(url, older_than=_duration(older_than), keep_versions=keep_versions, is_dry_run=dry_run)
    say_json(summary.as_dict()) if as_json else say(summary.text())


@app.command()
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
    as_json: AsJson = False,
) -> None:
    """Erase an annotator or a prompt from a table. The new version is verified to hold neither."""
    from pairwright.cli.render import render_erasure
    from pairwright.cluster.sized_executor import EXECUTOR
    from pairwright.data.table.erase import erase as run

    summary = run(url, annotators=annotator, prompts=prompt, is_exact=exact, executor=EXECUTOR)
    say_json(summary.as_dict()) if as_json else say(render_erasure(summary))


@app.command()
def validate(
    sources: Annotated[list[str], typer.Argument(help="As for `pairwright ingest`.")],
    against: Annotated[
        str | None,
        typer.Option(metavar="URL", help="An annotations table to look for duplicates in."),
    ] = None,
    format: Annotated[str | None, typer.Option(metavar="NAME", help="Layout of the records, as for ingest.")] = None,  # noqa: A002 - named as the flag is
    config: Annotated[str | None, typer.Option(help="TOML file, as for ingest.")] = None,
    settings: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the configuration.")
    ] = [],  # noqa: B006 - typer copies it
    max_refused: Annotated[
        str | None,
        typer.Option(metavar="N|N%", help="Refused records, or their share, up to which the exit status is 0."),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Maximum number of findings to list.")] = 100,
    replace: Annotated[
        bool, typer.Option("--replace", help="Check what `ingest --replace` would do to the table of --against.")
    ] = False,
    output: Annotated[str | None, typer.Option(metavar="URL", help="File for all findings: .csv or .jsonl.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace older findings at --output.")] = False,
    scratch: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Working folder, shared by all machines; temporary if not given."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check what `ingest` would refuse, and change no table. The exit status is 1 if anything would be refused."""
    from pairwright.cluster.sized_executor import EXECUTOR
    from pairwright.config import IngestConfig, load_config
    from pairwright.data.ingest.dry_run import num_allowed
    from pairwright.data.ingest.dry_run import validate as run

    num_allowed(max_refused, 0)
    named = [] if format is None else [f"format={format}"]
    loaded = load_config(IngestConfig, config, [*settings, *named])
    findings = run(
        sources,
        loaded,
        against=against,
        limit=limit,
        scratch=scratch,
        replace=replace,
        output=output,
        overwrite=overwrite,
        executor=EXECUTOR,
    )
    say_json(findings.as_dict()) if as_json else say(findings.text())
    if not findings.is_clean(max_refused):
        raise typer.Exit(1)
