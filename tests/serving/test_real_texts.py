"""On real texts every protocol gives the rewards of `score`; the largest differences are printed."""

import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from transformers import AutoTokenizer

from annotation_tables import REAL_RANKINGS
from exported_models import export_small_model
from pairwright.data.tokens.conversation_tokens import TokenSpec
from pairwright.evaluation.load_exported import load_exported, open_exported
from pairwright.evaluation.score import score_requests
from pairwright.serving.wire_format import conversation
from reward_servers import asked, running, service_of
from special_tokenizers import CHATML

NUM_GROUPS, CHARACTERS, TOLERANCE = 200, 220, 2e-6


def real_groups() -> list[dict[str, Any]]:
    """Return prompts with their completions, cut to a length that the small model takes."""
    with REAL_RANKINGS.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as content:
        lines = list(itertools.islice(io.TextIOWrapper(content, encoding="utf-8"), NUM_GROUPS))
    records = map(json.loads, lines)
    return [
        {
            "prompt": record["instruction"][:CHARACTERS],
            "completions": [answer["text"][:CHARACTERS] for answer in record["answers"] if answer["text"].strip()],
        }
        for record in records
    ]


@pytest.mark.slow
@pytest.mark.skipif(not REAL_RANKINGS.exists(), reason="the real rankings are not on this machine")
def test_every_protocol_gives_the_rewards_of_score_on_1000_real_texts(tmp_path: Path) -> None:
    model = export_small_model(
        tmp_path, max_length=512, special_in_text="keep", chat_template="{{ bos_token }}" + CHATML
    )
    groups = real_groups()
    exported = open_exported(str(model))
    loaded = load_exported(exported, torch.device("cpu"))
    spec = TokenSpec.of(loaded.tokenizer, exported.rules.tokens_config())
    scored = score_requests(loaded, spec, [conversation(g) for g in groups], [], micro_batch_tokens=16384)
    assert not scored.rejections
    expected = scored.scores["reward"].to_numpy()
    assert len(expected) >= 1000
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    found: dict[str, list[float]] = {}
    with running(service_of(model)) as url:

        def add(name: str, path: str, body: Any, read: Any) -> None:
            status, reply = asked(url + path, body)
            assert status == 200, reply
            found.setdefault(name, []).extend(read(reply))

        for group in groups:
            turns = [{"role": "user", "content": group["prompt"]}]
            texts = [
                tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": text}], tokenize=False)
                for text in group["completions"]
            ]
            cut = [text.removesuffix("\n") for text in texts]
            bare = [text.removeprefix(tokenizer.bos_token) for text in texts]
            ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
            add("our own", "/v1/rewards", group, lambda reply: reply["rewards"])
            add("OpenRLHF, end cut", "/get_reward", {"query": cut}, lambda reply: reply["rewards"])
            add("verl, bos cut", "/classify", {"input": bare}, lambda reply: [r["probs"][0] for r in reply["data"]])
            add("vLLM, token ids", "/classify", {"input": ids}, lambda reply: [r["probs"][0] for r in reply["data"]])
            add("TEI", "/predict", {"inputs": [[t] for t in texts]}, lambda reply: [r[0]["score"] for r in reply])
    for name, rewards in found.items():
        difference = np.abs(np.array(rewards) - expected).max()
        print(f"{name}: {len(rewards)} texts, largest difference {difference:.1e}")
        assert difference < TOLERANCE, name
