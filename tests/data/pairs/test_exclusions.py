"""What `expand` leaves out by name or text: pairs are those of annotations that never held it, and it is counted."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annotation_tables import annotation_row, annotations_table, commit_annotations, real_rows
from pairwright.config import ExpandConfig
from pairwright.data.pairs.build_pairs import expand_groups
from pairwright.data.pairs.exclusions import Exclusions, drop_excluded, names_of, repeated_texts, texts_and_prompts
from pairwright.data.pairs.expand import expand
from pairwright.data.table.inspect import format_inspection, inspect_version
from pairwright.data.table.table import Manifest, Table
from pairwright.errors import DataError
from report_tables import random_rows

Row = dict[str, Any]


def expanded(rows: list[Row], folder: Path, **config: Any) -> tuple[Manifest, list[Row]]:
    if not (folder / "annotations").exists():
        commit_annotations(str(folder / "annotations"), [annotations_table(rows)])
    made = expand(str(folder / "annotations"), str(folder / "pairs"), ExpandConfig(**config), version=None)
    table = Table(str(folder / "pairs"), "pairs")
    return made, [row for part in table.read(made) for row in part.to_pylist()]


def without(rows: list[Row], goes: Any) -> list[Row]:
    """Return the rows without the completions that ``goes`` says, and without groups of fewer than two."""
    kept = []
    for row in rows:
        places = [place for place, completion in enumerate(row["completions"]) if not goes(completion)]
        if len(places) > 1:
            values: Row = {key: [row[key][place] for place in places] for key in ("completions", "ranks")}
            values["scores"] = None if row["scores"] is None else [row["scores"][place] for place in places]
            kept.append(row | values)
    return kept


def pairs_of(rows: list[Row], **config: Any) -> list[Row]:
    return expand_groups(annotations_table(rows), ExpandConfig(**config))[0].to_pylist()


@pytest.fixture
def rows() -> list[Row]:
    rows = random_rows(150, seed=4)
    for number, row in enumerate(rows):
        if number % 3:
            row["scores"] = [float(-rank) for rank in row["ranks"]]
    return rows


def test_models_are_excluded_as_if_their_completions_had_never_been_there(rows: list[Row], tmp_path: Path) -> None:
    models = {"model 1", "model 5", "model 6", "model 7"}
    config = {"leave_out_models": [*models], "ties": "half", "margin": "score_difference"}
    made, found = expanded(rows, tmp_path, **config)
    left = without(rows, lambda completion: completion["model"] in models)
    assert found == pairs_of(left, **config)
    gone = [c["model"] for row in rows for c in row["completions"] if c["model"] in models]
    assert made.totals["excluded_by_model"] == len(gone)
    assert made.totals["excluded_model:model 5"] == gone.count("model 5") > 0
    num_groups = len({row["group_id"] for row in rows}) - len({row["group_id"] for row in left})
    assert made.totals["groups_excluded"] == num_groups > 0
    assert made.totals["annotations"] == len(left)


def test_annotators_and_subsets_are_excluded_and_each_annotation_counts_once(rows: list[Row], tmp_path: Path) -> None:
    made, found = expanded(rows, tmp_path, leave_out_annotators=["ann", "bob"], leave_out_subsets=["facts"])
    left = [row for row in rows if row["annotator"] not in ("ann", "bob") and row["subset"] != "facts"]
    assert found == pairs_of(left)
    by_annotator = sum(row["annotator"] in ("ann", "bob") for row in rows)
    totals = made.totals
    assert (totals["excluded_by_annotator"], totals["excluded_by_subset"]) == (
        by_annotator,
        len(rows) - len(left) - by_annotator,
    )
    assert totals["excluded_annotator:ann"] + totals["excluded_annotator:bob"] == by_annotator
    num_groups = len({row["group_id"] for row in rows}) - len({row["group_id"] for row in left})
    assert totals["groups_excluded"] == num_groups > 0


def test_listed_texts_are_excluded_to_the_last_character(rows: list[Row], tmp_path: Path) -> None:
    texts = sorted({completion["text"] for row in rows[::4] for completion in row["completions"][:1]})
    lines = [json.dumps(text if number % 2 else {"text": text}) for number, text in enumerate(texts)]
    listed = tmp_path / "texts.jsonl"
    listed.write_text("\n".join([*lines, json.dumps(texts[0] + " ")]))
    made, found = expanded(rows, tmp_path, leave_out_texts=[str(listed)])
    assert found == pairs_of(without(rows, lambda completion: completion["text"] in texts))
    gone = sum(completion["text"] in texts for row in rows for completion in row["completions"])
    assert made.totals["excluded_by_text"] == gone > 0
    listed.write_text(json.dumps(texts[0]))
    changed, _ = expanded(rows, tmp_path, leave_out_texts=[str(listed)])
    assert (made.version, changed.version) == (1, 2)
    assert changed.totals["excluded_by_text"] < gone
    description = inspect_version(str(tmp_path / "pairs"), version=None, num_sample=0)
    assert [entry["kind"] for entry in description["lineage"]] == ["annotations", "texts left out"]
    listed.write_text('"good"\n17\n')
    with pytest.raises(DataError, match=r"texts\.jsonl:2: no text to leave out"):
        expanded(rows, tmp_path, leave_out_texts=[str(listed)])


def test_texts_under_more_prompts_than_allowed_are_excluded(tmp_path: Path) -> None:
    rows = [
        annotation_row(str(n), ["always", f"own {n}", f"other {n}", *["half the time"] * (n % 2)], None, prompt=f"p{n}",
                       scores=list(range(3 + n % 2)))
        for n in range(20)
    ]  # fmt: skip
    again = annotation_row("again", ["own 3", "own 3"], [1, 2], prompt="p3")
    made, found = expanded([*rows, again], tmp_path, max_prompts_per_text=10)
    assert found == pairs_of(without([*rows, again], lambda completion: completion["text"] == "always"))
    assert (made.totals["excluded_by_prompts"], made.totals["groups_excluded"]) == (20, 0)


def test_repeated_texts_of_parts_are_those_of_the_whole() -> None:
    rows = random_rows(60, seed=1)
    for row in rows:
        row["completions"][0]["text"] = f"text {len(row['id']) + int(row['ranks'][0])}"
    prompts: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for completion in row["completions"]:
            prompts[completion["text"]].add(row["prompt_id"])
    parts = [annotations_table(rows[start::3]).select(["prompt_id", "completions"]) for start in range(3)]
    found = repeated_texts([texts_and_prompts(part) for part in parts], 3)
    assert len(found) == sum(len(under) > 3 for under in prompts.values()) > 0


def test_annotations_that_name_other_models_for_a_text_are_left_with_the_same_texts() -> None:
    """One names the model of each copy of a text, one of another copy, one nobody."""
    texts = ["same", "same", "b", "c"]
    named = [["spam", "good", None, None], ["good", "spam", None, None], [None] * 4]
    rows = [annotation_row(str(number), texts, [1, 2, 3, 4]) for number in range(3)]
    for row, models in zip(rows, named, strict=True):
        for completion, model in zip(row["completions"], models, strict=True):
            completion["model"] = model
    nothing = np.empty(0, np.uint64)
    exclusions = Exclusions(names_of(ExpandConfig(leave_out_models=["spam"])), [], nothing)
    left, totals = drop_excluded(annotations_table(rows), exclusions)
    models = [[completion["model"] for completion in row] for row in left["completions"].to_pylist()]
    assert models == [["good", None, None], ["good", None, None], [None, None, None]]
    assert (totals["excluded_by_model"], totals["excluded_model:spam"]) == (3, 2)
    (group,) = expand_groups(left, ExpandConfig())[0].to_pylist()
    assert [completion["text"] for completion in group["completions"]] == ["same", "b", "c"]


def test_what_is_to_be_excluded_and_is_nowhere_is_said(rows: list[Row], tmp_path: Path) -> None:
    names = {"leave_out_models": ["model 1", "modle 2"], "leave_out_annotators": ["Ann"], "leave_out_subsets": ["fact"]}
    expanded(rows, tmp_path, **names, max_prompts_per_text=40)
    text = format_inspection(inspect_version(str(tmp_path / "pairs"), version=None, num_sample=0))
    for line in (
        "leave_out_models: nothing is of model 'modle 2'",
        "leave_out_annotators: nothing is of annotator 'Ann'",
        "leave_out_subsets: nothing is of subset 'fact'",
        "max_prompts_per_text: no text stands under more than 40 prompts",
    ):
        assert line in text
    assert "model 'model 1'" not in text


def test_pairs_from_which_nothing_is_excluded_are_recorded_as_before() -> None:
    """Their digest holds the configuration: keys that are not used would change that of every table."""
    dumped = ExpandConfig().model_dump(mode="json")
    assert not [key for key in dumped if key.startswith("drop_excluded") or key == "max_prompts_per_text"]
    assert "leave_out_models" in ExpandConfig(leave_out_models=["m"]).model_dump(mode="json")


def test_the_one_text_of_a_model_of_the_real_rankings_is_excluded_by_either_rule(tmp_path: Path) -> None:
    rows = real_rows()
    by_name, one = expanded(rows, tmp_path, leave_out_models=["NullModel"])
    by_prompts, other = expanded(rows, tmp_path, max_prompts_per_text=100)
    assert by_name.totals["excluded_by_model"] == by_prompts.totals["excluded_by_prompts"] == 281
    assert one == other
    assert by_name.totals["pairs"] == 16_448


@pytest.mark.parametrize(("margin", "what"), [("score_difference", "scores"), ("strength", "a grade")])
def test_a_margin_that_finds_nothing_is_refused_and_leaves_nothing(margin: str, what: str, tmp_path: Path) -> None:
    rows = [annotation_row(str(n), ["a", "b"], [1, 2], prompt=f"p{n}") for n in range(3)]
    with pytest.raises(DataError, match=f'margin = "{margin}" finds nothing, since none of 3 annotations has {what}'):
        expanded(rows, tmp_path, margin=margin)
    assert not [path for path in (tmp_path / "pairs").rglob("*") if path.is_file()]


def test_pairs_with_and_without_a_margin_are_counted_and_said(tmp_path: Path) -> None:
    rows = [annotation_row(str(n), ["a", "b"], [1, 2], prompt=f"p{n}") for n in range(3)]
    rows += [annotation_row(f"s{n}", ["a", "b", "c"], scores=[3.0, 2.0, 1.0], prompt=f"q{n}") for n in range(2)]
    made, _ = expanded(rows, tmp_path, margin="score_difference")
    names = ("annotations_scored", "pairs_with_margin", "pairs_without_margin")
    assert [made.totals[name] for name in names] == [2, 6, 3]
    text = format_inspection(inspect_version(str(tmp_path / "pairs"), version=None, num_sample=0))
    assert "margin: 3 of 9 pairs have none" in text
