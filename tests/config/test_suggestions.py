"""What was perhaps meant: of known names, of configuration keys, of files beside a path."""

from pathlib import Path

import pytest

from pairwright.config import TrainConfig, load_config
from pairwright.errors import ConfigError
from pairwright.suggestions import close_to, did_you_mean, did_you_mean_path


def test_the_closest_known_name_comes_first_whatever_its_case() -> None:
    assert close_to("ANOTATOR-1", ["annotator-2", "Annotator-1", "bob"])[0] == "Annotator-1"
    assert did_you_mean("x", ["annotator"]) == ""


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("rankings.jsnl", "rankings.jsonl"),
        ("dta/tuesday.jsonl", "data/tuesday.jsonl"),
        ("data/tuseday.jsonl", "data/tuesday.jsonl"),
        ("dta/nothing/at/all", None),
        ("entirely-else", None),
        ("s3://bucket/rankings.jsnl", None),
        ("", None),
        ("a\0b", None),
    ],
)
def test_a_path_is_answered_with_one_that_is_there(
    wanted: str, meant: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for name in ("rankings.jsonl", "data/tuesday.jsonl"):
        Path(name).write_text("")
    assert did_you_mean_path(wanted) == ("" if meant is None else f"; did you mean {meant}?")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("training.max_step", "training.max_steps"),
        ("trainig.epochs", "training"),
        ("learning_rate", "optimizer.learning_rate"),
        ("model.max_length", "tokens.max_length"),
        ("max_steps", "training.max_steps"),
        ("tokens.quux", None),
    ],
)
def test_an_unknown_key_is_answered_with_the_closest_of_its_section_or_of_another(key: str, meant: str | None) -> None:
    needed = ["output=run", "model.path=m", "data.pairs=p"]
    with pytest.raises(ConfigError) as error:
        load_config(TrainConfig, None, [*needed, f"{key}=1"])
    assert ("did you mean" in str(error.value)) is (meant is not None)
    assert meant is None or f"did you mean {meant}? known here: " in str(error.value)
