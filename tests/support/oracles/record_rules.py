"""The rules of docs/data.md a second time, by Python's own JSON, in plain loops: a line -> the row it must become.

An oracle: nothing here calls the code that ingests.
"""

import itertools
import json
import math
from datetime import UTC, datetime
from typing import Any

FIELDS = {
    "id", "prompt", "completions", "ranks", "scores", "order", "annotator", "created_at", "subset", "metadata",
}  # fmt: skip
MAX_LABEL_CHARACTERS = MAX_TURNS = MAX_METADATA = 1000
"""Defaults of the limits that no suite sets."""
BLANK = b" \t\r\n\x0b\x0c"


class Broken(Exception):  # noqa: N818 - what the line is
    """The line breaks a rule, so it must be refused."""


def is_blank(line: bytes) -> bool:
    return not line.strip(BLANK)


def expected_row(line: bytes, *, max_completions: int, max_characters: int) -> dict[str, Any]:
    """Return what a native line says, in the columns of an annotations table that come from the line alone.

    Raises:
        Broken: if it must be refused.
    """
    record = decoded(line)
    if isinstance(record, dict) and isinstance(record.get("id"), int) and not isinstance(record["id"], bool):
        record["id"] = str(record["id"])
    if isinstance(record, dict) and isinstance(record.get("ranks"), list):
        record["ranks"] = [int(r) if isinstance(r, float) and r.is_integer() else r for r in record["ranks"]]
    _require(isinstance(record, dict) and record.keys() <= FIELDS, "an object of known fields")
    _require(isinstance(record.get("id"), str) and record["id"].strip() != "", "an id")
    prompt = _prompt(record.get("prompt"))
    completions = _completions(record.get("completions"), max_completions)
    _require(len(prompt) <= MAX_TURNS, "turns within the limit")
    _require(sum(len(turn["content"]) for turn in prompt) <= max_characters, "a prompt within the limit")
    _require(all(len(one["text"]) <= max_characters for one in completions), "completions within the limit")
    values = _judgement(record, completions)
    places = sorted(set(values))
    _optional_texts(record, ["annotator", "created_at", "subset"])
    metadata = _metadata(record.get("metadata"))
    labels = [record["id"], record.get("annotator"), record.get("subset"), *(turn["role"] for turn in prompt)]
    labels += [one[name] for one in completions for name in ("id", "model")] + [name for name, _ in metadata or []]
    _require(all(len(label or "") <= MAX_LABEL_CHARACTERS for label in labels), "names within the limit")
    _require(len(metadata or []) <= MAX_METADATA, "metadata within the limit")
    _require(sum(len(name) + len(value) for name, value in metadata or []) <= max_characters, "short metadata")
    return {
        "id": record["id"],
        "prompt": prompt,
        "completions": completions,
        "ranks": [places.index(value) + 1 for value in values],
        "scores": None if record.get("scores") is None else [float(score) for score in record["scores"]],
        "annotator": record.get("annotator"),
        "created_at": _time(record.get("created_at")),
        "subset": record.get("subset"),
        "metadata": metadata,
    }


def decoded(line: bytes) -> Any:
    """Return the value in a line of strict JSON in UTF-8.

    Raises:
        Broken: if it is none, or holds text that no UTF-8 can hold.
    """
    try:
        value = json.loads(line.decode(), parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Broken(str(error)) from None
    return value


def has_a_key_twice(line: bytes) -> bool:
    """Return whether an object of the line has a key twice: the last one counts, but the first may break a rule."""
    found = []

    def pairs(items: list[tuple[str, Any]]) -> None:
        found.append(len(items) - len(dict(items)))

    json.loads(line, object_pairs_hook=pairs)
    return any(found)


def _no_number(token: str) -> None:
    raise Broken(f"{token} is not JSON")


def _require(is_so: bool, expected: str) -> None:
    if not is_so:
        raise Broken(f"expected {expected}")


def _prompt(prompt: Any) -> list[dict[str, str]]:
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    _require(isinstance(turns, list), "a prompt")
    for turn in turns:
        _require(isinstance(turn, dict) and turn.keys() == {"role", "content"}, "turns of role and content")
        _require(all(isinstance(value, str) for value in turn.values()), "turns of text")
        _require(turn["role"].strip() != "", "a role")
    _require(any(turn["content"].strip() for turn in turns), "a prompt with text")
    return turns


def _completions(completions: Any, most: int) -> list[dict[str, Any]]:
    _require(isinstance(completions, list) and 2 <= len(completions) <= most, "2 or more completions")
    found = []
    for index, one in enumerate(completions):
        _require(isinstance(one, dict) and one.keys() <= {"text", "id", "model"}, "completions of known fields")
        _require(isinstance(one.get("text"), str) and one["text"].strip() != "", "text in every completion")
        _optional_texts(one, ["id", "model"])
        name = str(index) if one.get("id") is None else one["id"]
        found.append({"id": name, "text": one["text"], "model": one.get("model")})
    _require(all(a["id"] != b["id"] for a, b in itertools.combinations(found, 2)), "ids of their own")
    return found


def _judgement(record: dict[str, Any], completions: list[dict[str, Any]]) -> list[Any]:
    """Return a value for each completion, lower is better."""
    given = [name for name in ("ranks", "scores", "order") if record.get(name) is not None]
    _require(len(given) == 1, "exactly one judgement")
    values = record[given[0]]
    _require(isinstance(values, list), "a list")
    if given == ["order"]:
        return _places_in_order(values, [one["id"] for one in completions])
    _require(len(values) == len(completions), "one value a completion")
    numbers = (int,) if given == ["ranks"] else (int, float)
    _require(all(isinstance(value, numbers) and not isinstance(value, bool) for value in values), "numbers")
    if given == ["ranks"]:
        _require(all(rank >= 1 for rank in values), "ranks from 1")
        return values
    try:
        scores = [float(score) for score in values]
    except OverflowError:
        raise Broken("expected scores that a double can hold") from None
    _require(all(math.isfinite(score) for score in scores), "finite scores")
    return [-score for score in scores]


def _places_in_order(order: list[Any], names: list[str]) -> list[int]:
    tiers = [entry if isinstance(entry, list) else [entry] for entry in order]
    _require(all(isinstance(name, str) for tier in tiers for name in tier), "ids")
    _require(sorted(name for tier in tiers for name in tier) == sorted(names), "every completion's id once")
    return [next(place for place, tier in enumerate(tiers) if name in tier) for name in names]


def _optional_texts(record: dict[str, Any], fields: list[str]) -> None:
    _require(all(record.get(name) is None or isinstance(record[name], str) for name in fields), "text")


def _time(created_at: str | None) -> datetime | None:
    if created_at is None:
        return None
    try:
        moment = datetime.fromisoformat(created_at)
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Broken(str(error)) from None


def _metadata(metadata: Any) -> list[tuple[str, str]] | None:
    if metadata is None:
        return None
    _require(isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values()), "text to text")
    return list(metadata.items())


# ------------------------------------------------------------------------------------------ rows of any format


def check_row(row: dict[str, Any], *, max_completions: int, max_characters: int) -> None:
    """Assert what holds of every row of an annotations table, whatever format its record came in."""
    num_completions = len(row["completions"])
    assert 2 <= num_completions <= max_completions
    assert row["id"].strip()
    assert any(turn["content"].strip() for turn in row["prompt"])
    assert all(turn["role"].strip() for turn in row["prompt"])
    assert sum(len(turn["content"]) for turn in row["prompt"]) <= max_characters
    assert all(one["text"].strip() and len(one["text"]) <= max_characters for one in row["completions"])
    assert len({one["id"] for one in row["completions"]}) == num_completions
    labels = [row["id"], row["annotator"], row["subset"], *(turn["role"] for turn in row["prompt"])]
    labels += [one[name] for one in row["completions"] for name in ("id", "model")]
    assert all(len(label or "") <= MAX_LABEL_CHARACTERS for label in labels)
    assert len(row["ranks"]) == num_completions
    assert set(row["ranks"]) == set(range(1, max(row["ranks"]) + 1))
    if row["scores"] is not None:
        assert len(row["scores"]) == num_completions
        for (better, rank), (worse, other) in itertools.permutations(zip(row["scores"], row["ranks"], strict=True), 2):
            assert (better > worse) == (rank < other)
            assert math.isfinite(better)
    assert all(len(row[name]) == 32 and int(row[name], 16) >= 0 for name in ("group_id", "prompt_id"))
