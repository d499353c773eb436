"""The console script ``pairwright``: one verb a stage.

Each verb parses its arguments, calls one function and prints what it returned; heavy libraries are imported inside, so
that ``pairwright --help`` answers at once. A mistake of the user's ends as one message and exit status 1, never as a
traceback; exit status 2 means the command line itself was wrong, 130 that somebody pressed Ctrl-C and
143 that SIGTERM stopped a training run. What nobody foresaw keeps its traceback.
"""

import json
import sys
from pathlib import Path
from traceback import format_exception
from typing import Annotated, Any, Literal

import typer

from pairwright import __version__
from pairwright.addresses import STORAGE_SCHEMES, credentials_advice, secret_in, without_credentials
from pairwright.cli import run_verbs, table_verbs
from pairwright.errors import ConfigError, DataError, PairwrightError, StoppedError
from pairwright.terminal import escaped, indented, one_per_line, say, say_json

app = typer.Typer(
    name="pairwright",
    help="From ranked annotations to reward models, on a laptop or on a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(table_verbs.app)
app.add_typer(run_verbs.app)

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
    """From ranked annotations to reward models, on a laptop or on a Ray cluster."""


@app.command()
def ingest(
    sources: Annotated[
        list[str],
        typer.Argument(help="Files, folders, globs, URLs (s3:// too); databases and tables: docs/sources.md."),
    ],
    into: Annotated[str, typer.Option(help="URL of the annotations table; made if it is not there.")],
    format: Annotated[  # noqa: A002 - named as the flag is
        str | None,
        typer.Option(
            metavar="NAME", help="Layout of the records, by name (pairwright formats) or FILE.toml; else recognised."
        ),
    ] = None,
    config: Annotated[str | None, typer.Option(help="TOML file: [fields] for foreign records, limits.")] = None,
    settings: Settings = [],  # noqa: B006 - typer copies it
    replace: Annotated[
        bool, typer.Option("--replace", help="Put what has changed under its name in place of its old records.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read annotations, refuse what is not one, and append the rest to a table."""
    from pairwright.cluster.executor import EXECUTOR
    from pairwright.config import IngestConfig, load_config
    from pairwright.data.ingest.ingest import ingest as run

    named = [] if format is None else [f"format={format}"]
    loaded = load_config(IngestConfig, config, [*settings, *named])
    summary = run(sources, into, loaded, replace=replace, executor=EXECUTOR)
    say_json(summary.as_dict()) if as_json else say(summary.text())
    # A judgement that the table has already, word for word, is no sign of a wrong format.
    refused = sum(source.refused - source.duplicates for source in summary.sources)
    nothing_accepted = refused > 0 and not any(source.accepted for source in summary.sources)
    if summary.failed or nothing_accepted:
        raise typer.Exit(1)


@app.command()
def expand(
    annotations: Annotated[str, typer.Argument(help="URL of an annotations table.")],
    into: Annotated[str, typer.Option(help="URL of the pairs table; made if it is not there.")],
    config: Annotated[
        str | None, typer.Option(help="TOML file: pair_weight, ties, margin, validation_fraction.")
    ] = None,
    settings: Settings = [],  # noqa: B006 - typer copies it
    version: Version = None,
    as_json: AsJson = False,
) -> None:
    """Turn the rankings of each group into weighted pairs and split the groups by prompt."""
    from pairwright.cluster.executor import EXECUTOR
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
        str | None, typer.Option(help="File for the page, HTML; report.html here by default, none with --json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a page on who judged what, how far they agree, and what looks wrong."""
    from pairwright.cluster.profile_job import report as run
    from pairwright.data.profile.profile_schema import figures_json

    page = output if output is not None or as_json else "report.html"
    figures = run(url, version=version, output=page)
    if as_json:
        say_json(json.loads(figures_json(figures)))
        return
    say(one_per_line([*(f"{finding.level:<5}  {finding.text}" for finding in figures.findings), f"wrote {page}"]))


@app.command("export-pairs")
def export_pairs(
    pairs: Annotated[str, typer.Argument(help="URL of a pairs table.")],
    output: Annotated[str, typer.Argument(help="File to write: .parquet or .jsonl.")],
    version: Version = None,
    split: Annotated[Split | None, typer.Option(help="One split; both if not given.")] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Write strings, over which TRL renders no chat template.")
    ] = False,
) -> None:
    """Write flat rows (prompt, chosen, rejected, weight, margin) that TRL and `datasets` load."""
    from pairwright.data.pairs.flat_export import export_pairs as run

    layouts: dict[str, Literal["parquet", "jsonl"]] = {".parquet": "parquet", ".jsonl": "jsonl"}
    if (layout := layouts.get(Path(output).suffix)) is None:
        raise ConfigError(f"{output}: expected a name that ends in .parquet or .jsonl")
    num_rows = run(pairs, output, version=version, split=split, layout=layout, plain=plain)
    say(escaped(f"wrote {num_rows:,} pairs to {output}"))


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="TOML file; recipes to start from are in jobs/recipes/.")],
    settings: Settings = [],  # noqa: B006 - typer copies it
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and the size, then stop.")
    ] = False,
) -> None:
    """Train a reward model, or go on with the run that the output already holds."""
    from pairwright.config import TrainConfig, load_config

    loaded = load_config(TrainConfig, config, settings)
    from pairwright.cluster.train.driver import (
        dry_run as describe_run,  # seconds, which a mistake in the file need not wait
    )
    from pairwright.cluster.train.driver import train as run

    if dry_run:
        say_json(describe_run(loaded))
        return
    summary = run(loaded)
    if summary.already_finished:
        say(escaped(f"run {loaded.output} is already finished; nothing to do"))
    say(one_per_line([f"model   {summary.model}", f"summary {loaded.output.rstrip('/')}/training.json"]))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Model directory of a training run.")],
    pairs: Annotated[str, typer.Option(help="URL of a pairs table.")],
    version: Version = None,
    split: Annotated[Split, typer.Option(help="Which split.")] = "validation",
    output: Annotated[
        str | None, typer.Option(help="File for the report, JSON; report.json beside the model by default.")
    ] = None,
    num_workers: Annotated[int, typer.Option(min=1, help="Processes that compute rewards.")] = 1,
    use_gpu: Annotated[bool, typer.Option("--use-gpu", help="Give each a GPU.")] = False,
    micro_batch_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of one forward.")] = 16384,
    as_json: AsJson = False,
) -> None:
    """Measure a reward model on held-out pairs: accuracy, log loss, by subset and by K, and the length baseline."""
    from pairwright.cluster.evaluate_job import evaluate as run
    from pairwright.evaluation.evaluation_report import format_report

    run(
        model,
        pairs,
        version=version,
        split=split,
        output=output,
        num_workers=num_workers,
        use_gpu=use_gpu,
        micro_batch_tokens=micro_batch_tokens,
        show=lambda report: say_json(report) if as_json else say(format_report(report)),
    )


@app.command()
def score(
    model: Annotated[str, typer.Argument(help="Model directory of a training run.")],
    input: Annotated[str, typer.Argument(help="JSON Lines of prompts and completions, or the URL of a table.")],  # noqa: A002 - named as the flag is
    output: Annotated[str, typer.Option(help="Folder or URL for the rewards, Parquet.")],
    version: Version = None,
    num_workers: Annotated[int, typer.Option(min=1, help="Processes that compute rewards.")] = 1,
    use_gpu: Annotated[bool, typer.Option("--use-gpu", help="Give each a GPU.")] = False,
    micro_batch_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of one forward.")] = 16384,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what the output holds.")] = False,
    config: Annotated[str | None, typer.Option(help="TOML file: limits, as for ingest.")] = None,
    settings: Settings = [],  # noqa: B006 - typer copies it
) -> None:
    """Compute the reward of each completion."""
    from pairwright.config import IngestConfig, load_config

    limits = load_config(IngestConfig, config, settings)
    from pairwright.cluster.score_job import score as run

    summary = run(
        model,
        input,
        output,
        version=version,
        num_workers=num_workers,
        use_gpu=use_gpu,
        micro_batch_tokens=micro_batch_tokens,
        overwrite=overwrite,
        limits=limits,
    )
    say(summary.text())
    if summary.failed or summary.is_all_refused:
        raise typer.Exit(1)


@app.command()
def synthesize(
    output: Annotated[str, typer.Argument(help="File for the rankings, JSON Lines.")],
    num_groups: Annotated[int, typer.Option(min=1, help="Groups to make.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds, equal files.")] = 0,
) -> None:
    """Make rankings from a known Bradley-Terry truth, to try everything without data of one's own."""
    from pairwright.data.synthetic import write_rankings

    num_annotations = write_rankings(Path(output), num_groups, seed=seed)
    say(escaped(f"wrote {num_annotations:,} annotations of {num_groups:,} groups to {output}"))


@app.command("new-model")
def new_model(
    directory: Annotated[str, typer.Argument(help="Directory to write.")],
    texts: Annotated[str, typer.Option(help="What the tokenizer learns from: text, or native annotations (.jsonl).")],
    architecture: Annotated[str, typer.Option(help="llama, qwen2, qwen3, mistral, gpt2, bert, ...")] = "llama",
    hidden_size: Annotated[int, typer.Option(min=8)] = 64,
    num_layers: Annotated[int, typer.Option(min=1)] = 2,
    num_heads: Annotated[int, typer.Option(min=1)] = 4,
    vocab_size: Annotated[int, typer.Option(min=300)] = 1024,
    max_positions: Annotated[int, typer.Option(min=16)] = 2048,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make a small untrained model with a tokenizer of its own, to try everything without a download."""
    from pairwright.model.tiny_models import publish_small_model

    publish_small_model(
        Path(directory),
        architecture=architecture,
        texts=_texts_in(Path(texts)),
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        max_positions=max_positions,
        seed=seed,
    )
    say(escaped(f"wrote a new {architecture} model to {directory}"))


@app.command()
def schemas(
    directory: Annotated[str, typer.Argument(help="Directory to write.")] = "schemas",
) -> None:
    """Write the data contracts as JSON files."""
    from pairwright.cli.contracts import write_schemas

    for path in write_schemas(Path(directory)):
        say(escaped(str(path)))


def _texts_in(path: Path) -> list[str]:
    """Return the lines of a text file, or the completions of native annotations."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from None
    if path.suffix != ".jsonl":
        return lines
    try:
        return [completion["text"] for line in lines for completion in json.loads(line)["completions"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected native annotations, one JSON object a line ({error})") from None


def main() -> None:
    """Run a verb; what its message explains ends as that and exit status 1, and Ctrl-C says what it leaves."""
    try:
        _refuse_credentials(sys.argv[1:])
        status = app(standalone_mode=False) or 0
    except _UsageError as error:
        if sys.argv[1:]:  # which it quotes; else its message is the help
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
    """Refuse at once an address that holds credentials, wherever it stands on the command line."""
    takes_databases = arguments[:1] in (["ingest"], ["validate"])  # whose addresses name users
    for argument in arguments:
        address = argument.partition("=")[2] if argument.startswith("--") else argument
        if takes_databases and not address.startswith(_STORAGE):
            continue
        if found := secret_in(address):
            raise ConfigError(credentials_advice(address, found))


def _explained(error: Exception) -> str:
    """Return what is said of an error that ends a command: its message, or a traceback where nobody foresaw it."""
    if isinstance(error, PairwrightError):
        return f"error: {error}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"error: {escaped(str(error.filename))}: {error.strerror}"
    from obstore.exceptions import BaseError

    if isinstance(error, BaseError):
        from pairwright.data.storage.object_store import store_failure

        return f"error: {escaped(store_failure(error))}"
    return without_credentials("".join(format_exception(error)))
