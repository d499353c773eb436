"""A model directory that somebody else wrote: nothing in it runs, and what is refused is said in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from exported_models import export_small_model
from hostile_files import marking
from pairwright.errors import ModelError
from pairwright.evaluation.load_exported import model_digest
from spoilt_models import evaluate_and_score, look_at_run, make_run, shard_model, train_from

CODE = "from pathlib import Path; Path(r'{marker}').touch()\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    export_small_model(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of an exported model (``model``) and of the one it was made from (``base``); stdin says yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    copied = Path(shutil.copytree(whole, tmp_path / "copy"))
    set_in(copied / "model" / "pairwright.json", files=[])  # somebody else's: no hash tells that it was changed
    return copied


def set_in(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def bring_code(model: Path, marker: Path) -> None:
    (model / "evil.py").write_text(CODE.format(marker=marker))
    names = {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M"}
    set_in(model / "config.json", model_type="evil", auto_map=names)


def bring_a_tokenizers_code(model: Path, marker: Path) -> None:
    (model / "evil.py").write_text(CODE.format(marker=marker))
    set_in(model / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})


def pickle_the_weights(model: Path, marker: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save(marking(marker), model / "pytorch_model.bin")


def pickle_a_shard(model: Path, marker: Path) -> None:
    shard_model(model)
    index = (model / "model.safetensors.index.json").read_text()
    (model / "model.safetensors.index.json").unlink()
    (model / "model-00001-of-00001.safetensors").unlink()
    (model / "pytorch_model.bin.index.json").write_text(index.replace("safetensors", "bin"))
    torch.save(marking(marker), model / "model-00001-of-00001.bin")


def pickle_an_adapter(model: Path, marker: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "x/y", "r": 4, "target_modules": ["q_proj"]}
    (model / "adapter_config.json").write_text(json.dumps(settings))
    torch.save(marking(marker), model / "adapter_model.bin")


def ask_for_a_kernel(model: Path, marker: Path) -> None:
    set_in(model / "config.json", attn_implementation="evil/kernel")


def lead_out(model: Path, marker: Path) -> None:
    shard_model(model)
    index = model / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))


def name_many_layers(model: Path, marker: Path) -> None:
    set_in(model / "config.json", num_hidden_layers=10**9)


def cut_the_weights(model: Path, marker: Path) -> None:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[:-1000])


@pytest.mark.parametrize("use", [evaluate_and_score, train_from])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (bring_code, "needs code of its own, which Pairwright never runs"),
        (bring_a_tokenizers_code, "its tokenizer cannot be loaded: it needs code of its own"),
        (pickle_the_weights, r"names posix\.system, and nothing was run"),
        (pickle_a_shard, r"names posix\.system, and nothing was run"),
        (pickle_an_adapter, "an adapter .* of x/y, expected a whole model"),
        (ask_for_a_kernel, "asks for the attention 'evil/kernel', which is code from the hub"),
        (lead_out, r"names the file '\.\./model-00001-of-00001\.safetensors', expected one beside it"),
        (name_many_layers, "num_hidden_layers is 1e.09, expected at most 4,096"),
        (cut_the_weights, "incomplete metadata, file not fully covered"),
    ],
)
def test_what_would_run_or_is_damaged_is_refused_in_one_line(
    folder: Path, spoil: Callable[[Path, Path], None], message: str, use: Callable[[Path], None]
) -> None:
    model, marker = folder / ("model" if use is evaluate_and_score else "base"), folder / "ran"
    spoil(model, marker)
    with pytest.raises(ModelError, match=message) as refused:
        use(model)
    assert "\n" not in str(refused.value)
    assert not marker.exists()


def test_a_model_that_transformers_knows_is_used_without_the_code_that_it_brings(folder: Path) -> None:
    marker = folder / "ran"
    (folder / "model" / "evil.py").write_text(CODE.format(marker=marker))
    names = {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M"}
    set_in(folder / "model" / "config.json", auto_map=names)
    evaluate_and_score(folder / "model")
    assert not marker.exists()


@pytest.mark.parametrize("spoil", [bring_code, bring_a_tokenizers_code, pickle_the_weights])
def test_an_export_runs_nothing_of_the_model_that_the_run_names(
    folder: Path, spoil: Callable[[Path, Path], None]
) -> None:
    run, marker = make_run(folder, folder / "base"), folder / "ran"
    spoil(folder / "base", marker)
    set_in(run / "run.json", model_digest=model_digest(folder / "base"))
    with pytest.raises(ModelError):
        look_at_run(run)
    assert not marker.exists()


def test_an_export_hashes_no_folder_that_is_no_model(folder: Path) -> None:
    run = make_run(folder, folder / "base")
    values = json.loads((run / "run.json").read_text())
    values["config"]["model"]["path"] = "/"
    (run / "run.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match=r"/: the run's starting model is not here"):
        look_at_run(run)
