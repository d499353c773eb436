"""The verbs of the console script that train, evaluate and use reward models.

As in ``cli/data_verbs.py``, each verb parses its arguments, calls one function and prints its result.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pairwright.cli.options import (
    MODELS,
    TRAINING,
    AsJson,
    DryRun,
    Findings,
    MicroBatchTokens,
    ModelDirectory,
    NumWorkers,
    Overwrite,
    RunFolderUrl,
    Settings,
    Split,
    Track,
    UseGpu,
    Version,
    WithInfluence,
)
from pairwright.errors import ConfigError, DataError
from pairwright.terminal import escaped, one_per_line, say, say_json

app = typer.Typer()


_SECTIONS = """\b
Sections of the configuration:
  output       folder of the run (a key, required)
  tracking     TensorBoard, MLflow, W&B, Trackio (a key)
  [model]      the starting model: path, required
  [data]       the pairs table: pairs, required; its version
  [tokens]     maximum length, chat template, special tokens, cache
  [batches]    groups a step, tokens a micro-batch
  [loss]       Bradley-Terry, hinge or Plackett-Luce
  [optimizer]  learning rate and its schedule, weight decay, clipping
  [lora]       low-rank adapters; left out, all weights are trained
  [deepspeed]  ZeRO stage, precision, offloading
  [training]   epochs, steps, evaluations, checkpoints, seed
  [workers]    processes, CPUs and GPUs, failures

\b
Every key with its default and meaning: docs/training.md, and the file that
`pairwright init my.toml --recipe NAME` writes."""


@app.command(rich_help_panel=TRAINING, epilog=_SECTIONS)
def train(
    config: Annotated[str, typer.Option(metavar="FILE", help="TOML file with the whole configuration.")],
    settings: Settings = [],  # noqa: B006 - typer copies it
    output: Annotated[
        str | None, typer.Option(metavar="URL", help="Folder of the run; overrides `output` of the configuration.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train a reward model, or resume the run in the output. A finished run is left as it is."""
    from pairwright.config import TrainConfig, load_config

    # As a TOML string, whatever it holds: `--output 8` is a folder, not a number.
    quoted = json.dumps(output, ensure_ascii=False).replace("\x7f", "\\u007f")
    named = [] if output is None else [f"output={quoted}"]
    loaded = load_config(TrainConfig, config, [*settings, *named])
    from pairwright.cli.early_checks import check_training

    check_training(loaded)
    import msgspec

    from pairwright.cluster.train.driver import dry_run as describe_run
    from pairwright.cluster.train.driver import train as run

    if dry_run:
        preview = describe_run(loaded)
        say_json(msgspec.to_builtins(preview)) if as_json else say(preview.text())
        return
    summary = run(loaded, log=sys.stderr if as_json else None)
    url = f"{loaded.output.rstrip('/')}/summary.json"
    if as_json:
        about = {"model": summary.model, "summary": url, "already_finished": summary.already_finished}
        say_json(msgspec.to_builtins(summary.training) | about)
        return
    if summary.already_finished:
        say(escaped(f"run {loaded.output} is already finished; nothing to do"))
    say(one_per_line([f"model   {summary.model}", f"summary {url}"]))


@app.command(rich_help_panel=MODELS)
def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Model directories of training runs.")],
    pairs: Annotated[list[str], typer.Option(help="URL of a pairs table; may be given several times.")],
    version: Version = None,
    split: Annotated[Split, typer.Option(help="Which split.")] = "validation",
    output: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="File for the report, JSON, or folder; report.json beside the model by default."
        ),
    ] = None,
    num_workers: NumWorkers = 1,
    use_gpu: UseGpu = False,
    micro_batch_tokens: MicroBatchTokens = 16384,
    findings: Findings = None,
    store_temperature: Annotated[
        bool, typer.Option("--store-temperature", help="Write the fitted temperature beside the model's directory.")
    ] = False,
    influence: WithInfluence = False,
    track: Track = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Measure a reward model on held-out pairs: accuracy with intervals, the length rule, calibration, worst slices."""
    from pairwright.cli.early_checks import check_evaluation

    named = _named_evaluations(models, pairs, output)
    places = [_inside(output, name) for name, _, _ in named]
    for (_, model, url), place in zip(named, places, strict=True):
        check_evaluation(model, url, version=version, output=place, split=split, overwrite=overwrite, track=track)
    from pairwright.cluster.models.evaluate_job import evaluate as run
    from pairwright.evaluation.reports.report_file import report_url
    from pairwright.evaluation.reports.report_text import format_report

    reports = [
        run(
            model,
            url,
            version=version,
            split=split,
            output=place,
            num_workers=num_workers,
            use_gpu=use_gpu,
            micro_batch_tokens=micro_batch_tokens,
            overwrite=overwrite,
            findings=_inside(findings, name),
            with_temperature=store_temperature,
            with_influence=influence,
            track=track,
            show=None if as_json else lambda report: say(format_report(report)),
        )
        for (name, model, url), place in zip(named, places, strict=True)
    ]
    if as_json:
        return say_json(reports[0] if len(reports) == 1 else reports)
    return _say_written([report_url(model, place) for (_, model, _), place in zip(named, places, strict=True)])


def _say_written(urls: list[str]) -> None:
    from pairwright.evaluation.reports.report_file import page_url

    shown = [url.removeprefix(f"{Path.cwd()}/") for url in urls]
    say(one_per_line(f"wrote {url} and {page_url(url)}" for url in shown))


def _named_evaluations(models: list[str], pairs: list[str], output: str | None) -> list[tuple[str, str, str]]:
    """Return name, model and table of each evaluation: the name of its folder in the output, empty for one alone.

    Raises:
        ConfigError: if several reports would go to one place.
    """
    of_models = [model.rstrip("/").removesuffix("/model").rpartition("/")[2] for model in models]
    of_tables = [url.rstrip("/").rpartition("/")[2] for url in pairs]
    several = [names for names in (of_models, of_tables) if len(names) > 1]
    beside_models = output is None and len(pairs) == 1
    if any(len(set(names)) < len(names) for names in several) or (
        several and not beside_models and (output is None or output.endswith(".json"))
    ):
        what = " and ".join(what for what, names in (("models", of_models), ("tables", of_tables)) if len(names) > 1)
        raise ConfigError(
            f"several {what} need --output FOLDER, and names of their own: each report goes to FOLDER/NAME/report.json"
        )
    parts = [(of_models, len(models) > 1), (of_tables, len(pairs) > 1)]
    return [
        ("/".join(names[n] for (names, is_used), n in zip(parts, (i, j), strict=True) if is_used), model, url)
        for i, model in enumerate(models)
        for j, url in enumerate(pairs)
    ]


def _inside(folder: str | None, name: str) -> str | None:
    """Return the place of a name in a folder: the folder itself for no name."""
    return folder if folder is None or not name else f"{folder.rstrip('/')}/{name}"


@app.command(rich_help_panel=MODELS)
def score(
    model: ModelDirectory,
    input: Annotated[str, typer.Argument(help="JSON Lines of prompts and completions, or the URL of a table.")],  # noqa: A002 - named as the flag is
    output: Annotated[str, typer.Option(metavar="URL", help="Folder or URL for the rewards, Parquet.")],
    version: Version = None,
    num_workers: NumWorkers = 1,
    use_gpu: UseGpu = False,
    micro_batch_tokens: MicroBatchTokens = 16384,
    overwrite: Overwrite = False,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="TOML file with limits, as for ingest.")] = None,
    settings: Settings = [],  # noqa: B006 - typer copies it
    as_json: AsJson = False,
) -> None:
    """Compute the reward of each completion."""
    import msgspec

    from pairwright.config import IngestConfig, load_config

    limits = load_config(IngestConfig, config, settings)
    from pairwright.cli.early_checks import check_scoring

    check_scoring(model, input, output, version=version, limits=limits, overwrite=overwrite)
    from pairwright.cluster.models.score_job import score as run

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
    say_json(msgspec.to_builtins(summary.manifest)) if as_json else say(summary.text())
    if summary.failed or summary.is_all_refused:
        raise typer.Exit(1)


@app.command(rich_help_panel=TRAINING)
def checkpoints(
    run: RunFolderUrl,
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


@app.command(rich_help_panel=TRAINING)
def export(
    run: RunFolderUrl,
    output: Annotated[
        str, typer.Option(metavar="URL", help="Directory or URL for the model; must be empty or not exist.")
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="NAME|STEP|best", help="Which one; if not given, the one that the run would resume from."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Where the run's starting model is now, if it was moved.")] = None,
    keep_adapter: Annotated[
        bool, typer.Option("--keep-adapter", help="Keep a LoRA run's adapter, in peft's format, in the folder adapter.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint's model as a Hugging Face directory. It is what the run would have exported at that step."""
    from pairwright.cli.early_checks import check_export

    check_export(run, output)
    from pairwright.runs.export_run import export_checkpoint

    exported = export_checkpoint(run, checkpoint=checkpoint, into=output, model=model, keep_adapter=keep_adapter)
    if as_json:
        say_json(asdict(exported))
        return
    say(escaped(f"model   {exported.into}, of step {exported.step} (checkpoint {exported.checkpoint})"))


@app.command("new-model", rich_help_panel=TRAINING)
def new_model(
    output: Annotated[str, typer.Option(metavar="DIRECTORY", help="Directory for the model.")],
    texts: Annotated[str, typer.Option(help="What the tokenizer learns from: text, or native annotations (.jsonl).")],
    architecture: Annotated[str, typer.Option(help="llama, qwen2, qwen3, mistral, gpt2, bert, ...")] = "llama",
    hidden_size: Annotated[int, typer.Option(min=8, help="Width of a layer.")] = 64,
    num_layers: Annotated[int, typer.Option(min=1, help="Layers.")] = 2,
    num_heads: Annotated[int, typer.Option(min=1, help="Attention heads of a layer.")] = 4,
    vocab_size: Annotated[int, typer.Option(min=300, help="Tokens of the tokenizer, at most.")] = 1024,
    max_positions: Annotated[int, typer.Option(min=16, help="Longest text, in tokens.")] = 2048,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal models.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a small untrained model and a tokenizer, to try things without a download."""
    from pairwright.cli.early_checks import check_new_model

    check_new_model(architecture, Path(texts))
    learned_from = _texts_in(Path(texts))
    from pairwright.model.tiny_models import publish_tiny_model

    publish_tiny_model(
        Path(output),
        architecture=architecture,
        texts=learned_from,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        max_positions=max_positions,
        seed=seed,
    )
    if as_json:
        say_json({"output": output, "architecture": architecture})
        return
    say(escaped(f"wrote a new {architecture} model to {output}"))


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
