"""The verbs of the console script that read, make and show data.

As in the other files of verbs, each one parses its arguments, calls one function and prints its result. Heavy libraries
are imported inside, so that ``pairwright --help`` answers at once.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pairwright.cli.options import (
    DATA,
    TABLES,
    AsJson,
    DryRun,
    Overwrite,
    Settings,
    Split,
    Version,
)
from pairwright.errors import ConfigError
from pairwright.terminal import counted, escaped, one_per_line, say, say_json

app = typer.Typer()
FORMAT_HELP = "Layout of the records: a name (see pairwright formats) or FILE.toml; recognised if not given."
INGEST_CONFIG_HELP = "TOML file: [fields] for foreign records, limits; its keys: docs/data.md."


@app.command(rich_help_panel=DATA)
def ingest(
    sources: Annotated[
        list[str],
        typer.Argument(help="Files, folders, globs, URLs (s3:// too); databases and tables: docs/sources.md."),
    ],
    output: Annotated[
        str, typer.Option(metavar="URL", help="URL of the annotations table; created if it does not exist.")
    ],
    format: Annotated[str | None, typer.Option(metavar="NAME", help=FORMAT_HELP)] = None,  # noqa: A002 - named as the flag is
    config: Annotated[str | None, typer.Option(metavar="FILE", help=INGEST_CONFIG_HELP)] = None,
    settings: Settings = [],  # noqa: B006 - typer copies it
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the records of a source whose content has changed.")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Read annotations and append them to a table. Invalid records are refused, and kept with the reason."""
    from pairwright.cluster.sized_executor import EXECUTOR
    from pairwright.config import IngestConfig, load_config
    from pairwright.data.ingest.ingest import ingest as run

    named = [] if format is None else [f"format={format}"]
    loaded = load_config(IngestConfig, config, [*settings, *named])
    if dry_run:
        _preview_ingestion(sources, output, loaded, replace=replace, as_json=as_json)
        return
    summary = run(sources, output, loaded, replace=replace, executor=EXECUTOR)
    say_json(summary.as_dict()) if as_json else say(summary.text())
    # An annotation that the table has already is no sign of a wrong format.
    refused = sum(source.refused - source.duplicates for source in summary.sources)
    nothing_accepted = refused > 0 and not any(source.accepted for source in summary.sources)
    if summary.failed or nothing_accepted:
        raise typer.Exit(1)


def _preview_ingestion(sources: list[str], output: str, config: Any, *, replace: bool, as_json: bool) -> None:
    """Show what `pairwright validate` finds against the table, or against none where it is not there yet."""
    from pairwright.cluster.sized_executor import EXECUTOR
    from pairwright.data.ingest.dry_run import validate
    from pairwright.data.table.table import Table

    against = output if Table.claim(output, "annotations").versions() else None
    findings = validate(
        sources, config, against=against, limit=20, scratch=None, replace=replace and bool(against), executor=EXECUTOR
    )
    say_json(findings.as_dict()) if as_json else say(f"{findings.text()}\ndry run: nothing was written to {output}")
    if findings.summary.failed:
        raise typer.Exit(1)


@app.command(rich_help_panel=DATA)
def validate(
    sources: Annotated[list[str], typer.Argument(help="As for `pairwright ingest`.")],
    against: Annotated[
        str | None,
        typer.Option(metavar="URL", help="An annotations table to look for duplicates in."),
    ] = None,
    format: Annotated[str | None, typer.Option(metavar="NAME", help=FORMAT_HELP)] = None,  # noqa: A002 - named as the flag is
    config: Annotated[str | None, typer.Option(metavar="FILE", help=INGEST_CONFIG_HELP)] = None,
    settings: Settings = [],  # noqa: B006 - typer copies it
    max_refused: Annotated[
        str | None,
        typer.Option(metavar="N|N%", help="Refused records, or their share, up to which the exit status is 0."),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Maximum number of findings to list.")] = 100,
    replace: Annotated[
        bool, typer.Option("--replace", help="Check what `ingest --replace` would do to the table of --against.")
    ] = False,
    output: Annotated[str | None, typer.Option(metavar="URL", help="File for all findings: .csv or .jsonl.")] = None,
    overwrite: Overwrite = False,
    staging_url: Annotated[
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
        scratch=staging_url,
        replace=replace,
        output=output,
        overwrite=overwrite,
        executor=EXECUTOR,
    )
    say_json(findings.as_dict()) if as_json else say(findings.text())
    if not findings.is_clean(max_refused):
        raise typer.Exit(1)


@app.command(rich_help_panel=DATA)
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


@app.command(rich_help_panel=DATA)
def synthesize(
    output: Annotated[str, typer.Option(metavar="FILE", help="File for rankings, .jsonl; or for a sheet, .csv.")],
    num_groups: Annotated[int, typer.Option(min=1, help="Groups to make.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal files.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make synthetic rankings, to try things without data. They are drawn from known rewards (Bradley-Terry)."""
    from pairwright.data.synthetic import write_rankings, write_sheet

    write = write_sheet if Path(output).suffix == ".csv" else write_rankings
    num_annotations = write(Path(output), num_groups, seed=seed)
    if as_json:
        say_json({"output": output, "annotations": num_annotations, "groups": num_groups})
        return
    say(escaped(f"wrote {counted(num_annotations, 'annotation')} of {counted(num_groups, 'group')} to {output}"))


@app.command(rich_help_panel=DATA)
def schemas(
    output: Annotated[str, typer.Option(metavar="DIRECTORY", help="Directory for the JSON files.")] = "schemas",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write the data contracts as JSON files."""
    if Path(output).exists() and not Path(output).is_dir():
        raise ConfigError(f"{output}: a file; name a folder")
    from pairwright.cli.schema_files import write_schemas

    paths = write_schemas(Path(output), overwrite=overwrite)
    say_json([str(path) for path in paths]) if as_json else say(one_per_line(map(str, paths)))


@app.command(rich_help_panel=TABLES)
def expand(
    annotations: Annotated[str, typer.Argument(help="URL of an annotations table.")],
    output: Annotated[str, typer.Option(metavar="URL", help="URL of the pairs table; created if it does not exist.")],
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="TOML file: pair_weight, ties, margin, validation_fraction.")
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

    manifest = run(annotations, output, load_config(ExpandConfig, config, settings), version=version, executor=EXECUTOR)
    description = inspect_version(output, version=manifest.version, num_sample=0, executor=EXECUTOR)
    say_json(description) if as_json else say(format_inspection(description))


@app.command(rich_help_panel=TABLES)
def inspect(
    url: Annotated[str, typer.Argument(metavar="URL", help="URL of a table.")],
    version: Version = None,
    sample: Annotated[int, typer.Option(min=0, help="Groups or annotations to show.")] = 3,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every file and compare its hash; exit status 1 if one is damaged.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a table's versions, totals, lineage and a sample."""
    from pairwright.cluster.sized_executor import EXECUTOR
    from pairwright.data.table.inspect import format_inspection, inspect_version

    description = inspect_version(
        url, version=version, num_sample=0 if verify else sample, verify=verify, executor=EXECUTOR
    )
    say_json(description) if as_json else say(format_inspection(description))
    if verify and description["verified"]["damaged"]:
        raise typer.Exit(1)


@app.command(rich_help_panel=TABLES)
def report(
    url: Annotated[str, typer.Argument(metavar="URL", help="URL of an annotations table, or of one made from it.")],
    version: Version = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="File for the page, HTML; report.html by default, none with --json."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a page on a table of annotations. It shows ties, lengths, agreement, models, and what looks wrong."""
    from pairwright.cluster.sized_executor import EXECUTOR
    from pairwright.data.profile.profile_schema import metrics_json
    from pairwright.data.profile.table_report import report as run

    page = output if output is not None or as_json else "report.html"
    metrics = run(url, version=version, output=page, overwrite=overwrite, executor=EXECUTOR)
    if as_json:
        say_json(json.loads(metrics_json(metrics)))
        return
    say(one_per_line([*(f"{one.level:<5}  {one.text}" for one in metrics.highlights), f"wrote {page}"]))


@app.command("export-pairs", rich_help_panel=TABLES)
def export_pairs(
    pairs: Annotated[str, typer.Argument(help="URL of a pairs table.")],
    output: Annotated[str, typer.Option(metavar="FILE", help="File to write: .parquet or .jsonl.")],
    version: Version = None,
    split: Annotated[Split | None, typer.Option(help="One split; both if not given.")] = None,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Write strings instead of conversations; TRL renders no chat template over them."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write pairs as flat rows that TRL and `datasets` load. Columns: prompt, chosen, rejected, weight, margin."""
    from pairwright.data.pairs.flat_export import export_pairs as run

    layouts: dict[str, Literal["parquet", "jsonl"]] = {".parquet": "parquet", ".jsonl": "jsonl"}
    if (layout := layouts.get(Path(output).suffix)) is None:
        raise ConfigError(f"{output}: expected a name that ends in .parquet or .jsonl")
    num_rows = run(pairs, output, version=version, split=split, layout=layout, plain=plain)
    if as_json:
        say_json({"output": output, "pairs": num_rows})
        return
    say(escaped(f"wrote {counted(num_rows, 'pair')} to {output}"))
