"""Tokenises a pairs table into a tokens table, or finds the one that was made before.

A tokens table lies under the digest of all that decides its content (pairs, tokenizer, template, rules for length and
special tokens), so a stale one is never used and a half-written one has no version. The order of training is a function
of row numbers, so rows are ordered by their own content, never by which task was ready first.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from pairwright.config import TokensConfig
from pairwright.data.executor import LOCAL, Executor
from pairwright.data.table.table import DataFile, Input, Manifest, Table
from pairwright.data.tokens.chat_template import template_origin
from pairwright.data.tokens.tokenize_groups import (
    EQUAL_IN_TEMPLATE,
    REFUSED_PREFIX,
    TokenSpec,
    add_totals,
    counts_behind,
    tokenize_groups,
)
from pairwright.data.tokens.tokenizer import load_tokenizer
from pairwright.errors import DataError
from pairwright.terminal import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_DIGITS = 32


def ensure_tokens(
    pairs: str, *, version: int, tokenizer_path: str, config: TokensConfig, into: str, executor: Executor = LOCAL
) -> tuple[str, Manifest]:
    """Return URL and version of the tokens table of a pairs version, making it if it is not there.

    Args:
        pairs: URL of the pairs table.
        version: of it.
        tokenizer_path: model directory or hub name; read here and sent to the tasks.
        config: template and length limit.
        into: URL of the cache, under which the table gets a directory named by content.
        executor: what maps over the files of the pairs table.

    Raises:
        StoreError: if there is no such pairs table or version.
        ModelError, ConfigError: if the tokenizer or the template cannot be used.
        DataError: if the template refuses a prompt where that is to stop the run, or every prompt, or if no pair is
            left under the length limit.
    """
    source = Table.open(pairs, "pairs")
    manifest = source.manifest(version)
    tokenizer = load_tokenizer(tokenizer_path)
    spec = TokenSpec.of(tokenizer, config)
    table = Table.claim(_table_of(manifest, spec, into).url, "tokens")
    known = table.latest()
    if known is not None:
        return table.url, known
    tokenized = _tokenize(source, manifest, table, tokenizer, spec, executor)
    made_from = Input(url=source.url, version=manifest.version, digest=manifest.digest)
    return table.url, _commit(table, tokenized, made_from, spec, template_origin(tokenizer, config))


def _table_of(pairs: Manifest, spec: TokenSpec, into: str) -> Table:
    content = hashlib.sha256(f"{pairs.digest} {spec.digest}".encode()).hexdigest()
    return Table(f"{into.rstrip('/')}/{content[:_DIGITS]}", "tokens")


class _Tokenized(msgspec.Struct):
    """What became of one file of the pairs table; no file where no pair was left."""

    number: int
    file: DataFile | None
    totals: dict[str, int]


def _tokenize(
    source: Table,
    read: Manifest,
    target: Table,
    tokenizer: "PreTrainedTokenizerFast",
    spec: TokenSpec,
    executor: Executor,
) -> list[_Tokenized]:
    """Return what became of each file, in the order of the rows to be.

    The order is by content, as the version's digest is: equal digests, equal rows, whatever the files are called.
    """
    files = sorted(read.files, key=lambda file: file.sha256)
    work = partial(_tokenize_file, source=source, target=target, tokenizer=tokenizer, spec=spec)
    sizes = [file.bytes for file in files]
    with executor.session(sum(sizes)):
        results = executor.map_items(work, list(enumerate(files)), sizes, _Tokenized, what="files of pairs tokenised")
        return sorted(results, key=lambda result: result.number)


def _tokenize_file(
    item: tuple[int, DataFile], *, source: Table, target: Table, tokenizer: "PreTrainedTokenizerFast", spec: TokenSpec
) -> Iterator[_Tokenized]:
    number, file = item
    tokens, totals = tokenize_groups(source.read_file(file), tokenizer, spec)
    written = target.write_data(tokens, compress=False) if tokens.num_rows else None
    yield _Tokenized(number, written, totals)


def _commit(
    target: Table, tokenized: Sequence[_Tokenized], made_from: Input, spec: TokenSpec, template: str
) -> Manifest:
    files = [result.file for result in tokenized if result.file is not None]
    manifest = Manifest(
        kind="tokens",
        operation="tokenize",
        files=files,
        quarantined_files=[],
        totals=dict(add_totals(*(result.totals for result in tokenized))),
        sources=[],
        inputs=[made_from],
        config=spec.as_dict(),
        config_digest=spec.digest,
    )
    if not files:
        raise DataError(_nothing_left(made_from, manifest.totals, spec, template))
    committed = target.commit(lambda newest: manifest if newest is None else None)
    if committed is not None:
        return committed
    # Another job made the same tokens meanwhile.
    target.delete(files)
    return target.manifest()


def _nothing_left(pairs: Input, totals: Mapping[str, int | float], spec: TokenSpec, template: str) -> str:
    if not totals["pairs"]:
        return (
            f"{pairs.url} version {pairs.version}: holds no pair in {counted(int(totals['groups']), 'group')}; see "
            f"what became of the annotations with `pairwright inspect {pairs.url}`, and expand rankings that are not "
            "all ties"
        )
    if totals["groups_refused"] == totals["groups"]:
        reasons = "; ".join(counts_behind(totals, REFUSED_PREFIX))
        return (
            f"{pairs.url}: no pair is left to train on: {template} refuses every one of "
            f"{counted(int(totals['groups']), 'group')} ({reasons}); set tokens.chat_template to one that takes such "
            "prompts"
        )
    causes = [f"had a completion over tokens.max_length={spec.max_length}"]
    if totals["groups_refused"]:
        causes.append(f"were of {counted(int(totals['groups_refused']), 'group')} that the chat template refuses")
    if totals["completions_with_special"] + totals["prompts_with_special"] and totals["completions_refused"]:
        causes.append(f'had special tokens in a text (tokens.special_in_text = "{spec.special_in_text}")')
    return (
        f"{pairs.url}: no pair is left to train on: of {counted(int(totals['pairs']), 'pair')} in "
        f"{counted(int(totals['groups']), 'group')} {totals['pairs_dropped']} {' or '.join(causes)} and "
        f"{totals['pairs_identical']} had equal tokens on both sides"
        + (f" ({equal} of them {EQUAL_IN_TEMPLATE})" if (equal := totals["pairs_equal_in_template"]) else "")
        + f"; the longest completion, with its prompt, needs {totals['longest']} tokens. Raise tokens.max_length, or "
        "set tokens.overlong_policy to truncate"
    )
