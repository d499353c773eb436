"""Good records -> records that somebody's export, editor or disk spoilt, as lines of bytes; all from one seed.

Structure-aware first (fields dropped, doubled, renamed, swapped in type, numbers out of any range, ties, wrong ids, odd
text), then byte by byte (flips, cuts, insertions, bad UTF-8, NULs, newlines within). Nothing here knows a rule of ours.
"""

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

JsonPlace = tuple[Any, Any]
"""A dict or list, and the key or index of one of its values."""

RAW = re.compile(r'"@@raw:([0-9a-f]*)@@"')
"""A JSON string that stands for bare JSON, for what ``json.dumps`` would not write."""
NUMBERS = [
    "NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e308", "5e-324", "-0", "-0.0", "0", "-1",
    "-9223372036854775809", "9223372036854775808", "18446744073709551616", "1" + "0" * 30,
    "9" * 400, "9" * 5000, "1.0", "1.5", "0.1e1", "01", "+1", "1_000", "0x10", ".5", "1.", "--1", "1e", "٣",
]  # fmt: skip
TEXTS = [
    "", " ", "\t", "\u2028", "\u0085", "\u200b", "a\u2028b\u2029c\u0085d", "line\nline", "cr\r\nlf", "\r", "\x00",
    "a\x00b", "\ud800", "x\udc00y", "\ud83d", "\U0001f600", "e\u0301", "\u00e9", "\ufeff", "\ufffe", "\u202eabc",
    "null", "true", "1", "\\", '"', "`", "$.ranks[0]", "{}", "[]", "</script>", "0", "1", "2",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 1.5, "", "x", [], {}, [[]], [None], {"": ""}, [1, 2], ["0", "1"],
    {"role": "user", "content": "x"}, [{"role": "user", "content": "x"}], [["0"], ["1"]],
    {"text": "x"}, [{"text": "x"}, {"text": "y"}],
]  # fmt: skip
TIMES = [
    "2026-11-20T14:05:00Z", "2026-11-20", "20261120", "2026-W47-5", "2026-13-01", "2026-11-20T25:00:00",
    "0001-01-01T00:00:00+10:00", "9999-12-31T23:59:59-23:59", "2026-11-20 14:05:00.123456789", "yesterday",
    "1763647500", "2026-11-20T14:05:00+24:00",
]  # fmt: skip
BYTES = [
    b"\x00", b"\xff", b"\xfe\xff", b"\x80", b"\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf",
    b"\xe2\x80\xa8", b"\xc2\x85", b"\n", b"\r", b"\r\n", b"\x0b", b"\x1b[31m", b'"', b"\\", b"{", b"}", b"[", b"]",
    b",", b":", b"\\u", b"\\ud800", b"\\x41", b"/*", b"//", b"'", b"NaN", b"\x1f\x8b", b"   ",
]  # fmt: skip
BLANKS = [b"", b" ", b"\t", b"\r", b"  \t \r", b"\x0c"]


def mutated_lines(seeds: list[dict[str, Any]], rng: random.Random, *, longest: int) -> Iterator[bytes]:
    """Yield lines without end, each made from one of the seeds; a line may hold newlines, and so be several.

    Args:
        seeds: good records.
        rng: where every choice comes from.
        longest: characters beyond which a text counts as too long.
    """
    while True:
        record = copy.deepcopy(rng.choice(seeds))
        kind = rng.random()
        if kind < 0.10:
            yield encoded(record, rng)
        elif kind < 0.12:
            yield rng.choice(BLANKS)
        elif kind < 0.72:
            for _ in range(rng.choice([1, 1, 1, 2, 3])):
                rng.choice(STRUCTURE)(record, rng, longest)
            yield encoded(record, rng)
        else:
            line = encoded(record, rng)
            for _ in range(rng.choice([1, 1, 1, 2, 4])):
                line = rng.choice(SPOILING)(line, rng)
            yield line


def encoded(record: Any, rng: random.Random) -> bytes:
    """Return a record as JSON: escaped or not, with bare tokens in their places, now and then a key twice."""
    separators = rng.choice([(",", ":"), (", ", ": "), (" ,\t", " :  ")])
    try:
        text = json.dumps(record, ensure_ascii=False, separators=separators)
        text.encode()
        if rng.random() < 0.5:
            text = json.dumps(record, separators=separators)
    except UnicodeEncodeError:
        text = json.dumps(record, separators=separators)
    text = RAW.sub(lambda match: bytes.fromhex(match[1]).decode(), text)
    if isinstance(record, dict) and record and rng.random() < 0.05:
        key, value = rng.choice(list(record)), rng.choice(VALUES)
        twice = f"{json.dumps(key)}:{json.dumps(value)}"
        text = f"{{{twice},{text[1:]}" if rng.random() < 0.5 else f"{text[:-1]},{twice}}}"
    return text.encode()


# -------------------------------------------------------------------------------------------- structure


def places(record: Any) -> list[JsonPlace]:
    """Return every place in a record, outermost first."""
    found: list[JsonPlace] = []
    waiting = [record]
    while waiting:
        container = waiting.pop()
        keys: list[Any] = list(container) if isinstance(container, dict) else list(range(len(container)))
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], dict | list):
                waiting.append(container[key])
    return found


def _place(record: Any, rng: random.Random, kind: type | tuple[type, ...] = object) -> JsonPlace | None:
    """Return a place that holds a value of a kind; an outer one half of the time."""
    every = [(container, key) for container, key in places(record) if isinstance(container[key], kind)]
    outer = [place for place in every if place[0] is record]
    return rng.choice(outer if outer and rng.random() < 0.5 else every) if every else None


def _drop(record: Any, rng: random.Random, longest: int) -> None:
    if place := _place(record, rng):
        del place[0][place[1]]


def _double(record: Any, rng: random.Random, longest: int) -> None:
    if place := _place(record, rng, list):
        items = place[0][place[1]]
        items[len(items) :] = copy.deepcopy(rng.choice([items, items[:1], items[:1] * 70]))


def _rename(record: Any, rng: random.Random, longest: int) -> None:
    named = [(container, key) for container, key in places(record) if isinstance(container, dict)]
    if named:
        container, key = rng.choice(named)
        other = rng.choice(
            [f"{key}_", str(key).upper(), f" {key}", "", "rating", "\ud800", "a\nb", "x" * 5000, str(key)[:-1]]
        )
        container[other] = container.pop(key)


def _retype(record: Any, rng: random.Random, longest: int) -> None:
    if place := _place(record, rng):
        place[0][place[1]] = copy.deepcopy(rng.choice(VALUES))


def _stringify(record: Any, rng: random.Random, longest: int) -> None:
    if place := _place(record, rng):
        place[0][place[1]] = json.dumps(place[0][place[1]])


def _renumber(record: Any, rng: random.Random, longest: int) -> None:
    if place := _place(record, rng, (int, float)) or _place(record, rng):
        place[0][place[1]] = _raw(rng.choice(NUMBERS))


def _retext(record: Any, rng: random.Random, longest: int) -> None:
    if place := _place(record, rng, str):
        container, key = place
        text = rng.choice([*TEXTS, *TIMES])
        container[key] = rng.choice([text, text, f"{container[key]}{text}", text * 3])


def _lengthen(record: Any, rng: random.Random, longest: int) -> None:
    if place := _place(record, rng, str):
        size = rng.choice([longest - 1, longest, longest + 1, 3 * longest])
        place[0][place[1]] = (rng.choice(["x", "é", "\U0001f600", "y "]) * size)[:size]


def _deepen(record: Any, rng: random.Random, longest: int) -> None:
    if place := _place(record, rng):
        depth = rng.choice([5, 100, 900, 1500, 20_000])
        opening, inner, closing = rng.choice([("[", "", "]"), ('{"a":', "1", "}"), ('{"a":', "", "}")])
        place[0][place[1]] = _raw(opening * depth + inner + closing * depth)


def _raw(token: str) -> str:
    return f"@@raw:{token.encode().hex()}@@"


def _swap(record: Any, rng: random.Random, longest: int) -> None:
    one, other = _place(record, rng), _place(record, rng)
    if one and other and isinstance(one[0][one[1]], type(other[0][other[1]])):
        one[0][one[1]], other[0][other[1]] = copy.deepcopy(other[0][other[1]]), copy.deepcopy(one[0][one[1]])


def _tie(record: Any, rng: random.Random, longest: int) -> None:
    if place := _place(record, rng, list):
        items = place[0][place[1]]
        if items and rng.random() < 0.5:
            items[:] = [items[0]] * len(items)
        elif len(items) > 1:
            items[rng.randrange(len(items))] = copy.deepcopy(rng.choice(items))


def _shuffle(record: Any, rng: random.Random, longest: int) -> None:
    if place := _place(record, rng, list):
        rng.shuffle(place[0][place[1]])


def _nest(record: Any, rng: random.Random, longest: int) -> None:
    if place := _place(record, rng):
        place[0][place[1]] = rng.choice([[place[0][place[1]]], {"value": place[0][place[1]]}, [place[0][place[1]], []]])


def _add(record: Any, rng: random.Random, longest: int) -> None:
    found = [record, *(container[key] for container, key in places(record) if isinstance(container[key], dict | list))]
    container, value = rng.choice(found), copy.deepcopy(rng.choice(VALUES))
    if isinstance(container, list):
        container.insert(rng.randint(0, len(container)), value)
    else:
        names = ["ranks", "scores", "order", "annotator", "metadata", "subset", "created_at", "id", "model", "comment"]
        container[rng.choice(names)] = value


Mutation = Callable[[Any, random.Random, int], None]
STRUCTURE: list[Mutation] = [
    _drop, _double, _rename, _retype, _stringify, _renumber, _renumber, _retext, _retext, _lengthen, _deepen, _swap,
    _tie, _shuffle, _nest, _add,
]  # fmt: skip


# ------------------------------------------------------------------------------------------------ bytes


def _flip(line: bytes, rng: random.Random) -> bytes:
    where = rng.randrange(len(line) or 1)
    return line[:where] + bytes(byte ^ (1 << rng.randrange(8)) for byte in line[where : where + 1]) + line[where + 1 :]


def _overwrite(line: bytes, rng: random.Random) -> bytes:
    where = rng.randrange(len(line) or 1)
    return line[:where] + rng.randbytes(rng.choice([1, 2, 8])) + line[where + 1 :]


def _cut(line: bytes, rng: random.Random) -> bytes:
    where = rng.randrange(len(line) or 1)
    return rng.choice([line[:where], line[where:]])


def _insert(line: bytes, rng: random.Random) -> bytes:
    where = rng.randint(0, len(line))
    return line[:where] + rng.choice(BYTES) + line[where:]


def _remove(line: bytes, rng: random.Random) -> bytes:
    where = rng.randrange(len(line) or 1)
    return line[:where] + line[where + rng.choice([1, 1, 3, 20]) :]


def _repeat(line: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(line) or 1)
    end = rng.randint(start, min(len(line), start + 40))
    return line[:end] + line[start:end] * rng.choice([1, 3]) + line[end:]


def _run_on(line: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        [line + line, line + b" " + line, line + b",", b"[" + line + b"]", line + b"\r", b" " + line + b"\t\r"]
    )


SPOILING: list[Callable[[bytes, random.Random], bytes]] = [
    _flip,
    _flip,
    _overwrite,
    _cut,
    _insert,
    _insert,
    _remove,
    _repeat,
    _run_on,
]
