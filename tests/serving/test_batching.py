"""Requests share forward passes and prompts without sharing rewards; what is exact, full, or gone."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from exported_models import export_small_model
from pairwright.data.tokens.conversation_tokens import TokenSpec
from pairwright.errors import ModelError
from pairwright.evaluation.load_exported import load_exported, open_exported
from pairwright.evaluation.score import score_requests
from pairwright.serving.reward_service import QueueFullError, RewardService
from pairwright.serving.wire_format import Answer, Call, conversation
from reward_servers import asked, metric, running, service_of

WORDS = ["sky", "blue", "scattering", "green", "town", "because", "not", "at", "least", "in", "my"]


def records(num_groups: int, num_completions: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)

    def text(least: int, most: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(least, most)))

    return [
        {"prompt": text(5, 25), "completions": [text(1, 12) for _ in range(num_completions)]} for _ in range(num_groups)
    ]


def scored(model: Path, asked_for: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Return what `pairwright score` gives for each record on its own."""
    exported = open_exported(str(model))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        loaded = load_exported(exported, torch.device("cpu"))
        spec = TokenSpec.of(loaded.tokenizer, exported.rules.tokens_config())
        return [
            score_requests(loaded, spec, [conversation(record)], [], micro_batch_tokens=16384)
            .scores["reward"]
            .to_pylist()
            for record in asked_for
        ]
    finally:
        torch.set_num_threads(num_threads)


async def answers(service: RewardService, calls: Sequence[Call]) -> list[Answer | BaseException]:
    running_service = asyncio.create_task(service.run())
    try:
        return await asyncio.gather(*map(service.answer, calls), return_exceptions=True)
    finally:
        running_service.cancel()


def calls_of(asked_for: Sequence[dict[str, Any]]) -> list[Call]:
    return [Call([conversation(record)], lambda answer: answer) for record in asked_for]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_a_reward_is_that_of_score_whatever_it_is_computed_with(tmp_path: Path, architecture: str) -> None:
    model = export_small_model(tmp_path, architecture=architecture)
    asked_for = records(12, 5)
    expected = scored(model, asked_for)
    service = service_of(model, micro_batch_tokens=512)
    found = asyncio.run(answers(service, calls_of(asked_for)))
    for one, rewards in zip(found, expected, strict=True):
        assert isinstance(one, Answer)
        assert one.rewards == pytest.approx(rewards, abs=2e-6)


def test_exact_rewards_are_those_of_score_bit_for_bit(tmp_path: Path) -> None:
    model = export_small_model(tmp_path)
    asked_for = records(6, 5)
    num_threads = torch.get_num_threads()
    try:
        found = asyncio.run(answers(service_of(model, is_exact=True), calls_of(asked_for)))
    finally:
        torch.set_num_threads(num_threads)
    assert [one.rewards for one in found if isinstance(one, Answer)] == scored(model, asked_for)


def test_completions_that_come_one_by_one_share_their_prompt(tmp_path: Path) -> None:
    model = export_small_model(tmp_path)
    (record,) = records(1, 8)
    with running(service_of(model, max_wait_seconds=0.5)) as url, ThreadPoolExecutor(8) as pool:
        single = [{"prompt": record["prompt"], "completions": [text]} for text in record["completions"]]
        replies = list(pool.map(lambda body: asked(f"{url}/v1/rewards", body), single))
        num_tokens = [reply["num_tokens"][0] for _, reply in replies]
        assert metric(url, "pairwright_tokens_total") == sum(num_tokens)
        assert metric(url, "pairwright_prompt_tokens_saved_total") > 0.4 * sum(num_tokens)
        _, together = asked(f"{url}/v1/rewards", record)
    assert [reply["rewards"][0] for _, reply in replies] == pytest.approx(together["rewards"], abs=2e-6)


def test_a_full_queue_refuses_with_429_and_when_to_come_back(tmp_path: Path) -> None:
    service = service_of(export_small_model(tmp_path), max_queue=10)
    found = asyncio.run(answers(service, calls_of(records(3, 5))))
    assert [type(one) for one in found] == [Answer, Answer, QueueFullError]
    with running(service_of(tmp_path / "model", max_queue=3)) as url:
        status, reply = asked(f"{url}/v1/rewards", records(1, 4)[0])
        assert (status, "one request may hold 3" in reply["error"]["message"]) == (422, True)


def test_what_nobody_waits_for_is_not_computed(tmp_path: Path) -> None:
    service = service_of(export_small_model(tmp_path), max_wait_seconds=1)

    async def one_goes() -> Answer:
        running_service = asyncio.create_task(service.run())
        goes, stays = (asyncio.create_task(service.answer(call)) for call in calls_of(records(2, 5)))
        await asyncio.sleep(0.1)
        goes.cancel()
        answer = await stays
        running_service.cancel()
        return answer

    answer = asyncio.run(one_goes())
    assert len(answer.rewards) == 5
    assert "pairwright_texts_total 5.0" in service.metrics.text().decode().splitlines()


def test_a_model_that_is_not_what_was_exported_is_not_served(tmp_path: Path) -> None:
    model = export_small_model(tmp_path)
    file = model / "self_check.json"
    check = msgspec.json.decode(file.read_bytes())
    rules = msgspec.json.decode((model / "pairwright.json").read_bytes())
    del rules["files"]
    (model / "pairwright.json").write_bytes(msgspec.json.encode(rules))
    file.write_bytes(msgspec.json.encode(check | {"reward": check["reward"] + 0.01}))
    with pytest.raises(ModelError, match="weights are not what was exported"):
        service_of(model)
    file.write_bytes(msgspec.json.encode(check | {"token_ids": check["token_ids"][1:]}))
    with pytest.raises(ModelError, match="become other tokens"):
        service_of(model)
