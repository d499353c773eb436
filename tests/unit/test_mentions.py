"""Whether the text of a refused record holds an annotator or a prompt, whatever the record was."""

import json

import pytest

from pairwright.data.mentions import Mentions, without_text
from pairwright.data.rules import prompt_id
from pairwright.records import Message, Rejection

PROMPT = "What is the capital of France?"
ID = prompt_id([Message(role="user", content=PROMPT)])


def refused(record: str, reason: str = "expected text") -> Rejection:
    return Rejection(source="a.jsonl", line=7, path="$.completions[1].text", reason=reason, record=record)


@pytest.mark.parametrize(
    ("record", "is_held"),
    [
        ('{"annotator": "ann", "id": 1}', True),
        ('{"judge": {"names": ["bob", "ann"]}}', True),
        ('{"completed_by": "\\u0061nn"}', True),
        ('{"annotator": "ann", "annotator": "bob"}', True),
        ('{"ann": 3}', True),
        ('{"annotator": "joanna", "prompt": "my aunt ann said"}', False),
        ('{"annotator": "ann", "prompt": "cut of', True),
        ("not JSON: ann, 3", True),
        ("not JSON: joanna, 3", False),
        ('{"annotator": "\\u0061nn", "prompt": "cut', True),
        ("", False),
        ("[" * 5000 + '"ann"', True),
    ],
)
def test_an_annotator_is_found_by_value_in_json_and_by_word_elsewhere(record: str, is_held: bool) -> None:
    assert Mentions(["ann"], [], []).in_refused(refused(record)) == is_held


def test_an_annotator_that_is_a_number_in_the_record_is_found() -> None:
    assert Mentions(["17"], [], []).in_refused(refused('{"completed_by": 17}'))
    assert not Mentions(["17"], [], []).in_refused(refused('{"completed_by": 170}'))


@pytest.mark.parametrize(
    ("record", "is_held"),
    [
        (json.dumps({"prompt": PROMPT, "completions": []}), True),
        (json.dumps({"prompt": f"  {PROMPT.replace(' ', '   ')}"}), True),
        (json.dumps({"chosen": f"\n\nHuman: {PROMPT}\n\nAssistant: Paris"}), True),
        (json.dumps({"prompt": [{"role": "user", "content": PROMPT}]}), True),
        (json.dumps({"prompt": PROMPT})[:-1], True),
        (json.dumps({"prompt": "What is the capital of Spain?"}), False),
        (json.dumps({"prompt": "x" * 9965 + " " + PROMPT})[:10_000], True),
        (json.dumps({"prompt": PROMPT})[:30], False),
    ],
)
def test_a_prompt_is_found_wherever_its_turns_stand(record: str, is_held: bool) -> None:
    assert Mentions([], [ID], [(PROMPT,)]).in_refused(refused(record)) == is_held


def test_a_prompt_of_which_only_the_id_is_known_is_found_in_a_record_of_ours() -> None:
    assert Mentions([], [ID], []).in_refused(refused(json.dumps({"prompt": PROMPT + " ", "ranks": []})))
    messages = [{"role": "user", "content": PROMPT}]
    assert Mentions([], [ID], []).in_refused(refused(json.dumps({"prompt": messages})))
    assert not Mentions([], [ID], []).in_refused(refused(json.dumps({"prompt": "another"})))
    assert not Mentions([], [ID], []).in_refused(refused(json.dumps({"prompt": [1, None]})))


def test_a_name_that_the_reason_quotes_is_found_and_goes_with_the_text() -> None:
    mentions = Mentions(["ann"], [], [])
    told = refused("{", reason="expected a time, got `ann`; see the manual")
    assert mentions.in_refused(told)
    left = without_text(told, mentions)
    assert (left.source, left.line, left.record) == ("a.jsonl", 7, "")
    assert left.reason.startswith("expected a time")
    assert not mentions.in_refused(left)
    assert "ann" not in f"{left.reason}{left.path}"
