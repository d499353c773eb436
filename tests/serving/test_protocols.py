"""Every wire format gives the rewards of plain transformers, in the shape that its clients read.

Bodies and replies are those of PROTOCOLS: what OpenRLHF, verl, LLaMA-Factory and TEI's clients send and read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from exported_models import export_small_model, plain_rewards
from reward_servers import asked, metric, running, service_of
from special_tokenizers import CHATML

PROMPT = "Why is the sky blue?"
TEXTS = ["Because of scattering.", "It is not; it is green.", "No idea", "Because of scattering."]
CHAT = [{"role": "user", "content": PROMPT}]
TOLERANCE = 2e-6


@dataclass
class Served:
    """A server, with what plain transformers gives for the texts."""

    url: str
    model: Path
    rewards: Any
    texts: list[str]
    """Rendered by transformers."""

    def post(self, path: str, body: Any) -> Any:
        status, reply = asked(self.url + path, body)
        assert status == 200, reply
        return reply


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = export_small_model(tmp_path_factory.mktemp("served"), chat_template="{{ bos_token }}" + CHATML)
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    expected = pytest.approx(plain_rewards(model, CHAT, TEXTS), abs=TOLERANCE)
    with running(service_of(model)) as url:
        texts = [
            tokenizer.apply_chat_template([*CHAT, {"role": "assistant", "content": text}], tokenize=False)
            for text in TEXTS
        ]
        yield Served(url, model, expected, texts)


@pytest.mark.parametrize("prompt", [PROMPT, CHAT], ids=["text", "messages"])
def test_our_own_format(served: Served, prompt: Any) -> None:
    reply = served.post("/v1/rewards", {"id": "a", "prompt": prompt, "completions": TEXTS})
    assert reply.keys() == {"id", "model", "rewards", "num_tokens"}
    assert (reply["id"], reply["rewards"]) == ("a", served.rewards)
    objects = {"prompt": prompt, "completions": [{"text": text} for text in TEXTS]}
    assert served.post("/v1/rewards", objects)["rewards"] == reply["rewards"]


def test_an_empty_completion_has_a_reward(served: Served) -> None:
    reply = served.post("/v1/rewards", {"prompt": PROMPT, "completions": [""]})
    assert reply["rewards"] == pytest.approx(plain_rewards(served.model, CHAT, [""]), abs=TOLERANCE)


def test_openrlhf(served: Served) -> None:
    body = {"query": served.texts, "prompts": [PROMPT] * 4, "labels": [""] * 4}
    reply = served.post("/get_reward", body)
    assert reply == {"rewards": served.rewards, "scores": served.rewards, "extra_logs": {}}
    ends = [text.rstrip("\n") for text in served.texts]  # as decoded generated ids end
    before = metric(served.url, "pairwright_texts_completed_total")
    assert served.post("/get_reward", {"query": ends})["rewards"] == served.rewards
    is_completed = metric(served.url, "pairwright_texts_completed_total") - before
    assert is_completed == sum(end != text for end, text in zip(ends, served.texts, strict=True))


def test_vllm_classify_and_pooling(served: Served) -> None:
    tokenizer = AutoTokenizer.from_pretrained(served.model, trust_remote_code=False)
    ids = tokenizer(served.texts, add_special_tokens=False)["input_ids"]
    for given in (served.texts, ids):
        reply = served.post("/classify", {"input": given, "model": "m"})
        assert [one["probs"][0] for one in reply["data"]] == served.rewards
        assert [one["index"] for one in reply["data"]] == [0, 1, 2, 3]
        assert {(one["label"], one["num_classes"]) for one in reply["data"]} == {("reward", 1)}
        assert reply["usage"]["prompt_tokens"] == sum(map(len, ids))
    single = served.post("/classify", {"input": ids[1]})
    assert single["data"][0]["probs"] == [pytest.approx(reply["data"][1]["probs"][0], abs=TOLERANCE)]
    messages = [*CHAT, {"role": "assistant", "content": TEXTS[0]}]
    by_messages = served.post("/classify", {"messages": messages})["data"][0]["probs"][0]
    assert by_messages == pytest.approx(reply["data"][0]["probs"][0], abs=TOLERANCE)
    pooled = served.post("/pooling", {"input": served.texts, "use_activation": False})
    assert [one["data"][0] for one in pooled["data"]] == served.rewards


@pytest.mark.parametrize("flag", ["use_activation", "activation"])
def test_verl_whose_client_strips_the_bos(served: Served, flag: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(served.model, trust_remote_code=False)
    found = []
    for text in served.texts:
        body = {"model": "m", "input": text.removeprefix(tokenizer.bos_token), flag: False}
        found.append(served.post("/classify", body)["data"][-1]["probs"][-1])
        by_sglang = served.post("/v1/embeddings", {"model": "m", "input": body["input"]})
        assert by_sglang["data"][-1]["embedding"][-1] == pytest.approx(found[-1], abs=TOLERANCE)
    assert found == served.rewards


def test_score_and_rerank(served: Served) -> None:
    for queries, documents in (("queries", "documents"), ("text_1", "text_2")):
        reply = served.post("/score", {queries: PROMPT, documents: TEXTS})
        assert [one["score"] for one in reply["data"]] == served.rewards
        paired = served.post("/score", {queries: [PROMPT] * 4, documents: TEXTS})
        assert [one["score"] for one in paired["data"]] == served.rewards
    reply = served.post("/rerank", {"query": PROMPT, "documents": TEXTS, "top_n": 2})
    best = [one["relevance_score"] for one in reply["results"]]
    assert best == sorted(best, reverse=True)
    assert len(best) == 2
    assert all(one["document"]["text"] == TEXTS[one["index"]] for one in reply["results"])
    by_tei = served.post("/rerank", {"query": PROMPT, "texts": TEXTS, "raw_scores": True, "return_text": True})
    assert [one["score"] for one in sorted(by_tei, key=lambda one: one["index"])] == served.rewards
    assert all(one["text"] == TEXTS[one["index"]] for one in by_tei)


def test_tei_predict(served: Served) -> None:
    def scores(reply: Any) -> list[float]:
        return [one[0]["score"] for one in reply]

    assert scores(served.post("/predict", {"inputs": [[text] for text in served.texts]})) == served.rewards
    pairs = {"inputs": [[PROMPT, text] for text in TEXTS], "raw_scores": True}
    assert scores(served.post("/predict", pairs)) == served.rewards
    for single in (served.texts[0], [served.texts[0]], [PROMPT, TEXTS[0]]):
        (one,) = served.post("/predict", {"inputs": single})
        assert one == {
            "score": pytest.approx(scores(served.post("/predict", pairs))[0], abs=TOLERANCE),
            "label": "reward",
        }


def test_llama_factory(served: Served) -> None:
    reply = served.post("/v1/score/evaluation", {"model": "model", "messages": served.texts})
    assert reply["scores"] == served.rewards
    assert reply["object"] == "score.evaluation"
    assert reply["id"].startswith("scoreval-")


@pytest.mark.parametrize(
    ("path", "body", "empty"),
    [
        ("/v1/rewards", {"prompt": "p", "completions": []}, "rewards"),
        ("/get_reward", {"query": [], "prompts": [], "labels": []}, "rewards"),
        ("/classify", {"input": []}, "data"),
        ("/v1/embeddings", {"input": []}, "data"),
        ("/v1/score/evaluation", {"messages": []}, "scores"),
        ("/rerank", {"query": "q", "documents": []}, "results"),
        ("/rerank", {"query": "q", "texts": []}, None),
        ("/predict", {"inputs": []}, None),
    ],
)
def test_an_empty_list_is_answered_with_an_empty_list(served: Served, path: str, body: Any, empty: str | None) -> None:
    reply = served.post(path, body)
    assert (reply if empty is None else reply[empty]) == []


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/v1/rewards", {"prompt": "p", "completions": ["a"], "temperature": 2}, "temperature"),
        ("/v1/rewards", {"completions": ["a"]}, "prompt"),
        ("/v1/rewards", {"prompt": "p", "completions": ["a", 3]}, "completions[1]"),
        ("/v1/rewards", {"prompt": "p", "completions": ["a"], "tools": [{"name": "t"}]}, "tools"),
        ("/v1/rewards", {"prompt": "p", "completions": ["word " * 400]}, "limit is 128"),
        ("/get_reward", {"query": ["a"], "truncate": True}, "truncate"),
        ("/get_reward", {"query": ["a", 1]}, "query[1]"),
        ("/classify", {"input": "a", "use_activation": True}, "use_activation"),
        ("/classify", {"input": "a", "activation": True}, "activation"),
        ("/classify", {"input": "a", "chat_template": "{{ x }}"}, "chat_template"),
        ("/classify", {"input": "a", "truncation_side": "left"}, "truncation_side"),
        ("/classify", {"input": "word " * 40, "truncate_prompt_tokens": 4}, "limit is 4"),
        ("/classify", {"input": [1, 10**7]}, "token id 10000000"),
        ("/classify", {"input": ["a", [1]]}, "both"),
        ("/classify", {}, "input and messages"),
        ("/classify", {"messages": CHAT}, "messages"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "base64"}, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "dimensions": 8}, "dimensions"),
        ("/score", {"queries": ["a", "b"], "documents": ["c"]}, "queries"),
        ("/predict", {"inputs": "a", "raw_scores": False}, "raw_scores"),
        ("/predict", {"inputs": [["a", "b", "c"]]}, "inputs[0]"),
        ("/rerank", {"query": "q", "texts": ["a"], "top_n": 1}, "top_n"),
        ("/v1/score/evaluation", {"messages": ["a"], "max_length": 0}, "max_length"),
    ],
)
def test_what_would_change_a_score_is_refused_by_its_name(served: Served, path: str, body: Any, named: str) -> None:
    status, reply = asked(served.url + path, body)
    assert status == 422
    assert named in reply["error"]["message"]


def test_health_and_cards(served: Served) -> None:
    assert asked(f"{served.url}/health") == (200, {"status": "ready"})
    _, cards = asked(f"{served.url}/v1/models")
    (card,) = cards["data"]
    assert (card["id"], card["max_model_len"], card["overlong"]) == (str(served.model), 128, "drop")
    assert len(card["digest"]) == 64
    status, reply = asked(f"{served.url}/nothing", {})
    assert (status, reply["error"]["code"]) == (404, 404)
    assert "/v1/rewards" in reply["error"]["message"]
