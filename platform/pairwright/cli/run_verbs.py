"""The verbs of the console script that train, evaluate and use reward models.

As in ``cli/main.py``, each verb parses its arguments, calls one function and prints its result.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from pairwright.errors import ConfigError, DataError
from pairwright.terminal import escaped, one_per_line, say, say_json

Settings = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the configuration.")
]
Version = Annotated[int | None, typer.Option(help="Version of the table; the newest if not given.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Split = Literal["train", "validation"]
app = typer.Typer()


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="TOML file; recipes to start from are in jobs/recipes/.")],
    settings: Settings = [],  # noqa: B006 - typer copies it
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and the size of the run, then stop.")
    ] = False,
) -> None:
    """Train a reward model, or resume the run in the output. A finished run is left as it is."""
    from pairwright.config import TrainConfig, load_config

    loaded = load_config(TrainConfig, config, settings)
    # After the configuration, whose errors should not wait the seconds that this import takes.
    from pairwright.cluster.train.driver import dry_run as describe_run
    from pairwright.cluster.train.driver import train as run

    if dry_run:
        say_json(describe_run(loaded))
        return
    summary = run(loaded)
    if summary.already_finished:
        say(escaped(f"run {loaded.output} is already finished; nothing to do"))
    say(one_per_line([f"model   {summary.model}", f"summary {loaded.output.rstrip('/')}/summary.json"]))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Model directory of a training run.")],
    pairs: Annotated[list[str], typer.Option(help="URL of a pairs table; may be given several times.")],
    version: Version = None,
    split: Annotated[Split, typer.Option(help="Which split.")] = "validation",
    output: Annotated[
        str | None,
        typer.Option(help="File for the report, JSON, or folder; report.json beside the model by default."),
    ] = None,
    num_workers: Annotated[int, typer.Option(min=1, help="Processes that compute rewards.")] = 1,
    use_gpu: Annotated[bool, typer.Option("--use-gpu", help="Give each process a GPU.")] = False,
    micro_batch_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum number of tokens in one forward pass.")
    ] = 16384,
    findings: Annotated[
        str | None,
        typer.Option(help="Folder for likely wrong pairs and groups to annotate next, JSON Lines that ingest reads."),
    ] = None,
    store_temperature: Annotated[
        bool, typer.Option("--store-temperature", help="Write the fitted temperature beside the model's directory.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a reward model on held-out pairs: accuracy with intervals, the length rule, calibration, worst slices."""
    from pairwright.cluster.evaluate_job import evaluate as run
    from pairwright.evaluation.reports.report_text import format_report

    reports = [
        run(
            model,
            url,
            version=version,
            split=split,
            output=target,
            num_workers=num_workers,
            use_gpu=use_gpu,
            micro_batch_tokens=micro_batch_tokens,
            findings=findings,
            with_temperature=store_temperature,
            show=None if as_json else lambda report: say(format_report(report)),
        )
        for url, target in _outputs_of_tables(pairs, output)
    ]
    if as_json:
        say_json(reports[0] if len(reports) == 1 else reports)


def _outputs_of_tables(pairs: list[str], output: str | None) -> list[tuple[str, str | None]]:
    """Return each table with the output of its report: of several, a folder of the table's name in the output."""
    if len(pairs) == 1:
        return [(pairs[0], output)]
    names = [url.rstrip("/").rpartition("/")[2] for url in pairs]
    if output is None or output.endswith(".json") or len(set(names)) < len(names):
        raise ConfigError(
            "several tables need --output FOLDER, and names of their own: each report goes to FOLDER/NAME/report.json"
        )
    return [(url, f"{output.rstrip('/')}/{name}") for url, name in zip(pairs, names, strict=True)]


@app.command()
def score(
    model: Annotated[str, typer.Argument(help="Model directory of a training run.")],
    input: Annotated[str, typer.Argument(help="JSON Lines of prompts and completions, or the URL of a table.")],  # noqa: A002 - named as the flag is
    output: Annotated[str, typer.Option(help="Folder or URL for the rewards, Parquet.")],
    version: Version = None,
    num_workers: Annotated[int, typer.Option(min=1, help="Processes that compute rewards.")] = 1,
    use_gpu: Annotated[bool, typer.Option("--use-gpu", help="Give each process a GPU.")] = False,
    micro_batch_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum number of tokens in one forward pass.")
    ] = 16384,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier rewards in the output.")] = False,
    config: Annotated[str | None, typer.Option(help="TOML file with limits, as for ingest.")] = None,
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
def checkpoints(
    run: Annotated[str, typer.Argument(help="Output folder of a training run, or its URL.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and compare its hash.")] = False,
    as_json: AsJson = False,
) -> None:
    """List a run's checkpoints, and the one to resume from. The exit status is 1 if one is damaged."""
    import msgspec

    from pairwright.runs.checkpoints import format_checkpoints, kept_checkpoints

    found = kept_checkpoints(run, verify=verify)
    say_json(msgspec.to_builtins(found)) if as_json else say(format_checkpoints(found))
    if any(kept.committed and kept.corruption is not None for kept in found.checkpoints):
        raise typer.Exit(1)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Output folder of a training run, or its URL.")],
    into: Annotated[str, typer.Option(help="Directory or URL for the model; must be empty or not exist.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="NAME|STEP|best", help="Which one; if not given, the one that the run would resume from."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Where the run's starting model is now, if it was moved.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint's model as a Hugging Face directory. It is what the run would have exported at that step."""
    from pairwright.runs.export_run import export_checkpoint

    exported = export_checkpoint(run, checkpoint=checkpoint, into=into, model=model)
    if as_json:
        say_json(asdict(exported))
        return
    say(escaped(f"model   {exported.into}, of step {exported.step} (checkpoint {exported.checkpoint})"))


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
    """Make a small untrained model and a tokenizer, to try things without a download."""
    from pairwright.model.tiny_models import publish_tiny_model

    publish_tiny_model(
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
