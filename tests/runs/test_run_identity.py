"""Which run a folder holds: identity is content, not place; differences are keys; a run without steps gives way."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pairwright.config import TrainConfig
from pairwright.data.table.table import Table
from pairwright.errors import ConfigError
from pairwright.runs.run_dir import RunFolder
from pairwright.runs.run_identity import RunIdentity, differences
from pairwright.runs.run_plan import RunPlan, data_version, plan_run
from run_folders import add
from training_runs import make_model, make_pairs, run_config

Identity = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("identity")
    make_pairs(folder / "pairs", num_groups=40)
    make_model(folder / "model")
    return folder


def planned(config: TrainConfig, run: RunFolder | None = None) -> RunPlan:
    pairs = Table.open(config.data.pairs, "pairs")
    return plan_run(config, pairs, pairs.manifest(data_version(config, pairs, run)))


def config_of(folder: Path, name: str = "run", **sections: dict[str, Any]) -> TrainConfig:
    return run_config(folder, name, **{"batches": {"groups_per_step": 8}, **sections})


def test_a_run_whose_table_model_and_folder_moved_is_the_same_run(folder: Path, tmp_path: Path) -> None:
    first = planned(config_of(folder)).identity
    RunFolder(str(tmp_path / "run")).claim(first)
    elsewhere = tmp_path / "elsewhere"
    for name in ("pairs", "model"):
        shutil.copytree(folder / name, elsewhere / name)
    shutil.move(tmp_path / "run", elsewhere / "run")
    second = planned(config_of(elsewhere)).identity
    assert second.digest == first.digest
    assert differences(first, second) == []
    claim = RunFolder(str(elsewhere / "run")).claim(second)
    assert claim.status == "same"
    recorded = json.loads((elsewhere / "run" / "run.json").read_text())
    assert recorded["pairs_url"] == str(elsewhere / "pairs")
    assert recorded["config"]["model"]["path"] == str(elsewhere / "model"), "an export finds the model"


def test_a_moved_table_with_a_newer_version_goes_on_with_the_version_of_the_run(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder)
    RunFolder(str(tmp_path / "run")).claim(planned(config).identity)
    shutil.copytree(folder / "pairs", tmp_path / "moved")
    make_more(tmp_path / "moved")
    moved = config.model_copy(update={"data": config.data.model_copy(update={"pairs": str(tmp_path / "moved")})})
    pairs = Table.open(moved.data.pairs, "pairs")
    assert data_version(moved, pairs, RunFolder(str(tmp_path / "run"))) == 1
    assert data_version(moved, pairs, None) is None


def make_more(url: Path) -> None:
    """Commit a second version of a pairs table, of its first file twice."""
    table = Table.open(str(url), "pairs")
    manifest = table.manifest()
    file = table.write_data(table.read_file(manifest.files[0]).slice(0, 20))
    newer = msgspec.structs.replace(manifest, files=[*manifest.files, file])
    assert table.commit(lambda newest: newer)


def test_a_run_of_an_earlier_version_with_another_formula_keeps_its_digest(folder: Path, tmp_path: Path) -> None:
    now = planned(config_of(folder)).identity
    old = msgspec.structs.replace(now, digest="0" * 64, pairs_digest="")
    RunFolder(str(tmp_path / "run")).claim(old)
    assert RunFolder(str(tmp_path / "run")).claim(now).identity.digest == "0" * 64


def identity(**changed: Any) -> RunIdentity:
    values: Identity = {
        "digest": "d",
        "config": {"model": {"path": "m"}, "training": {"seed": 0}, "tokens": {"chat_template": None}, "lora": None},
        "pairs_url": "/p",
        "pairs_version": 1,
        "pairs_digest": "1" * 64,
        "tokens_digest": "2" * 64,
        "model_digest": "3" * 64,
    }
    return RunIdentity(**(values | changed))


def with_config(**sections: Any) -> Identity:
    return {"config": identity().config | sections}


OTHERS: dict[str, tuple[Identity, list[str]]] = {
    "nothing": ({}, []),
    "places alone": ({"pairs_url": "/q", **with_config(model={"path": "n"})}, []),
    "the same rows in another version": ({"pairs_version": 2, "pairs_digest": "4" * 64}, []),
    "a key": (with_config(training={"seed": 5}), ["training.seed is 0 there and 5 here"]),
    "a section": (with_config(lora={"rank": 8}), ["lora.rank is None there and 8 here"]),
    "another model": (
        {"model_digest": "4" * 64, **with_config(model={"path": "n"})},
        ["model.path is 'm' there and 'n' here"],
    ),
    "a changed model": ({"model_digest": "4" * 64}, ["model.path 'm' has other files there than here"]),
    "another version": (
        {"pairs_version": 2, "pairs_digest": "4" * 64, "tokens_digest": "5" * 64},
        ["data.version is 1 there and 2 here"],
    ),
    "another table": (
        {"pairs_url": "/q", "pairs_digest": "4" * 64, "tokens_digest": "5" * 64},
        ["data.pairs is '/p' there and '/q' here"],
    ),
    "other rows": (
        {"pairs_digest": "4" * 64, "tokens_digest": "5" * 64},
        ["data.pairs /p has other rows in version 1 there than here"],
    ),
    "another template": (
        {"tokens_digest": "5" * 64, **with_config(tokens={"chat_template": "t.jinja"})},
        ["tokens.chat_template is None there and 't.jinja' here"],
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_differences_are_told_as_keys_with_both_values_and_never_as_hashes(name: str) -> None:
    changed, expected = OTHERS[name]
    told = differences(identity(), identity(**changed))
    assert told == expected
    assert not any("digest" in line or "0000" in line or "4444" in line for line in told)


def test_a_run_from_before_the_rule_of_the_templates_end_goes_on_where_it_changes_no_token(folder: Path) -> None:
    now = planned(config_of(folder)).identity
    tokens = {key: value for key, value in now.config["tokens"].items() if key != "template_end"}
    before = msgspec.structs.replace(now, config=now.config | {"tokens": tokens})
    assert differences(before, now) == []
    (told,) = differences(msgspec.structs.replace(before, tokens_digest="1" * 64), now)
    assert told == "tokens.template_end is 'template' there and 'end_of_turn' here"


def test_what_a_template_file_holds_is_told_where_nothing_else_differs() -> None:
    same = with_config(tokens={"chat_template": "t.jinja"})
    [told] = differences(identity(**same), identity(**same, tokens_digest="5" * 64))
    assert told == "the file tokens.chat_template t.jinja has other content there than here"


def test_a_run_that_never_took_a_step_gives_way_and_how_it_differs_is_said(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    run.claim(identity())
    (tmp_path / "run" / "metrics-20260101T000000.jsonl").write_text('{"kind": "workers", "world_size": 1}\n{"ki')
    other = identity(digest="e", **with_config(training={"seed": 5}))
    assert run.examine(other).status == "replaced"
    assert run.identity() == identity(), "to examine writes nothing"
    claim = run.claim(other)
    assert (claim.status, claim.replaced) == ("replaced", "training.seed is 0 there and 5 here")
    assert run.identity() == other


@pytest.mark.parametrize("left", ["checkpoint", "step", "model", "summary.json"])
def test_a_run_that_took_a_step_is_refused_to_another_configuration(left: str, tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    run.claim(identity())
    root = tmp_path / "run"
    if left == "checkpoint":
        add(root, 10, {})
    elif left == "step":
        (root / "metrics-20260101T000000.jsonl").write_text('{"kind": "workers"}\n{"kind": "step", "step": 1}\n')
    elif left == "model":
        (root / "model").mkdir()
        (root / "model" / "config.json").write_text("{}")
    else:
        (root / left).write_text("{}")
    with pytest.raises(ConfigError, match=r"holds another run \(training\.seed is 0 there and 5 here\)"):
        run.claim(identity(digest="e", **with_config(training={"seed": 5})))
