"""Reference mean and deviation are those of the table's rewards, applied where asked; and several models are one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from exported_models import export_small_model, plain_rewards
from pairwright.data.table.table import Table
from pairwright.errors import ConfigError, ModelError, StoreError
from pairwright.evaluation.load_exported import model_digest, open_exported
from pairwright.evaluation.reference_rewards import normalize
from pairwright.serving.reward_service import Combination
from reward_servers import asked, running, service_of
from training_runs import make_pairs

PROMPT, TEXTS = "Why is the sky blue?", ["Because of scattering.", "It is not; it is green.", "No idea"]
BODY = {"prompt": PROMPT, "completions": TEXTS}
CHAT = [{"role": "user", "content": PROMPT}]


def normalized(model: Path, reference: Path, *, overwrite: bool = False):
    device = torch.device("cpu")
    return normalize(
        str(model), str(reference), version=None, micro_batch_tokens=16384, device=device, overwrite=overwrite
    )


def test_references_have_mean_0_and_deviation_1_where_that_is_asked_for(tmp_path: Path) -> None:
    model = export_small_model(tmp_path, max_length=512)
    reference = tmp_path / "pairs"
    make_pairs(reference, num_groups=6)
    plain = service_of(model)
    digest = model_digest(model)
    found = normalized(model, reference)
    assert model_digest(model) != digest
    open_exported(str(model)).verify(hashes=True)
    config = json.loads((model / "config.json").read_text())
    assert (config["mean"], config["std"]) == (found.mean, found.std)

    table = Table.open(str(reference), "pairs")
    rows = [row for part in table.read(table.manifest()) for row in part.to_pylist()]
    expected = np.array(
        [
            reward
            for row in rows
            for reward in plain_rewards(
                model,
                [{"role": turn["role"], "content": turn["content"]} for turn in row["prompt"]],
                [completion["text"] for completion in row["completions"]],
            )
        ]
    )
    assert (found.mean, found.std, found.num_rewards) == (
        pytest.approx(expected.mean(), abs=1e-5),
        pytest.approx(expected.std(), abs=1e-5),
        len(expected),
    )
    raw = np.array(plain_rewards(model, CHAT, TEXTS))
    with running(plain) as url:
        assert asked(f"{url}/v1/rewards", BODY)[1]["rewards"] == pytest.approx(raw, abs=2e-6)
    with running(service_of(model)) as url:  # never by itself
        assert asked(f"{url}/v1/rewards", BODY)[1]["rewards"] == pytest.approx(raw, abs=2e-6)
    with running(service_of(model, is_normalized=True)) as url:
        wanted = (raw - found.mean) / found.std
        assert asked(f"{url}/v1/rewards", BODY)[1]["rewards"] == pytest.approx(wanted, abs=1e-4)
        _, cards = asked(f"{url}/v1/models")
        assert cards["normalized"] is True
        assert cards["data"][0]["normalization"]["reference"] == str(reference)
    with pytest.raises(StoreError, match="use --overwrite"):
        normalized(model, reference)
    assert normalized(model, reference, overwrite=True).mean == pytest.approx(found.mean, abs=1e-6)


def test_a_model_without_a_reference_is_not_served_normalized(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no reference rewards"):
        service_of(export_small_model(tmp_path), is_normalized=True)


def test_several_models_are_served_as_one_with_the_rewards_of_each(tmp_path: Path) -> None:
    first = export_small_model(tmp_path / "a")
    second = export_small_model(tmp_path / "b", architecture="gpt2", chat_template="{{ messages[1]['content'] }}")
    each = np.array([plain_rewards(model, CHAT, TEXTS) for model in (first, second)])
    expected = {
        "mean": each.mean(0),
        "min": each.min(0),
        "mean-std:0.5": each.mean(0) - 0.5 * np.abs(each[0] - each[1]) / 2,
    }
    for combine, rewards in expected.items():
        with running(service_of(first, second, combine=combine)) as url:
            _, reply = asked(f"{url}/v1/rewards", BODY)
            assert reply["rewards"] == pytest.approx(rewards, abs=4e-6), combine
            assert list(reply["members"]) == [str(first), str(second)]
            for member, own in zip(reply["members"].values(), each, strict=True):
                assert member == pytest.approx(own, abs=2e-6)
            assert reply["model"].startswith(combine)


@pytest.mark.parametrize("text", ["", "max", "mean-std", "mean-std:-1", "mean-std:nan", "MEAN"])
def test_a_combination_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected mean, min or mean-std:LAMBDA"):
        Combination.parse(text)
