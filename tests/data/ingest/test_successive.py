"""Records of one completion each become groups, whatever the chunks they come in; no group is divided in silence."""

import json
from pathlib import Path

import pytest

from pairwright.config import IngestConfig
from pairwright.data.ingest.decoders.chunks import Chunk
from pairwright.data.ingest.row_groups import grouped
from pairwright.data.ingest.shards import write_shards
from pairwright.data.ingest.sources.listing import find_sources
from pairwright.data.ingest.sources.splits import InputSplit
from pairwright.data.table.table import Table
from pairwright.errors import SourceError

ROWS = [{"prompt": f"p{index // 3}", "response": f"r{index}", "helpfulness": index % 3} for index in range(30)]
LINES = [json.dumps(row).encode() for row in ROWS]


def lines_of(chunks: list[Chunk]) -> dict[int, bytes]:
    found = {}
    for chunk in chunks:
        for number, line in enumerate(chunk.text.removesuffix(b"\n").split(b"\n"), start=chunk.first_line):
            found[number] = line
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 30])
def test_any_cut_gives_the_same_groups_with_the_same_numbers(size: int) -> None:
    chunks = [Chunk(start + 1, b"\n".join(LINES[start : start + size])) for start in range(0, len(LINES), size)]
    found = lines_of(list(grouped(iter(chunks), ["prompt"], 10_000)))
    assert set(found) == set(range(1, 31))
    assert {number: [row["response"] for row in json.loads(line)] for number, line in found.items() if line} == {
        3 * group + 1: [f"r{3 * group + k}" for k in range(3)] for group in range(10)
    }


def test_a_bad_line_and_a_blank_one_end_a_group_and_stay_what_they_are() -> None:
    text = b"\n".join([LINES[0], LINES[1], b"{half", LINES[2], b"", LINES[3]])
    found = lines_of(list(grouped(iter([Chunk(1, text)]), ["prompt"], 10_000)))
    assert [len(json.loads(found[number])) for number in (1, 4, 6)] == [2, 1, 1]
    assert (found[2], found[3], found[5]) == (b"", b"[{half]", b"")


def test_a_group_longer_than_a_record_may_be_is_refused_row_by_row() -> None:
    chunks = list(grouped(iter([Chunk(1, b"\n".join(LINES[:6]))]), ["prompt"], 100))
    assert [chunk.first_line for chunk in chunks if chunk.problem] == [1, 2, 3, 4, 5, 6]


def test_a_source_that_is_read_in_pieces_is_refused_with_what_to_set(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(LINES))
    config = IngestConfig(format="helpsteer-rows")
    source = find_sources([str(path)], config.limits).sources[0]
    table = Table(str(tmp_path / "table"), "annotations")
    (part,) = write_shards(0, InputSplit(source, 0, source.size // 2, 0), table, config)
    assert f"set split_bytes={source.size} to read it as a whole" in str(part.error)
    (part,) = write_shards(0, InputSplit(source, 0, source.size, 0), table, config)
    assert (part.error, part.accepted, part.refused, part.blank) == (None, 10, 0, 20)
    with pytest.raises(SourceError, match="read in pieces"):
        raise SourceError(str(next(iter(write_shards(0, InputSplit(source, 10, 20, 1), table, config))).error))
