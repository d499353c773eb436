"""Groups of tokens for benchmarks of training: random ones of given lengths, and those of a file of real rankings.

Out: ``TokenGroup`` as the token table has them, weighted so that every group counts alike.
"""

import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pairwright.data.tokens.token_group import TokenGroup

PAD, EOS = "<pad>", "</s>"
PAD_ID, EOS_ID = 0, 1


def random_groups(
    num_groups: int,
    *,
    num_completions: int,
    prompt_tokens: int,
    completion_tokens: int,
    vocab_size: int,
    rng: np.random.Generator,
) -> list[TokenGroup]:
    """Return groups of random tokens, every completion ranked apart from every other."""

    def tokens(size: int) -> NDArray[np.int32]:
        return rng.integers(2, vocab_size, size, dtype=np.int32)

    ranks = list(range(num_completions))
    return [
        _group(str(number), tokens(prompt_tokens), [tokens(completion_tokens) for _ in ranks], ranks)
        for number in range(num_groups)
    ]


def real_groups(path: Path, tokenizer: PreTrainedTokenizerFast, *, max_length: int) -> list[TokenGroup]:
    """Return the groups of a rankings file, ties dropped; completions over ``max_length`` tokens are left out."""
    # Needs Arrow, which random groups do without.
    from pairwright.data.tokens.tokenize_groups import common_prefix_length

    groups = []
    for record in rankings(path):
        answers, instruction = record["answers"], record["instruction"]
        texts = [f"{instruction}\n\n{answer['text']}{EOS}" for answer in answers]
        rows = [np.array(ids, dtype=np.int32) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        kept = [index for index, row in enumerate(rows) if row.size <= max_length]
        ranks = [answers[index]["rank"] for index in kept]
        if len(set(ranks)) < 2:
            continue
        rows = [rows[index] for index in kept]
        prefix = common_prefix_length(rows)
        groups.append(_group(record["id"], rows[0][:prefix], [row[prefix:] for row in rows], ranks))
    return groups


def tokenizer_of(path: Path, *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer trained on the texts of a rankings file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[PAD, EOS], show_progress=False)
    texts = (text for record in rankings(path) for text in _texts(record))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS)


def nameless_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of two tokens, for those who only ask it for its pad token."""
    tokenizer = Tokenizer(models.WordLevel({PAD: PAD_ID, EOS: EOS_ID}, unk_token=PAD))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS)


def row_lengths(group: TokenGroup) -> list[int]:
    """Return the tokens of each prompt and completion together."""
    return [group.prompt_ids.size + ids.size for ids in group.completion_ids]


def shared_tokens(group: TokenGroup) -> int:
    """Return the tokens of the prompt once and of every completion."""
    return group.prompt_ids.size + sum(ids.size for ids in group.completion_ids)


def _group(
    group_id: str, prompt_ids: NDArray[np.int32], completion_ids: list[NDArray[np.int32]], ranks: Sequence[int]
) -> TokenGroup:
    pairs = [(a, b) for a, b in itertools.permutations(range(len(ranks)), 2) if ranks[a] < ranks[b]]
    chosen, rejected = np.array(pairs).T
    return TokenGroup(
        group_id=group_id,
        subset=None,
        prompt_ids=prompt_ids,
        completion_ids=completion_ids,
        num_characters=np.zeros(len(ranks), np.int32),
        completion_index=np.arange(len(ranks), dtype=np.int16),
        chosen_P=chosen,
        rejected_P=rejected,
        weight_P=np.full(len(pairs), 1 / len(pairs)),
        margin_P=np.full(len(pairs), np.nan),
    )


def rankings(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a rankings file."""
    import zstandard

    with path.open("rb") as file:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8"):
            yield json.loads(line)


def _texts(record: dict[str, Any]) -> list[str]:
    return [record["instruction"], *(answer["text"] for answer in record["answers"])]
