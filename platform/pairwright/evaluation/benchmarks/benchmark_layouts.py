"""Recognises the layouts of public benchmarks, and reads a record as an item: a prompt, right and wrong completions.

An item lists its right completions first. Which benchmark a file is of, its records say themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pairwright.data.ingest.adapters import RecordError, json_name
from pairwright.data.ingest.fields.conversation_turns import read_conversation

REWARD_BENCH = "RewardBench"
REWARD_BENCH_2 = "RewardBench 2"
RM_BENCH = "RM-Bench"
REWARD_MATH = "RewardMATH"
JUDGE_BENCH = "JudgeBench"
PPE = "PPE"
PAIRS = "pairs"

_JUDGE_BENCH_PARTS = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}
REWARD_BENCH_2_SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")
EXPECTED = (
    'expected RewardBench {"prompt", "chosen", "rejected", "subset"}, RewardBench 2 {"id", "prompt", "chosen": [...], '
    '"rejected": [...], "subset"}, RM-Bench {"prompt", "chosen": [3 texts], "rejected": [3 texts]}, RewardMATH '
    '{"problem", "eval_solution", "solution_type"}, JudgeBench {"question", "response_A", "response_B", "label"} or '
    'PPE {"prompt", "response_1", "response_2", "winner"}'
)


@dataclass(frozen=True, slots=True)
class BenchmarkItem:
    """One prompt of a benchmark.

    Attributes:
        benchmark: its name.
        id: as the file gives it, or its number from 1.
        subset: part of the benchmark.
        prompt: a text, or turns.
        completions: the right ones first.
        num_right: how many of them are right.
        rewards: rewards that the record itself holds, by model, in the order of ``completions``.
    """

    benchmark: str
    id: str
    subset: str
    prompt: Any
    completions: Sequence[str]
    num_right: int
    rewards: Mapping[str, Sequence[float]] = field(default_factory=dict)


def read_item(record: Mapping[str, Any], number: int) -> BenchmarkItem | None:
    """Return a record as an item; None for a tie, which no rule scores.

    A record of RewardMATH has one solution; ``joined_solutions`` makes items of them.

    Raises:
        RecordError: if it has the layout of no benchmark, or lacks what that layout has.
    """
    keys = record.keys()
    name = str(next((record[key] for key in ("id", "pair_id", "question_id", "problem_id") if key in record), number))
    if {"response_A", "response_B", "label"} <= keys:
        return _judge_bench(record, name)
    if {"problem", "eval_solution", "solution_type"} <= keys:
        return _solution(record, name)
    if {"response_1", "response_2", "winner"} <= keys:
        return _ppe(record, name)
    if {"prompt", "chosen", "rejected"} <= keys:
        if isinstance(record["chosen"], list) and isinstance(record["rejected"], list):
            return _lists(record, name)
        return _pair(record, name)
    raise RecordError(f"the layout of no known benchmark: {', '.join(sorted(keys))[:200]}; {EXPECTED}")


def joined_solutions(items: Sequence[BenchmarkItem]) -> list[BenchmarkItem]:
    """Return RewardMATH's solutions as one item a problem, the right one first; other items as they are."""
    joined: dict[tuple[str, str], BenchmarkItem] = {}
    for item in items:
        key = (item.benchmark, item.id) if item.benchmark == REWARD_MATH else (item.benchmark, f"{len(joined)}")
        if (earlier := joined.get(key)) is None:
            joined[key] = item
            continue
        right = [*earlier.completions[: earlier.num_right], *item.completions[: item.num_right]]
        wrong = [*earlier.completions[earlier.num_right :], *item.completions[item.num_right :]]
        joined[key] = replace(earlier, completions=[*right, *wrong], num_right=len(right))
    return list(joined.values())


def _judge_bench(record: Mapping[str, Any], name: str) -> BenchmarkItem:
    label = record["label"]
    if label not in ("A>B", "B>A"):
        raise RecordError(f'expected "A>B" or "B>A", got {json_name(label)}', path="$.label")
    texts = [_text(record, "response_A"), _text(record, "response_B")]
    order = [0, 1] if label == "A>B" else [1, 0]
    given = record.get("rewards") or {}
    rewards = {model: [float(pair[k]) for k in order] for model, pair in given.items()}
    source = str(record.get("source", ""))
    subset = next((name for prefix, name in _JUDGE_BENCH_PARTS.items() if source.startswith(prefix)), source)
    return BenchmarkItem(JUDGE_BENCH, name, subset, record.get("question"), [texts[k] for k in order], 1, rewards)


def _solution(record: Mapping[str, Any], name: str) -> BenchmarkItem:
    steps = record["eval_solution"]
    text = "\n".join(map(str, steps)) if isinstance(steps, list) else str(steps)
    num_right = int(record["solution_type"] == "chosen")
    problem = str(record.get("problem_id", name))
    return BenchmarkItem(REWARD_MATH, problem, str(record.get("subject", "")), record["problem"], [text], num_right)


def _ppe(record: Mapping[str, Any], name: str) -> BenchmarkItem | None:
    winner = str(record["winner"]).lower()
    texts = [_text(record, "response_1"), _text(record, "response_2")]
    first, second = ("model_a", "model_1", "response_1", "a", "1"), ("model_b", "model_2", "response_2", "b", "2")
    if winner not in (*first, *second):
        if "tie" in winner or "both" in winner:
            return None
        raise RecordError(f"expected model_a, model_b or a tie, got {winner[:50]}", path="$.winner")
    ordered = texts if winner in first else texts[::-1]
    return BenchmarkItem(PPE, name, str(record.get("language", "")), record.get("prompt"), ordered, 1)


def _lists(record: Mapping[str, Any], name: str) -> BenchmarkItem:
    chosen, rejected = [str(text) for text in record["chosen"]], [str(text) for text in record["rejected"]]
    if not chosen or not rejected:
        raise RecordError("expected at least one right and one wrong completion, got none", path="$.chosen")
    subset = str(record.get("subset") or record.get("domain") or "")
    is_second = "num_correct" in record or "total_completions" in record or subset in REWARD_BENCH_2_SUBSETS
    if not is_second and len(chosen) == len(rejected) == 3:
        subset = str(record.get("domain") or name.split("/")[0] if "/" in name else subset or "chat")
        return BenchmarkItem(RM_BENCH, name, subset, record["prompt"], [*chosen, *rejected], 3)
    return BenchmarkItem(REWARD_BENCH_2, name, subset, record["prompt"], [*chosen, *rejected], len(chosen))


def _pair(record: Mapping[str, Any], name: str) -> BenchmarkItem:
    subset = str(record.get("subset") or "")
    benchmark = REWARD_BENCH if subset in SECTION_OF else PAIRS
    texts = [_text(record, "chosen"), _text(record, "rejected")]
    return BenchmarkItem(benchmark, name, subset, record["prompt"], texts, 1)


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record[name]
    if isinstance(value, list):  # a conversation, whose last turn is the reply
        turns = read_conversation(value, f"$.{name}")
        if isinstance(turns, str) or not turns:
            raise RecordError("expected a text or turns", path=f"$.{name}")
        return turns[-1].content
    if not isinstance(value, str):
        raise RecordError(f"expected a text, got `{json_name(value)}`", path=f"$.{name}")
    return value


SECTIONS: Mapping[str, Mapping[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
"""RewardBench's sections, and how much each subset counts in its section: math-prm as much as all code."""
SECTION_OF = {subset: section for section, subsets in SECTIONS.items() for subset in subsets}
