"""Groups that an expansion leaves out for what their prompts are like, held to all pairs of prompts compared."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from annotation_tables import annotation_row, annotations_table, commit_annotations, real_rows
from pairwright.config import ExpandConfig
from pairwright.data.pairs.build_pairs import split_of
from pairwright.data.pairs.expand import expand
from pairwright.data.table.inspect import format_inspection, inspect_version
from pairwright.data.table.table import Manifest, Table
from pairwright.errors import DataError, SourceError

WORDS = "river stone garden winter letter music travel bridge doctor engine flower island market number".split()  # noqa: SIM905
ESSAY = "Before you answer, weigh what speaks for each side, and say which of them you would follow and why."
DROP = ExpandConfig(near_duplicates="drop_train", validation_fraction=0.3)


def row(number: int, prompt: str, annotator: int = 0) -> dict[str, Any]:
    texts = [f"{prompt[::-1]} {n}" for n in range(3)]
    return annotation_row(f"{number}-{annotator}", texts, [1, 2, 3], prompt=prompt, line=2 * number + annotator + 1)


def rankings() -> list[dict[str, Any]]:
    """Return annotations of 120 prompts and of an edited copy of each, two annotators a group."""
    rng = random.Random(0)
    prompts = [" ".join(rng.choices(WORDS, k=rng.randint(4, 20))) for _ in range(120)]
    prompts += [prompt.replace("river", "lake", 1).replace("music", "noise", 1) + "!" for prompt in prompts]
    return [row(number, prompt, annotator) for number, prompt in enumerate(prompts) for annotator in range(2)]


def grams(text: str) -> set[str]:
    text = " ".join(text.lower().split())
    return {text[i : i + 5] for i in range(len(text) - 4)}


def share(one: str, other: str) -> float:
    return len(grams(one) & grams(other)) / len(grams(one) | grams(other))


def prompts_of(rows: list[dict[str, Any]], split: str) -> dict[str, str]:
    """Return id -> text of the prompts of one split."""
    return {
        r["prompt_id"]: r["prompt"][0]["content"]
        for r in rows
        if split_of(r["prompt_id"], DROP.validation_fraction) == split
    }


def kept_in(url: Path | str, manifest: Manifest) -> set[str]:
    return {
        name for table in Table.open(str(url)).read(manifest, ["prompt_id"]) for name in table["prompt_id"].to_pylist()
    }


def refused_in(url: Path | str, manifest: Manifest) -> list[str]:
    table = Table.open(str(url))
    return sorted(str(one) for file in manifest.quarantined_files for one in table.read_quarantined(file))


def test_train_prompts_that_nearly_stand_in_validation_go_whatever_the_files(tmp_path: Path) -> None:
    rows = rankings()
    train, validation = prompts_of(rows, "train"), prompts_of(rows, "validation")
    expected = {name for name, text in train.items() if max(share(text, v) for v in validation.values()) >= 0.7}
    assert 20 < len(expected) < len(train)
    config = DROP.model_copy(update={"partition_bytes": 1})
    made = []
    for name, tables in {"one": [rows], "many": [rows[::-1][start::5] for start in range(5)]}.items():
        commit_annotations(str(tmp_path / name), [annotations_table(table) for table in tables])
        made.append(expand(str(tmp_path / name), str(tmp_path / f"{name} pairs"), config, version=None))
    for manifest, name in zip(made, ("one", "many"), strict=True):
        assert kept_in(tmp_path / f"{name} pairs", manifest) == (train.keys() | validation.keys()) - expected
        assert manifest.totals["groups_near_duplicate"] == len(expected)
        assert manifest.totals["groups_contaminated"] == 0
        assert manifest.totals["annotations_excluded"] == 2 * len(expected)
        assert manifest.totals["pairs_excluded"] == 3 * len(expected)
        assert manifest.totals["annotations"] + manifest.totals["annotations_excluded"] == len(rows)
    reasons = refused_in(tmp_path / "one pairs", made[0])
    assert reasons == refused_in(tmp_path / "many pairs", made[1])
    assert len(reasons) == len(expected)
    assert all("near-duplicate of a validation prompt, got similarity 0." in reason for reason in reasons)
    shown = format_inspection(inspect_version(str(tmp_path / "one pairs"), version=None, num_sample=0))
    assert "groups_near_duplicate" in shown
    assert "near-duplicate of a validation prompt, got" in shown


def test_groups_of_either_split_that_overlap_an_evaluation_set_go_and_a_changed_set_is_another_version(
    tmp_path: Path,
) -> None:
    rows = rankings()
    commit_annotations(str(tmp_path / "annotations"), [annotations_table(rows)])
    train, validation = list(prompts_of(rows, "train").items()), list(prompts_of(rows, "validation").items())
    bench = tmp_path / "bench.jsonl"
    longest = max(train, key=lambda prompt: len(prompt[1].split()))
    asked = [train[0][1].upper(), validation[0][1] + " now", f"{ESSAY} {longest[1]} {ESSAY}"]
    bench.write_text("".join(json.dumps({"prompt": text, "answer": "x"}) + "\n" for text in asked))
    other = str(tmp_path / "other")
    commit_annotations(other, [annotations_table([row(999, validation[1][1].replace("a", "á"))])])
    config = ExpandConfig(validation_fraction=0.3, decontaminate=[str(bench), other])
    pairs = str(tmp_path / "pairs")
    made = expand(str(tmp_path / "annotations"), pairs, config, version=None)
    gone = {r["prompt_id"] for r in rows} - kept_in(pairs, made)
    assert {train[0][0], validation[0][0], longest[0]} <= gone
    asked.append(validation[1][1].replace("a", "á"))
    texts = dict(train) | dict(validation)
    by_share = {name for name, text in texts.items() if max(share(text, a) for a in asked) >= 0.7}
    assert by_share <= gone
    assert made.totals["groups_contaminated"] == len(gone) < 15
    assert any("in a row as in" in reason and "bench.jsonl:3" in reason for reason in refused_in(pairs, made))
    assert [given.version for given in made.inputs] == [1, 1, 0]
    assert expand(str(tmp_path / "annotations"), pairs, config, version=None) == made
    bench.write_text(json.dumps({"prompt": "something that nobody asked"}) + "\n")
    changed = expand(str(tmp_path / "annotations"), pairs, config, version=None)
    assert changed.version == 2
    assert changed.totals["groups_contaminated"] < made.totals["groups_contaminated"]
    shown = format_inspection(inspect_version(pairs, version=1, num_sample=0))
    assert "bench.jsonl" in shown
    assert "no longer there" not in shown


def test_an_evaluation_set_that_cannot_be_compared_leaves_nothing(tmp_path: Path) -> None:
    commit_annotations(str(tmp_path / "annotations"), [annotations_table([row(0, "a prompt")])])
    (tmp_path / "bench.jsonl").write_text('{"question": "a prompt"}\n')
    for name, error in {"bench.jsonl": DataError, "missing.jsonl": SourceError}.items():
        config = ExpandConfig(decontaminate=[str(tmp_path / name)])
        with pytest.raises(error, match=name):
            expand(str(tmp_path / "annotations"), str(tmp_path / "pairs"), config, version=None)
    assert not (tmp_path / "pairs").exists()


def test_the_real_rankings_hold_six_train_prompts_that_nearly_stand_in_validation(tmp_path: Path) -> None:
    """One template of dinner recipes, filled in seven times: the dishes differ, the other 130 characters do not."""
    commit_annotations(str(tmp_path / "annotations"), [annotations_table(real_rows())])
    config = ExpandConfig(near_duplicates="drop_train")
    made = expand(str(tmp_path / "annotations"), str(tmp_path / "pairs"), config, version=None)
    reasons = refused_in(tmp_path / "pairs", made)
    assert made.totals["groups_near_duplicate"] == len(reasons)
    assert len({reason.partition(" to ")[2] for reason in reasons}) == 1
    assert all("i like to host guests at my home" in reason for reason in reasons)
