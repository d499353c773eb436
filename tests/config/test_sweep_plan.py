"""The runs of a sweep: which, under which names, in which configurations; and what is refused."""

from pathlib import Path

import pytest

from pairwright.config import load_config
from pairwright.config.sweep_plan import PlannedRun, plan_sweep, sweep_digest
from pairwright.config.train import TrainConfig
from pairwright.errors import ConfigError

BASE = """
output = "elsewhere"
[model]
path = "m"
[data]
pairs = "p"
[training]
seed = 5
max_steps = 4
"""


@pytest.fixture
def base(tmp_path: Path) -> str:
    file = tmp_path / "base.toml"
    file.write_text(BASE)
    return str(file)


def plan(base: str, *varied: str, seeds: int = 1, settings: tuple[str, ...] = ()) -> list[PlannedRun]:
    return plan_sweep(base, settings, varied, num_seeds=seeds, output="out/")


def test_every_combination_is_run_with_every_seed_in_a_folder_of_its_own(base: str) -> None:
    runs = plan(base, "optimizer.learning_rate=1e-5,3e-5", "loss.kind=hinge,bradley_terry", seeds=2)
    assert [run.name for run in runs] == [
        f"learning_rate={rate}-kind={kind}-seed={seed}"
        for rate in ("1e-05", "3e-05")
        for kind in ("hinge", "bradley_terry")
        for seed in (5, 6)
    ]
    assert all(run.config.output == f"out/{run.name}" for run in runs)
    assert [run.config.optimizer.learning_rate for run in runs] == [1e-5] * 4 + [3e-5] * 4


def test_a_run_is_what_train_would_do_with_these_keys(base: str) -> None:
    (run,) = plan(base, "optimizer.learning_rate=1e-3", settings=("training.max_steps=9",))
    named = ["training.max_steps=9", "optimizer.learning_rate=1e-3", f"output=out/{run.name}"]
    assert run.config == load_config(TrainConfig, base, named)


def test_without_a_varied_key_only_the_seeds_differ(base: str) -> None:
    assert [(run.name, run.setting) for run in plan(base, seeds=3)] == [(f"seed={seed}", {}) for seed in (5, 6, 7)]


def test_values_may_be_lists_and_names_stay_names_of_folders(base: str) -> None:
    runs = plan(base, "optimizer.betas=[0.9, 0.95],[0.9, 0.99]", 'tokens.chat_template="a/b","a:b"')
    names = [run.name for run in runs]
    assert len(set(names)) == 4
    assert not any(set(name) & set('/: ,[]"') for name in names)
    assert [run.config.optimizer.betas[1] for run in runs] == [0.95, 0.95, 0.99, 0.99]


def test_keys_of_one_last_name_are_named_whole(base: str) -> None:
    (run,) = plan(base, "lora.dropout=0.1", "model.dropout=true")
    assert run.name == "lora.dropout=0.1-model.dropout=true-seed=5"


def test_sweeps_of_other_runs_have_another_digest(base: str) -> None:
    first, same, other = (plan(base, f"optimizer.eps={text}") for text in ("1e-8,1e-7", "1e-8, 1e-7", "1e-8"))
    assert sweep_digest(first) == sweep_digest(same) != sweep_digest(other)


@pytest.mark.parametrize(
    ("varied", "message"),
    [
        (["optimizer.learning_rate"], r"expected section\.key=value,value"),
        (["optimizer.eps=1e-8,1e-8"], "give each value once"),
        (["optimizer.eps=1e-8", "optimizer.eps=1e-7"], "given twice"),
        (["training.seed=1,2"], "--seeds"),
        (["data.pairs=a,b"], "unlike data"),
        (["output=a,b"], "names its runs' folders"),
        (["optimizer.lr=1"], "unknown key"),
        (["loss.kind=hing"], "hing"),
    ],
)
def test_what_cannot_be_varied_is_refused_before_anything_runs(base: str, varied: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(base, *varied)
