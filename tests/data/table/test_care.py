"""Care of a table, as random sequences of what people do to one, against a dict that does the same by hand."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace as replace_field
from datetime import timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pairwright.config import IngestConfig
from pairwright.data.executor import LOCAL
from pairwright.data.ingest.reconcile import already_ingested, next_manifest, replacement
from pairwright.data.ingest.shards import IngestShard, all_files, write_shards
from pairwright.data.ingest.sources.listing import list_sources
from pairwright.data.ingest.sources.splits import number_splits, plan_byte_ranges
from pairwright.data.table.commit import commit_written
from pairwright.data.table.compact import compact
from pairwright.data.table.delete_rows import RowDeleter
from pairwright.data.table.diff import diff
from pairwright.data.table.erase import erase
from pairwright.data.table.table import Manifest, Source, Table
from pairwright.data.table.vacuum import vacuum
from pairwright.errors import DataError

ANNOTATORS = ["ann", "bob", "cy"]
PROMPTS = ["first question", "second question"]
REFUSED = '{"id": "one", "annotator": "nobody", "prompt": "?", "completions": [{"text": "x"}], "ranks": [1]}'

Row = tuple[str, str, str]
"""Id, annotator, prompt."""


def lines_of(source: str, judgements: list[tuple[int, int]], num_refused: int) -> str:
    """Return a source: a record for each (annotator, prompt), then some that will be refused."""
    records = [
        {
            "id": f"{source} {number} {annotator} {prompt}",
            "annotator": ANNOTATORS[annotator],
            "prompt": PROMPTS[prompt],
            "completions": [{"text": "x"}, {"text": "y"}],
            "ranks": [1, 2],
        }
        for number, (annotator, prompt) in enumerate(judgements)
    ]
    return "".join(f"{line}\n" for line in [*map(json.dumps, records), *[REFUSED] * num_refused])


def ingest(url: str, path: Path, *, replace: bool) -> Manifest | None:
    """Ingest one source as the command does, in this process."""
    table = Table.claim(url, "annotations")
    source = list_sources([str(path)])[0]
    source = replace_field(source, etag=hashlib.sha256(path.read_bytes()).hexdigest())
    newest = table.latest()
    known = {each.uri: each.identity for each in newest.sources} if newest else {}
    replaceable = known if replace else None
    units = number_splits(source, plan_byte_ranges(source, 1 << 20), [])
    parts: list[IngestShard] = [
        part for n, unit in enumerate(units) for part in write_shards(n, unit, table, IngestConfig())
    ]
    ours = [
        Source(
            uri=source.uri,
            size=source.size,
            etag=source.etag,
            lines=sum(part.lines for part in parts),
            accepted=sum(part.accepted for part in parts),
            refused=sum(part.refused for part in parts),
        )
    ]
    deleter = RowDeleter(table, LOCAL)

    def build(newest: Manifest | None) -> Manifest | None:
        skipped, failures = already_ingested([source], newest, ours, replaceable=replaceable)
        if skipped or failures:
            return None
        predicate, in_rows, in_refused = replacement(newest, ours) if newest else (None, False, False)
        left = deleter.rewrite(newest, predicate, rows=in_rows, refused=in_refused) if newest and predicate else None
        return next_manifest(newest, left, ours, parts, IngestConfig())

    return commit_written(table, build, lambda: [*all_files(parts), *deleter.written()])


class Model:
    """What the table should hold, kept by hand."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = {}
        self.refused: dict[str, int] = {}
        self.taken: dict[str, str] = {}
        """Source -> its text when something of it was accepted."""
        self.tried: dict[str, str] = {}
        self.erased: dict[str, int] = {}
        self.with_text: set[str] = set()
        """Sources with refused records that have their text yet."""
        self.history: dict[int, set[Row]] = {}

    def all_rows(self) -> set[Row]:
        return {row for rows in self.rows.values() for row in rows}

    def ingest(self, source: str, text: str, *, replace: bool) -> bool:
        """Return whether there is a new version."""
        records = [json.loads(line) for line in text.splitlines()]
        good = [(r["id"], r["annotator"], r["prompt"]) for r in records if len(r["completions"]) > 1]
        known = self.taken.get(source)
        if known is not None and (known == text or not replace):
            return False
        if known is None and self.tried.get(source) == text and not good:
            return False
        self.rows[source], self.refused[source] = good, len(records) - len(good)
        self.erased[source] = 0
        self.tried[source] = text
        self.with_text.discard(source)
        if self.refused[source]:
            self.with_text.add(source)
        self.taken.pop(source, None)
        if good:
            self.taken[source] = text
        return True

    def erase(self, index: int, value: str) -> bool:
        before = len(self.all_rows())
        for source, rows in self.rows.items():
            kept = [row for row in rows if row[index] != value]
            self.erased[source] += len(rows) - len(kept)
            self.rows[source] = kept
        had_text, self.with_text = bool(self.with_text), set()
        return had_text or len(self.all_rows()) < before


def rows_in(table: Table, version: int) -> list[Row]:
    names = ["id", "annotator", "prompt"]
    found = [row for rows in table.read(table.manifest(version), names) for row in rows.to_pylist()]
    return [(row["id"], row["annotator"], row["prompt"][0]["content"]) for row in found]


def assert_as_the_model_says(table: Table, model: Model) -> None:
    newest = table.manifest()
    for version in table.versions():
        found = rows_in(table, version)
        assert len(found) == len(set(found))
        assert set(found) == model.history[version]
    assert newest.totals["annotations"] == len(model.all_rows())
    assert newest.totals["completions"] == 2 * len(model.all_rows())
    assert newest.totals["erased"] == sum(model.erased.values())
    assert (
        newest.totals["refused"] == sum(model.refused.values()) == sum(file.rows for file in newest.quarantined_files)
    )
    assert newest.totals["lines"] == sum(newest.totals[name] for name in ("annotations", "refused", "erased"))
    assert {Path(source.uri).name: source.accepted for source in newest.sources} == {
        source: len(rows) for source, rows in model.rows.items()
    }
    records = [one for file in newest.quarantined_files for one in table.read_quarantined(file)]
    assert {Path(one.source).name for one in records if one.record} == model.with_text
    named = {path for version in table.versions() for path in table.manifest(version).paths}
    stored = {
        f"{folder}/{path.name}"
        for folder in ("data", "index", "quarantine")
        for path in Path(table.url, folder).glob("*")
    }
    assert stored >= named


def assert_the_difference_is_that_of_the_rows(table: Table, before: set[Row], after: set[Row]) -> None:
    parent, newest = table.versions()[-2:]
    found = diff(table.url, parent, newest)["rows"]
    ids = [{row[0] for row in rows} for rows in (before, after)]
    assert found["added"] == len(ids[1] - ids[0])
    assert found["removed"] == len(ids[0] - ids[1])
    assert found["changed"] == 0  # an id says all that its record holds
    assert found["unchanged"] == len(before & after)


JUDGEMENTS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), max_size=4)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ingest"), st.sampled_from(["a", "b", "c"]), JUDGEMENTS, st.integers(0, 2), st.booleans()),
        st.tuples(st.just("annotator"), st.sampled_from(ANNOTATORS)),
        st.tuples(st.just("prompt"), st.sampled_from(PROMPTS)),
        st.tuples(st.just("compact")),
        st.tuples(st.just("vacuum"), st.sampled_from([None, 1, 2])),
    ),
    min_size=1,
    max_size=12,
)


def walk(folder: Path, steps: list[tuple[Any, ...]]) -> Iterator[tuple[Table, Model]]:
    """Do each step to a table and to the model; yield both after each that found a table."""
    url = str(folder / "t")
    table, model = Table(url, "annotations"), Model()
    for step in steps:
        if step[0] != "ingest" and not table.versions():
            continue
        before, num_versions = model.all_rows(), len(table.versions())
        is_new = do(folder, url, model, step)
        if is_new is not None and step[0] != "vacuum":
            assert (len(table.versions()) > num_versions) == is_new, step
        if is_new:
            model.history[table.versions()[-1]] = model.all_rows()
            if len(table.versions()) > 1:
                assert_the_difference_is_that_of_the_rows(table, before, model.all_rows())
        yield table, model


def do(folder: Path, url: str, model: Model, step: tuple[Any, ...]) -> bool | None:
    """Do one step; return whether there is a new version."""
    match step:
        case ("ingest", name, judgements, num_refused, replace):
            source = f"{name}.jsonl"
            text = lines_of(source, judgements, num_refused)
            (folder / source).write_text(text)
            manifest = ingest(url, folder / source, replace=replace)
            is_new = model.ingest(source, text, replace=replace)
            assert (manifest is not None) == is_new
            return is_new
        case ("annotator", name):
            return forgotten(url, model.erase(1, name), annotators=[name], prompts=[])
        case ("prompt", text):
            (folder / "prompt.txt").write_text(f" {text}\n")
            return forgotten(url, model.erase(2, text), annotators=[], prompts=[str(folder / "prompt.txt")])
        case ("compact",):
            return compact(url, file_bytes=1 << 20).is_new
        case ("vacuum", keep):
            summary = vacuum(url, older_than=timedelta(), keep_versions=keep, is_dry_run=False)
            named = {path for v in Table.open(url).versions() for path in Table.open(url).manifest(v).paths}
            stored = {f"{f}/{path.name}" for f in ("data", "index", "quarantine") for path in Path(url, f).glob("*")}
            assert stored == named
            assert len(summary.kept_versions) <= (keep or 1 << 30)
            return None
        case _:
            raise AssertionError(step)


def forgotten(url: str, is_expected: bool, **what: list[str]) -> bool:
    try:
        summary = erase(url, annotators=what["annotators"], prompts=what["prompts"])
    except DataError:
        assert not is_expected
        return False
    assert is_expected
    assert summary.verification.num_rows == sum(file.rows for file in Table.open(url).manifest().files)
    return True


@given(steps=STEPS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_done_to_a_table_each_version_holds_what_a_dict_says(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for table, model in walk(Path(folder), steps):
            assert_as_the_model_says(table, model)
