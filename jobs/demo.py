"""Runs every stage on synthetic rankings: annotations, report, pairs, training, evaluation, rewards.

`make demo` runs it. Every line that it prints after a `$` is a command that does the same from a shell. A second run
finds the outputs of the first one and only checks them.
"""

import shlex
import sys
import time
from pathlib import Path

import pyarrow as pa

from pairwright.cli.main import app
from pairwright.cluster.session import ray_session
from pairwright.data.synthetic import true_accuracy
from pairwright.data.table.table import Table
from pairwright.errors import PairwrightError
from pairwright.terminal import indented, say

DEMO = Path("demo")
STAGES = (
    ("Rankings from a known truth", "synthesize --output demo/rankings.jsonl --num-groups 2000"),
    ("A small model from nothing", "new-model --output demo/model --texts demo/rankings.jsonl"),
    ("Annotations, each line accounted for", "ingest demo/rankings.jsonl --output demo/annotations"),
    ("A report on the annotations", "report demo/annotations --output demo/annotations.html --overwrite"),
    ("Weighted pairs, split by prompt", "expand demo/annotations --output demo/pairs"),
    ("A configuration with every key", "init demo/train.toml --recipe demo --overwrite"),
    ("A reward model: 2 workers, ZeRO-2, CPU", "train --config demo/train.toml"),
    (
        "What it learned, on held-out prompts",
        "evaluate demo/run/model --pairs demo/pairs --output demo/report.json --overwrite",
    ),
    ("Rewards", "score demo/run/model demo/rankings.jsonl --output demo/rewards --overwrite"),
)


def main() -> None:
    """Run every stage, and print which files to open."""
    started = time.monotonic()
    with ray_session():
        for title, command in STAGES:
            print(f"\n== {title}\n$ pairwright {command}", flush=True)
            if status := app(shlex.split(command), standalone_mode=False):
                sys.exit(status)
    print(
        f"\nThe true rewards that the rankings were drawn from agree with {_true_accuracy():.1%} of the held-out "
        "pairs; no model can be expected to do better.\n"
        f"\nDone in {time.monotonic() - started:.0f} s. To open:\n"
        f"  {DEMO}/annotations.html      the report: ties, lengths, agreement, models; open it in a browser\n"
        f"  {DEMO}/report.html           how good the model is, and where it fails; open it in a browser\n"
        f"  {DEMO}/report.json           the same metrics for programs\n"
        f"  {DEMO}/run/model             a Hugging Face model: AutoModelForSequenceClassification loads it\n"
        f"  {DEMO}/run/summary.json      what the run was made from\n"
        f"  {DEMO}/rewards               the reward of every completion, Parquet\n"
        f"  .venv/bin/tensorboard --logdir {DEMO}/run/tensorboard\n"
        f"  .venv/bin/pairwright inspect {DEMO}/pairs"
    )


def _true_accuracy() -> float:
    """Return the accuracy of the true rewards on the held-out pairs."""
    table = Table.open(str(DEMO / "pairs"), "pairs")
    rows = pa.concat_tables(table.read(table.manifest()))
    return true_accuracy(rows.filter(pa.array([split == "validation" for split in rows["split"].to_pylist()])))


if __name__ == "__main__":
    try:
        main()
    except PairwrightError as error:
        say(indented(f"error: {error}"), to=sys.stderr)
        sys.exit(1)
