"""Benchmarks by file: known results to the digit, and each rule against an example worked out by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from exported_models import export_small_model, plain_rewards
from pairwright.cli.main import app
from pairwright.errors import DataError
from pairwright.evaluation.benchmarks.benchmark_files import read_benchmarks
from pairwright.evaluation.benchmarks.benchmark_layouts import (
    JUDGE_BENCH,
    PPE,
    REWARD_BENCH,
    REWARD_BENCH_2,
    REWARD_MATH,
    RM_BENCH,
    BenchmarkItem,
)
from pairwright.evaluation.benchmarks.benchmark_rules import BenchmarkResult, score_benchmark, ties_score
from pairwright.evaluation.benchmarks.benchmark_run import BenchmarkTable, format_benchmarks, run_benchmarks

DATA = Path(__file__).parents[4] / "shared/data/benchmarks"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data/benchmarks")


def run(files: list[Path], *, model: Path | None = None, scores: Path | None = None) -> BenchmarkTable:
    return run_benchmarks(
        [str(file) for file in files],
        model=None if model is None else str(model),
        scores=None if scores is None else str(scores),
        micro_batch_tokens=4096,
        use_gpu=False,
    )


def values(table: BenchmarkTable) -> dict[str, float]:
    return {result.model: round(100 * (result.value or 0), 2) for result in table.results}


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# --------------------------------------------------------------------------------------- known results


@needs_data
def test_judgebench_has_the_published_shares_and_an_equal_pair_is_wrong() -> None:
    file = DATA / "judgebench_gpt4o_rewards.jsonl.zst"
    table = run([file], scores=file)
    assert values(table) == {
        "Skywork-Reward-Llama-3.1-8B": 62.29,
        "internlm2-7b-reward": 59.43,
        "internlm2-20b-reward": 63.43,
        "GRM-Gemma-2B": 59.43,
        "(longer wins)": 46.0,
    }
    assert table.results[0].equal_rewards == 1
    assert set(table.results[0].parts) == {"knowledge", "reasoning", "math", "coding"}


@needs_data
def test_rewardmath_has_the_published_shares() -> None:
    table = run([], scores=DATA / "rewardmath_rewards.json.zst")
    assert values(table) == {"ArmoRM": 20.50, "internlm2_7b": 37.27, "OASST": 7.04}


@needs_data
def test_the_longer_text_wins_rm_bench_where_it_is_easy() -> None:
    items, _ = read_benchmarks([str(DATA / "rm_bench_chat.json.zst")])
    rewards = [[float(len(text)) for text in item.completions] for item in items[RM_BENCH]]
    found = score_benchmark(items[RM_BENCH], rewards, "longer")
    assert found.items == 129
    assert [round(100 * found.parts[name]) for name in ("easy", "normal", "hard")] == [81, 28, 3]


# ---------------------------------------------------------------------------------------------- rules


def item(benchmark: str, subset: str, num_right: int, size: int, name: str = "1") -> BenchmarkItem:
    return BenchmarkItem(benchmark, name, subset, "?", ["text"] * size, num_right)


def score(items: list[BenchmarkItem], rewards: Sequence[Sequence[float]]) -> BenchmarkResult:
    return score_benchmark(items, rewards, "model")


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [([4, 1, 2, 3], 1), ([3, 1, 2, 3], 1 / 2), ([3, 3, 2, 3], 1 / 3), ([3, 3, 3, 3], 1 / 4), ([2, 1, 3, 3], 0)],
)
def test_rewardbench_2_gives_one_over_m_for_m_equal_maxima(rewards: list[float], expected: float) -> None:
    assert score([item(REWARD_BENCH_2, "Focus", 1, 4)], [rewards]).value == pytest.approx(expected)


def test_rewardbench_2_is_the_mean_of_its_subsets_and_not_of_its_items() -> None:
    items = [item(REWARD_BENCH_2, subset, 1, 4) for subset in ("Math", "Math", "Math", "Safety")]
    found = score(items, [[9, 1, 1, 1]] * 3 + [[0, 1, 1, 1]])
    assert found.value == pytest.approx(0.5)
    assert found.parts == {"Math": 1.0, "Safety": 0.0}


def test_rewardbench_2s_ties_are_scored_by_their_formula_worked_out_by_hand() -> None:
    items = [
        item(REWARD_BENCH_2, "Ties", 1, 3, "ref:1"),
        item(REWARD_BENCH_2, "Ties", 2, 4, "tied:1"),
        item(REWARD_BENCH_2, "Ties", 1, 3, "ref:2"),
        item(REWARD_BENCH_2, "Ties", 2, 4, "tied:2"),
    ]
    rewards = [
        [5.0, 4.0, 1.0],  # ref 1: right, gap 1
        [5.0, 3.0, 0.0, -1.0],  # tied 1: right, spread 2, gap 3 > 2; with the reference 1 < 2
        [5.0, 6.0, 1.0],  # ref 2: wrong, gap -1
        [5.0, 4.5, 4.0, 0.0],  # tied 2: right, spread 0.5, gap 0.5 not above it
    ]
    margin = np.mean([np.tanh(1 / 2 - 1), np.tanh(-1 / 0.5 - 1)])
    expected = 0.3 * 1.0 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0.0 + 0.01 * margin
    assert ties_score(items, [np.array(row) for row in rewards]) == pytest.approx(expected)
    assert score(items, rewards).value == pytest.approx(expected)


def test_a_perfect_model_has_101_points_in_ties_as_upstream() -> None:
    items = [item(REWARD_BENCH_2, "Ties", 1, 2, "ref:1"), item(REWARD_BENCH_2, "Ties", 2, 3, "tied:1")]
    assert score(items, [[9.0, 0.0], [9.0, 9.0, 0.0]]).value == pytest.approx(1.01)


def test_rewardbench_is_the_mean_of_sections_whose_subsets_weigh_by_fixed_counts() -> None:
    items = [
        item(REWARD_BENCH, "math-prm", 1, 2),  # counts 984 of 984 + 164
        item(REWARD_BENCH, "hep-go", 1, 2),
        item(REWARD_BENCH, "donotanswer", 1, 2),
    ]
    found = score(items, [[1, 0], [0, 1], [1, 1]])  # right, wrong, equal: strictly above, so wrong
    reasoning = 984 / (984 + 164)
    assert found.parts["Reasoning"] == pytest.approx(reasoning)
    assert found.parts["Safety"] == 0
    assert found.value == pytest.approx(reasoning / 2)
    assert found.equal_rewards == 1


def test_rm_bench_is_easy_where_the_chosen_style_is_the_more_elaborate_one() -> None:
    found = score([item(RM_BENCH, "chat", 3, 6)], [[1, 2, 3, 0.5, 1.5, 2.5]])
    # chosen 1, 2, 3 against rejected 0.5, 1.5, 2.5: above on and below the diagonal.
    assert [found.parts[name] for name in ("easy", "normal", "hard")] == [1.0, 1.0, 0.0]
    assert found.value == pytest.approx(2 / 3)


@pytest.mark.parametrize("benchmark", [JUDGE_BENCH, PPE, REWARD_MATH, "pairs"])
def test_equal_rewards_are_wrong_and_a_constant_model_has_nothing(benchmark: str) -> None:
    found = score([item(benchmark, "", 1, 2)] * 20, [[1.0, 1.0]] * 20)
    assert (found.value, found.equal_rewards) == (0.0, 20)
    assert found.interval is not None
    assert found.interval[1] > 0.1, "20 items do not show that it is never right"


# --------------------------------------------------------------------------------------------- layouts

RECORDS = {
    REWARD_BENCH: {"id": 30, "prompt": "Say hi.", "chosen": "Hi.", "rejected": "No.", "subset": "mt-bench-easy"},
    REWARD_BENCH_2: {"id": "f1", "prompt": "?", "chosen": ["Yes."], "rejected": ["a", "b", "c"], "subset": "Focus"},
    RM_BENCH: {"id": "8", "prompt": "?", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "error_key": "x"},
    JUDGE_BENCH: {"pair_id": "j", "question": "?", "response_A": "bad", "response_B": "Good.", "label": "B>A"},
    PPE: {"question_id": "p", "prompt": "?", "response_1": "bad", "response_2": "Good.", "winner": "model_b"},
    "pairs": {"prompt": "Name a tree.", "chosen": "Oak.", "rejected": "Moss.", "subset": "trees"},
}
RIGHT = {
    REWARD_BENCH: "Hi.",
    REWARD_BENCH_2: "Yes.",
    RM_BENCH: "a",
    JUDGE_BENCH: "Good.",
    PPE: "Good.",
    "pairs": "Oak.",
}


@pytest.mark.parametrize("benchmark", list(RECORDS))
def test_a_layout_is_recognised_and_its_right_completion_comes_first(benchmark: str, tmp_path: Path) -> None:
    items, _ = read_benchmarks([str(write(tmp_path / "file.jsonl", [RECORDS[benchmark]]))])
    (found,) = items[benchmark]
    assert found.completions[0] == RIGHT[benchmark]


def test_the_solutions_of_a_problem_of_rewardmath_are_one_item(tmp_path: Path) -> None:
    records = [
        {"problem": f"{n} + {n}", "eval_solution": ["Add.", str(k)], "solution_type": kind, "problem_id": n, "id": k}
        for n in (1, 2)
        for k, kind in enumerate(["rejected", "chosen", *["rejected"] * 8])
    ]
    items, _ = read_benchmarks([str(write(tmp_path / "math.jsonl", records))])
    assert [(len(one.completions), one.num_right) for one in items[REWARD_MATH]] == [(10, 1), (10, 1)]
    assert items[REWARD_MATH][0].completions[0] == "Add.\n1"


def test_a_tie_of_annotators_is_counted_and_not_scored(tmp_path: Path) -> None:
    records = [RECORDS[PPE], RECORDS[PPE] | {"winner": "tie (bothbad)"}]
    items, num_ties = read_benchmarks([str(write(tmp_path / "ppe.jsonl", records))])
    assert (len(items[PPE]), num_ties) == (1, 1)


def test_a_record_of_no_benchmark_names_its_line_and_what_was_expected(tmp_path: Path) -> None:
    file = write(tmp_path / "file.jsonl", [RECORDS[PPE], {"question": "?", "answer": "!"}])
    with pytest.raises(DataError, match=r"file.jsonl:2: the layout of no known benchmark: answer, question; expected"):
        read_benchmarks([str(file)])


# ------------------------------------------------------------------------------------- rewards by file


def test_rewards_by_id_in_any_order_score_the_items(tmp_path: Path) -> None:
    file = write(tmp_path / "f.jsonl", [RECORDS[PPE] | {"question_id": f"q{n}"} for n in range(3)])
    rewards = [[2, 1], [1, 2], [5, 1]]
    records = [{"id": f"q{n}", "rewards": rewards[n], "model": "theirs"} for n in (2, 0, 1)]
    assert values(run([file], scores=write(tmp_path / "s.jsonl", records)))["theirs"] == 66.67
    by_side = [{"id": f"q{n}", "scores_chosen": rewards[n][0], "scores_rejected": rewards[n][1]} for n in range(3)]
    assert values(run([file], scores=write(tmp_path / "t.jsonl", by_side)))["t.jsonl"] == 66.67
    lists = tmp_path / "lists.json"
    lists.write_text(json.dumps({"a": rewards, "b": [[0, 1]] * 3}))
    assert values(run([file], scores=lists)) == {"a": 66.67, "b": 0.0, "(longer wins)": 100.0}


def test_rewards_that_do_not_fit_say_which_are_missing(tmp_path: Path) -> None:
    file = write(tmp_path / "f.jsonl", [RECORDS[PPE] | {"question_id": f"q{n}"} for n in range(3)])
    with pytest.raises(DataError, match=r"s.jsonl: no rewards for item q1; expected one record for each of 3 items"):
        run([file], scores=write(tmp_path / "s.jsonl", [{"id": "q0", "rewards": [1, 2]}]))
    lists = tmp_path / "lists.json"
    lists.write_text(json.dumps({"a": [[1, 2, 3]] * 3}))
    with pytest.raises(DataError, match=r"a: 3 lists of rewards of 3 to 3 fit no benchmark that is given \(PPE\)"):
        run([file], scores=lists)
    lists.write_text(json.dumps({"a": [[1, float("inf")]] * 3}).replace("Infinity", "1e999"))
    with pytest.raises(DataError, match=r"PPE q0: 2 completions.*expected one finite reward|not a JSON object"):
        run([file], scores=lists)


# --------------------------------------------------------------------------------------------- a model


def test_a_model_is_scored_by_what_plain_transformers_gives_and_an_overlong_item_is_counted(tmp_path: Path) -> None:
    model = export_small_model(tmp_path / "run", max_length=200)
    texts = ["Because of scattering.", "It is not; it is green.", "Why?", "At least in my town."]
    records: list[dict[str, Any]] = [
        {"id": f"f{n}", "prompt": f"Why is sky {n} blue?", "chosen": [texts[n % 4]], "subset": "Focus"}
        | {"rejected": [text for text in texts if text != texts[n % 4]]}
        for n in range(8)
    ]
    file = write(tmp_path / "two.jsonl", [*records, records[0] | {"chosen": ["long " * 500]}])
    table = run([file], model=model)
    right = 0
    for record in records:
        rewards = plain_rewards(
            model, [{"role": "user", "content": record["prompt"]}], [*record["chosen"], *record["rejected"]]
        )
        right += rewards[0] == max(rewards)
    assert table.results[0].value == pytest.approx(right / 8)
    assert (table.results[0].items, table.excluded) == (8, {REWARD_BENCH_2: 1})
    text = format_benchmarks(table)
    assert "1 items excluded" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_verb_prints_a_table_and_json_and_says_what_it_needs(tmp_path: Path) -> None:
    file = write(tmp_path / "f.jsonl", [RECORDS[PPE]])
    scores = write(tmp_path / "s.jsonl", [{"id": "p", "rewards": [2, 1], "model": "theirs"}])
    shown = CliRunner().invoke(app, ["benchmark", str(file), "--scores", str(scores)])
    assert shown.exit_code == 0
    assert "theirs" in shown.output
    found = json.loads(CliRunner().invoke(app, ["benchmark", str(file), "--scores", str(scores), "--json"]).output)
    assert found["results"][0]["value"] == 1.0
    refused = CliRunner().invoke(app, ["benchmark", str(file)])
    assert "expected a model and at least one file of a benchmark" in str(refused.exception)
