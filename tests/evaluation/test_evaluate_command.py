"""Evaluation as a command runs it: an exported model and a table in, a report out, on any number of workers."""

import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from annotation_tables import annotation_row, annotations_table, manifest
from exported_models import export_small_model, plain_rewards
from pairwright.cluster.models.evaluate_job import evaluate
from pairwright.config import ExpandConfig
from pairwright.data.pairs.build_pairs import expand_groups
from pairwright.data.synthetic import make_rankings
from pairwright.data.table.table import Table
from pairwright.data.tokens.tokenize import ensure_tokens
from pairwright.data.tokens.tokenize_groups import local_token_paths
from pairwright.errors import ConfigError, DataError, ModelError, StoreError
from pairwright.evaluation.load_exported import open_exported
from pairwright.evaluation.reports.report_schema import Report

pytestmark = pytest.mark.ray

NUM_GROUPS = 40


def write_pairs(url: Path, *, validation_fraction: float, num_files: int) -> pa.Table:
    rankings = itertools.islice(make_rankings(NUM_GROUPS, seed=3), NUM_GROUPS)
    rows = [
        annotation_row(
            record["id"],
            [completion["text"] for completion in record["completions"]],
            record["ranks"],
            prompt=json.dumps(record["prompt"]),
            subset=record["subset"],
        )
        for record in rankings
    ]
    config = ExpandConfig(validation_fraction=validation_fraction)
    pairs, totals = expand_groups(annotations_table(rows), config)
    table = Table(str(url), "pairs")
    size = math.ceil(pairs.num_rows / num_files)
    files = [table.write_data(pairs.slice(start, size)) for start in range(0, pairs.num_rows, size)]
    table.commit(lambda _: manifest(kind="pairs", files=files, totals=totals))
    return pairs


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small_model(tmp_path_factory.mktemp("exported") / "run", max_length=512)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, pa.Table]:
    url = tmp_path_factory.mktemp("data") / "pairs"
    return str(url), write_pairs(url, validation_fraction=0.5, num_files=3)


def run(model: Path, pairs: str, output: Path, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "version": None,
        "split": "validation",
        "output": str(output),
        "num_workers": 1,
        "use_gpu": False,
        "micro_batch_tokens": 1024,
    }
    return evaluate(str(model), pairs, **(options | changes))


def by_plain_transformers(model: Path, pairs: pa.Table, split: str) -> dict[str, float]:
    weight = right = log_loss = margin = longer = 0.0
    for group in pairs.to_pylist():
        if group["split"] != split:
            continue
        texts = [completion["text"] for completion in group["completions"]]
        reward = plain_rewards(model, group["prompt"], texts)
        for pair in group["pairs"]:
            difference = reward[pair["chosen"]] - reward[pair["rejected"]]
            longer_by = len(texts[pair["chosen"]]) - len(texts[pair["rejected"]])
            weight += pair["weight"]
            right += pair["weight"] * (difference > 0)
            log_loss += pair["weight"] * math.log1p(math.exp(-difference))
            margin += pair["weight"] * difference
            longer += pair["weight"] * (0.5 if longer_by == 0 else longer_by > 0)
    return {
        "weight": weight,
        "accuracy": right / weight,
        "log_loss": log_loss / weight,
        "reward_margin": margin / weight,
        "longer_wins": longer / weight,
    }


def test_pairs_over_the_models_limit_are_excluded_and_counted(pairs: tuple[str, pa.Table], tmp_path: Path) -> None:
    short = export_small_model(tmp_path / "run", max_length=120)
    report = run(short, pairs[0], tmp_path / "report.json")
    assert 0 < report["overall"]["pairs"] < report["pairs"]["pairs"]
    assert report["pairs"]["tokens"]["pairs_dropped"] > 0
    assert json.loads((tmp_path / "report.json").read_text()) == report


# ----------------------------------------------------------------------------------------------- errors


def test_a_split_without_pairs_says_what_to_do(model: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs", validation_fraction=0.0, num_files=1)
    with pytest.raises(DataError, match=r"no pairs in split validation.*validation_fraction"):
        run(model, str(tmp_path / "pairs"), tmp_path)


def test_tokens_with_flipped_bits_are_never_evaluated(model: Path, pairs: tuple[str, pa.Table], tmp_path: Path) -> None:
    config = open_exported(str(model)).rules.tokens_config()
    made = ensure_tokens(pairs[0], version=1, tokenizer_path=str(model), config=config, into=str(tmp_path / "tokens"))
    for path in local_token_paths(*made):
        time.sleep(0.02)  # file systems count time in steps of some milliseconds
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(StoreError, match=r"damaged: the SHA-256 .* is not the one that was written; delete the whole"):
        run(model, pairs[0], tmp_path / "report.json", cache=str(tmp_path / "tokens"))
    assert not (tmp_path / "report.json").exists()


def test_an_unknown_split_names_the_known_ones(model: Path, pairs: tuple[str, pa.Table], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="split test is none of train and validation"):
        run(model, pairs[0], tmp_path, split="test")


def test_a_version_that_is_not_there_names_those_that_are(
    model: Path, pairs: tuple[str, pa.Table], tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=r"no version 9; there are 1"):
        run(model, pairs[0], tmp_path, version=9)


def test_a_table_of_annotations_is_no_table_of_pairs(model: Path, tmp_path: Path) -> None:
    table = Table(str(tmp_path / "a"), "annotations")
    files = [table.write_data(annotations_table([annotation_row("a", ["x", "y"], [1, 2])]))]
    table.commit(lambda _: manifest(kind="annotations", files=files))
    with pytest.raises(StoreError, match=r"holds annotations, expected pairs; .*pairwright expand"):
        run(model, str(tmp_path / "a"), tmp_path)


def test_a_model_that_is_not_there_is_said_before_anything_starts(pairs: tuple[str, pa.Table], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model directory"):
        run(tmp_path / "nothing", pairs[0], tmp_path)


def test_more_workers_than_the_machine_has_are_refused(
    model: Path, pairs: tuple[str, pa.Table], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"num_workers is 999 .*ask for fewer"):
        run(model, pairs[0], tmp_path, num_workers=999)


def test_a_budget_below_the_longest_completion_names_its_group(
    model: Path, pairs: tuple[str, pa.Table], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"group [0-9a-f]{32}: its longest completion .*raise it to at least"):
        run(model, pairs[0], tmp_path, micro_batch_tokens=16)


# Ray is up from here to the end of the module, and takes what would fit this process too.


@pytest.mark.usefixtures("ray_cluster")
def test_a_report_says_what_plain_transformers_says_pair_by_pair_on_one_worker_and_on_two(
    model: Path, pairs: tuple[str, pa.Table], tmp_path: Path
) -> None:
    url, table = pairs
    one = run(model, url, tmp_path / "one", num_workers=1)
    two = run(model, url, tmp_path / "two", num_workers=2)
    assert {key: one[key] for key in one if key != "created_at"} == {
        key: two[key] for key in two if key != "created_at"
    }
    expected = by_plain_transformers(model, table, "validation")
    assert one["overall"]["weight"] == pytest.approx(expected.pop("weight"), abs=1e-5)
    for name, value in expected.items():
        assert one["overall"][name]["value"] == pytest.approx(value, abs=1e-5), name
    num_pairs = sum(len(row["pairs"]) for row in table.to_pylist() if row["split"] == "validation")
    assert one["overall"]["pairs"] == one["pairs"]["pairs"] == num_pairs
    written = (tmp_path / "two/report.json").read_bytes()
    assert msgspec.json.decode(msgspec.json.encode(msgspec.json.decode(written, type=Report))) == two
