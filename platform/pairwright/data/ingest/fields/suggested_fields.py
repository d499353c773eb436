"""Suggests a table [fields] for records of an unknown layout, from the names and values of their keys.

What is sure by its name or its values is written as a line, what is missing as a comment, so that the table can be
pasted into a configuration, completed where a comment says so, and used.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from pairwright.data.ingest.fields.key_samples import (
    FoundKey,
    KeyValues,
    sampled_keys,
    toml_key,
    toml_text,
)
from pairwright.data.ingest.fields.winner_words import suggested_words

_MAX_SIDES = 64
_MAX_SHOWN_KEYS = 30
_SIDE = re.compile(r"(?P<stem>.*?)_?(?P<label>\d{1,2}|(?<![a-z])[a-z])(?P<rest>(_[a-z]+)*)")


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PROMPTS = ("prompt", "instruction", "question", "query", "user_prompt", "user_message", "request", "task", "input",
            "user", "frage", "aufgabe", "title", "post")  # fmt: skip
_TEXTS = ("text", "completion", "answer", "response", "output", "reply", "content", "candidate", "generation",
          "message", "antwort", "summary", "body")  # fmt: skip
_SCORES = ("score", "rating", "reward", "grade", "points", "stars", "quality", "overall", "overall_score",
           "helpfulness", "value", "votes", "bewertung", "punkte")  # fmt: skip
_RANKS = ("rank", "ranking", "position", "place", "rang", "platz")
_MODELS = ("model", "model_name", "system_name", "policy", "source_model", "modell")
_CHOSEN = _names("chosen preferred better accepted good winner_text preferred_output win best_answer positive")
_REJECTED = _names("rejected dispreferred worse non_preferred bad loser_text non_preferred_output lose loss negative")
_WINNERS = _names(
    """preference preferred winner choice label verdict better best judgement judgment vote selection selected chosen
    preferred_answer preferred_response best_answer annotation decision result human_preference praeferenz präferenz
    besser gewinner auswahl urteil"""
)
_ANNOTATORS = ("annotator", "annotator_id", "rater", "rater_id", "worker", "worker_id", "labeler", "labeller", "judge",
               "user_id", "by", "reviewer", "evaluator", "annotated_by", "bewerter")  # fmt: skip
_IDS = ("id", "record_id", "example_id", "sample_id", "uid", "uuid", "key", "item_id", "row_id", "task_id")
_TIMES = ("created_at", "timestamp", "annotated_at", "submitted_at", "labeled_at")
_SYSTEMS = ("system", "system_prompt", "system_message")


class SuggestedFields(msgspec.Struct, frozen=True):
    """What an unknown layout may be: its keys, and a table [fields] for them."""

    num_records: int
    """Records that were tried."""
    keys: list[FoundKey]
    toml: str
    """The table, to be pasted into a file; what is not known stands in comments."""

    def lines(self) -> list[str]:
        """Return the suggestion as lines of a message."""
        more = len(self.keys) - _MAX_SHOWN_KEYS
        return [
            "  keys found, with types and an example:",
            *(f"    {key.line()}" for key in self.keys[:_MAX_SHOWN_KEYS]),
            *([f"    and {more} more"] if more > 0 else []),
            "  save this as fields.toml, complete what a comment says, and use it with --config fields.toml:",
            "",
            *self.toml.split("\n"),
            "",
        ]


def suggest_fields(records: Sequence[Mapping[str, Any]], num_records: int) -> SuggestedFields:
    """Return the keys of some records of one source, and a table [fields] for them.

    Args:
        records: decoded, from the head of the source.
        num_records: how many were tried.
    """
    keys = sampled_keys(records)
    return SuggestedFields(num_records, [key.shown() for key in keys], "\n".join(_Guess(keys, records).lines()))


class _Guess:
    """The table for some keys; what was used once is not used again."""

    def __init__(self, keys: Sequence[KeyValues], records: Sequence[Mapping[str, Any]]) -> None:
        self._keys = [key for key in keys if key.path is not None]
        self._records = records
        self._used: set[tuple[str, ...]] = set()
        self._is_by_row = False

    def lines(self) -> list[str]:
        """Return the table as lines."""
        tops = [key for key in self._keys if "[]" not in key.steps]
        prompt = self._take(tops, _PROMPTS, lambda key: key.is_text or isinstance(next(iter(key.values), None), list))
        judged = list(self._judged(prompt, tops))
        lines = ["[fields]", *self._prompt_lines(prompt, judged), *judged, *self._rest(tops)]
        left = [key for key in tops if key.steps not in self._used and key.values]
        if left:
            names = ", ".join(toml_text(key.path or "") for key in left[:12])
            lines.append(f"# keep = [{names}] # keys without a place; kept in metadata by this line")
        return lines

    def _prompt_lines(self, prompt: KeyValues | None, judged: Sequence[str]) -> Iterator[str]:
        if prompt is not None:
            yield f"prompt = {_path(prompt)}"
        else:
            yield '# prompt = "KEY" # which key holds what the completions answer?'

    def _take(self, keys: Sequence[KeyValues], names: Sequence[str], fits: Any = lambda key: True) -> KeyValues | None:
        """Return the key with the first of some names, and mark it as used; a name may stand among other words."""
        free = [key for key in keys if key.steps not in self._used and key.values and fits(key)]
        exact = [key for name in names for key in free if key.name == name]
        others = [key for key in free if not key.name.endswith("id") and key.name not in _ANNOTATORS]
        partial = [key for name in names for key in others if name in key.name.split("_")]
        found = next(iter([*exact, *partial]), None)
        if found is not None:
            self._used.add(found.steps)
        return found

    def _use(self, *keys: KeyValues) -> None:
        self._used |= {key.steps for key in keys}

    # ------------------------------------------------------------------------------------------ judgement

    def _judged(self, prompt: KeyValues | None, tops: Sequence[KeyValues]) -> Iterator[str]:
        free = [key for key in tops if key.steps not in self._used]
        families = _families(free)
        sides = max((family for family in families if _are_texts(family)), key=_mean_length, default=None)
        if (pair := self._pair(free)) is not None:
            yield from pair
        elif sides is not None:
            yield from self._of_sides(sides, families, free)
        elif (lists := self._of_list(free)) is not None:
            yield from lists
        elif prompt is not None and _comes_in_succession(prompt):
            yield from self._of_rows(prompt, free)
        else:
            yield "# where do the completions stand? One of:"
            yield '# sides = ["KEY", "KEY"] # each in a key of its own, with winner and words, or side_scores'
            yield '# completions = "KEY" # in one list, with text and score or rank of each item'
            yield '# group_by = ["KEY"] # each in a record of its own, with text and score or rank'

    def _of_list(self, free: Sequence[KeyValues]) -> list[str] | None:
        """Return the lines of a list of completions, judged within its items or by a list beside it."""
        for key in free:
            first = next(iter(key.values), None)
            if not isinstance(first, list) or len(first) < 2:
                continue
            inner = [each for each in self._keys if each.steps[:-1] == (*key.steps, "[]")]
            text = self._take(inner, _TEXTS, lambda each: each.is_text) if isinstance(first[0], dict) else None
            if text is None and not isinstance(first[0], str):
                continue
            self._use(key)
            lines = [f"completions = {_path(key)}"]
            if text is not None:
                lines += [f"text = {toml_text(text.steps[-1])}", *self._of_items(inner)]
            else:
                lines.append(self._beside(free, len(first)))
            return lines
        return None

    def _of_items(self, inner: Sequence[KeyValues]) -> Iterator[str]:
        model = self._take(inner, _MODELS, lambda each: each.is_text)
        yield from ([] if model is None else [f"model = {toml_text(model.steps[-1])}"])
        yield self._score_or_rank(inner)

    def _score_or_rank(self, keys: Sequence[KeyValues]) -> str:
        if (rank := self._take(keys, _RANKS, lambda key: key.is_number)) is not None:
            return f"rank = {toml_text(rank.steps[-1])}" + _first_rank(rank.values)
        score = self._take(keys, _SCORES, lambda key: key.is_number)
        if score is not None:
            return f"score = {toml_text(score.steps[-1])} # higher is better"
        return '# score = "KEY" # or rank = "KEY": which key says how good each completion is?'

    def _beside(self, free: Sequence[KeyValues], length: int) -> str:
        for names, kind in ((_RANKS, "ranks"), (_SCORES, "scores")):
            plural = [*names, *(f"{name}s" for name in names)]
            found = self._take(free, plural, lambda key: isinstance(next(iter(key.values), None), list))
            if found is not None:
                values = [value for row in found.values for value in row]
                return f"{kind} = {_path(found)}" + (_first_rank(values) if kind == "ranks" else " # higher is better")
        return '# scores = "KEY" # or ranks = "KEY": which key holds the list that judges the completions?'

    def _pair(self, free: Sequence[KeyValues]) -> list[str] | None:
        texts = [key for key in free if key.is_text and not key.words] or [key for key in free if key.is_text]
        better = next((key for key in texts if key.name in _CHOSEN), None)
        worse = next((key for key in texts if key.name in _REJECTED), None)
        if better is None or worse is None:
            return None
        self._use(better, worse)
        return [f"chosen = {_path(better)}", f"rejected = {_path(worse)}"]

    def _of_sides(
        self, sides: Mapping[str, KeyValues], families: Sequence[Mapping[str, KeyValues]], free: Sequence[KeyValues]
    ) -> Iterator[str]:
        """Yield the lines of completions in keys of their own."""
        self._use(*sides.values())
        yield f"sides = [{', '.join(map(_path, sides.values()))}]"
        if any(len(key.values) < len(self._records) for key in list(sides.values())[2:]):
            yield "optional_sides = true # some records have fewer"
        others = [family for family in families if family is not sides and family.keys() == sides.keys()]
        models = next((one for one in others if _is_called(one, _MODELS)), None)
        if models is not None:
            self._use(*models.values())
            yield f"models = [{', '.join(map(_path, models.values()))}]"
        yield from self._judgement_of_sides(sides, [one for one in others if one is not models], free)

    def _judgement_of_sides(
        self, sides: Mapping[str, KeyValues], others: Sequence[Mapping[str, KeyValues]], free: Sequence[KeyValues]
    ) -> Iterator[str]:
        labels = {label: key.path or "" for label, key in sides.items()}
        numbers = [family for family in others if all(key.is_number for key in family.values())]
        left = [key for key in free if key.steps not in self._used and key.values]
        winner = next((key for key in left if key.name in _WINNERS and key.words), None)
        winner = winner or next((key for key in left if key.words and set(key.name.split("_")) & _WINNERS), None)
        order = next((key for key in left if _is_order(key, set(labels) | set(labels.values()))), None)
        if numbers:
            family = next((one for one in numbers if _is_called(one, _RANKS)), numbers[0])
            self._use(*family.values())
            is_ranked = _is_called(family, _RANKS)
            kind, note = ("side_ranks", "1 is best") if is_ranked else ("side_scores", "higher is better")
            yield f"{kind} = [{', '.join(map(_path, family.values()))}] # {note}"
        elif order is not None and len(sides) > 2:
            self._use(order)
            is_upper = not any(re.search("[a-z]", str(value)) for value in order.values)
            names = {label.upper() if is_upper else label: path for label, path in labels.items()}
            yield f"order = {_path(order)} # best first"
            yield from _words_lines((names, [], True))
        elif winner is not None:
            self._use(winner)
            yield f"winner = {_path(winner)}"
            yield from _words_lines(suggested_words(winner.words, labels))
        else:
            yield '# winner = "KEY" # which key says which one is better? And what its words mean:'
            yield f'# words = {{ WORD = {toml_text(next(iter(labels.values())))}, tie = "tie" }}'

    def _of_rows(self, prompt: KeyValues, free: Sequence[KeyValues]) -> Iterator[str]:
        """Yield the lines of records that hold one completion each, those of a prompt in succession."""
        self._is_by_row = True
        text = self._take(free, _TEXTS, lambda key: key.is_text)
        annotator = next((key for name in _ANNOTATORS for key in free if key.name == name and key.values), None)
        names = [_path(prompt), *([] if annotator is None else [_path(annotator)])]
        yield f"group_by = [{', '.join(names)}]"
        yield f"text = {_path(text)}" if text else '# text = "KEY" # which key holds the completion?'
        if (model := self._take(free, _MODELS, lambda key: key.is_text)) is not None:
            yield f"model = {_path(model)}"
        yield self._score_or_rank([key for key in free if key.steps not in self._used])

    # ------------------------------------------------------------------------------------------ the rest

    def _rest(self, tops: Sequence[KeyValues]) -> Iterator[str]:
        system = self._take([key for key in tops if key.name in _SYSTEMS], _SYSTEMS, lambda key: key.is_text)
        if system is not None:
            yield f"system = {_path(system)}"
        for name, names in (("annotator", _ANNOTATORS), ("created_at", _TIMES), ("subset", ("subset",))):
            found = self._take([key for key in tops if key.name in names], names, _are_scalars)
            if found is not None and (name != "created_at" or all(map(_is_time, found.values))):
                yield f"{name} = {_path(found)}"
        found = self._take([key for key in tops if key.name in _IDS], _IDS, _are_scalars)
        if found is not None and not self._is_by_row:
            is_unique = len({str(value) for value in found.values}) == len(self._records)
            yield f"id = {_path(found)}" + ("" if is_unique else "\nunique_ids = false # some stand on several records")


def _families(keys: Sequence[KeyValues]) -> list[dict[str, KeyValues]]:
    """Return groups of keys that differ in a label alone (``answer_a``, ``answer_b``), labels from a, 0 or 1 on."""
    found: dict[tuple[Any, ...], dict[str, KeyValues]] = {}
    for key in keys:
        if key.values and (match := _SIDE.fullmatch(key.name)):
            stem = (*key.steps[:-1], match["stem"], match["rest"], match["label"].isdigit())
            found.setdefault(stem, {})[match["label"]] = key
    whole = [dict(sorted(family.items(), key=lambda item: _label_index(item[0]))) for family in found.values()]
    named = {key.name: key for key in keys if key.values}
    for one, other in (("left", "right"), ("first", "second")):
        for name, key in named.items():
            twin = named.get(re.sub(rf"(^|_){one}(?=_|$)", rf"\1{other}", name))
            if twin is not None and twin is not key:
                whole.append({one: key, other: twin})
    return [family for family in whole if 2 <= len(family) <= _MAX_SIDES and _is_run(list(family))]


def _label_index(label: str) -> int:
    return int(label) if label.isdigit() else ord(label[0]) - ord("a")


def _is_run(labels: Sequence[str]) -> bool:
    if not all(len(label) < 3 for label in labels):
        return True
    indices = [_label_index(label) for label in labels]
    return indices[0] in (0, 1) and all(second - first == 1 for first, second in pairwise(indices))


def _is_called(family: Mapping[str, KeyValues], names: Sequence[str]) -> bool:
    return any(set(key.name.split("_")) & set(names) for key in family.values())


def _are_texts(family: Mapping[str, KeyValues]) -> bool:
    return all(key.is_text for key in family.values()) and not _is_called(family, _MODELS)


def _mean_length(family: Mapping[str, KeyValues]) -> float:
    texts = [text for key in family.values() for text in key.texts]
    return sum(map(len, texts)) / len(texts)


def _comes_in_succession(prompt: KeyValues) -> bool:
    return any(one == other for one, other in pairwise(prompt.values))


def _is_order(key: KeyValues, names: set[str]) -> bool:
    parts: list[str] = []
    for value in key.values:
        entries = value if isinstance(value, list) else re.split(r"[>=~,;]+", value) if isinstance(value, str) else []
        parts += [str(name).strip() for entry in entries for name in (entry if isinstance(entry, list) else [entry])]
    return len(parts) > len(key.values) and all(part in names or part.lower() in names for part in parts)


def _are_scalars(key: KeyValues) -> bool:
    return all(isinstance(value, str | int | float) and not isinstance(value, bool) for value in key.values)


def _is_time(value: Any) -> bool:
    return isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d", value) is not None


def _first_rank(values: Sequence[Any]) -> str:
    return "\nfirst_rank = 0" if any(str(value) in ("0", "0.0") for value in values) else " # 1 is best"


def _path(key: KeyValues) -> str:
    return toml_text(key.path or "")


def _words_lines(words: tuple[dict[str, str], list[str], bool]) -> Iterator[str]:
    known, unknown, is_sure = words
    entries = ", ".join(f"{toml_key(word)} = {toml_text(meaning)}" for word, meaning in known.items())
    note = "" if is_sure else " # guessed: check it"
    if known:
        yield f"words = {{ {entries} }}{note}"
    for word in unknown:
        yield f"# what does {toml_text(word)} mean? Add it to words: a side, tie or both bad"
    if not known:
        yield "# words = { WORD = " + '"SIDE", tie = "tie" }'
