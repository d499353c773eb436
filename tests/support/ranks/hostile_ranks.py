"""One rank that goes on from a checkpoint of which one file after the other would run something (zero_runs.run_ranks).

A case is a dictionary as of ``zero_runs.case``; what it finds is, for each file, the kind of error of the engine's own
load, and what the loop says.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

import zero_ranks
from hostile_files import change_shard, marking, shards
from loop_ranks import FolderContext
from pairwright.data.tokens.tokenize_groups import TokenTable
from pairwright.errors import PairwrightError
from pairwright.training.checkpoint import TAG
from pairwright.training.context import StatusTracker
from pairwright.training.global_batch import Run, shape_of
from pairwright.training.loop import train
from pairwright.training.step import train_step


def run_case(case: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    config = zero_ranks.config_of(case, arguments)
    config = config.model_copy(update={"batches": config.batches.model_copy(update={"groups_per_step": 4})})
    tokens = TokenTable([Path(arguments["tokens"])])
    model = zero_ranks.make_model(config, case)
    run = Run(config=config, run_digest="", tokens=tokens, pad_token_id=0, layout=case["layout"], shape=shape_of(model))

    def new_engine() -> zero_ranks.RecordingEngine:
        model = zero_ranks.make_model(config, case)
        return zero_ranks.RecordingEngine(
            model, config=config.deepspeed, optimizer=config.optimizer, status=StatusTracker()
        )

    engine = new_engine()
    train_step(engine, run, np.arange(len(tokens)), 0.01, step=0)
    folder = Path(arguments["scratch"]) / case["name"].replace(" ", "-")
    zero_ranks.save(engine, config, folder / "whole")
    new_engine().load(folder / "whole", TAG, universal=False)
    found: dict[str, Any] = {}
    for shard in shards(folder / "whole"):
        kept = folder / shard.stem
        directory = Path(shutil.copytree(folder / "whole", kept / "step-1"))
        marker = folder / f"{shard.name}.ran"
        change_shard(directory / TAG / shard.name, lambda state, marker=marker: state | marking(marker))
        try:
            new_engine().load(directory, TAG, universal=False)
            kind = "loaded"
        except Exception as error:
            kind = type(error).__name__
        try:
            train(run, zero_ranks.make_model(config, case), FolderContext(kept, stops_after=None))
            said = "trained"
        except PairwrightError as error:
            said = f"{type(error).__name__}: {error}"
        found[shard.name] = {"load": kind, "said": said, "ran": marker.exists()}
    return found
