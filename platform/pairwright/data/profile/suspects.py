"""Sums of a report -> what looks wrong: texts under many prompts, judgements that are all alike, marks. Pure."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pairwright.data.profile.aggregates import Sums
from pairwright.data.profile.annotators_and_models import Row, share
from pairwright.data.profile.profile_schema import Alike, Kind, Marks, ModelCompletions, RepeatedText

MIN_PROMPTS = 20
"""A text under fewer prompts is a refusal or a greeting that a model repeats."""
MIN_SHARE_OF_PROMPTS = 0.001
"""Of a large table's prompts; a text below that could also be missed, since parts of it are counted by themselves."""
MIN_JUDGEMENTS = 20
"""Twenty throws of a fair coin are alike once in a million."""
CHANCE = 1e-6
"""All judgements of one party are alike: said if their number makes it rarer than that at the share of the others."""
MAX_MODELS = 3


def repeated_texts(sums: Sums, num_prompts: int) -> list[RepeatedText]:
    """Return the texts that stand under many prompts, those under the most first."""
    least = max(MIN_PROMPTS, MIN_SHARE_OF_PROMPTS * num_prompts)
    texts = sums["texts"].filter(pc.field("prompts") >= least)
    texts = texts.sort_by([("prompts", "descending"), ("text", "ascending")])
    models: dict[int, list[ModelCompletions]] = defaultdict(list)
    by_number = [("completions", "descending"), ("model", "ascending")]
    for row in _of(sums["text_models"].sort_by(by_number), texts):
        if row["model"] is not None:
            models[row["text"]].append(ModelCompletions(name=row["model"], completions=row["completions"]))
    beginnings = {row["text"]: row["beginning"] for row in _of(sums["text_beginnings"], texts) if row["beginning"]}
    return [
        RepeatedText(
            beginning=beginnings.get(row["text"]),
            characters=row["characters"] // row["completions"],
            prompts=row["prompts"],
            completions=row["completions"],
            untied=row["untied"],
            wins=share(row["won"], row["untied"]),
            num_models=len(models[row["text"]]),
            models=models[row["text"]][:MAX_MODELS],
        )
        for row in texts.to_pylist()
    ]


def _of(table: pa.Table, texts: pa.Table) -> list[Row]:
    return table.filter(pc.field("text").isin(texts["text"])).to_pylist()


def all_alike(sums: Sums) -> list[Alike]:
    """Return the annotators and models whose every judgement is of one kind, where that is no chance.

    Who is first or last in a list is a matter of the source's layout too (in pairs of chosen and rejected the best is
    always first), so it is held against the others of the same sources, and they have to be as many.
    """
    annotators, models = sums["annotator_kinds"], sums["model_kinds"]
    everywhere = annotators.drop_columns("source")
    found = [
        *_alike(everywhere, "annotator", "tied", "compared"),
        *_alike(everywhere, "annotator", "longer", "untied"),
        *_alike(annotators, "annotator", "first", "decided"),
        *_alike(annotators, "annotator", "last", "decided"),
        *_alike(models, "model", "won", "judged"),
        *_alike(models, "model", "lost", "judged"),
    ]
    return sorted(found, key=lambda one: (-one.judgements, one.party, one.name, one.kind))


def _alike(table: pa.Table, party: Literal["annotator", "model"], kind: Kind, judged: str) -> Iterator[Alike]:
    """Yield the parties all of whose ``judged`` are ``kind``, held against all others, or those of their sources."""
    table = table.filter((pc.field(judged) > 0) & pc.field(party).is_valid())
    is_by_source = "source" in table.column_names
    place = table["source"].combine_chunks() if is_by_source else pa.array([""] * table.num_rows, pa.string())
    place_R = place.dictionary_encode().indices.to_numpy()
    every = {"every_judged": table[judged].to_numpy(), "every_kind": table[kind].to_numpy()}
    for name, values_R in every.items():
        table = table.append_column(name, pa.array(np.bincount(place_R, values_R)[place_R].astype(np.int64)))
    # One row a party and source: the sources of a party together, or the one place that all rows have.
    how = "sum" if is_by_source else "max"
    added = table.group_by(party, use_threads=False).aggregate(
        [(judged, "sum"), (kind, "sum"), ("every_judged", how), ("every_kind", how)]
    )
    columns = [added.column(column).to_numpy() for column in range(1, 5)]
    number, alike, others, others_alike = columns[0], columns[1], columns[2] - columns[0], columns[3] - columns[1]
    chance = ((others_alike + 1) / (others + 2)) ** number
    least = MIN_JUDGEMENTS if is_by_source else 0
    said = (alike == number) & (number >= MIN_JUDGEMENTS) & (chance < CHANCE) & (others >= least)
    for row in np.flatnonzero(said).tolist():
        yield Alike(
            party=party,
            name=added[party][row].as_py(),
            kind=kind,
            judgements=int(number[row]),
            others=float(others_alike[row] / max(others[row], 1)),
        )


def num_marked(table: pa.Table) -> int:
    """Return how many annotations hold any mark."""
    return sum(row["annotations"] for row in table.to_pylist() if row["mark"] is None)


def marks(table: pa.Table) -> list[Marks]:
    """Return the marks that texts hold, the most frequent first."""
    by_mark: dict[str, list[Row]] = defaultdict(list)
    for row in table.to_pylist():
        if row["mark"] is not None:
            by_mark[row["mark"]].append(row)
    found = [
        Marks(
            mark=mark,
            annotations=sum(row["annotations"] for row in rows),
            num_sources=len(rows),
            main_source=min(rows, key=lambda row: (-row["annotations"], row["source"]))["source"],
        )
        for mark, rows in by_mark.items()
    ]
    return sorted(found, key=lambda one: (-one.annotations, one.mark))
