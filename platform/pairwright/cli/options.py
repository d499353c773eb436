"""The flags that verbs share, one meaning each: what a verb writes is ``--output``, its configuration ``--config``."""

from typing import Annotated, Literal

import typer

Table = Annotated[str, typer.Argument(metavar="URL", help="URL of a table.")]
ModelDirectory = Annotated[str, typer.Argument(help="Model directory of a training run.")]
RunFolderUrl = Annotated[str, typer.Argument(help="Output folder of a training run, or its URL.")]
Settings = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the configuration; repeatable.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier command of the same kind wrote there.")
]
WithInfluence = Annotated[
    bool, typer.Option("--influence", help="Train a small judge without each annotator and author of completions.")
]
Findings = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Folder for likely wrong pairs and groups to annotate next, JSON Lines that ingest reads."
    ),
]
Track = Annotated[
    bool,
    typer.Option("--track", help="Keep the page, which holds texts of the table, with the run in its trackers."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Version = Annotated[int | None, typer.Option(help="Version of the table; the newest if not given.")]
Split = Literal["train", "validation"]
NumWorkers = Annotated[int, typer.Option(min=1, help="Processes that compute rewards.")]
UseGpu = Annotated[bool, typer.Option("--use-gpu", help="Give each process a GPU.")]
MicroBatchTokens = Annotated[int, typer.Option(min=1, help="Maximum number of tokens in one forward pass.")]

DATA, TABLES, TRAINING, MODELS = PANELS = ("Data", "Tables", "Training", "Models")
"""The groups in which `pairwright --help` lists the verbs."""

RETIRED_FLAGS = {
    "--into": "--output",
    "--last": "--limit",
    "--older-than": "--retention",
    "--file-bytes": "--target-file-size",
    "--scratch": "--staging-url",
}
"""Old flag -> new flag; the message for an old one gives the new one."""
