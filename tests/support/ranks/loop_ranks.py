"""One rank of a whole run through training/loop.py on real DeepSpeed, without Ray: started by zero_runs.run_ranks.

Its context keeps checkpoints in a folder, as Ray Train does on storage, and may end the run right after one of them. A
case is a dictionary as of ``zero_runs.case`` with {checkpoints: folder, every: steps, stops_after: step or None} and
perhaps {training: more of that section}.
"""

import shutil
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch.distributed as dist

import zero_ranks
from pairwright.data.tokens.tokenize_groups import TokenTable
from pairwright.errors import PairwrightError
from pairwright.events import RunEvent
from pairwright.training.checkpoint import MANIFEST_NAME
from pairwright.training.context import StatusTracker
from pairwright.training.global_batch import Run, shape_of
from pairwright.training.loop import Trained, train


class StoppedError(Exception):
    """The run was to end here."""


class FolderContext:
    """The loop's ``RunContext`` on a folder that all ranks see."""

    def __init__(self, folder: Path, stops_after: int | None) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.attempt = f"{self.world_size}ranks"
        self.status = StatusTracker()
        self.records: list[dict[str, Any]] = []
        self._folder, self._stops_after = folder, stops_after

    def latest_checkpoint(self) -> AbstractContextManager[Path] | None:
        dist.barrier()
        found = sorted(path.parent for path in self._folder.glob(f"*/{MANIFEST_NAME}"))
        return nullcontext(found[-1]) if found else None

    def poll_control(self, steps_taken: int) -> None:
        pass

    def staging_folder(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=name))

    def wait_for_upload(self) -> None:
        pass

    def save_checkpoint(self, metrics: dict[str, Any], directory: Path, name: str) -> None:
        shutil.copytree(directory, self._folder / name, dirs_exist_ok=True)
        shutil.rmtree(directory)
        dist.barrier()
        if metrics["step"] == self._stops_after:
            raise StoppedError

    def log_event(self, event: RunEvent) -> None:
        self.records.append({name: value for name, value in event.record.items() if name != "time"})


def run_case(case: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    config = zero_ranks.config_of(case, arguments)
    training = {"epochs": case["num_steps"], "checkpoint_every_steps": case["every"]} | case.get("training", {})
    batches = {"groups_per_step": case["groups_per_step"]}
    config = config.model_copy(
        update={
            "training": config.training.model_copy(update=training),
            "batches": config.batches.model_copy(update=batches),
        }
    )
    model = zero_ranks.make_model(config, case)
    # Under ZeRO-3 weights are still in the checkpoint.
    stored = {name: model.stored_weights[p]() for name, p in model.named_parameters() if p in model.stored_weights}
    given = model.state_dict() | stored
    start = {name: tensor.float().numpy().copy() for name, tensor in given.items()}
    run = Run(
        config=config,
        run_digest="",
        tokens=TokenTable([Path(case["tokens"] or arguments["tokens"])]),
        pad_token_id=0,
        layout=case["layout"],
        shape=shape_of(model),
    )
    context = FolderContext(Path(case["checkpoints"]), case["stops_after"])
    try:
        trained = train(run, model, context)
    except StoppedError:
        return {"records": context.records}
    except PairwrightError as error:
        return {"records": context.records, "error": str(error)}
    assert isinstance(trained, Trained)
    state = trained.engine.full_state_dict() or {}
    change = {name: tensor.float().numpy() - start[name] for name, tensor in state.items()}
    return {"records": context.records, "start": start, "change": change, "skipped": trained.skipped_steps}
