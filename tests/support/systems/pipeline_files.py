"""A small pipeline in a folder: sources, a model, configurations; and what all of its outputs hold, as digests."""

import json
from pathlib import Path
from typing import Any

import obstore

from pairwright.data.storage.object_store import open_store
from pairwright.data.synthetic import write_rankings
from pairwright.data.table.table import Table
from pairwright.evaluation.load_exported import model_digest
from training_runs import make_model, run_config, write_config

NUM_STEPS = 24


def make_sources(folder: Path, *, num_groups: int = 60) -> None:
    """Write the sources and a starting model into a folder."""
    (folder / "sources").mkdir(parents=True)
    write_rankings(folder / "sources" / "first.jsonl", num_groups, seed=0)
    make_model(folder / "model")


def write_pipeline(folder: Path, outputs: Path, *, url: str | None = None) -> Path:
    """Write a pipeline whose outputs go to a folder of their own, or to ``url``, and return its file, in the folder."""
    outputs.mkdir(parents=True)
    to = str(outputs) if url is None else url
    training = {"max_steps": NUM_STEPS, "epochs": 8, "checkpoint_every_steps": 4, "log_every_steps": 4}
    config = run_config(folder, "unused", training=training, data={"pairs": "unused"}, workers={"num_workers": 1})
    write_config(config, outputs / "train.toml")
    text = f"""
[ingest]
sources = ["{folder}/sources/"]
output = "{to}/annotations"
replace = true

[expand]
output = "{to}/pairs"
set = ["validation_fraction=0.2"]

[train]
config = "{outputs}/train.toml"
output = "{to}/runs/{{inputs}}"

[evaluate]

[score]
input = "{folder}/sources/first.jsonl"
output = "{to}/rewards/{{inputs}}"
"""
    (outputs / "pipeline.toml").write_text(text)
    return outputs / "pipeline.toml"


def copy_of(url: str, into: Path) -> Path:
    """Copy all that lies below a URL into a folder, and return that."""
    store = open_store(url)
    # Ray's pyarrow marks a folder by an object without bytes.
    for file in [item["path"] for page in obstore.list(store) for item in page if item["size"]]:
        (into / file).parent.mkdir(parents=True, exist_ok=True)
        (into / file).write_bytes(obstore.get(store, file).bytes())
    return into


def digests(outputs: Path) -> dict[str, Any]:
    """Return what tables, models, reports and rewards hold, but for when and where they were written."""
    found: dict[str, Any] = {
        kind: Table.open(str(outputs / kind)).manifest().digest for kind in ("annotations", "pairs")
    }
    for run in sorted((outputs / "runs").iterdir()):
        if run.name == "tokens":
            continue
        found[f"model {run.name}"] = model_digest(run / "model")
        report = json.loads((run / "report.json").read_text())
        found[f"report {run.name}"] = report["overall"] | {"pairs": report["pairs"]["digest"]}
    for rewards in sorted((outputs / "rewards").iterdir()):
        manifest = json.loads((rewards / "scores.json").read_text())
        found[f"rewards {rewards.name}"] = [file["sha256"] for file in manifest["files"]]
    return found
