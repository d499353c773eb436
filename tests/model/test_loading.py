"""Where a reward model's weights come from: the checkpoint where it has them, the seed where it has not."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from pairwright.config import LoraConfig as LoraSection
from pairwright.data.storage.model_files import heads_among, weight_names
from pairwright.data.tokens.tokenizer import load_tokenizer
from pairwright.errors import ModelError
from pairwright.evaluation.load_exported import open_exported
from pairwright.events import HeadInitialized
from pairwright.model.load_model import load_reward_model
from pairwright.model.lora import add_adapters
from pairwright.model.reward_model import RewardModel, find_head

Load = Callable[..., RewardModel]
SmallModel = Callable[[str], Path]
ARCHITECTURES = ["llama", "gpt2", "opt", "bert", "roberta", "modernbert", "deberta-v2"]


def _load(path: Path, **keywords: Any) -> RewardModel:
    settings: dict[str, Any] = {
        "dtype": torch.float32,
        "seed": 0,
        "dropout": False,
        "gradient_checkpointing": False,
        "pad_token_id": None,
        "vocab_size": None,
        "cpu_kernels": True,
    }
    return load_reward_model(str(path), **(settings | keywords))


def _edit_weights(
    source: Path, target: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> Path:
    shutil.copytree(source, target)
    save_file(edit(load_file(target / "model.safetensors")), target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_new_weights_depend_on_the_seed_and_on_nothing_else(load: Load, architecture):
    torch.manual_seed(1)
    first = load(architecture, seed=5).state_dict()
    torch.manual_seed(2)
    again = load(architecture, seed=5).state_dict()
    other = load(architecture, seed=6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loading_leaves_the_random_numbers_of_the_process_alone(load: Load, architecture):
    torch.manual_seed(1)
    load(architecture)
    found = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(found, torch.rand(1))


def test_the_new_head_is_normal_with_the_papers_deviation(tmp_path: Path):
    config = AutoConfig.for_model(
        "gpt2",
        vocab_size=50,
        n_embd=2048,
        n_layer=1,
        n_head=2,
        n_positions=8,
        n_inner=8,
        bos_token_id=0,
        eos_token_id=0,
    )
    AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained(tmp_path)
    weight = _load(tmp_path).state_dict()["model.score.weight"]
    assert weight.std().item() == pytest.approx(2049**-0.5, rel=0.07)
    assert weight.mean().abs().item() < 4 * 2049**-0.5 / 2048**0.5


def test_the_new_head_is_the_same_in_every_dtype_up_to_rounding(load: Load):
    wide, narrow = (load("llama", dtype=d).state_dict()["model.score.weight"] for d in (torch.float32, torch.bfloat16))
    assert torch.equal(wide.bfloat16(), narrow)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_backbone_is_the_checkpoint_s(load: Load, small_model: SmallModel, architecture):
    stored = load_file(small_model(architecture) / "model.safetensors")
    found = {name.removeprefix("model."): weight for name, weight in load(architecture).state_dict().items()}
    kept = stored.keys() & found.keys()
    assert len(kept) >= 0.7 * len(found)
    assert all(torch.equal(stored[name], found[name]) for name in kept)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_of_a_classification_checkpoint_is_kept(small_model: SmallModel, tmp_path: Path, architecture):
    plain = AutoModelForSequenceClassification.from_pretrained(
        small_model(architecture), num_labels=1, trust_remote_code=False
    )
    name, head = find_head(plain)
    with torch.no_grad():
        head.weight.fill_(0.125)
    plain.save_pretrained(tmp_path)
    loaded = _load(tmp_path, seed=9).state_dict()
    assert (loaded[f"model.{name}.weight"] == 0.125).all()
    assert all(torch.equal(loaded[f"model.{key}"], value) for key, value in plain.state_dict().items())


def test_a_classification_checkpoint_that_lost_its_head_is_refused(small_model: SmallModel, tmp_path: Path):
    AutoModelForSequenceClassification.from_pretrained(
        small_model("llama"), num_labels=1, trust_remote_code=False
    ).save_pretrained(tmp_path / "a")
    lost = _edit_weights(
        tmp_path / "a", tmp_path / "b", lambda weights: {n: w for n, w in weights.items() if n != "score.weight"}
    )
    with pytest.raises(ModelError, match=r"no score\.weight: it was lost"):
        _load(lost)


def test_a_head_with_several_labels_is_refused(small_model: SmallModel, tmp_path: Path):
    AutoModelForSequenceClassification.from_pretrained(
        small_model("bert"), num_labels=3, trust_remote_code=False
    ).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="3 labels, expected 1"):
        _load(tmp_path)


def _classifier(small_model: SmallModel, directory: Path, *, num_labels: int = 1) -> Path:
    plain = AutoModelForSequenceClassification.from_pretrained(
        small_model("llama"), num_labels=num_labels, trust_remote_code=False
    )
    plain.save_pretrained(directory)
    return directory


def _without_labels(directory: Path) -> Path:
    config = json.loads((directory / "config.json").read_text())
    for name in ("num_labels", "id2label", "label2id"):
        config.pop(name, None)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_a_head_of_one_row_is_loaded_where_the_configuration_does_not_say_how_many_labels(
    small_model: SmallModel, tmp_path: Path
):
    """OpenRLHF #1039: transformers assumes two."""
    directory = _without_labels(_classifier(small_model, tmp_path / "model"))
    stored = load_file(directory / "model.safetensors")["score.weight"]
    assert torch.equal(_load(directory, seed=9).state_dict()["model.score.weight"], stored)


def test_a_head_of_two_rows_is_refused_where_the_configuration_does_not_say_how_many_labels(
    small_model: SmallModel, tmp_path: Path
):
    """LLaMA-Factory #7403: transformers writes nothing of the labels where there are two."""
    directory = _classifier(small_model, tmp_path, num_labels=2)
    assert "id2label" not in json.loads((directory / "config.json").read_text())
    with pytest.raises(ModelError, match=r"its head has 2 labels, expected 1 .*score\.weight is \(2, "):
        _load(directory)


# Programs that save them: OpenRLHF, TRL and LLaMA-Factory, DeepSpeed-Chat, UltraRM, Beaver.
OTHER_NAMES = [
    "value_head.weight",
    "v_head.summary.weight",
    "v_head.weight",
    "regression_head.weight",
    "score_head.weight",
]


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_a_head_under_another_name_is_named_and_not_called_lost(small_model: SmallModel, tmp_path: Path, name: str):
    model = _edit_weights(
        _classifier(small_model, tmp_path / "a"), tmp_path / "b", lambda w: {name: w.pop("score.weight"), **w}
    )
    with pytest.raises(ModelError, match=rf"the weights hold {re.escape(name)}, a head under another name; rename it"):
        _load(model)


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_a_language_model_with_a_head_under_another_name_is_said_to_leave_it_out(
    small_model: SmallModel, tmp_path: Path, name: str
):
    row = torch.zeros(1, 32)
    model = _edit_weights(small_model("llama"), tmp_path / "a", lambda weights: weights | {name: row})
    loaded = _load(model)
    assert loaded.ignored_heads == (name,)
    assert (
        f"under another name ({name}), which is left out"
        in HeadInitialized(ignored_heads=loaded.ignored_heads).log_line
    )
    with pytest.raises(ModelError, match=rf"no reward head .*the weights hold {re.escape(name)}"):
        open_exported(str(model))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_of_a_language_model_is_taken_for_a_head(load: Load, small_model: SmallModel, architecture):
    assert load(architecture).ignored_heads == ()
    assert heads_among(weight_names(small_model(architecture))) == []


def test_a_head_of_several_layers_is_refused_by_its_names(small_model: SmallModel, tmp_path: Path):
    model = _edit_weights(
        _classifier(small_model, tmp_path / "a"),
        tmp_path / "b",
        lambda w: {"score.0.weight": torch.zeros(32, 32), "score.2.weight": w.pop("score.weight"), **w},
    )
    with pytest.raises(ModelError, match=r"score\.0\.weight, score\.2\.weight, a head of another shape"):
        _load(model)


@pytest.mark.parametrize("use", [_load, lambda path: load_tokenizer(str(path)), lambda path: open_exported(str(path))])
@pytest.mark.parametrize("is_whole", [False, True], ids=["alone", "beside a model"])
def test_an_adapter_is_refused_by_name_with_its_base(
    small_model: SmallModel, tmp_path: Path, use: Callable[[Path], Any], is_whole: bool
):
    base = AutoModelForSequenceClassification.from_pretrained(
        small_model("llama"), num_labels=1, trust_remote_code=False
    )
    adapter = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"))
    adapter.save_pretrained(str(tmp_path / "adapter"))
    if is_whole:
        _classifier(small_model, tmp_path / "adapter")
    with pytest.raises(ModelError, match=rf"an adapter .* of {small_model('llama')}, .*merge it into its base first"):
        use(tmp_path / "adapter")


def test_a_checkpoint_without_part_of_its_backbone_is_refused(small_model: SmallModel, tmp_path: Path):
    damaged = _edit_weights(
        small_model("llama"), tmp_path / "x", lambda w: {name: v for name, v in w.items() if "layers.1.mlp" not in name}
    )
    with pytest.raises(
        ModelError, match=r"3 weights of the backbone are missing, the first being model\.layers\.1\.mlp"
    ):
        _load(damaged)


def test_a_path_without_a_model_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match=f"{tmp_path}: no Hugging Face model here"):
        _load(tmp_path)


def test_a_configuration_without_weights_is_named(small_model: SmallModel, tmp_path: Path):
    shutil.copy(small_model("llama") / "config.json", tmp_path)
    with pytest.raises(ModelError, match=f"{tmp_path}: cannot be loaded"):
        _load(tmp_path)


def test_an_architecture_that_cannot_classify_sequences_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelError, match="cannot be loaded as a sequence-classification model"):
        _load(tmp_path)


# ------------------------------------------------------------------------------- weights that stay in their files


def _read(model: RewardModel) -> dict[str, torch.Tensor]:
    """Return all weights and buffers of a model, with those that stayed in their files read as the engine does."""
    for parameter, read in model.stored_weights.items():
        assert parameter.isnan().all()
        parameter.data = read().to(parameter.dtype)
    return {**model.state_dict(), **dict(model.named_buffers())}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_that_are_read_late_are_the_same_to_the_bit(load: Load, architecture: str):
    """A new head, a pooler, adapters and a grown vocabulary included; the float32 checkpoint is read in bfloat16."""
    keywords = {"dtype": torch.bfloat16, "vocab_size": 333}
    now, late = (load(architecture, reading=reading, **keywords) for reading in ("all", "deferred"))
    if architecture != "deberta-v2":
        for model in (now, late):
            add_adapters(model, LoraSection(rank=2), seed=3)
    assert late.stored_weights
    assert late.read_because is None
    expected, found = _read(now), _read(late)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(found[name].dtype == expected[name].dtype for name in expected)


def test_several_files_and_a_head_of_the_checkpoint_can_be_read_late(load: Load, tmp_path: Path):
    load("bert").model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    expected, late = _load(tmp_path), _load(tmp_path, reading="deferred")
    assert len(late.stored_weights) == len(list(expected.parameters()))
    found = _read(late)
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())


@pytest.mark.parametrize("kind", ["pickle", "experts"])
def test_weights_that_cannot_wait_are_read_at_once_with_the_reason(load: Load, tmp_path: Path, kind: str):
    if kind == "pickle":
        model = load("llama").model
        model.config.save_pretrained(tmp_path)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_local_experts": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
        config = AutoConfig.for_model("mixtral", vocab_size=30, **sizes, **heads)
        AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained(tmp_path)
    late = _load(tmp_path, reading="deferred")
    assert late.read_because is not None
    assert ("not in model.safetensors" if kind == "pickle" else "transformers converts model.") in late.read_because
    assert not late.stored_weights
    assert all(torch.equal(late.state_dict()[name], value) for name, value in _load(tmp_path).state_dict().items())


def test_a_checkpoint_that_lacks_weights_is_refused_before_any_is_read(small_model: SmallModel, tmp_path: Path):
    broken = _edit_weights(
        small_model("llama"), tmp_path / "a", lambda w: {k: v for k, v in w.items() if "layers.1.mlp" not in k}
    )
    with pytest.raises(ModelError, match="3 weights of the backbone are missing"):
        _load(broken, reading="deferred")


def test_the_first_layers_have_one_of_each_kind(tmp_path: Path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 12, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = AutoConfig.for_model("gemma3_text", vocab_size=30, **sizes, **heads)
    AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained(tmp_path)
    whole, first = _load(tmp_path), _load(tmp_path, reading="first layers")
    assert first.model.config.layer_types == ["sliding_attention"] * 5 + ["full_attention"]
    expected = whole.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in first.state_dict().items())
    assert "model.model.layers.6.mlp.up_proj.weight" in expected
    assert "model.model.layers.6.mlp.up_proj.weight" not in first.state_dict()


# -------------------------------------------------------------------------------------------------- pad token


def test_a_pad_token_beyond_the_vocabulary_is_refused(small_model: SmallModel):
    with pytest.raises(ModelError, match="pad token has id 10000"):
        _load(small_model("llama"), pad_token_id=10000)


def test_another_pad_token_than_an_encoder_s_own_is_refused(small_model: SmallModel):
    with pytest.raises(ModelError, match=r"config\.json says 1, and encoders count positions by it"):
        _load(small_model("roberta"), pad_token_id=5)


def test_the_embedding_grows_to_the_tokenizer_and_never_shrinks(load: Load, small_model: SmallModel):
    size = AutoConfig.from_pretrained(small_model("llama"), trust_remote_code=False).vocab_size
    grown = load("llama", vocab_size=size + 1, pad_token_id=size)
    assert grown.state_dict()["model.model.embed_tokens.weight"].shape[0] == size + 1
    assert load("llama", vocab_size=size - 1).state_dict()["model.model.embed_tokens.weight"].shape[0] == size


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "opt"])
def test_the_embedding_of_eos_learns_where_the_checkpoint_padded_with_it(
    small_model: SmallModel, tmp_path: Path, architecture
):
    """transformers gives the pad token's embedding no gradient; a checkpoint with pad == eos would never learn eos."""
    shutil.copytree(small_model(architecture), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    eos = config["pad_token_id"] = config["eos_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = _load(tmp_path, pad_token_id=0)
    ids = torch.tensor([[20, 30, eos], [40, 50, eos]])
    rewards = model(ids, torch.arange(3).expand(2, 3), torch.ones_like(ids), None, torch.tensor([2, 5]))
    (rewards[1] - rewards[0]).backward()
    gradient = model.model.get_input_embeddings().weight.grad
    assert isinstance(gradient, torch.Tensor)
    assert gradient[eos].any()
