"""Sixty-four accidents on real clusters: whatever befalls a run, it ends, and in the weights of the undisturbed one."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from failing_trainings import Nodes, Ordeal, nodes
from pairwright.config import ExpandConfig, TrainConfig
from pairwright.runs.checkpoints import SNAPSHOT_NAME
from training_runs import committed_steps, make_model, make_pairs, run_config, same_bits, weights

SEED = 20261121
NUM_STEPS = 240
EVERY_STEPS = 5
ACCIDENTS_PER_RUN = 8
DEADLINE_SECONDS = 12
REFUSED_SECONDS = 4

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(3600)]


# ------------------------------------------------------------------------------------------------ accidents


def kill_worker(ordeal: Ordeal, rng: random.Random) -> None:
    ordeal.strikes()
    rng.choice(ordeal.workers()).kill()


def kill_raylet(ordeal: Ordeal, rng: random.Random) -> None:
    ordeal.strikes()
    ordeal.cluster.kill(ordeal.cluster.of(rng.choice(ordeal.workers())))
    ordeal.cluster.add()


def kill_driver(ordeal: Ordeal, rng: random.Random) -> None:
    ordeal.strikes()
    ordeal.driver.kill()
    ordeal.start_again()


def kill_in_upload(ordeal: Ordeal, rng: random.Random) -> None:
    ordeal.wait_for_upload()
    ordeal.strikes()
    rng.choice(ordeal.workers()).kill()


def kill_in_validation(ordeal: Ordeal, rng: random.Random) -> None:
    every = ordeal.config.training.evaluate_every_steps
    assert every is not None
    wanted = (ordeal.last_step() // every + 1) * every
    ordeal.wait(lambda: ordeal.last_step() >= wanted, f"the validation after step {wanted}")
    ordeal.strikes()
    rng.choice(ordeal.workers()).kill()


def flip_a_byte(ordeal: Ordeal, rng: random.Random) -> None:
    def flipped(content: bytes) -> bytes:
        place = rng.randrange(len(content))
        return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]

    damage_between_starts(ordeal, flipped)


def cut_a_file(ordeal: Ordeal, rng: random.Random) -> None:
    damage_between_starts(ordeal, lambda content: content[: rng.randrange(len(content))])


def damage_between_starts(ordeal: Ordeal, damage: Callable[[bytes], bytes]) -> None:
    # With one alone the run could not go on, and says so.
    ordeal.wait(lambda: len(committed_steps(ordeal.output)) > 1, "a second checkpoint")
    ordeal.strikes()
    ordeal.driver.kill()
    ordeal.damage_newest(damage)
    ordeal.start_again()


def stop_a_rank(ordeal: Ordeal, rng: random.Random) -> None:
    ordeal.strikes()
    rng.choice(ordeal.workers()).send_signal(signal.SIGSTOP)


def terminate_driver(ordeal: Ordeal, rng: random.Random) -> None:
    ordeal.strikes()
    ordeal.driver.send_signal(signal.SIGTERM)
    ordeal.start_again()


def take_a_node_back(ordeal: Ordeal, rng: random.Random) -> None:
    node = ordeal.cluster.of(rng.choice(ordeal.workers()))
    ordeal.cluster.drain(node, seconds=DEADLINE_SECONDS)
    ordeal.cluster.add()
    time.sleep(DEADLINE_SECONDS)
    ordeal.strikes()
    ordeal.cluster.kill(node)


def refuse_checkpoints(ordeal: Ordeal, rng: random.Random) -> None:
    refuse(ordeal, "checkpoints", rng)
    # Only a loss shows what became of the checkpoint.
    steps = max(committed_steps(ordeal.output))
    ordeal.wait(lambda: max(committed_steps(ordeal.output)) > steps, "the checkpoint that was refused")
    ordeal.strikes()
    rng.choice(ordeal.workers()).kill()


def refuse_rays_list(ordeal: Ordeal, rng: random.Random) -> None:
    ordeal.strikes()
    refuse(ordeal, f"checkpoints/{SNAPSHOT_NAME}", rng)


def refuse(ordeal: Ordeal, name: str, rng: random.Random) -> None:
    before = len(ordeal.records("retrying"))
    with ordeal.refused(name):
        ordeal.wait(lambda: len(ordeal.records("retrying")) > before, f"{name} to be refused")
        time.sleep(rng.uniform(0, REFUSED_SECONDS))


ACCIDENTS = {
    "kill -9 of a worker": kill_worker,
    "kill -9 of a raylet": kill_raylet,
    "kill -9 of the driver": kill_driver,
    "kill -9 of a worker, upload under way": kill_in_upload,
    "kill -9 of a worker in validation": kill_in_validation,
    "a byte of the newest checkpoint flipped": flip_a_byte,
    "a file of the newest checkpoint cut short": cut_a_file,
    "SIGSTOP of a rank": stop_a_rank,
    "SIGTERM to the driver": terminate_driver,
    "a node taken back, with notice": take_a_node_back,
    "storage refuses a checkpoint, then kill -9": refuse_checkpoints,
    "storage refuses Ray's list of checkpoints": refuse_rays_list,
}


@dataclass(frozen=True)
class Outcome:
    """What an accident cost."""

    name: str
    at_step: int
    restored_step: int
    seconds: float
    parts: str
    """Of these: to the loss being known, to new workers, to the checkpoint loaded, to the first step."""

    @property
    def redone(self) -> int:
        return self.at_step - self.restored_step

    def __str__(self) -> str:
        return (
            f"{self.name:<42} at step {self.at_step:>2}, restored {self.restored_step:>2}, {self.redone:>2} steps "
            f"redone, {self.seconds:>5.1f} s to the next step: {self.parts}"
        )


def befall(ordeal: Ordeal, name: str, rng: random.Random) -> Outcome:
    """Let an accident happen after a few more steps; return once the run has taken its next step."""
    ordeal.wait_for_steps(rng.randint(2, 7))
    num_resumed = len(ordeal.records("resumed"))
    ACCIDENTS[name](ordeal, rng)
    ordeal.wait(lambda: len(ordeal.records("resumed")) > num_resumed, f"a resume after: {name}")
    at_step, restored_step = ordeal.last_resume()
    num_steps = len(ordeal.records("step"))
    ordeal.wait(lambda: len(ordeal.records("step")) > num_steps, f"a step after: {name}")
    return Outcome(name, at_step, restored_step, time.time() - ordeal.struck_at, ordeal.parts())


# --------------------------------------------------------------------------------------------------- ordeals


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("accidents")
    # Many held-out groups: a validation long enough for an accident.
    make_pairs(folder / "pairs", num_groups=250, expansion=ExpandConfig(validation_fraction=0.4))
    # Large enough for steps of a quarter of a second.
    make_model(folder / "model", hidden_size=192)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("RAY_ADDRESS", raising=False)
        with nodes(2) as cluster:
            yield cluster


def config_of(folder: Path, name: str, zero_stage: int, precision: str) -> TrainConfig:
    training = {
        "epochs": 100,
        "max_steps": NUM_STEPS,
        "checkpoint_every_steps": EVERY_STEPS,
        "evaluate_every_steps": 6,
        "log_every_steps": 1,
        "keep_checkpoints": 3,
    }
    return run_config(
        folder,
        name,
        training=training,
        batches={"groups_per_step": 48, "micro_batch_tokens": 1024},
        deepspeed={"zero_stage": zero_stage, "precision": precision},
        workers={"num_workers": 2, "max_failures": 20, "hang_timeout_seconds": 8},
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_whatever_befalls_a_run_it_ends_in_the_weights_of_the_undisturbed_one(
    zero_stage: int, precision: str, folder: Path, cluster: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"zero{zero_stage}-{precision}"
    undisturbed = Ordeal(config_of(folder, f"{name}-undisturbed", zero_stage, precision), folder, cluster)
    undisturbed.end()
    rng = random.Random(f"{SEED} {name}")
    say(capsys, f"\nZeRO-{zero_stage}, {precision}, seed {SEED}")
    disturbed = Ordeal(config_of(folder, name, zero_stage, precision), folder, cluster)
    try:
        outcomes = []
        for accident in rng.sample(sorted(ACCIDENTS), ACCIDENTS_PER_RUN):
            outcomes.append(befall(disturbed, accident, rng))
            say(capsys, f"  {outcomes[-1]}")
        disturbed.end()
    finally:
        disturbed.abandon()
    is_same = same_bits(weights(disturbed.output), weights(undisturbed.output))
    say(capsys, f"  weights at the end: {'equal to the last bit' if is_same else 'DIFFERENT'}")
    assert is_same
    # What was being uploaded when the accident came is lost too.
    assert all(outcome.redone <= 2 * EVERY_STEPS for outcome in outcomes)


def say(capsys: pytest.CaptureFixture[str], line: str) -> None:
    with capsys.disabled():
        print(line, flush=True)
