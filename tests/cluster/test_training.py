"""Training on real Ray clusters with real DeepSpeed: the result, the second run, and accidents that change nothing."""

import json
import os
import re
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from listening_sockets import Listeners, is_loopback
from pairwright.cluster.train.driver import train
from pairwright.config import TrainConfig
from pairwright.data.table.table import Table
from pairwright.errors import ConfigError, ModelError, StoppedError, StoreError, TrainingError
from pairwright.runs.checkpoints import kept_checkpoints
from pairwright.runs.export_run import export_checkpoint
from pairwright.runs.run_dir import RunFolder
from training_runs import (
    NUM_STEPS,
    TRAINING,
    committed_steps,
    make_model,
    make_pairs,
    run_config,
    same_bits,
    start_command,
    steps_logged,
    training_workers,
    wait_until,
    weights,
)

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    make_pairs(folder / "pairs", num_groups=150)
    make_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def listeners() -> Listeners:
    return Listeners()


@pytest.fixture(scope="module")
def undisturbed(folder: Path, ray_cluster: None, listeners: Listeners) -> TrainConfig:
    config = run_config(
        folder, "undisturbed", training=TRAINING | {"evaluate_every_steps": 8, "best_metric": "log_loss"}
    )
    with listeners:
        summary = train(config)
    assert not summary.already_finished
    return config


def test_a_run_leaves_a_model_a_summary_checkpoints_and_event_files(undisturbed: TrainConfig) -> None:
    output = Path(undisturbed.output)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["steps"] == NUM_STEPS
    assert summary["config"] == undisturbed.model_dump(mode="json")
    assert (summary["data"]["version"], summary["restarts"], summary["resumes"]) == (1, 0, 0)
    assert {"torch", "ray", "deepspeed", "transformers"} <= summary["versions"].keys()
    assert summary["validation"]["overall"]["pairs"] > 0
    assert steps_logged(output) == list(range(1, NUM_STEPS + 1))
    assert '"layout": "shared"' in next(output.glob("metrics-*.jsonl")).read_text()
    assert committed_steps(output) == [24, 32]
    assert list((output / "tensorboard").glob("events.out.tfevents.*"))


@pytest.mark.usefixtures("undisturbed")
def test_a_local_training_listens_on_loopback_only(listeners: Listeners) -> None:
    assert sorted(found for found in listeners.found if not is_loopback(found[1])) == []
    # The watch did see the ranks: Ray's own port and gloo's on both, torch's store on one.
    assert len({port for name, _, port in listeners.found if name.startswith("ray::RayTrainWorker")}) >= 5
    assert len(listeners.found) > 12


def test_plain_transformers_loads_the_model_with_the_rewards_of_the_final_evaluation(undisturbed: TrainConfig) -> None:
    """Pitfall 1, 2, 24: nothing of ours is needed to use the model, alone or in a batch, and the head is there."""
    output = Path(undisturbed.output)
    model = AutoModelForSequenceClassification.from_pretrained(output / "model", trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(output / "model", trust_remote_code=False)
    table = Table.open(undisturbed.data.pairs, "pairs")
    right = total = 0.0
    for rows in table.read(table.manifest()):
        for group in rows.to_pylist():
            if group["split"] != "validation" or not group["pairs"]:
                continue
            texts = [
                tokenizer.apply_chat_template(
                    [*group["prompt"], {"role": "assistant", "content": completion["text"]}], tokenize=False
                )
                for completion in group["completions"]
            ]
            with torch.no_grad():
                batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
                together = model(**batch).logits[:, 0]
                alone = [
                    model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[0, 0]
                    for text in texts
                ]
            assert torch.allclose(together, torch.stack(alone), atol=1e-5)
            for pair in group["pairs"]:
                difference = float(together[pair["chosen"]] - together[pair["rejected"]])
                right += pair["weight"] * (0.5 if difference == 0 else float(difference > 0))
                total += pair["weight"]
    reported = json.loads((output / "summary.json").read_text())["validation"]["overall"]
    assert right / total == pytest.approx(reported["accuracy"], abs=1e-6)


def test_the_same_command_again_finds_the_run_finished(undisturbed: TrainConfig) -> None:
    before = (Path(undisturbed.output) / "summary.json").read_bytes()
    assert train(undisturbed).already_finished
    assert (Path(undisturbed.output) / "summary.json").read_bytes() == before


def test_another_run_into_the_same_output_is_refused_and_the_difference_named(undisturbed: TrainConfig) -> None:
    other = undisturbed.model_copy(update={"training": undisturbed.training.model_copy(update={"seed": 5})})
    with pytest.raises(ConfigError, match=r"holds another run \(training\.seed is 0 there and 5 here\)"):
        train(other)


def test_its_checkpoints_are_listed_valid_and_the_next_start_resumes_from_the_last(undisturbed: TrainConfig) -> None:
    found = kept_checkpoints(undisturbed.output, verify=True)
    listed = [(kept.manifest and kept.manifest.step, kept.committed, kept.corruption) for kept in found.checkpoints]
    assert listed == [(32, True, None), (24, True, None)]
    assert found.next_start == found.checkpoints[0]


def test_the_best_checkpoint_by_its_evaluation_is_kept_and_can_be_exported(
    undisturbed: TrainConfig, tmp_path: Path
) -> None:
    records = [json.loads(line) for file in Path(undisturbed.output).glob("metrics-*.jsonl") for line in file.open()]
    log_loss = {record["step"]: record["log_loss"] for record in records if record["kind"] == "evaluation"}
    assert sorted(log_loss) == [8, 16, 24, 32]
    lowest = min(log_loss, key=lambda step: log_loss[step])
    best = kept_checkpoints(undisturbed.output, verify=True).best
    assert best is not None
    assert best.manifest is not None
    assert best.corruption is None
    assert (best.manifest.step, best.manifest.validation["log_loss"]) == (lowest, log_loss[lowest])
    assert [record["step"] for record in records if record["kind"] == "best"][-1] == lowest
    exported = export_checkpoint(undisturbed.output, checkpoint="best", into=str(tmp_path / "best"), model=None)
    assert exported.step == lowest


def unfinished_copy(of: TrainConfig, folder: Path, name: str) -> TrainConfig:
    """Return the configuration of a copy of a run that looks as if its driver had died after the last checkpoint."""
    shutil.copytree(of.output, folder / name)
    (folder / name / "summary.json").unlink()
    return of.model_copy(update={"output": str(folder / name)})


def test_a_corrupt_checkpoint_is_named_and_the_one_before_it_used(
    undisturbed: TrainConfig, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = unfinished_copy(undisturbed, folder, "corrupt")
    shard = next((Path(config.output) / "checkpoints").glob("step-00000032-*/state/*optim_states.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    summary = train(config).training
    assert (summary.corrupt_checkpoints, summary.resumes, summary.restarts) == (1, 1, 0)
    said = capfd.readouterr().out
    assert re.search(r"checkpoint step-00000032-\w+ is corrupt.*content differs", said)
    assert "resumed from the checkpoint of step 24" in said
    assert same_bits(weights(Path(config.output)), weights(Path(undisturbed.output)))


@pytest.mark.slow
def test_a_torn_list_of_checkpoints_is_written_anew(undisturbed: TrainConfig, folder: Path) -> None:
    config = unfinished_copy(undisturbed, folder, "torn")
    snapshot = Path(config.output) / "checkpoints" / "checkpoint_manager_snapshot.json"
    snapshot.write_bytes(snapshot.read_bytes()[:100])
    assert train(config).training.resumes == 1
    assert same_bits(weights(Path(config.output)), weights(Path(undisturbed.output)))


def kill_a_worker_after(step: int, output: Path, killed: list[int]) -> None:
    wait_until(lambda: step in steps_logged(output), timeout_seconds=200, what=f"step {step}")
    victim = training_workers(psutil.Process())[-1]
    victim.kill()
    killed.append(victim.pid)


def test_a_worker_killed_in_mid_run_changes_nothing_in_the_weights(
    undisturbed: TrainConfig, folder: Path, ray_cluster: None
) -> None:
    config = run_config(folder, "killed-worker")
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_after, args=(10, Path(config.output), killed))
    killer.start()
    summary = train(config).training
    killer.join()
    assert killed
    assert summary.restarts == 1
    assert same_bits(weights(Path(config.output)), weights(Path(undisturbed.output)))


def test_a_killed_driver_started_again_ends_in_the_same_weights(undisturbed: TrainConfig, folder: Path) -> None:
    # A checkpoint each step slows the run, so that it can be killed in the middle; the weights are the same.
    config = run_config(folder, "killed-driver", training={**TRAINING, "checkpoint_every_steps": 1})
    output = Path(config.output)
    driver = start_command(config, folder / "killed-driver.toml")
    wait_until(
        lambda: bool(committed_steps(output)) or driver.poll() is not None, timeout_seconds=240, what="a checkpoint"
    )
    cluster = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate(timeout=60)
    # Ray's agents look for their raylet once in a while; all that matters here is gone in a moment.
    for agent in psutil.wait_procs(cluster, timeout=10)[1]:
        agent.kill()
    assert not (output / "summary.json").exists(), "the run was over before it could be killed"
    again = start_command(run_config(folder, "killed-driver"), folder / "killed-driver.toml")
    log, _ = again.communicate(timeout=400)
    assert again.returncode == 0, log
    assert "resumed from the checkpoint of step" in log
    assert same_bits(weights(output), weights(Path(undisturbed.output)))


def signal_after(step: int, output: Path, which: signal.Signals) -> None:
    wait_until(lambda: step in steps_logged(output), timeout_seconds=200, what=f"step {step}")
    os.kill(os.getpid(), which)


@pytest.mark.slow
def test_sigterm_leads_to_a_checkpoint_at_once_and_the_same_command_to_the_same_weights(
    undisturbed: TrainConfig, folder: Path, ray_cluster: None
) -> None:
    config = run_config(folder, "stopped", training={**TRAINING, "checkpoint_every_steps": NUM_STEPS})
    output = Path(config.output)
    threading.Thread(target=signal_after, args=(5, output, signal.SIGTERM), daemon=True).start()
    with pytest.raises(StoppedError, match=r"resumes from step \d+, whose checkpoint is committed") as stopped:
        train(config)
    (step,) = committed_steps(output)
    assert f"step {step}," in str(stopped.value)
    assert step == max(steps_logged(output)) < NUM_STEPS, "no step after the checkpoint is lost"
    summary = train(config).training
    assert (summary.resumes, summary.restarts) == (1, 0)
    assert steps_logged(output) == list(range(1, NUM_STEPS + 1))
    assert same_bits(weights(output), weights(Path(undisturbed.output)))


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"data": {"pairs": "nowhere"}}, StoreError, "nowhere"),
        ({"data": {"version": 7}}, StoreError, "7"),
        ({"model": {"path": "nowhere"}}, ModelError, "nowhere"),
        ({"batches": {"groups_per_step": 5000}}, ConfigError, "groups_per_step is 5000.*has only .* groups"),
        ({"lora": {"target_modules": ["q_porj"]}}, ModelError, "'q_porj' matches no linear layer.*q_proj"),
        ({"workers": {"num_workers": 99}}, ConfigError, "needs 99 CPUs"),
        ({"workers": {"use_gpu": True}}, ConfigError, "workers.use_gpu=false"),
    ],
)
def test_what_cannot_work_is_said_before_any_worker_starts(
    folder: Path, ray_cluster: None, sections: dict[str, Any], error: type[Exception], message: str
) -> None:
    config = run_config(folder, "impossible", **sections)
    with pytest.raises(error, match=message):
        train(config)
    assert RunFolder(config.output).identity() is None


def test_a_model_directory_without_a_tokenizer_is_refused(folder: Path, ray_cluster: None) -> None:
    bare = make_model(folder / "bare")
    for file in bare.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        train(run_config(folder, "impossible", model={"path": str(bare)}))


def test_a_diverging_run_stops_every_rank_names_groups_and_does_not_retry(folder: Path, ray_cluster: None) -> None:
    config = run_config(folder, "diverging", optimizer={"learning_rate": 1e30, "warmup_ratio": 0.0})
    with pytest.raises(TrainingError, match=r"step \d+: .*not finite|gradient's norm is"):
        train(config)
    assert not (Path(config.output) / "summary.json").exists()
    assert len(steps_logged(Path(config.output))) < NUM_STEPS


def losses(output: Path) -> dict[int, float]:
    """Return the loss of each step that a run logged; a step that was taken again counts as the last time."""
    lines = [line for file in sorted(output.glob("metrics-*.jsonl")) for line in file.read_text().splitlines()]
    return {record["step"]: record["loss"] for record in map(json.loads, lines) if record["kind"] == "step"}


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_losses_after_table_model_and_folder_were_moved(
    undisturbed: TrainConfig, folder: Path, tmp_path: Path, ray_cluster: None
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("pairs", "model"):
        shutil.copytree(folder / name, here / name)
    config = run_config(here, "run", training={**TRAINING, "checkpoint_every_steps": NUM_STEPS})
    threading.Thread(target=signal_after, args=(5, here / "run", signal.SIGTERM), daemon=True).start()
    with pytest.raises(StoppedError):
        train(config)
    taken = max(steps_logged(here / "run"))
    there = tmp_path / "there"
    shutil.move(here, there)
    shutil.rmtree(there / "tokens")
    for name in ("pairs", "model"):
        (there / name).rename(there / f"moved-{name}")
    moved = {"data": {"pairs": str(there / "moved-pairs")}, "model": {"path": str(there / "moved-model")}}
    assert train(run_config(there, "run", **moved)).training.resumes == 1
    assert steps_logged(there / "run") == list(range(1, NUM_STEPS + 1)), f"no step of the first {taken} was repeated"
    assert losses(there / "run") == losses(Path(undisturbed.output))
    assert same_bits(weights(there / "run"), weights(Path(undisturbed.output)))


NAMES = {
    "scripts": "münchen 北京 القاهرة Ωμέγα 🦊",
    "marks": 'it\'s 100% "quoted" [x] {y} #1 ?q &r; $HOME ~ %20 %s \\ `z`',
    "newline": "two\nlines\t and a tab",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_run_trains_resumes_and_is_used_below_any_name(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path becomes a label of a metric, a folder of Ray's, a text in a log; HOME is such a name too."""
    here = tmp_path / NAMES[name]
    for kind in ("pairs", "model"):
        shutil.copytree(folder / kind, here / kind)
    monkeypatch.setenv("HOME", str(here))
    config = run_config(here, "run", training={**TRAINING, "max_steps": 2}, workers={"num_workers": 1})
    log, _ = start_command(config, tmp_path / "run.toml").communicate(timeout=300)
    assert (here / "run" / "summary.json").is_file(), log
    assert "Traceback" not in log
    log, _ = start_command(config, tmp_path / "run.toml").communicate(timeout=300)
    assert "is already finished" in log
