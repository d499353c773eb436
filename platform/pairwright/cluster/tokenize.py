"""Pairs table and tokenizer -> tokens table, made with Ray Data the first time and found again afterwards.

A tokens table lies under the digest of all that decides its content (pairs, tokenizer, template, length rule), so a
stale one is never used (TRAPS 23) and a half-written one has no version. One task tokenises one file of the pairs
table; rows keep their order, because the order of training is a function of row numbers.
"""

import hashlib
from functools import partial
from operator import itemgetter
from typing import Any

import msgspec
import ray.data

from pairwright.cluster.session import ray_session
from pairwright.config import TokensConfig
from pairwright.data.store import DataFile, Input, Manifest, Table
from pairwright.data.tokens import TokenSpec, add_totals, load_tokenizer, tokenize_groups
from pairwright.errors import DataError, PairwrightError

_DIGITS = 32


def ensure_tokens(
    pairs: str, *, version: int, tokenizer_path: str, config: TokensConfig, into: str
) -> tuple[str, Manifest]:
    """Return URL and version of the tokens table of a pairs version, making it if it is not there.

    Args:
        pairs: URL of the pairs table.
        version: of it.
        tokenizer_path: model directory or hub name; read here and sent to the tasks.
        config: template and length limit.
        into: URL of the cache, under which the table gets a directory named by content.

    Raises:
        StoreError: if there is no such pairs table or version.
        ModelError, ConfigError: if the tokenizer or the template cannot be used.
        DataError: if the template refuses a prompt, or no pair is left under the length limit.
    """
    source = Table.open(pairs, "pairs")
    manifest = source.manifest(version)
    tokenizer = load_tokenizer(tokenizer_path)
    spec = TokenSpec.of(tokenizer, config)
    content = hashlib.sha256(f"{manifest.digest} {spec.digest}".encode()).hexdigest()
    table = Table(f"{into.rstrip('/')}/{content[:_DIGITS]}", "tokens")
    known = table.latest()
    if known is not None:
        return table.url, known
    files, totals = _tokenize_files(source, manifest, table, tokenizer, spec)
    made = Manifest(
        kind="tokens",
        operation="tokenize",
        files=files,
        refused_files=[],
        totals=dict(totals),
        sources=[],
        inputs=[Input(url=source.url, version=manifest.version, digest=manifest.digest)],
        config=spec.as_dict(),
        config_digest=spec.digest,
    )
    committed = table.commit(lambda newest: made if newest is None else None)
    if committed is None:
        # Another job made the same tokens meanwhile.
        table.delete(files)
        committed = table.manifest()
    return table.url, committed


def _tokenize_files(
    source: Table, manifest: Manifest, into: Table, tokenizer: Any, spec: TokenSpec
) -> tuple[list[DataFile], dict[str, int]]:
    items = [{"number": number, "file": msgspec.to_builtins(file)} for number, file in enumerate(manifest.files)]
    with ray_session():
        dataset = ray.data.from_items(items, override_num_blocks=max(1, len(items)))
        tokenize = partial(_tokenize_file, source=source, into=into, tokenizer=tokenizer, spec=spec)
        results = sorted(dataset.map(tokenize).take_all(), key=itemgetter("number"))
    files = [msgspec.json.decode(result["file"], type=DataFile) for result in results if result["file"]]
    errors = [result["error"] for result in results if result["error"]]
    totals = add_totals(*(msgspec.json.decode(result["totals"]) for result in results if result["totals"]))
    if errors or not files:
        into.delete(files)
        raise DataError(errors[0] if errors else _nothing_left(source, totals, spec))
    return files, totals


def _tokenize_file(
    item: dict[str, Any], *, source: Table, into: Table, tokenizer: Any, spec: TokenSpec
) -> dict[str, Any]:
    """Tokenise one file of a pairs table; a mistake comes back as its message, so that a user sees no traceback."""
    result = {"number": item["number"], "file": "", "totals": "", "error": ""}
    try:
        pairs = source.read_file(msgspec.convert(item["file"], DataFile))
        tokens, totals = tokenize_groups(pairs, tokenizer, spec)
        written = into.write_data(tokens, compress=False) if tokens.num_rows else None
    except PairwrightError as error:
        return result | {"error": str(error)}
    file = "" if written is None else msgspec.json.encode(written).decode()
    return result | {"file": file, "totals": msgspec.json.encode(totals).decode()}


def _nothing_left(source: Table, totals: dict[str, int], spec: TokenSpec) -> str:
    return (
        f"{source.url}: no pair is left to train on: of {totals['pairs']} pairs in {totals['groups']} groups "
        f"{totals['pairs_dropped']} had a completion over tokens.max_length={spec.max_length} and "
        f"{totals['pairs_identical']} had equal tokens on both sides; the longest completion needs {totals['longest']}"
    )
