"""What a report says of suspicious data: each metric against a loop, each highlight where it is due and only there."""

import json
import re
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from annotation_tables import annotation_row, annotations_table, real_rows
from pairwright.config import IngestConfig
from pairwright.data.ingest.ingest import ingest
from pairwright.data.profile.aggregates import Aggregates, decode, encode, merge
from pairwright.data.profile.counts import count
from pairwright.data.profile.profile_schema import TableMetrics
from pairwright.data.profile.suspicious import marks, num_marked, repeated_texts, uniform_judgements
from pairwright.data.table.table import Source
from report_tables import metrics_of, random_rows

Row = dict[str, Any]


def aggregates_of(rows: list[Row]) -> Aggregates:
    return count(annotations_table(rows), {})


def in_parts(rows: list[Row], number: int) -> Aggregates:
    """Return the aggregates of parts by prompt, as tasks count them, each read from two files."""
    parts: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        parts[int(row["prompt_id"][:8], 16) % number].append(row)
    return merge(decode(encode(aggregates_of(part))) for part in parts.values())


def said(metrics: TableMetrics, pattern: str) -> list[tuple[str, str]]:
    return [(one.level, one.text) for one in metrics.highlights if re.search(pattern, one.text)]


def pairs(number: int, *, start: int = 0, **others: Any) -> list[Row]:
    """Return judgements of two completions of which now the first, now the second, now the longer is better."""
    return [
        annotation_row(
            f"{start + n}",
            [f"{n} a" + "x" * (n % 7), f"{n} b" + "y" * (n % 5)],
            [1, 2] if n % 2 else [2, 1],
            prompt=f"prompt {start + n}",
            **others,
        )
        for n in range(number)
    ]


# ------------------------------------------------------------------------------------- texts under many prompts


def by_loop(rows: list[Row], least: int) -> dict[str, tuple[int, int, int, int]]:
    """Return (prompts, completions, decisive comparisons, of them won) of each text under so many prompts."""
    prompts: dict[str, set[str]] = defaultdict(set)
    completions, decisive, won = Counter[str](), Counter[str](), Counter[str]()
    for row in rows:
        judged = list(zip(row["ranks"], (completion["text"] for completion in row["completions"]), strict=True))
        for _, text in judged:
            prompts[text].add(row["prompt_id"])
            completions[text] += 1
        for one, other in combinations(judged, 2):
            (better, first), (worse, second) = sorted([one, other])
            if better != worse and first != second:
                decisive.update([first, second])
                won[first] += 1
    return {
        text: (len(under), completions[text], decisive[text], won[text])
        for text, under in prompts.items()
        if len(under) >= least
    }


@pytest.mark.parametrize("number", [1, 3])
def test_repeated_texts_are_counted_as_a_loop_counts_them(number: int) -> None:
    rows = random_rows(240, seed=7)
    for row in rows:
        row["completions"] = [dict(completion) for completion in row["completions"]]
        for completion in row["completions"]:
            if len(completion["text"]) % 3 == 0:
                completion["text"] = f"I cannot help with that, {len(completion['text']) % 2}."
    rows = [row for row in rows if row["id"].endswith("-0")]  # one annotation a group: texts have changed
    expected = by_loop(rows, 20)
    found = repeated_texts(in_parts(rows, number), num_prompts=80)
    assert len(expected) == 2
    assert {text.beginning: text.prompts for text in found} == {text: counts[0] for text, counts in expected.items()}
    for text in found:
        assert text.beginning is not None
        assert text.wins is not None
        won = round(text.wins * text.decisive)
        assert (text.prompts, text.completions, text.decisive, won) == expected[text.beginning]
        models = Counter(c["model"] for row in rows for c in row["completions"] if c["text"] == text.beginning)
        assert [(model.name, model.completions) for model in text.models] == sorted(
            models.items(), key=lambda one: (-one[1], one[0])
        )[:3]
        assert text.num_models == len(models)


def test_the_one_text_of_a_model_of_the_real_rankings_is_said_and_its_model_is_no_good_news() -> None:
    rows = real_rows()
    metrics = metrics_of(rows)
    ((text, counts),) = by_loop(rows, 20).items()
    (found,) = metrics.repeated_texts
    assert (found.prompts, found.completions, found.decisive) == counts[:3] == (281, 281, 1650)
    assert found.wins == counts[3] / counts[2]
    assert (text[:80], len(text)) == (found.beginning, found.characters)
    assert [(model.name, model.completions) for model in found.models] == [("NullModel", 281)]
    ((level, sentence),) = said(metrics, "One text")
    assert level == "alarm"
    assert "872 characters, by NullModel) completes 281 of 406 prompts and wins 93.0 % of 1,650" in sentence
    ((level, sentence),) = said(metrics, "strongest")
    assert level == "alarm"
    assert "281 of its 281 completions are one text" in sentence
    assert "without such models FuseChat-Gemma-2-9B-Instruct is the strongest" in sentence


def test_a_short_answer_to_many_prompts_or_one_that_loses_is_no_alarm() -> None:
    rows = [annotation_row(str(n), ["Yes.", f"{n} is no answer"], [1, 2], prompt=f"p{n}") for n in range(30)]
    assert [level for level, _ in said(metrics_of(rows), "One text")] == ["note"]
    rows = [annotation_row(str(n), ["I cannot help with this.", f"{n}"], [2, 1], prompt=f"p{n}") for n in range(30)]
    assert [level for level, _ in said(metrics_of(rows), "One text")] == ["note"]
    assert said(metrics_of(rows[:19]), "One text") == []


# ------------------------------------------------------------------------------------- uniform judgements


def uniform(rows: list[Row]) -> set[tuple[str, str, str]]:
    return {(found.entity, found.name, found.kind) for found in uniform_judgements(aggregates_of(rows))}


def test_an_annotator_who_ties_everything_or_follows_the_list_or_the_length_is_named() -> None:
    rows = pairs(90, annotator="ann")
    for number, kind in enumerate(["tied", "first", "last", "longer"], start=1):
        for row in pairs(30, start=100 * number, annotator=kind):
            lengths = [len(completion["text"]) for completion in row["completions"]]
            if kind == "longer" and lengths[0] == lengths[1]:
                continue
            longer = [1, 2] if lengths[0] > lengths[1] else [2, 1]
            row["ranks"] = {"tied": [1, 1], "first": [1, 2], "last": [2, 1], "longer": longer}[kind]
            rows.append(row)
    assert uniform(rows) == {("annotator", kind, kind) for kind in ("tied", "first", "last", "longer")}
    text = said(metrics_of(rows), "ties everything in all 30 annotations")
    assert [level for level, _ in text] == ["alarm"]
    assert "leave_out_annotators" in text[0][1]


def test_nineteen_judgements_or_judgements_as_all_others_are_no_finding() -> None:
    rows = pairs(60, annotator="ann")
    few = [row | {"ranks": [1, 1]} for row in pairs(19, start=100, annotator="few")]
    assert uniform([*rows, *few]) == set()
    nearly_all_tied = [row | {"ranks": [1, 1]} for row in pairs(200, start=200, annotator="bob")[:190]]
    usual = [row | {"ranks": [1, 1]} for row in pairs(21, start=500, annotator="cy")]
    others = pairs(40, start=600, annotator="bob")
    assert uniform([*nearly_all_tied, *others, *usual]) == set()


def test_the_layout_of_pairs_makes_nobody_suspicious() -> None:
    """Chosen stands first in every record of a pair, whoever judged it; a source of one annotator tells nothing."""
    one = [row | {"ranks": [1, 2]} for row in pairs(90, annotator="ann", source="a.jsonl")]
    other = [row | {"ranks": [1, 2]} for row in pairs(60, start=100, annotator="bob", source="a.jsonl")]
    mixed = pairs(80, start=200, annotator="cy", source="b.jsonl")
    assert uniform([*one, *other, *mixed]) == set()
    assert uniform([*one, *mixed]) == set()


def test_a_model_that_wins_or_loses_everything_is_named() -> None:
    rows = pairs(60)
    for row in rows:
        for completion, rank in zip(row["completions"], row["ranks"], strict=True):
            completion["model"] = "gpt-4" if rank == 1 else "llama-2"
    assert uniform(rows) == {("model", "gpt-4", "won"), ("model", "llama-2", "lost")}
    ((level, text),) = said(metrics_of(rows), "gpt-4 wins every comparison in all 60 completions")
    assert level == "alarm"
    assert "llama-2 loses every comparison" in text
    rows[0]["ranks"] = rows[0]["ranks"][::-1]
    assert uniform(rows) == set()


# ------------------------------------------------------------------------------------------------ marks in texts


def test_template_tokens_and_marks_of_transcripts_are_counted_by_annotation_and_source() -> None:
    texts = {
        "<|im_end|>": "Sure.<|im_end|>",
        "[INST]": "[INST] Why? [/INST] So.",
        "[/INST]": "[INST] Why? [/INST] So.",
        "Human:": "So.\n\nHuman: And then?",
        "</s>": "Done.</s>",
    }
    rows = pairs(40, source="clean.jsonl")
    for number, text in enumerate([*texts.values(), "Human beings: all of them", "a <s>b</s c>", "x | y [INSTANT]"]):
        rows.append(annotation_row(f"m{number}", [text, "b"], [1, 2], prompt=f"m{number}", source="marked.jsonl"))
    rows.append(annotation_row("p", ["a", "b"], [1, 2], prompt="Human: Why?\n\nAssistant:", source="clean.jsonl"))
    aggregates = in_parts(rows, 3)
    found = {mark.mark: (mark.annotations, mark.main_source) for mark in marks(aggregates["marks"])}
    assert found == {
        "<|im_end|>": (1, "marked.jsonl"),
        "[INST]": (2, "marked.jsonl"),
        "[/INST]": (2, "marked.jsonl"),
        "Human:": (2, "clean.jsonl"),
        "Assistant:": (1, "clean.jsonl"),
        "</s>": (1, "marked.jsonl"),
    }
    assert num_marked(aggregates["marks"]) == 6
    ((level, text),) = said(metrics_of(rows), "template tokens")
    assert level == "alarm"
    assert "6 of 49 annotations (12.2 %)" in text


def test_marks_of_the_real_rankings_are_those_that_a_loop_finds() -> None:
    rows = real_rows()
    texts = [[turn["content"] for turn in row["prompt"]] + [c["text"] for c in row["completions"]] for row in rows]
    assert {mark.mark: mark.annotations for mark in marks(aggregates_of(rows)["marks"])} == {
        "</s>": sum(any("</s>" in text for text in held) for held in texts),
        "Assistant:": sum(any(re.search(r"(\A|\n\n)Assistant:", text) for text in held) for held in texts),
    }


# --------------------------------------------------------------------------------------------------- swapped sides


def test_chosen_with_the_lower_score_are_counted_by_source() -> None:
    right = [row | {"scores": [float(-rank) for rank in row["ranks"]]} for row in pairs(60, source="right.jsonl")]
    swapped = [
        row | {"scores": [float(rank) for rank in row["ranks"]]} for row in pairs(30, start=100, source="file.jsonl")
    ]
    metrics = metrics_of([*right, *swapped], others=(source("right.jsonl"),))
    assert {one.uri: (one.scored, one.against_scores) for one in metrics.sources} == {
        "right.jsonl": (60, 0.0),
        "file.jsonl": (30, 1.0),
    }
    ((level, text),) = said(metrics, "lower score")
    assert level == "alarm"
    assert "file.jsonl prefers the completion with the lower score in 100.0 % of 30 comparisons" in text
    assert "look swapped" in text
    assert said(metrics_of(right, name="right.jsonl"), "lower score") == []


def test_a_source_that_contradicts_the_others_nearly_always_looks_swapped() -> None:
    rows = [row for name in ("ann", "bob") for row in pairs(60, annotator=name, source="right.jsonl")]
    swapped = [row | {"ranks": row["ranks"][::-1]} for row in pairs(60, annotator="cy", source="file.jsonl")]
    for number, row in enumerate([*rows, *swapped]):
        row["id"] = str(number)
    metrics = metrics_of([*rows, *swapped], others=(source("right.jsonl"),))
    ((level, text),) = said(metrics, "Against the majority of the other annotators")
    assert level == "alarm"
    assert "file.jsonl in 100.0 % of 60 preferences: chosen and rejected look swapped" in text
    assert said(metrics, "cy went against the majority .* look swapped")


def source(name: str) -> Source:
    return Source(uri=name, size=1, etag=None, lines=1, accepted=1, refused=0, format="native")


# --------------------------------------------------------------------------------------------------- duplicate ids


def test_a_source_most_of_whose_ids_stand_twice_is_said_to_name_something_else() -> None:
    ((level, text),) = said(metrics_of(pairs(40), duplicates=60), "duplicate ids")
    assert level == "alarm"
    assert "60 of 109 records of file.jsonl were refused as duplicate ids" in text
    assert said(metrics_of(pairs(90), duplicates=60), "duplicate ids") == []
    assert said(metrics_of(pairs(2), duplicates=19), "duplicate ids") == []


def test_all_that_looks_wrong_is_said_however_much_it_is() -> None:
    rows = pairs(90, annotator="ann")
    rows += [row | {"ranks": [1, 1]} for row in pairs(30, start=100, annotator="tied")]
    for row in rows:
        row["scores"] = [float(rank) for rank in row["ranks"]]
        row["completions"][0]["text"] += "<|im_end|>"
        row["completions"][1]["model"] = "m"
    bad = [one for one in metrics_of(rows, duplicates=200).highlights if one.level != "good"]
    assert len(bad) > 5
    assert len(metrics_of(pairs(60)).highlights) <= 5


def test_an_ingestion_says_that_its_ids_name_something_else(tmp_path: Path) -> None:
    records = [{"id": f"p{n // 3}", "prompt": f"p{n // 3}", "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(60)]
    (tmp_path / "file.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    config = IngestConfig.model_validate({"format": "trl", "fields": {"id": "id", "unique_ids": True}})
    text = ingest([str(tmp_path / "file.jsonl")], str(tmp_path / "many"), config).text()
    assert "40 refused: duplicate id" in text
    assert "so many ids stand twice that they seem to name prompts" in text
    (tmp_path / "file.jsonl").write_text("\n".join(json.dumps(record) for record in records[::3] + records[1:20:3]))
    assert "so many ids" not in ingest([str(tmp_path / "file.jsonl")], str(tmp_path / "few"), config).text()
    assert "refused 0" in ingest([str(tmp_path / "file.jsonl")], str(tmp_path / "hashed"), IngestConfig()).text()
