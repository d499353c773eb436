"""Tokenised groups equal plain tokenisation, and whatever is left out is counted."""

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairwright.config import TokensConfig
from pairwright.data.extras import reply_of
from pairwright.data.tokens.chat_template import render
from pairwright.data.tokens.conversation_tokens import TokenizedCompletions
from pairwright.data.tokens.tokenize_groups import (
    REFUSED_PREFIX,
    TokenGroup,
    TokenSpec,
    add_totals,
    common_prefix_length,
    counts_behind,
    load_tokenizer,
    plain_template,
    resolve_template,
    tokenize_completions,
    tokenize_groups,
    tokenizer_digest,
)
from pairwright.errors import ConfigError, DataError, ModelError
from pairwright.model.tiny_models import new_tiny_model
from pairwright.records import PAIRS_SCHEMA, TOKENS_SCHEMA
from special_tokenizers import adding_special_tokens
from token_groups import group_row, groups_of

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] | trim }}{% endfor %}"
)
# No separator, so that tokens span the boundary of prompt and completion.
JOINED = "{{ messages | map(attribute='content') | join }}"
TEXTS = ["a reward model ranks rewards", "rewarding warders draw awards", "the end of a drawer\n\n and more"] * 30
LONG = 10_000


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model directory a kind of tokenizer."""
    root = tmp_path_factory.mktemp("models")
    kinds = {"bos": "llama", "bare": "qwen2", "cls_sep": "bert", "chat": "llama"}
    return {
        kind: new_tiny_model(
            root / kind,
            architecture=architecture,
            texts=TEXTS,
            vocab_size=330,
            hidden_size=8,
            num_layers=1,
            num_heads=1,
            max_positions=64,
            seed=0,
            chat_template=CHAT_TEMPLATE if kind == "chat" else None,
        )
        for kind, architecture in kinds.items()
    }


def tokenize(directory: Path, rows: list[dict], **config) -> tuple[list[TokenGroup], dict[str, int]]:
    tokenizer = load_tokenizer(str(directory))
    spec = TokenSpec.of(tokenizer, TokensConfig.model_validate({"max_length": LONG} | config))
    table, totals = tokenize_groups(pa.Table.from_pylist(rows, schema=PAIRS_SCHEMA), tokenizer, spec)
    assert table.schema.equals(TOKENS_SCHEMA)
    return groups_of(table), totals


def full_rows(group: TokenGroup) -> list[list[int]]:
    return [[*group.prompt_ids.tolist(), *ids.tolist()] for ids in group.completion_ids]


# --------------------------------------------------------------------------------- plain tokenisation


@pytest.mark.parametrize(
    ("kind", "template", "before", "between", "after"),
    [
        ("bos", None, "<s>", "\n\n", "</s>"),
        ("bare", None, "", "\n\n", "<|endoftext|>"),
        ("cls_sep", None, "[CLS]", "\n\n", "[SEP]"),
        ("bos", JOINED, "", "", ""),
        ("chat", None, "<s><user>", "<assistant>", ""),
    ],
)
@settings(max_examples=40, deadline=None)
@given(
    prompt=st.text(alphabet="awrd e\n狐", min_size=1, max_size=12).filter(str.strip),
    texts=st.lists(st.text(alphabet="awrd e\n狐", min_size=1, max_size=12).filter(str.strip), min_size=2, max_size=5),
)
def test_prompt_and_completion_equal_plain_tokenisation(models, kind, template, before, between, after, prompt, texts):
    groups, totals = tokenize(models[kind], [group_row(prompt, texts)], chat_template=template)
    tokenizer = load_tokenizer(str(models[kind]))
    shown = [(text.strip() if kind == "chat" else text) for text in (prompt, *texts)]
    plain = [
        tokenizer(f"{before}{shown[0]}{between}{text}{after}", add_special_tokens=False)["input_ids"]
        for text in shown[1:]
    ]
    if len({tuple(ids) for ids in plain}) == 1:
        assert groups == []
        assert totals["pairs_identical"] == totals["pairs"]
        return
    (group,) = groups
    kept = group.completion_index.tolist()
    assert full_rows(group) == [plain[k] for k in kept]
    assert group.num_characters.tolist() == [len(texts[k]) for k in kept]
    first_tokens = {ids[0] for ids in (ids.tolist() for ids in group.completion_ids)}
    assert len(first_tokens) > 1 or min(map(len, group.completion_ids)) == 1, "a longer prefix is common to all"


def test_a_token_across_the_boundary_belongs_to_the_completion(models):
    tokenizer = load_tokenizer(str(models["bos"]))
    whole = tokenizer("a reward", add_special_tokens=False)["input_ids"]
    assert len(whole) < 4, "the tokenizer must have learnt the word for this test to mean anything"
    (group,), _ = tokenize(models["bos"], [group_row("a rew", ["ard", "ind"])], chat_template=JOINED)
    assert full_rows(group)[0] == whole
    assert len(group.prompt_ids) < len(tokenizer("a rew", add_special_tokens=False)["input_ids"])


def test_every_completion_keeps_a_token_when_one_row_begins_another(models):
    (group,), _ = tokenize(models["bos"], [group_row("the end", [" of", " of a drawer"])], chat_template=JOINED)
    assert [len(ids) > 0 for ids in group.completion_ids] == [True, True]
    assert min(map(len, group.completion_ids)) == 1
    rows = [np.array(ids, np.int32) for ids in ([5, 6, 7], [5, 6, 7, 8], [5, 6, 9])]
    assert common_prefix_length(rows) == 2
    assert common_prefix_length(rows[:2]) == 2
    assert common_prefix_length([rows[0], np.array([4], np.int32)]) == 0
    assert common_prefix_length([]) == 0


@pytest.mark.parametrize("kind", ["bos", "bare", "cls_sep", "chat"])
def test_special_tokens_are_never_doubled(models, kind):
    (group,), _ = tokenize(models[kind], [group_row("a reward", ["draw", "award"])])
    tokenizer = load_tokenizer(str(models[kind]))
    marks = [i for i in (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id) if isinstance(i, int)]
    for row in full_rows(group):
        assert [row.count(mark) for mark in marks] == [1] * len(marks)
        if kind == "bos":
            assert (row[0], row[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        if kind == "cls_sep":
            assert (row[0], row[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)


def test_a_length_limit_saved_with_the_tokenizer_does_not_cut_anything(models, tmp_path):
    tokenizer = load_tokenizer(str(models["bos"]))
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=50, pad_id=0, pad_token="<pad>")
    tokenizer.save_pretrained(tmp_path)
    row = [group_row("a reward", ["draw a drawer", "award"])]
    assert full_rows(tokenize(tmp_path, row)[0][0]) == full_rows(tokenize(models["bos"], row)[0][0])
    assert tokenizer_digest(load_tokenizer(str(tmp_path))) == tokenizer_digest(load_tokenizer(str(models["bos"])))


def test_scoring_tokenises_as_training_does(models):
    """`tokenize_completions` is what scoring calls: without pairs, record by record."""
    rows = [group_row("a reward", ["draw", "award", "end"]), group_row("the end", ["of", "and"], group_id="g1")]
    groups, _ = tokenize(models["chat"], rows)
    tokenizer = load_tokenizer(str(models["chat"]))
    spec = TokenSpec.of(tokenizer, TokensConfig(max_length=LONG))
    for row, group in zip(rows, groups, strict=True):
        replies = [reply_of(completion["text"]) for completion in row["completions"]]
        (alone,) = tokenize_completions([row["prompt"]], [replies], tokenizer, spec)
        assert isinstance(alone, TokenizedCompletions)
        assert [ids.tolist() for ids in alone.row_ids if ids is not None] == full_rows(group)


# ------------------------------------------------------------------------------------- what is left out


def test_an_overlong_completion_is_dropped_with_its_pairs_and_counted(models):
    rows = [
        group_row("a", ["draw", "reward " * 50, "end"]),
        group_row("a", ["reward " * 50, "end"], group_id="g1"),
        group_row("a", ["draw", "end"], group_id="g2"),
    ]
    groups, totals = tokenize(models["bos"], rows, max_length=32)
    assert [group.group_id for group in groups] == ["g0", "g2"]
    assert groups[0].completion_index.tolist() == [0, 2]
    assert (groups[0].chosen_P.tolist(), groups[0].rejected_P.tolist()) == ([0], [1])
    assert totals["longest"] > 50
    expected = {
        "groups": 3,
        "groups_dropped": 1,
        "completions": 7,
        "completions_dropped": 2,
        "completions_truncated": 0,
        "completions_unpaired": 1,
        "pairs": 5,
        "pairs_dropped": 3,
        "pairs_identical": 0,
        "tokens": sum(len(g.prompt_ids) + sum(map(len, g.completion_ids)) for g in groups),
    }
    assert {name: totals[name] for name in expected} == expected


def test_weights_of_the_pairs_that_stay_are_not_scaled_up(models):
    rows = [group_row("a", ["draw", "reward " * 50, "end", "award"])]
    (group,), _ = tokenize(models["bos"], rows, max_length=32)
    assert group.weight_P.tolist() == pytest.approx([0.1, 0.1, 0.3])


def test_truncation_keeps_the_beginning_and_is_counted(models):
    rows = [group_row("a", ["draw", "reward " * 50])]
    whole = full_rows(tokenize(models["bos"], rows)[0][0])
    (group,), totals = tokenize(models["bos"], rows, max_length=32, overlong_policy="truncate")
    assert full_rows(group) == [whole[0], whole[1][:32]]
    assert (totals["completions_truncated"], totals["completions_dropped"], totals["pairs"]) == (1, 0, 1)


def test_pairs_that_truncation_makes_equal_are_dropped_and_counted(models):
    """Pitfall 9: such a pair would have loss ln 2 and no gradient, and count as an error."""
    rows = [
        group_row("a", ["reward " * 50 + "draw", "reward " * 50 + "end", "award"]),
        group_row("reward " * 50, ["draw", "end"], group_id="g1"),
    ]
    groups, totals = tokenize(models["bos"], rows, max_length=32, overlong_policy="truncate")
    assert [group.group_id for group in groups] == ["g0"]
    assert (groups[0].chosen_P.tolist(), groups[0].rejected_P.tolist()) == ([0, 1], [2, 2])
    assert (totals["pairs_identical"], totals["groups_dropped"], totals["completions_unpaired"]) == (2, 1, 2)


def test_completions_that_a_template_makes_equal_are_no_pair(models):
    groups, totals = tokenize(models["chat"], [group_row("a", ["draw", " draw\n", "end"])])
    assert (groups[0].chosen_P.tolist(), groups[0].rejected_P.tolist()) == ([0, 1], [2, 2])
    assert totals["pairs_identical"] == 1


def test_totals_add_over_calls_and_the_longest_is_the_longer(models):
    rows = [group_row("a", ["draw", "reward " * 50]), group_row("a", ["draw", "end"], group_id="g1")]
    _, whole = tokenize(models["bos"], rows, max_length=32)
    parts = [tokenize(models["bos"], [row], max_length=32)[1] for row in rows]
    assert add_totals(*parts) == whole
    assert set(add_totals().values()) == {0}


def test_more_groups_than_one_batch_keep_their_order(models):
    rows = [group_row("a", ["draw", "end"][:: 1 if i % 2 else -1], group_id=f"g{i}") for i in range(600)]
    groups, totals = tokenize(models["bos"], rows)
    assert [group.group_id for group in groups] == [f"g{i}" for i in range(600)]
    assert full_rows(groups[0]) == full_rows(groups[1])[::-1] == full_rows(groups[598])
    assert totals["groups"] == 600


def test_a_slice_of_a_pairs_table_is_tokenised_as_what_it_holds(models):
    tokenizer = load_tokenizer(str(models["bos"]))
    spec = TokenSpec.of(tokenizer, TokensConfig(max_length=LONG))
    rows = [group_row("a", ["draw", "end", "award"][: 2 + i % 2], group_id=f"g{i}") for i in range(10)]
    table = pa.Table.from_pylist(rows, schema=PAIRS_SCHEMA)
    part, _ = tokenize_groups(table.slice(3, 4), tokenizer, spec)
    whole, _ = tokenize_groups(table, tokenizer, spec)
    assert part.to_pylist() == whole.to_pylist()[3:7]
    assert tokenize_groups(table.slice(0, 0), tokenizer, spec)[0].num_rows == 0


# --------------------------------------------------------------------------------------------- templates


def test_a_template_from_the_configuration_goes_before_the_tokenizers_own(models, tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(JOINED, encoding="utf-8")
    tokenizer = load_tokenizer(str(models["chat"]))
    assert resolve_template(tokenizer, TokensConfig()) == CHAT_TEMPLATE
    assert resolve_template(tokenizer, TokensConfig(chat_template=JOINED)) == JOINED
    assert resolve_template(tokenizer, TokensConfig(chat_template=str(path))) == JOINED
    bare = load_tokenizer(str(models["bare"]))
    assert resolve_template(bare, TokensConfig()) == plain_template(bare)


@pytest.mark.parametrize(
    ("name", "separator"),
    [
        *((name, None) for name in ("bert", "roberta", "xlm-roberta", "deberta-v2")),
        *((name, "\n\n") for name in ("llama", "gpt2", "byte_level")),
    ],
)
def test_a_plain_template_sets_prompt_and_completion_apart_as_the_tokenizer_does(
    tmp_path: Path, name: str, separator: str | None
) -> None:
    """Encoders learned from two texts with their separator between; BERT's tokenizer drops a blank line."""
    adding_special_tokens()[name].save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    tokenizer.chat_template = None
    spec = TokenSpec.of(tokenizer, TokensConfig())
    prompt, completion = "a reward model", "ranks rewards"
    (found,) = tokenize_completions([[{"role": "user", "content": prompt}]], [[reply_of(completion)]], tokenizer, spec)
    assert isinstance(found, TokenizedCompletions)
    (row,) = found.row_ids
    assert row is not None
    if separator is None:
        assert row.tolist() == tokenizer(prompt, completion)["input_ids"]
    else:
        assert f"{prompt}{separator}{completion}" in tokenizer.decode(row)


def test_a_template_that_prints_the_date_gives_the_same_text_on_every_day(models):
    """Pitfall 24: Llama 3.2's template prints today's date, so a reward would change overnight."""
    dated = "{{ strftime_now('%d %b %Y') }}|{{ messages[-1]['content'] }}"
    tokenizer = load_tokenizer(str(models["bos"]))
    resolved = resolve_template(tokenizer, TokensConfig(chat_template=dated))
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    days = [
        datetime.datetime.now().astimezone() + datetime.timedelta(days) for days in (-1, 0, 1)
    ]  # midnight may pass meanwhile
    assert render(tokenizer, dated, [conversation])[0] in [f"{day:%d %b %Y}|b" for day in days]
    assert render(tokenizer, resolved, [conversation]) == ["26 Jul 2024|b"]
    assert resolve_template(tokenizer, TokensConfig(chat_template=resolved)) == resolved


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "tokens.chat_template: the chat template gives no text: .*set tokens.chat_template"),
        ("{{ messages[0]['content'] }}", "tokens.chat_template: shows nothing of the completion"),
        ("missing/template.jinja", "missing/template.jinja cannot be read: .*No such file"),
    ],
)
def test_a_template_that_cannot_work_is_refused_with_the_reason(models, template, message):
    with pytest.raises(ConfigError, match=message):
        resolve_template(load_tokenizer(str(models["bos"])), TokensConfig(chat_template=template))


NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn: ' + messages[0].content) }}{% endif %}"
    + JOINED
)
SYSTEM = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a"}]
WITH_SYSTEM = [
    group_row("a", ["draw", "end"]),
    group_row("a", ["draw", "end", "award"], group_id="g1") | {"prompt": SYSTEM},
]


def test_a_prompt_that_the_template_refuses_is_excluded_and_counted_with_the_reason(models):
    groups, totals = tokenize(models["bos"], WITH_SYSTEM, chat_template=NO_SYSTEM)
    assert [group.group_id for group in groups] == ["g0"]
    expected = {"groups": 2, "groups_refused": 1, "groups_dropped": 1, "completions": 5, "completions_refused": 3}
    assert {name: totals[name] for name in expected} == expected
    assert (totals["pairs"], totals["pairs_dropped"]) == (4, 3)
    reasons = counts_behind(totals, REFUSED_PREFIX)
    assert reasons == {"the chat template gives no text: no system turn: ...": 1}, (
        "a reason quotes no text of the group"
    )


def test_a_prompt_that_the_template_refuses_stops_the_run_where_that_is_wanted_and_names_its_group(models):
    found = r'group g1: .*no system turn: .* \(roles of its prompt: system, user\); set tokens.refused = "drop"'
    with pytest.raises(DataError, match=found):
        tokenize(models["bos"], WITH_SYSTEM, chat_template=NO_SYSTEM, refused="stop")


def test_few_reasons_of_refusals_are_kept_and_all_are_counted(models):
    template = "{{ raise_exception('role ' + messages[0]['role']) if messages[0]['role'] != 'user' }}" + JOINED
    rows = [
        group_row("a", ["draw", "end"], group_id=f"g{i}") | {"prompt": [{"role": f"r{i}", "content": "a"}]}
        for i in range(12)
    ]
    _, totals = tokenize(models["bos"], rows, chat_template=template)
    assert len(counts_behind(totals, REFUSED_PREFIX)) == 6
    parts = [tokenize(models["bos"], [row], chat_template=template)[1] for row in rows]
    together = add_totals(*parts)
    assert len(counts_behind(together, REFUSED_PREFIX)) == 6
    assert sum(counts_behind(together, REFUSED_PREFIX).values()) == together["groups_refused"] == 12


# -------------------------------------------------------------------------------------------- tokenizers


def test_a_directory_without_a_tokenizer_is_refused(models, tmp_path):
    """transformers 5 makes an empty GPT-2 tokenizer for such a directory and every text has no token."""
    with pytest.raises(ModelError, match="holds nothing, but no tokenizer; write one there"):
        load_tokenizer(str(tmp_path))
    for kind in models:
        directory = tmp_path / kind
        directory.mkdir()
        (directory / "config.json").write_bytes((models[kind] / "config.json").read_bytes())
        with pytest.raises(ModelError, match=r"holds config.json but no tokenizer; write one there"):
            load_tokenizer(str(directory))
    (tmp_path / "bare" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ModelError, match=r"holds config.json but no tokenizer; write one there"):
        load_tokenizer(str(tmp_path / "bare"))


def test_a_path_that_is_no_directory_is_refused(models):
    with pytest.raises(ModelError, match=r"/no/such/model: no such directory; expected a directory with config\.json"):
        load_tokenizer("/no/such/model")
    with pytest.raises(ModelError, match=r"config.json: a file; expected a directory with config"):
        load_tokenizer(str(models["bos"] / "config.json"))


def test_a_torn_tokenizer_is_refused(models, tmp_path):
    whole = (models["bos"] / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"its tokenizer cannot be loaded: .*JSONDecodeError"):
        load_tokenizer(str(tmp_path))


def test_a_slow_tokenizer_is_refused(tmp_path):
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"\(ByT5Tokenizer\) is a slow one, .*expected a fast one"):
        load_tokenizer(str(tmp_path))


def test_the_digest_changes_with_all_that_decides_the_tokens_and_with_nothing_else(models, tmp_path):
    tokenizer = load_tokenizer(str(models["bos"]))
    spec = TokenSpec.of(tokenizer, TokensConfig(max_length=64))
    tokenizer("some text", padding="max_length", truncation=True, max_length=9)
    tokenizer.save_pretrained(tmp_path)
    assert TokenSpec.of(load_tokenizer(str(tmp_path)), TokensConfig(max_length=64)).digest == spec.digest
    others = [
        TokenSpec.of(tokenizer, TokensConfig(max_length=65)),
        TokenSpec.of(tokenizer, TokensConfig(max_length=64, overlong_policy="truncate")),
        TokenSpec.of(tokenizer, TokensConfig(max_length=64, chat_template=JOINED)),
        TokenSpec.of(load_tokenizer(str(models["bare"])), TokensConfig(max_length=64)),
    ]
    tokenizer.add_tokens(["rewarding"])
    others.append(TokenSpec.of(tokenizer, TokensConfig(max_length=64)))
    assert len({spec.digest, *(other.digest for other in others)}) == 1 + len(others)
