"""Native rankings written as other tools export them: the inverse of each adapter, written from the tools' layouts.

Nothing here calls the code that reads them. A writer takes all annotations of one group, as native records.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Native = dict[str, Any]


@dataclass(frozen=True)
class Export:
    """How one tool writes a group, and what its layout can say."""

    format: str
    write: Callable[[Sequence[Native]], list[Any]]
    pairs_only: bool = False
    ties: bool = True
    chats: bool = True
    prompt: Callable[[str], str] = str
    """What a plain prompt reads as, when it comes back."""


def turns(prompt: str | list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def sides(annotation: Native) -> tuple[str, str]:
    """Return the better and the worse of two completions."""
    texts = [completion["text"] for completion in annotation["completions"]]
    return (texts[0], texts[1]) if annotation["ranks"][0] < annotation["ranks"][1] else (texts[1], texts[0])


def reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def texts_of(annotation: Native) -> list[str]:
    return [completion["text"] for completion in annotation["completions"]]


# ------------------------------------------------------------------------------------------------- pairs


def trl_explicit(group: Sequence[Native]) -> list[Any]:
    return [
        {"prompt": turns(one["prompt"]), "chosen": reply(sides(one)[0]), "rejected": reply(sides(one)[1])}
        for one in group
    ]


def trl_implicit(group: Sequence[Native]) -> list[Any]:
    opening = [turns(one["prompt"]) for one in group]
    return [
        {"chosen": opening[index] + reply(sides(one)[0]), "rejected": opening[index] + reply(sides(one)[1])}
        for index, one in enumerate(group)
    ]


def trl_standard(group: Sequence[Native]) -> list[Any]:
    return [{"prompt": one["prompt"], "chosen": sides(one)[0], "rejected": sides(one)[1]} for one in group]


def sharegpt(group: Sequence[Native]) -> list[Any]:
    speakers = {"user": "human", "assistant": "gpt", "system": "system"}
    return [
        {
            "conversations": [
                {"from": speakers[turn["role"]], "value": turn["content"]} for turn in turns(one["prompt"])
            ],
            "chosen": {"from": "gpt", "value": sides(one)[0]},
            "rejected": {"from": "gpt", "value": sides(one)[1]},
        }
        for one in group
    ]


def transcript(prompt: str | list[dict[str, str]]) -> str:
    speakers = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{speakers[turn['role']]}: {turn['content']}" for turn in turns(prompt))


def hh_rlhf(group: Sequence[Native]) -> list[Any]:
    return [
        {
            "chosen": f"{transcript(one['prompt'])}\n\nAssistant: {sides(one)[0]}",
            "rejected": f"{transcript(one['prompt'])}\n\nAssistant: {sides(one)[1]}",
        }
        for one in group
    ]


def openai_summarize(group: Sequence[Native]) -> list[Any]:
    return [
        {
            "info": {"id": "t3", "post": one["prompt"], "title": "T", "subreddit": "s", "site": None, "article": None},
            "split": "train",
            "summaries": [{"text": text, "policy": "p", "note": None} for text in texts_of(one)],
            "choice": one["ranks"].index(min(one["ranks"])),
            "worker": one["annotator"],
            "batch": "b",
            "extra": {"confidence": None},
        }
        for one in group
    ]


# ------------------------------------------------------------------------------------------- K completions


def ultrafeedback(group: Sequence[Native]) -> list[Any]:
    return [
        {
            "source": one["subset"],
            "instruction": one["prompt"],
            "models": [],
            "completions": [
                {"model": "m", "response": text, "overall_score": 9.0 - rank, "annotations": {}, "critique": ""}
                for text, rank in zip(texts_of(one), one["ranks"], strict=True)
            ],
        }
        for one in group
    ]


def nectar(group: Sequence[Native]) -> list[Any]:
    return [
        {
            "prompt": f"{transcript(one['prompt'])}\n\nAssistant: ",
            "answers": [
                {"answer": text, "model": "m", "rank": float(rank)}
                for text, rank in zip(texts_of(one), one["ranks"], strict=True)
            ],
            "turns": 1,
            "source": ["s"],
            "good_natured": True,
        }
        for one in group
    ]


def fields(group: Sequence[Native]) -> list[Any]:
    """Nobody's layout in particular: what the recipe instruction_answers maps."""
    return [
        {
            "id": one["id"],
            "instruction": one["prompt"],
            "judge": one["annotator"],
            "answers": [{"text": text, "rank": rank} for text, rank in zip(texts_of(one), one["ranks"], strict=True)],
        }
        for one in group
    ]


def label_studio(group: Sequence[Native], kind: str, value: Callable[[Native], Any], data: Native) -> list[Any]:
    annotations = [
        {
            "id": index,
            "completed_by": {"id": index, "email": one["annotator"]},
            "was_cancelled": False,
            "created_at": "2026-01-01T00:00:00Z",
            "result": [
                {"type": kind, "from_name": "rank", "to_name": "answer1,answer2", "origin": "manual", **value(one)}
            ],
        }
        for index, one in enumerate(group)
    ]
    task = {"id": group[0]["id"], "data": {"prompt": group[0]["prompt"], **data}, "annotations": annotations}
    return [{**task, "drafts": [], "predictions": [], "project": 1}]


def items(group: Sequence[Native]) -> Native:
    return {"items": [{"id": f"i{k}", "title": str(k), "body": text} for k, text in enumerate(texts_of(group[0]))]}


def label_studio_ranker(group: Sequence[Native]) -> list[Any]:
    def value(one: Native) -> Any:
        best_first = sorted(range(len(one["ranks"])), key=lambda k: one["ranks"][k])
        return {"value": {"ranker": [f"i{k}" for k in best_first]}}

    return label_studio(group, "ranker", value, items(group))


def label_studio_buckets(group: Sequence[Native]) -> list[Any]:
    def value(one: Native) -> Any:
        grades = {f"grade{rank}": [] for rank in sorted(set(one["ranks"]), reverse=True)}
        for k, rank in enumerate(one["ranks"]):
            grades[f"grade{rank}"].append(f"i{k}")
        return {"value": {"ranker": grades}}

    return label_studio(group, "ranker", value, items(group))


def label_studio_pairwise(group: Sequence[Native]) -> list[Any]:
    def value(one: Native) -> Any:
        return {"value": {"selected": "left" if one["ranks"][0] < one["ranks"][1] else "right"}}

    left, right = texts_of(group[0])
    return label_studio(group, "pairwise", value, {"answer1": left, "answer2": right})


def argilla(group: Sequence[Native]) -> list[Any]:
    replies = {f"reply_{k}": text for k, text in enumerate(texts_of(group[0]))}
    responses = [
        {
            "user_id": one["annotator"],
            "value": [{"value": name, "rank": rank} for name, rank in zip(replies, one["ranks"], strict=True)],
        }
        for one in group
    ]
    return [
        {
            "id": group[0]["id"],
            "fields": {"prompt": group[0]["prompt"], **replies},
            "metadata": {},
            "suggestions": {},
            "responses": {"ranking": responses},
            "vectors": {},
            "_server_id": "s",
        }
    ]


EXPORTS = {
    "native": Export("native", list),
    "fields": Export("fields", fields),
    "trl, explicit prompt": Export("trl", trl_explicit, pairs_only=True, ties=False),
    "trl, implicit prompt": Export("trl", trl_implicit, pairs_only=True, ties=False),
    "trl, standard": Export("trl", trl_standard, pairs_only=True, ties=False, chats=False),
    "sharegpt": Export("sharegpt", sharegpt, pairs_only=True, ties=False),
    "hh-rlhf": Export("hh-rlhf", hh_rlhf, pairs_only=True, ties=False),
    "openai-summarize": Export(
        "openai-summarize",
        openai_summarize,
        pairs_only=True,
        ties=False,
        chats=False,
        prompt=lambda text: f"SUBREDDIT: r/s\n\nTITLE: T\n\nPOST: {text}\n\nTL;DR:",
    ),
    "ultrafeedback": Export("ultrafeedback", ultrafeedback, chats=False),
    "nectar": Export("nectar", nectar),
    "label-studio, ranker": Export("label-studio", label_studio_ranker, ties=False),
    "label-studio, buckets": Export("label-studio", label_studio_buckets),
    "label-studio, pairwise": Export("label-studio", label_studio_pairwise, pairs_only=True, ties=False),
    "argilla": Export("argilla", argilla),
}
