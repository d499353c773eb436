"""Every recipe is a configuration that loads; the annotated file of it holds every key and means the same."""

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pairwright.cli.main import main
from pairwright.config import TrainConfig, load_config
from pairwright.config.annotated_file import RECIPES, annotated, read_recipe, toml_value

FOLDER = Path(__file__).parents[2] / "platform" / "pairwright" / "config" / "recipes"


def test_every_file_is_listed() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_an_annotated_file_means_the_same_as_its_recipe(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(name)
    written = tmp_path / "written.toml"
    written.write_text(annotated(recipe), encoding="utf-8")
    assert load_config(recipe.kind, str(written)) == load_config(recipe.kind, str(FOLDER / f"{name}.toml"))
    assert all(len(line) <= 120 for line in annotated(recipe).splitlines())


def _keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in kind.model_fields.items():
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)]
        found += _keys(nested[0], f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_an_annotated_file_holds_every_key_under_its_section(name: str) -> None:
    recipe = read_recipe(name)
    section, found = "", []
    for line in annotated(recipe).splitlines():
        if (header := re.fullmatch(r"(?:# )?\[([\w.]+)\]", line)) is not None:
            section = f"{header[1]}."
        elif (key := re.fullmatch(r"(?:# )?(\w+) = ?.*", line)) is not None:
            found.append(section + key[1])
    assert sorted(found) == sorted(_keys(recipe.kind))


def test_defaults_that_stand_commented_out_are_the_defaults() -> None:
    """With the marks removed, from keys and sections alike, the file still means the same."""
    recipe = read_recipe("lora_one_gpu")
    lines = [re.sub(r"^# (?=\w+ = [^ ])", "", line) for line in annotated(recipe).splitlines()]
    values = tomllib.loads("\n".join(lines))
    assert values != recipe.values
    assert TrainConfig.model_validate(values) == TrainConfig.model_validate(recipe.values)


def test_reasons_in_a_recipe_stand_above_their_key() -> None:
    lines = annotated(read_recipe("lora_one_gpu")).splitlines()
    at = lines.index("learning_rate = 0.0001")
    assert lines[at - 1].startswith("# Adapters start at zero")


def test_the_recipe_for_eight_gpus_has_the_papers_settings() -> None:
    config = load_config(TrainConfig, str(FOLDER / "eight_gpus.toml"))
    assert (config.deepspeed.zero_stage, config.deepspeed.precision) == (3, "bf16")
    assert (config.workers.num_workers, config.workers.use_gpu) == (8, True)
    # InstructGPT: 64 prompts a batch, one epoch, 9e-6, cosine to 10 %; Llama 2: 3 % warm-up.
    assert (config.batches.groups_per_step, config.training.epochs) == (64, 1)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.min_lr_ratio, optimizer.warmup_ratio) == (9e-6, 0.1, 0.03)
    # Nine completions of the longest length fit one micro-batch.
    assert config.batches.micro_batch_tokens >= 9 * config.tokens.max_length


@pytest.mark.parametrize("value", ['a "b" \\ \n ü', True, 3, 1e-8, 0.1, [1, "x"], {"a.b": "c", "d": "e"}, {}, []])
def test_values_are_written_as_toml_reads_them(value: object) -> None:
    assert tomllib.loads(f"x = {toml_value(value)}")["x"] == value


def test_every_default_can_be_written() -> None:
    for kind in set(RECIPES.values()):
        for name, field in kind.model_fields.items():
            if field.default not in (PydanticUndefined, None) and not isinstance(field.default, BaseModel):
                assert tomllib.loads(f"{name} = {toml_value(field.default)}")


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["pairwright", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_init_writes_once_and_replaces_only_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my.toml"
    assert _run(monkeypatch, "init", str(path), "--recipe", "one_gpu") == 0
    assert "pairwright train --config" in capsys.readouterr().out
    edited = path.read_text(encoding="utf-8") + "# edited\n"
    path.write_text(edited, encoding="utf-8")
    assert _run(monkeypatch, "init", str(path), "--recipe", "one_gpu") == 1
    assert "--overwrite" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == edited
    assert _run(monkeypatch, "init", str(path), "--recipe", "lora_one_gpu", "--overwrite") == 0
    assert "\n[lora]\n" in path.read_text(encoding="utf-8")


def test_init_makes_the_folder_and_replaces_nothing_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "init", str(tmp_path / "a" / "b" / "my.toml"), "--recipe", "expand") == 0
    assert (tmp_path / "a" / "b" / "my.toml").is_file()
    theirs = tmp_path / "theirs.toml"
    theirs.write_text("learning_rate = 1e-5\n", encoding="utf-8")
    assert _run(monkeypatch, "init", str(theirs), "--recipe", "expand", "--overwrite") == 1
    assert "is not replaced" in capsys.readouterr().err
    assert theirs.read_text(encoding="utf-8") == "learning_rate = 1e-5\n"


def test_init_lists_recipes_and_names_them_where_one_is_unknown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "init") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in RECIPES)
    assert _run(monkeypatch, "init", "my.toml", "--recipe", "two_gpus") == 1
    assert "small_encoder" in capsys.readouterr().err
