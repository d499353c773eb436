"""What is shown of text that comes from data: every character, and none that a terminal acts upon."""

import io
import json
import pickle
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostile_text import HOSTILE, check_shown
from pairwright.cluster.train.run_metrics import label_value
from pairwright.errors import ConfigError, SourceError
from pairwright.terminal import escaped, indented, one_per_line, say, say_json

ANYTHING = st.text(st.one_of(st.characters(), st.sampled_from(HOSTILE)))
SHOWN_AS_THEY_ARE = [
    "größe",
    "日本\u3000語",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "👩\u200d💻",
    "1\u202f234\u00a0€",
    r"C:\new\x1b",
    "[math] :smile:",
]


@settings(deadline=None)
@given(ANYTHING)
def test_nothing_in_a_text_does_anything(text: str) -> None:
    shown = escaped(text)
    check_shown(shown)
    assert "\n" not in shown
    assert escaped(shown) == shown
    assert len(one_per_line([text, text]).split("\n")) == 2


@pytest.mark.parametrize("text", SHOWN_AS_THEY_ARE)
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert escaped(text) == text


def test_escapes_are_those_that_python_writes() -> None:
    assert escaped("a\x1b[2J\n\t\x9b\u202e\udce9\U000e0041") == r"a\x1b[2J\n\t\x9b\u202e\udce9\U000e0041"


@settings(deadline=None)
@given(st.dictionaries(ANYTHING, ANYTHING))
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_json_is_the_same_value_and_acts_on_no_terminal(encoding: str, value: dict[str, str]) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        say_json(value)
    stream.seek(0)
    text = stream.read()
    assert json.loads(text) == value
    check_shown(text)


@settings(deadline=None)
@given(ANYTHING)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_stream_refuses_what_is_said(encoding: str, text: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    say(text, to=stream)
    stream.seek(0)
    shown = stream.read()
    assert shown.count("\n") == text.count("\n") + 1, "newlines are the caller's own"


@settings(deadline=None)
@given(ANYTHING)
def test_an_error_is_one_line_for_each_of_its_messages_here_and_behind_a_process(text: str) -> None:
    for error, lines in ((ConfigError(f"{text}: bad"), 1), (SourceError([f"{text}: bad", text, "three"]), 3)):
        for same in (error, pickle.loads(pickle.dumps(error))):
            assert len(str(same).split("\n")) == lines
            assert all(line.startswith("  ") for line in indented(str(same)).split("\n")[1:])
            check_shown(indented(f"error: {same}").replace("\n  ", "\n. "))


@settings(deadline=None)
@given(st.lists(ANYTHING, unique=True, min_size=2, max_size=2))
def test_labels_are_valid_and_distinct(runs: list[str]) -> None:
    labels = [label_value(run) for run in runs]
    assert labels[0] != labels[1]
    assert all(label.isascii() and label.isprintable() and '"' not in label and "\\" not in label for label in labels)
    assert label_value("/runs/a-1_b=2.x") == "/runs/a-1_b=2.x"
    assert label_value("s3://bucket/münchen") == "s3://bucket/m%C3%BCnchen"
