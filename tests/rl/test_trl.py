"""The manual's GRPO recipe, run: one model by path, by function and by HTTP gives the same rewards."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from exported_models import export_small_model
from reward_servers import metric, running, service_of
from special_tokenizers import CHATML

RECIPE = re.search(r"^```py\n(.*?)^```$", (Path(__file__).parents[2] / "docs/rl.md").read_text(), re.M | re.S)


def test_grpo_gets_the_same_rewards_by_path_by_function_and_by_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("trl")
    assert RECIPE is not None
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = export_small_model(tmp_path, chat_template="{{ bos_token }}" + CHATML)
    Path("demo/run").mkdir(parents=True)
    shutil.move(tmp_path / "base", "demo/model")
    shutil.copytree(model, "demo/run/model")
    with running(service_of(model)) as url:
        program = RECIPE[1].replace('# reward_function("http://127.0.0.1:8600")', f"reward_function({url!r})")
        variables: dict = {}
        exec(compile(program, "recipe", "exec"), variables)
        saved = metric(url, "pairwright_prompt_tokens_saved_total")
    rewards = variables["trainer"]._logs["rewards"]
    assert sorted(rewards) == ["model", "pairwright_http", "pairwright_model"]
    by_path = np.array(rewards["model"])
    assert len(by_path) == 8  # of the last step
    assert len(set(by_path)) > 4
    for name in ("pairwright_http", "pairwright_model"):
        assert np.abs(np.array(rewards[name]) - by_path).max() < 2e-6, name
    assert saved > 0
