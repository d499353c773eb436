"""Records in the layouts of public data sets and bug reports: each reads as its author meant, or is refused by name."""

import json
from pathlib import Path
from typing import Any

import pyarrow.ipc as ipc
import pytest

from pairwright.config import IngestConfig
from pairwright.data.ingest.shards import IngestShard, write_shards
from pairwright.data.ingest.sources.listing import find_sources
from pairwright.data.ingest.sources.splits import InputSplit
from pairwright.data.table.table import Table

CASES = Path(__file__).parents[3].parent / "shared/cases"

# (what it was read as, prompts, (completions, ranks or scores) of each, places that were refused)
USER = "user: "
EXPECTED: dict[str, tuple[str, list[str], list[Any], list[str]]] = {
    "orca_dpo_pairs/orca.jsonl": (
        "orca-dpo",
        [
            "system: You are a careful tutor. Think step by step. | user: A shed is 4 m wide and 6 m long. What is its "
            "floor area?",
            "user: Name the colour of ripe tomatoes.",
            "system: Answer like a pirate. | user: Where does the sun rise?",
            "system: Translate to French. | user: good night",
        ],
        [],
        [],
    ),
    "llamafactory_alpaca_preference/alpaca_dpo.json": (
        "alpaca",
        [
            "user: Summarise the note.\nThe boiler on floor two leaks; the plumber comes on Monday.",
            "user: Rewrite politely.\nSend it now.",
            "system: You are a dictionary. | user: Hello | assistant: Hello! Which word? | user: What is the "
            "opposite of early?",
        ],
        [],
        [],
    ),
    "messages_plus_strings/capybara_sampled.jsonl": (
        "messages",
        [
            "user: What is a fjord? | assistant: A long inlet made by a glacier. | user: Name one in Norway.",
            "user: Is rust heavier than iron?",
        ],
        [],
        [],
    ),
    "system_column/truthy_dpo.jsonl": (
        "trl",
        [
            "system: You are Captain Mo, a retired sailor. Stay in character. | user: Where do you sleep?",
            "system: You are an unbiased, honest assistant. | user: Where do you sleep?",
        ],
        [],
        [],
    ),
    "stringified_conversations/json_strings.jsonl": (
        "trl",
        ["user: Name a lake."] * 2,
        [(["Lake Como.", "A puddle."], [1, 2])] * 2,
        [],
    ),
    "stringified_conversations/pandas_repr.csv": (
        "trl",
        ["user: Name a lake."],
        [(["Lake Como.", "A puddle."], [1, 2])],
        [],
    ),
    "prompt_beside_conversations/prompt_not_in_sides.jsonl": (
        "trl",
        [
            "user: Plan a picnic. | assistant: For how many? | user: Four.",
            "system: Be brief. | user: Name a lake.",
            "user: Name a sea.",
        ],
        [],
        ["4: $.chosen"],
    ),
    "score_columns_other_names/argilla_cleaned.jsonl": (
        "trl",
        ["user: Name a tree.", "user: Name a bird."],
        [(["Oak.", "Moss."], [5.0, 2.5]), (["Wren.", "Robin."], [4.0, 4.0])],
        [],
    ),
    "score_columns_other_names/orpo_capybara.jsonl": (
        "messages",
        ["user: Name a tree."],
        [(["Oak.", "Moss."], [0.9, 0.1])],
        [],
    ),
    "hh_transcript_prompt/full_hh_rlhf.jsonl": (
        "full-hh-rlhf",
        [
            "user: How do I keep basil alive? | assistant: Water it daily. | user: In winter too?",
            "user: Name a herb.",
        ],
        [(["Less in winter, and near a window.", "Put it in the fridge."], [1, 2]), (["Thyme.", "Stone."], [1, 2])],
        [],
    ),
    "id_of_the_prompt/pairs.jsonl": ("trl", ["user: Name a lake."] * 3, [], []),
    "id_unique_within_subset/per_subset_ids.jsonl": (
        "trl",
        ["user: 1+1?", "user: 2+2?", "user: May I borrow a pen?", "user: May I sit here?"],
        [],
        [],
    ),
    "images_column/trl_vlm.jsonl": ("trl", [], [], ["1: $.images"]),
    "images_column/rlhf_v_sharegpt.json": ("sharegpt", [], [], ["1: $.images"]),
    "content_parts/image_parts.jsonl": ("trl", [], [], ["1: $.prompt[0].content[0]"]),
    "content_parts/text_parts.jsonl": ("trl", ["user: Name a lake."], [(["Lake Como.", "A puddle."], [1, 2])], []),
    "content_parts/native_parts.jsonl": ("native", ["user: Name a lake."], [(["Lake Como.", "A puddle."], [1, 2])], []),
    "csv_cells/pandas_index.csv": ("trl", ["user: Name a lake.", "user: Name a sea."], [], []),
    "dict_of_lists/rows.jsonl": ("trl", ["user: Name a lake."], [(["Lake Como.", "A puddle."], [1, 2])], []),
    "nan_in_optional_column/margin_nan.jsonl": (
        "trl",
        ["user: Name a sea."],
        [(["The Aral Sea.", "The Rhine."], [1.0, 0.0])],
        ["1: $"],
    ),
    "native_floats/ranks.jsonl": ("native", ["user: Name a lake.", "user: Name a sea."], [], []),
    "chatbot_arena/arena_33k.jsonl": (
        "chatbot-arena",
        ["user: Name a lake.", "user: Sing."],
        [(["Lake Como.", "A puddle."], [1, 2]), (["La.", "Lo."], [1, 1])],
        ["3: $.conversation_a"],
    ),
    "chatbot_arena/kaggle_lmsys_55k.csv": ("chatbot-arena-kaggle", [], [], ["1: $.response_b[1]"]),
    "one_row_per_response/helpsteer2_train.jsonl": (
        "helpsteer-rows",
        ["user: Name a lake.", "user: Name a sea."],
        [(["Lake Como.", "A puddle."], [4.0, 1.0]), (["The Aral Sea.", "The North Sea."], [3.0, 3.0])],
        [],
    ),
    "oasst_tree/oasst_trees.jsonl": (
        "oasst",
        ["user: Name a lake."],
        [(["Lake Como.", "A puddle.", "Lake."], [1, 3, 2])],
        [],
    ),
    "nemo_rl_rank_zero/preference.jsonl": (
        "nemo-rl",
        ["user: What is the capital of Germany?", "system: Be brief. | user: And of Peru?"],
        [(["Berlin.", "Bonn."], [1, 2]), (["Cusco.", "Lima.", "Quito."], [2, 1, 3])],
        [],
    ),
    "ms_swift_rejected_response/rm.jsonl": (
        "ms-swift",
        [
            "system: You are useful and harmless. | user: What will the weather be tomorrow?",
            "user: How many legs has a spider?",
        ],
        [
            (["I cannot know that, but a forecast site can tell you.", "I do not know"], [1, 2]),
            (["Eight.", "Six."], [1.5, 0.0]),
        ],
        [],
    ),
    "ms_swift_rejected_response/rm_rejected_messages.jsonl": (
        "ms-swift",
        ["system: Be kind. | user: Name a prime."],
        [(["Seven.", "Eight."], [1, 2])],
        [],
    ),
    "openai_preference_finetuning/preference.jsonl": (
        "openai",
        [
            "user: Hello, can you tell me how cold it is in Oslo today?",
            "assistant: Hi! What shall we talk about? | user: The fall of Carthage.",
        ],
        [],
        [],
    ),
    "rewardbench/rewardbench_v2.jsonl": (
        "rewardbench-2",
        ["user: Name a lake.", "user: Name a colour of the flag of Italy."],
        [
            (["Lake Como.", "A puddle.", "A pond.", "The Rhine."], [1, 2, 2, 2]),
            (["Green", "White", "Red", "Blue", "Black"], [1, 1, 1, 2, 2]),
        ],
        [],
    ),
    "two_answer_columns/webgpt.jsonl": (
        "webgpt",
        ["user: Why do cats purr?", "user: Why is ice slippery?"],
        [
            (["They purr when content [1].", "Nobody knows."], [0.5, -0.5]),
            (["A thin wet film.", "It melts a little."], [0.0, 0.0]),
        ],
        [],
    ),
    "two_answer_columns/helpsteer2_preference.jsonl": (
        "helpsteer-preference",
        ["user: Name three fruits.", "user: Name one fruit."],
        [(["Apple, pear.", "Apple, pear, plum."], [2, 1]), (["Fig.", "Date."], [1, 1])],
        [],
    ),
    "argilla_v1_and_other_questions/feedback_v1_ranking.jsonl": (
        "argilla",
        ["user: Name a lake."],
        [(["Lake Como.", "A puddle."], [1, 2])],
        [],
    ),
    "argilla_v1_and_other_questions/v2_rating_and_label.jsonl": (
        "argilla",
        ["user: Name a lake.", "user: Name a sea."],
        [(["Lake Como.", "A puddle."], [5.0, 2.0]), (["The Aral Sea.", "The Rhine."], [1, 2])],
        [],
    ),
    "label_studio_other_tags/pairwise_and_choices.json": (
        "label-studio",
        ["user: Name a lake.", "user: Name a sea.", "user: Name a tree."],
        [
            (["Lake Como.", "A puddle."], [1, 2]),
            (["The Aral Sea.", "The Rhine."], [1, 2]),
            (["Oak.", "Moss."], [5.0, 2.0]),
        ],
        [],
    ),
}


def ingested(path: Path, table: Table, config: IngestConfig) -> tuple[list[IngestShard], list[dict[str, Any]]]:
    """Return the parts that a file gives, and the rows in them."""
    source = find_sources([str(path)], config.limits).sources[0]
    parts = list(write_shards(0, InputSplit(source, 0, source.size, 0), table, config))
    files = [Path(table.url) / part.data.path for part in parts if part.data]
    return parts, [row for file in files for row in ipc.open_file(file.read_bytes()).read_all().to_pylist()]


def case(name: str) -> Path:
    path = CASES / name
    if not path.exists():
        pytest.skip(f"{name} is not here: shared/cases is handed out with the project, not in it")
    return path


@pytest.mark.parametrize("name", EXPECTED)
def test_a_record_of_the_world_is_read_as_its_author_meant(name: str, tmp_path: Path) -> None:
    layout, prompts, judged, refused = EXPECTED[name]
    parts, rows = ingested(case(name), Table(str(tmp_path / "table"), "annotations"), IngestConfig())
    assert [part.format for part in parts] == [layout]
    assert [" | ".join(f"{turn['role']}: {turn['content']}" for turn in row["prompt"]) for row in rows] == prompts
    assert [f"{one.line}: {one.path}" for part in parts for one in part.shown] == refused
    if judged:
        assert [
            ([one["text"] for one in row["completions"]], row["scores"] if row["scores"] else row["ranks"])
            for row in rows
        ] == judged
    assert len({row["id"] for row in rows}) == len(rows)


@pytest.mark.parametrize("content", [r"'\ud800'", "b'x'", "{1, 2}", "1e400", "'x', 'name': b'x'"])
def test_a_printed_conversation_that_json_cannot_hold_is_refused_and_no_crash(content: str, tmp_path: Path) -> None:
    said = f"[{{'role': 'user', 'content': 'q'}}, {{'role': 'assistant', 'content': {content}}}]"
    (tmp_path / "a.jsonl").write_text(json.dumps({"chosen": said, "rejected": said}) + "\n")
    parts, rows = ingested(tmp_path / "a.jsonl", Table(str(tmp_path / "table"), "annotations"), IngestConfig())
    assert rows == []
    assert "cannot be read as one; write conversations as JSON" in parts[0].shown[0].reason


def test_answers_that_are_json_are_texts_where_the_column_holds_texts(tmp_path: Path) -> None:
    path = case("csv_cells/json_answers_among_plain.csv")
    _, rows = ingested(path, Table(str(tmp_path / "table"), "annotations"), IngestConfig())
    assert [one["text"] for one in rows[6]["completions"]] == ['{"name": "Ada", "age": 7}', '{"name": "Ada"}']
    assert [one["text"] for one in rows[7]["completions"]] == ["[2, 3, 5]", "[1, 2, 3]"]
    assert len(rows) == 11


def test_one_prompt_has_one_identity_whatever_layout_it_came_in(tmp_path: Path) -> None:
    prompt_ids = set()
    for index, name in enumerate(("full_hh_rlhf", "hh_same_prompt")):
        path = case(f"hh_transcript_prompt/{name}.jsonl")
        _, rows = ingested(path, Table(str(tmp_path / str(index)), "annotations"), IngestConfig())
        prompt_ids |= {row["prompt_id"] for row in rows if row["prompt"][-1]["content"] == "Name a herb."}
    assert len(prompt_ids) == 1


def test_two_judgements_need_a_choice(tmp_path: Path) -> None:
    path = case("two_answer_columns/pku_saferlhf.jsonl")
    parts, rows = ingested(path, Table(str(tmp_path / "auto"), "annotations"), IngestConfig())
    assert "fit pku-saferlhf-better and pku-saferlhf-safer alike; say which is meant with --format" in str(
        parts[0].error
    )
    config = IngestConfig(format="pku-saferlhf-safer")
    _, rows = ingested(path, Table(str(tmp_path / "safer"), "annotations"), config)
    assert rows[0]["ranks"] == [1, 2]


@pytest.mark.parametrize("name", ["nemo_rl_rank_zero", "oasst_tree"])
def test_ranks_from_zero_are_a_setting_that_the_refusal_names(name: str, tmp_path: Path) -> None:
    folder = case(name)
    fields = (folder / "fields.toml").read_text(encoding="utf-8")
    path = next(folder.glob("*.jsonl"))
    (tmp_path / "one.toml").write_text(fields, encoding="utf-8")
    (tmp_path / "zero.toml").write_text(f"{fields}\nfirst_rank = 0\n", encoding="utf-8")
    one = IngestConfig.model_validate({"format": str(tmp_path / "one.toml")})
    parts, _ = ingested(path, Table(str(tmp_path / "one"), "annotations"), one)
    assert "set fields.first_rank = 0" in parts[0].shown[0].reason
    zero = IngestConfig.model_validate({"format": str(tmp_path / "zero.toml")})
    parts, rows = ingested(path, Table(str(tmp_path / "zero"), "annotations"), zero)
    assert parts[0].refused == 0
    assert min(rows[0]["ranks"]) == 1
