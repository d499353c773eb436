"""The Python API does what the command line does, on the same files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import pairwright
from exported_models import export_small_model
from pairwright.data.synthetic import write_rankings


def test_importing_the_package_imports_no_heavy_library() -> None:
    code = (
        "import sys, pairwright; pairwright.PairwrightError; "
        "print([name for name in ('numpy', 'torch', 'ray', 'transformers', 'pyarrow') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_the_package_offers_is_there_and_nothing_else_is() -> None:
    assert set(dir(pairwright)) >= {"ingest", "expand", "train", "evaluate", "score", "RewardModel"}
    assert all(getattr(pairwright, name) is not None for name in pairwright.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        pairwright.nothing  # noqa: B018


def test_rankings_become_pairs_and_a_second_call_adds_nothing(tmp_path: Path) -> None:
    write_rankings(tmp_path / "rankings.jsonl", 40, seed=1)
    source, annotations, pairs = (str(tmp_path / name) for name in ("rankings.jsonl", "annotations", "pairs"))
    summary = pairwright.ingest(source, annotations)
    assert summary.sources[0].accepted == pairwright.report(annotations).totals["annotations"]
    config = pairwright.ExpandConfig(validation_fraction=0.5, ties="half")
    first = pairwright.expand(annotations, pairs, config=config)
    assert first.totals["groups"] == 40
    assert pairwright.expand(annotations, pairs, config=config).version == first.version
    metrics = pairwright.report(annotations, str(tmp_path / "page.html"))
    assert metrics.totals["groups"] == 40
    assert (tmp_path / "page.html").stat().st_size > 1000


def test_a_users_mistake_is_a_pairwright_error(tmp_path: Path) -> None:
    with pytest.raises(pairwright.PairwrightError, match="nowhere"):
        pairwright.expand(str(tmp_path / "nowhere"), str(tmp_path / "pairs"))
    with pytest.raises(pairwright.PairwrightError, match="no such model directory"):
        pairwright.RewardModel.load(str(tmp_path / "nowhere"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small_model(tmp_path_factory.mktemp("model"))


GROUPS = [
    ("What is the capital of France?", ["Paris.", "It is Lyon, I think.", "x" * 40]),
    ([{"role": "system", "content": "Be short."}, {"role": "user", "content": "Add 1 and 1"}], ["2", "Two, or 10."]),
]


def test_rewards_are_those_of_score(model: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": prompt, "completions": completions}) for prompt, completions in GROUPS]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    pairwright.score(str(model), str(tmp_path / "in.jsonl"), str(tmp_path / "out"))
    expected = np.concatenate([pq.read_table(file)["reward"] for file in sorted((tmp_path / "out/scores").iterdir())])
    loaded = pairwright.RewardModel.load(str(model), device="cpu")
    rewards = loaded.rewards_of_many(GROUPS)
    assert [len(each) for each in rewards] == [3, 2]
    np.testing.assert_allclose(np.concatenate(rewards), expected, atol=2e-6)
    one_by_one = np.concatenate([loaded.rewards(*group) for group in GROUPS])
    np.testing.assert_allclose(one_by_one, expected, atol=2e-6)
    assert rewards[0].dtype == np.float32


def test_no_completions_have_no_rewards_and_bad_ones_are_named(model: Path) -> None:
    loaded = pairwright.RewardModel.load(str(model), device="cpu")
    assert loaded.rewards("a", []).shape == (0,)
    assert [len(each) for each in loaded.rewards_of_many([("a", []), ("b", ["c"])])] == [0, 1]
    with pytest.raises(pairwright.PairwrightError, match=r"group 1: \$\.completions\[1\].*empty"):
        loaded.rewards("a", ["b", "  "])
    with pytest.raises(pairwright.PairwrightError, match="prompt"):
        loaded.rewards("", ["b"])
