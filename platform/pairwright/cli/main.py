"""The console script ``pairwright``: the verbs that make and show data, and how errors end a command.

Each verb parses its arguments, calls one function and prints its result. Heavy libraries are imported inside the verbs,
so that ``pairwright --help`` answers at once. An error that a user can fix ends as one message and exit status 1,
without a traceback; an unexpected error keeps its traceback. Exit status 2 means that the command line was wrong, 130
that Ctrl-C was pressed, and 143 that SIGTERM stopped a training run.
"""

import json
import sys
from pathlib import Path
from traceback import format_exception
from typing import Annotated, Any, Literal

import typer

from pairwright import __version__
from pairwright.addresses import STORAGE_SCHEMES, credentials_advice, secret_in, without_credentials
from pairwright.cli import run_verbs, serving_verbs, table_verbs
from pairwright.errors import ConfigError, PairwrightError, StoppedError
from pairwright.terminal import escaped, indented, one_per_line, say, say_json

app = typer.Typer(
    name="pairwright",
    help="Train reward models from ranked annotations, on a laptop or on a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(table_verbs.app)
app.add_typer(run_verbs.app)
app.add_typer(serving_verbs.app)

Settings = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the configuration.")
]
Version = Annotated[int | None, typer.Option(help="Version of the table; the newest if not given.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
_UsageError: Any = typer.BadParameter.__bases__[0]  # typer hands on no more of click
_STORAGE = tuple(f"{scheme}://" for scheme in (*STORAGE_SCHEMES, "http", "https"))
INTERRUPTED = 130
TERMINATED = 143
Split = Literal["train", "validation"]


def _print_version(requested: bool) -> None:  # noqa: FBT001 - click calls it by position
    if requested:
        say(f"pairwright {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train reward models from ranked annotations, on a laptop or on a Ray cluster."""


@app.command()
def ingest(
    sources: Annotated[
        list[str],
        typer.Argument(help="Files, folders, globs, URLs (s3:// too); databases and tables: docs/sources.md."),
    ],
    into: Annotated[str, typer.Option(help="URL of the annotations table; created if it does not exist.")],
    format: Annotated[  # noqa: A002 - named as the flag is
        str | None,
        typer.Option(
            metavar="NAME",
            help="Layout of the records: a name (see pairwright formats) or FILE.toml; recognised if not given.",
        ),
    ] = None,
    config: Annotated[str | None, typer.Option(help="TOML file: [fields] for foreign records, limits.")] = None,
    settings: Settings = [],  # noqa: B006 - typer copies it
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the records of a source whose content has changed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read annotations and append them to a table. Invalid records are refused, and kept with the reason."""
    from pairwright.cluster.sized_executor import EXECUTOR
    from pairwright.config import IngestConfig, load_config
    from pairwright.data.ingest.ingest import ingest as run

    named = [] if format is None else [f"format={format}"]
    loaded = load_config(IngestConfig, config, [*settings, *named])
    summary = run(sources, into, loaded, replace=replace, executor=EXECUTOR)
    say_json(summary.as_dict()) if as_json else say(summary.text())
    # An annotation that the table has already is no sign of a wrong format.
    refused = sum(source.refused - source.duplicates for source in summary.sources)
    nothing_accepted = refused > 0 and not any(source.accepted for source in summary.sources)
    if summary.failed or nothing_accepted:
        raise typer.Exit(1)


@app.command()
def expand(
    annotations: Annotated[str, typer.Argument(help="URL of an annotations table.")],
    into: Annotated[str, typer.Option(help="URL of the pairs table; created if it does not exist.")],
    config: Annotated[
        str | None, typer.Option(help="TOML file: pair_weight, ties, margin, validation_fraction.")
    ] = None,
    settings: Settings = [],  # noqa: B006 - typer copies it
    version: Version = None,
    as_json: AsJson = False,
) -> None:
    """Make weighted pairs from rankings. Groups are split into train and validation by prompt."""
    from pairwright.cluster.sized_executor import EXECUTOR
    from pairwright.config import ExpandConfig, load_config
    from pairwright.data.pairs.expand import expand as run
    from pairwright.data.table.inspect import format_inspection, inspect_version

    manifest = run(annotations, into, load_config(ExpandConfig, config, settings), version=version, executor=EXECUTOR)
    description = inspect_version(into, version=manifest.version, num_sample=0)
    say_json(description) if as_json else say(format_inspection(description))


@app.command()
def inspect(
    url: Annotated[str, typer.Argument(help="URL of a table.")],
    version: Version = None,
    sample: Annotated[int, typer.Option(min=0, help="Groups or annotations to show.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show a table's versions, totals, lineage and a sample."""
    from pairwright.data.table.inspect import format_inspection, inspect_version

    description = inspect_version(url, version=version, num_sample=sample)
    say_json(description) if as_json else say(format_inspection(description))


@app.command()
def report(
    url: Annotated[str, typer.Argument(help="URL of an annotations table, or of one made from it.")],
    version: Version = None,
    output: Annotated[
        str | None, typer.Option(help="File for the page, HTML; report.html by default, none with --json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a page on a table of annotations. It shows ties, lengths, agreement, models, and what looks wrong."""
    from pairwright.cluster.sized_executor import EXECUTOR
    from pairwright.data.profile.profile_schema import metrics_json
    from pairwright.data.profile.table_report import report as run

    page = output if output is not None or as_json else "report.html"
    metrics = run(url, version=version, output=page, executor=EXECUTOR)
    if as_json:
        say_json(json.loads(metrics_json(metrics)))
        return
    say(one_per_line([*(f"{one.level:<5}  {one.text}" for one in metrics.highlights), f"wrote {page}"]))


@app.command("export-pairs")
def export_pairs(
    pairs: Annotated[str, typer.Argument(help="URL of a pairs table.")],
    output: Annotated[str, typer.Argument(help="File to write: .parquet or .jsonl.")],
    version: Version = None,
    split: Annotated[Split | None, typer.Option(help="One split; both if not given.")] = None,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Write strings instead of conversations; TRL renders no chat template over them."),
    ] = False,
) -> None:
    """Write pairs as flat rows that TRL and `datasets` load. Columns: prompt, chosen, rejected, weight, margin."""
    from pairwright.data.pairs.flat_export import export_pairs as run

    layouts: dict[str, Literal["parquet", "jsonl"]] = {".parquet": "parquet", ".jsonl": "jsonl"}
    if (layout := layouts.get(Path(output).suffix)) is None:
        raise ConfigError(f"{output}: expected a name that ends in .parquet or .jsonl")
    num_rows = run(pairs, output, version=version, split=split, layout=layout, plain=plain)
    say(escaped(f"wrote {num_rows:,} pairs to {output}"))


@app.command()
def synthesize(
    output: Annotated[str, typer.Argument(help="File for the rankings, JSON Lines.")],
    num_groups: Annotated[int, typer.Option(min=1, help="Groups to make.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal files.")] = 0,
) -> None:
    """Make synthetic rankings, to try things without data. They are drawn from known rewards (Bradley-Terry)."""
    from pairwright.data.synthetic import write_rankings

    num_annotations = write_rankings(Path(output), num_groups, seed=seed)
    say(escaped(f"wrote {num_annotations:,} annotations of {num_groups:,} groups to {output}"))


@app.command()
def schemas(
    directory: Annotated[str, typer.Argument(help="Directory to write.")] = "schemas",
) -> None:
    """Write the data contracts as JSON files."""
    from pairwright.cli.schema_files import write_schemas

    for path in write_schemas(Path(directory)):
        say(escaped(str(path)))


def main() -> None:
    """Run a verb, and turn errors, Ctrl-C and SIGTERM into a message and an exit status."""
    try:
        _refuse_credentials(sys.argv[1:])
        status = app(standalone_mode=False) or 0
    except _UsageError as error:
        if sys.argv[1:]:  # the message quotes them; without any it is the help
            error.message = escaped(error.message)
        error.show()
        status = error.exit_code
    except typer.Abort:
        say("aborted: something asked for input, and there is none", to=sys.stderr)
        status = 1
    except StoppedError as stop:
        say(str(stop), to=sys.stderr)
        status = TERMINATED
    except Exception as error:
        say(indented(_explained(error)), to=sys.stderr)
        status = 1
    if status == INTERRUPTED:
        say("interrupted: nothing half done counts; the same command can be run again", to=sys.stderr)
    sys.exit(status)


def _refuse_credentials(arguments: list[str]) -> None:
    """Refuse an argument that is an address with credentials, before anything is read.

    Raises:
        ConfigError: if there is one.
    """
    takes_databases = arguments[:1] in (["ingest"], ["validate"])  # database addresses name users
    for argument in arguments:
        address = argument.partition("=")[2] if argument.startswith("--") else argument
        if takes_databases and not address.startswith(_STORAGE):
            continue
        if found := secret_in(address):
            raise ConfigError(credentials_advice(address, found))


def _explained(error: Exception) -> str:
    """Return the text of an error that ends a command: its message, or a traceback if it is unexpected."""
    if isinstance(error, PairwrightError):
        return f"error: {error}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"error: {escaped(str(error.filename))}: {error.strerror}"
    from obstore.exceptions import BaseError

    if isinstance(error, BaseError):
        from pairwright.data.storage.object_store import store_failure

        return f"error: {escaped(store_failure(error))}"
    return without_credentials("".join(format_exception(error)))
