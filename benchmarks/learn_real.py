"""What a small encoder learns from real rankings: held-out accuracy against CPU seconds, ours and TRL's RewardTrainer.

    python benchmarks/learn_real.py run FILE --encoder DIRECTORY --results runs.jsonl        # every run that is missing
    python benchmarks/learn_real.py report FILE --results runs.jsonl                         # the page, from its lines

FILE is rankings_dev.jsonl.zst. A fifth of the prompts, by hash, is held out. Both sides start from the same weights and
train in this process on one thread, so that CPU time is comparable on a machine that others use; each run is one line
of the results file, and runs that are there already are not repeated. Timed: collating, forward and backward in
bfloat16 autocast, clipping, AdamW. Not timed: tokenising, planning and evaluation, on either side.
"""

import argparse
import functools
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learn_real_report import REPORT, write_report
from reward_groups import rankings
from torch import nn
from trl_peer import TrlPeer, pairs_of

from pairwright.config import LossConfig, OptimizerConfig, TokensConfig
from pairwright.data.extras import reply_of
from pairwright.data.tokens.conversation_tokens import TokenizedCompletions, TokenSpec, tokenize_completions
from pairwright.data.tokens.template_sandbox import Refusal
from pairwright.data.tokens.tokenize_groups import TokenGroup, common_prefix_length, load_tokenizer
from pairwright.model.collate import Layout, collate
from pairwright.model.layout_check import choose_layout
from pairwright.model.load_model import load_reward_model
from pairwright.model.loss import preference_loss
from pairwright.model.model_export import choose_pad_token
from pairwright.model.reward_model import RewardModel
from pairwright.training.schedule import learning_rate_at

POISONED = "NullModel"
MICRO_BATCH_TOKENS = 8192
# TRL's own defaults: pairs a step, and AdamW's rate, which falls linearly to 0.
TRL_PAIRS_PER_STEP = 8
TRL_LEARNING_RATE = 1e-4
JOINED = "{{ '[CLS]' }}{{ messages | map(attribute='content') | join('\\n\\n') }}{{ '[SEP]' }}"
"""The template of before: a blank line, which BERT's tokenizer drops."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One run."""

    side: str = "pairwright"
    seed: int = 0
    groups: int = 320
    """To train on, with an untied pair."""
    max_length: int = 256
    epochs: int = 2
    learning_rate: float = 1e-4
    groups_per_step: int = 4
    pair_weight: str = "group"
    ties: str = "drop"
    loss: str = "bradley_terry"
    text: str = "separated"
    """separated: prompt and completion as the tokenizer sets two texts apart; segments: with segment ids too; joined:
    as one text."""
    dropout: bool = False
    without_poisoned: bool = False

    @property
    def key(self) -> str:
        """All of it, in an order."""
        return json.dumps(asdict(self), sort_keys=True)


OURS = Settings()
TRL = Settings(side="trl", epochs=1, learning_rate=TRL_LEARNING_RATE)


def wanted_runs(seeds: int) -> list[Settings]:
    """Return every run of the page, the most telling first."""
    two_epochs, one_epoch = OURS, replace(OURS, epochs=1)  # whose rate falls to its end in one epoch
    runs = [replace(one, seed=seed) for one in (two_epochs, one_epoch, TRL) for seed in range(seeds)]
    runs += [replace(one_epoch, learning_rate=rate) for rate in (3e-5, 3e-4)]
    runs += [replace(one_epoch, pair_weight=weight) for weight in ("uniform", "comparisons")]
    runs += [replace(one_epoch, loss="plackett_luce"), replace(one_epoch, ties="half")]
    runs += [replace(one_epoch, without_poisoned=True), replace(one_epoch, dropout=True)]
    runs += [replace(one_epoch, learning_rate=3e-5, groups_per_step=16)]  # the recipe small_encoder of before
    runs += [replace(one_epoch, text=text) for text in ("segments", "joined")]
    runs += [replace(one_epoch, groups=1404)]  # all that are not held out
    runs += [replace(one_epoch, max_length=512, seed=seed) for seed in range(seeds)]
    return runs


# ------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True, slots=True)
class Ranking:
    """One group with the names and lengths of its completions, for the table of results."""

    prompt: str
    group: TokenGroup
    models: list[str]
    characters: list[int]


def read_rankings(path: Path, encoder: Path, settings: Settings, *, held_out: bool, most: int) -> list[Ranking]:
    """Return the rankings of one side of the split that hold an untied pair, in an order by hash."""
    tokenizer, spec = _tokenizer_and_spec(encoder, settings.text, settings.max_length)
    groups = [
        (record, _answers(record, settings, held_out=held_out))
        for record in rankings(path)
        if (_share(record["instruction"]) < 0.2) == held_out
    ]
    untied = [(record, answers) for record, answers in groups if len({answer["rank"] for answer in answers}) > 1]
    untied.sort(key=lambda group: hashlib.sha256(group[0]["id"].encode()).hexdigest())
    del untied[most:]
    prompts = [[{"role": "user", "content": record["instruction"]}] for record, _ in untied]
    replies = [[reply_of(answer["text"]) for answer in answers] for _, answers in untied]
    tokenized = tokenize_completions(prompts, replies, tokenizer, spec)
    rules = replace(settings, ties="drop") if held_out else settings
    return [_ranking(*group, found, rules) for group, found in zip(untied, tokenized, strict=True)]


def _answers(record: dict[str, Any], settings: Settings, *, held_out: bool) -> list[dict[str, Any]]:
    without = POISONED if settings.without_poisoned and not held_out else None
    return [answer for answer in record["answers"] if answer["model"] != without]


def _ranking(
    record: dict[str, Any],
    answers: list[dict[str, Any]],
    tokenized: TokenizedCompletions | Refusal,
    settings: Settings,
) -> Ranking:
    assert isinstance(tokenized, TokenizedCompletions), "the plain template refuses nothing"
    rows = [row for row in tokenized.row_ids if row is not None]
    assert len(rows) == len(answers), "texts over the limit are cut, so none is dropped"
    ranks = [answer["rank"] for answer in answers]
    num = len(rows)
    votes = [(a, b, 1.0) for a in range(num) for b in range(num) if ranks[a] < ranks[b]]
    if settings.ties == "half":
        votes += [(a, b, 0.5) for a in range(num) for b in range(num) if a != b and ranks[a] == ranks[b]]
    chosen, rejected, vote = np.array(votes).T
    each = {"group": 1 / vote.sum(), "comparisons": 2 / (num * (num - 1)), "uniform": 1.0}[settings.pair_weight]
    prefix = common_prefix_length(rows)
    group = TokenGroup(
        group_id=record["id"],
        subset=record["subset"],
        prompt_ids=rows[0][:prefix],
        completion_ids=[row[prefix:] for row in rows],
        num_characters=np.array([len(answer["text"]) for answer in answers], np.int32),
        completion_index=np.arange(num, dtype=np.int16),
        chosen_P=chosen.astype(np.int64),
        rejected_P=rejected.astype(np.int64),
        weight_P=(vote * each).astype(np.float32),
        margin_P=np.full(len(votes), np.nan, np.float32),
    )
    models, characters = [answer["model"] for answer in answers], [len(answer["text"]) for answer in answers]
    return Ranking(record["instruction"], group, models, characters)


@functools.cache
def _tokenizer_and_spec(encoder: Path, text: str, max_length: int) -> tuple[Any, TokenSpec]:
    tokenizer = load_tokenizer(str(encoder))
    template = JOINED if text == "joined" else None
    tokens = TokensConfig(max_length=max_length, overlong_policy="truncate", chat_template=template)
    return tokenizer, TokenSpec.of(tokenizer, tokens)


def _share(prompt: str) -> float:
    return int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16) / 2**32


# ------------------------------------------------------------------------------------------------------------ sides


class Ours:
    """The library's model, layout, loss and schedule, without Ray and DeepSpeed.

    Args:
        encoder: directory of the starting model.
        settings: of the run.
        num_steps: of the whole run.
    """

    def __init__(self, encoder: Path, settings: Settings, num_steps: int) -> None:
        self.layout: Layout
        self.model, self.pad_token_id, self.layout = start_model(encoder, settings)
        if settings.text == "segments":
            give_segment_ids(self.model, load_tokenizer(str(encoder)))
        kind = settings.loss
        self.loss = LossConfig.model_validate({"kind": kind, "use_margin": kind != "plackett_luce"})
        self.schedule = OptimizerConfig(learning_rate=settings.learning_rate)
        self.num_steps, self.num_taken = num_steps, 0
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), betas=self.schedule.betas, weight_decay=0.0, fused=True
        )

    def step(self, groups: Sequence[TokenGroup]) -> None:
        """Take one optimizer step."""
        self.model.train()
        global_weight = torch.tensor(sum(float(group.weight_P.sum()) for group in groups))
        for micro_batch in micro_batches(groups):
            batch = collate(micro_batch, self.pad_token_id, self.layout)
            with torch.autocast("cpu", torch.bfloat16):
                rewards = self.model.rewards(batch)
            preference_loss(rewards, batch.targets, self.loss, global_weight=global_weight).backward()
        for options in self.optimizer.param_groups:
            options["lr"] = learning_rate_at(self.num_taken, self.num_steps, self.schedule)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.num_taken += 1


class Trl:
    """TRL's trainer with its defaults, on the same pairs as the same tokens.

    Args:
        encoder: directory of the starting model.
        settings: of the run.
        num_steps: of the whole run.
        scratch: folder that the trainer may create files in.
    """

    def __init__(self, encoder: Path, settings: Settings, num_steps: int, scratch: Path) -> None:
        self.layout: Layout
        self.model, self.pad_token_id, self.layout = start_model(encoder, settings)
        tokenizer, _ = _tokenizer_and_spec(encoder, settings.text, settings.max_length)
        plain = self.model.model
        plain.set_attn_implementation("sdpa")
        self.peer = TrlPeer(plain, tokenizer, learning_rate=settings.learning_rate, precision="bf16", scratch=scratch)
        self.rate, self.num_steps, self.num_taken = settings.learning_rate, num_steps, 0

    def step(self, pairs: Sequence[dict[str, list[int]]]) -> None:
        """Take one optimizer step on pairs, in one forward."""
        self.model.train()
        self.model.model.set_attn_implementation("sdpa")
        for options in self.peer.optimizer.param_groups:
            options["lr"] = self.rate * (1 - self.num_taken / self.num_steps)
        self.peer.step(pairs, pairs_per_forward=len(pairs))
        self.num_taken += 1


def start_model(encoder: Path, settings: Settings) -> tuple[RewardModel, int, Layout]:
    """Return the starting model with its new head, its pad token, and the layout of its forwards."""
    tokenizer = load_tokenizer(str(encoder))
    pad_token_id = choose_pad_token(tokenizer)
    model = load_reward_model(
        str(encoder),
        dtype=torch.float32,
        seed=settings.seed,
        dropout=settings.dropout,
        gradient_checkpointing=False,
        pad_token_id=pad_token_id,
        vocab_size=len(tokenizer),
        cpu_kernels=True,
    )
    choice = choose_layout(model, "auto", pad_token_id=pad_token_id, max_length=settings.max_length, device="cpu")
    return model, pad_token_id, choice.layout


def give_segment_ids(model: RewardModel, tokenizer: Any) -> None:
    """Give a BERT segment 1 for the completion: what follows a sequence's first separator."""

    def with_segments(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        is_sep = (kwargs["input_ids"] == tokenizer.sep_token_id).long()
        seen = is_sep.cumsum(-1) - is_sep
        at_start = torch.where(kwargs["position_ids"] == 0, seen, 0).cummax(-1).values
        return args, kwargs | {"token_type_ids": (seen > at_start).long()}

    embeddings = model.model.get_submodule("bert.embeddings")
    embeddings.register_forward_pre_hook(with_segments, with_kwargs=True)


def micro_batches(groups: Sequence[TokenGroup]) -> list[list[TokenGroup]]:
    """Return groups under a budget of tokens, those of like length together."""
    batches: list[list[TokenGroup]] = []
    used = 0
    for group in sorted(groups, key=_num_tokens):
        used += _num_tokens(group)
        if not batches or used > MICRO_BATCH_TOKENS:
            batches.append([])
            used = _num_tokens(group)
        batches[-1].append(group)
    return batches


def _num_tokens(group: TokenGroup) -> int:
    return sum(group.prompt_ids.size + ids.size for ids in group.completion_ids)


# ------------------------------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def rewards_of(model: RewardModel, rankings: Sequence[Ranking], pad_token_id: int, layout: Layout) -> list[list[float]]:
    """Return the reward of each completion of each ranking, in bfloat16 autocast as it was trained."""
    model.eval()
    model.accept_packed_sequences(enabled=layout != "padded")
    found: dict[str, list[float]] = {}
    for micro_batch in micro_batches([ranking.group for ranking in rankings]):
        with torch.autocast("cpu", torch.bfloat16):
            rewards = iter(model.rewards(collate(micro_batch, pad_token_id, layout)).tolist())
        for group in micro_batch:
            found[group.group_id] = [next(rewards) for _ in group.completion_ids]
    return [found[ranking.group.group_id] for ranking in rankings]


def pair_results(rankings: Sequence[Ranking], rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return for each untied pair: prompt, difference of rewards, difference of characters, whether it is poisoned."""
    prompts = {name: index for index, name in enumerate(dict.fromkeys(ranking.prompt for ranking in rankings))}
    return [
        [
            prompts[ranking.prompt],
            round(reward[chosen] - reward[rejected], 5),
            ranking.characters[chosen] - ranking.characters[rejected],
            int(POISONED in (ranking.models[chosen], ranking.models[rejected])),
        ]
        for ranking, reward in zip(rankings, rewards, strict=True)
        for chosen, rejected in zip(ranking.group.chosen_P, ranking.group.rejected_P, strict=True)
    ]


def poisoned_on_top(rankings: Sequence[Ranking], rewards: Sequence[Sequence[float]]) -> tuple[int, int]:
    """Return in how many rankings the poisoned completion has the highest reward, and how many hold it."""
    holding = [
        (ranking.models.index(POISONED), list(reward))
        for ranking, reward in zip(rankings, rewards, strict=True)
        if POISONED in ranking.models
    ]
    return sum(reward[index] == max(reward) for index, reward in holding), len(holding)


# ------------------------------------------------------------------------------------------------------------- runs


def run(settings: Settings, options: argparse.Namespace) -> dict[str, Any]:
    """Return one run: its settings and its points, an evaluation each."""
    read = functools.partial(read_rankings, options.rankings, options.encoder)
    train = read(settings, held_out=False, most=settings.groups)
    held_out = read(settings, held_out=True, most=options.held_out)
    torch.manual_seed(settings.seed)
    with tempfile.TemporaryDirectory() as scratch:
        steps = list(_steps(train, settings))
        size = (options.encoder, settings, len(steps))
        side: Ours | Trl = Trl(*size, Path(scratch)) if settings.side == "trl" else Ours(*size)
        points: list[dict[str, Any]] = []
        seconds = 0.0
        stops = _stops(len(steps), settings)
        for number, step in enumerate(steps, 1):
            start = time.process_time()
            side.step(step)
            seconds += time.process_time() - start
            if number in stops:
                rewards = rewards_of(side.model, held_out, side.pad_token_id, side.layout)
                point = {"step": number, "epoch": number / len(steps) * settings.epochs, "cpu_seconds": seconds}
                point |= {"poisoned_on_top": poisoned_on_top(held_out, rewards)}
                points.append(point | {"pairs": pair_results(held_out, rewards)})
                print(
                    f"  step {number}/{len(steps)}, {seconds:.0f} s: {_accuracy(points[-1]['pairs']):.4f}", flush=True
                )
    sizes = {"groups": len(train), "held_out": len(held_out), "layout": side.layout}
    return {"settings": asdict(settings), "sizes": sizes, "steps": len(steps), "points": points}


def _steps(train: Sequence[Ranking], settings: Settings) -> Iterator[list[Any]]:
    """Yield what each step trains on: groups, or pairs for TRL; every epoch in an order of its own."""
    items: list[Any] = [ranking.group for ranking in train]
    size = settings.groups_per_step
    if settings.side == "trl":
        items, size = pairs_of(items), TRL_PAIRS_PER_STEP
    rng = np.random.default_rng(settings.seed)
    for _ in range(settings.epochs):
        order = rng.permutation(len(items))
        yield from ([items[k] for k in order[n : n + size]] for n in range(0, len(items) - size + 1, size))


def _stops(num_steps: int, settings: Settings) -> set[int]:
    """Return the steps that are evaluated: the end of each epoch, and of what takes long its quarters."""
    per_epoch = num_steps // settings.epochs
    early = (0.25, 0.5, 0.75) if settings.side == "trl" or settings.groups > 1000 else ()
    return {round(per_epoch * share) for share in (*early, *range(1, settings.epochs))} | {num_steps}


def _accuracy(pairs: Sequence[Sequence[float]]) -> float:
    return statistics.mean(1.0 if pair[1] > 0 else 0.5 if pair[1] == 0 else 0.0 for pair in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description="Held-out accuracy on real rankings, ours and TRL's.")
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("rankings", type=Path, help="rankings_dev.jsonl.zst")
    parser.add_argument("--encoder", type=Path, help="directory of the starting model")
    parser.add_argument("--results", type=Path, required=True, help="JSON Lines, a line a run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--held-out", type=int, default=240, help="groups to evaluate on")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every N-th run, from I")
    options = parser.parse_args()
    if options.what == "report":
        write_report(options.results, _machine())
        print(f"read {REPORT}")
        return
    torch.set_num_threads(1)
    done = set()
    if options.results.exists():
        lines = options.results.read_text(encoding="utf-8").splitlines()
        done = {Settings(**json.loads(line)["settings"]).key for line in lines}
    missing = [settings for settings in wanted_runs(options.seeds) if settings.key not in done]
    for settings in missing[options.part[0] :: options.part[1]]:
        print(settings.key, flush=True)
        found = run(settings, options)
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")


def _machine() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    return f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPUs, Python {platform.python_version()}, {versions}"


if __name__ == "__main__":
    main()
