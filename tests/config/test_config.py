"""Configuration: what a person writes wrongly is refused in words that say where, what and what to do."""

import re
from pathlib import Path

import pytest

from pairwright.config import ExpandConfig, IngestConfig, LossConfig, TrainConfig, config_digest, load_config
from pairwright.config.loading import RENAMED_KEYS
from pairwright.config.section import Section
from pairwright.errors import ConfigError

MINIMAL = 'output = "o"\n[model]\npath = "m"\n[data]\npairs = "p"\n'


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return str(path)


def test_overrides_win_over_the_file_and_read_toml_values(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "[training]\nseed = 1\n")
    config = load_config(TrainConfig, path, ["training.seed=7", "optimizer.betas=[0.8, 0.9]", "model.path=runs/x"])
    assert (config.training.seed, config.optimizer.betas, config.model.path) == (7, (0.8, 0.9), "runs/x")


@pytest.mark.parametrize(
    ("text", "overrides", "parts"),
    [
        (MINIMAL + "[deepspeed]\nzero = 2\n", [], ["run.toml", "deepspeed.zero", "unknown key", "zero_stage"]),
        (MINIMAL, ["deepspeed.zero_stage=4"], ["deepspeed.zero_stage", "4"]),
        (MINIMAL, ["training.epochs=many"], ["training.epochs", "many"]),
        (MINIMAL, ["training"], ["--set training", "section.key=value"]),
        ('output = "o"\n[model]\npath = "m"\n', [], ["data", "missing", "--set data"]),
        (
            MINIMAL,
            ["batches.micro_batch_tokens=100"],
            ["batches.micro_batch_tokens (100)", "max_length (2048)", "raise"],
        ),
        (MINIMAL, ["loss.kind=listwise"], ["loss.kind", "listwise", "plackett_luce"]),
        (
            MINIMAL,
            ["loss.kind=hinge", "loss.label_smoothing=0.1"],
            ["label_smoothing is 0.1", "hinge", 'set loss.kind = "bradley_terry"'],
        ),
        (
            MINIMAL,
            ["loss.kind=plackett_luce", "loss.label_smoothing=0.1", "loss.use_margin=false"],
            ["label_smoothing is 0.1", "plackett_luce"],
        ),
        (MINIMAL, ["loss.kind=plackett_luce"], ["use_margin is true", "set loss.use_margin = false"]),
        (MINIMAL, ["loss.hinge_margin=2"], ["hinge_margin is 2.0", "bradley_terry", 'set loss.kind = "hinge"']),
        ("output = [", [], ["run.toml", "not a TOML file"]),
    ],
)
def test_a_mistake_is_named_with_its_place_and_remedy(
    tmp_path: Path, text: str, overrides: list[str], parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, write(tmp_path, text), overrides)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


TRAINING_KEYS = {old: new for old, new in RENAMED_KEYS.items() if old == "engine" or "." in new}


@pytest.mark.parametrize(("old", "new"), TRAINING_KEYS.items())
def test_a_key_of_an_earlier_version_is_refused_with_the_name_that_it_has_now(
    tmp_path: Path, old: str, new: str
) -> None:
    override = "engine.zero_stage=3" if old == "engine" else f"{old}=1"
    with pytest.raises(ConfigError, match=rf"{re.escape(old)}: has been renamed to {re.escape(new)}; use the new key"):
        load_config(TrainConfig, write(tmp_path, MINIMAL), [override])


def test_every_new_name_of_a_renamed_key_exists() -> None:
    for new in TRAINING_KEYS.values():
        fields = TrainConfig.model_fields
        for name in new.split("."):
            annotation = fields[name].annotation
            fields = getattr(annotation, "model_fields", {})


@pytest.mark.parametrize(
    "loss",
    [
        {"kind": "hinge", "hinge_margin": 2.0, "center_coefficient": 0.01},
        {"kind": "plackett_luce", "use_margin": False},
        {"label_smoothing": 0.1, "use_margin": False},
    ],
)
def test_a_resolved_loss_loads_again(loss: dict[str, object]) -> None:
    resolved = LossConfig.model_validate(loss)
    assert LossConfig.model_validate(resolved.model_dump(mode="json")) == resolved


def test_a_missing_file_is_named_and_recipes_are_pointed_at() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such configuration file.*pairwright init"):
        load_config(TrainConfig, "nowhere.toml")


def test_field_paths_need_exactly_one_judgement(tmp_path: Path) -> None:
    text = '[fields]\nprompt = "p"\ncompletions = "c"\nrank = "r"\nscore = "s"\n'
    with pytest.raises(ConfigError, match=r"exactly one of rank, score, ranks and scores.*found rank and score"):
        load_config(IngestConfig, write(tmp_path, text))


def test_equal_configurations_have_equal_digests_whatever_the_order_of_keys(tmp_path: Path) -> None:
    one = load_config(TrainConfig, write(tmp_path, MINIMAL + "[training]\nseed = 1\nepochs = 2\n"))
    two = load_config(TrainConfig, write(tmp_path, MINIMAL + "[training]\nepochs = 2\nseed = 1\n"))
    other = load_config(TrainConfig, write(tmp_path, MINIMAL + "[training]\nepochs = 2\nseed = 2\n"))
    assert config_digest(one) == config_digest(two) != config_digest(other)


@pytest.mark.parametrize(
    ("kind", "override", "renamed"),
    [
        (IngestConfig, "range_bytes=65536", "range_bytes: has been renamed to split_bytes"),
        (IngestConfig, "reader.query=SELECT 1", "reader: has been renamed to connectors"),
        (ExpandConfig, "stretch_bytes=1", "stretch_bytes: has been renamed to partition_bytes"),
        (ExpandConfig, "overlap_words=13", "overlap_words: has been renamed to ngram_size"),
        (ExpandConfig, "shingle_characters=5", "shingle_characters: has been renamed to shingle_size"),
        (ExpandConfig, "margin=score_gap", "margin: 'score_gap' has been renamed to 'score_difference'"),
        (ExpandConfig, "margin=grade", "margin: 'grade' has been renamed to 'strength'"),
    ],
)
def test_an_old_key_or_value_is_refused_with_its_new_name(kind: type[Section], override: str, renamed: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(renamed)):
        load_config(kind, None, [override])
