"""Finds the prompts to exclude: those that overlap evaluation sets, and near-duplicates of validation prompts.

Two passes, both linear. The first hashes the reference prompts (those of the validation split, and of the evaluation
sets) into keys; the second compares every other prompt with them, in tasks. The driver keeps about 400 bytes of keys
for each reference prompt; their texts are broadcast in blocks as they come (on Ray into the object store: shared by all
tasks of a machine, spilled to disk). Of the other prompts the driver sees only those to exclude.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import TypeVar

import msgspec
import numpy as np
import pyarrow as pa

from pairwright.config import ExpandConfig, IngestConfig
from pairwright.data.executor import Broadcast, Executor
from pairwright.data.group_by import partition_files
from pairwright.data.ingest.sources.scan import hash_sources, plan_splits
from pairwright.data.ingest.sources.source import SourceRef
from pairwright.data.ingest.sources.splits import InputSplit
from pairwright.data.pairs.build_pairs import split_of
from pairwright.data.pairs.near_duplicates.evaluation_sets import (
    SOURCE_VERSION,
    NamedPrompt,
    TableFile,
    find_evaluation_sets,
    prompts_in_file,
    prompts_in_source,
)
from pairwright.data.pairs.near_duplicates.exclude_similar import EXCLUDED, excludes_similar
from pairwright.data.pairs.near_duplicates.key_index import KeyIndex
from pairwright.data.pairs.near_duplicates.minhash import band_keys
from pairwright.data.pairs.near_duplicates.normalize import comparable, ngram_hashes
from pairwright.data.pairs.near_duplicates.verify import (
    SimilarityConfig,
    SimilarText,
    find_ngram_overlaps,
    find_similar,
    index_keys,
    index_ngrams,
)
from pairwright.data.table.manifest import Input
from pairwright.data.table.table import DataFile, Manifest, Table
from pairwright.errors import SourceError

ItemT = TypeVar("ItemT")

PROMPTS_PER_BLOCK = 4096
EXCERPT_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class EvaluationSets:
    """The evaluation sets that ``decontaminate`` names."""

    inputs: list[Input]
    """Identity of each table and source, for the manifest."""
    files: list[TableFile]
    sources: list[SourceRef]


class _Block(msgspec.Struct, frozen=True):
    """Some of the reference prompts."""

    item: int
    index: int
    ids: list[str]
    names: list[str]
    texts: list[str]
    keys: bytes
    ngram_hashes: bytes
    ngram_owners: bytes


class _ExcludedPrompts(msgspec.Struct, frozen=True):
    prompt_id: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Reference:
    """The reference prompts, numbered by their ids; texts are broadcast."""

    keys: KeyIndex
    ngrams: KeyIndex
    blocks: list[Broadcast[pa.Table]]
    block_of: np.ndarray
    row_of: np.ndarray


def open_evaluation_sets(config: ExpandConfig, executor: Executor) -> EvaluationSets:
    """Return the evaluation sets of a configuration with the digests of their content.

    Raises:
        SourceError: if one is missing or cannot be read.
        StoreError: if a table cannot be read.
    """
    if not config.decontaminate:
        return EvaluationSets([], [], [])
    inputs, files, listed = find_evaluation_sets(config.decontaminate)
    sources, failures = hash_sources(listed, executor)
    _raise_first(failures)
    given = [Input(url=source.uri, version=SOURCE_VERSION, digest=str(source.etag)) for source in sources]
    return EvaluationSets([*inputs, *given], files, sources)


def find_excluded(
    source: Table, read: Manifest, config: ExpandConfig, sets: EvaluationSets, executor: Executor
) -> Broadcast[pa.Table] | None:
    """Return the prompts to exclude, in EXCLUDED; None where the configuration asks for nothing.

    A function of the annotations version, the configuration and the content of the evaluation sets alone.

    Raises:
        DataError: if a record of an evaluation set has no prompt.
        SourceError, StoreError: if something cannot be read.
    """
    if not excludes_similar(config):
        return None
    references = {}
    if config.near_duplicates == "drop_train":
        references["near_duplicate"] = _validation_prompts(source, read, config, executor)
    if config.decontaminate:
        references["contaminated"] = _evaluation_prompts(sets, config, executor)
    found = _compare(source, read, config, references, executor)
    columns = {name: [getattr(found[key], name) for key in sorted(found)] for name in EXCLUDED.names}
    return executor.broadcast(pa.table(columns, schema=EXCLUDED))


def _validation_prompts(source: Table, read: Manifest, config: ExpandConfig, executor: Executor) -> _Reference:
    partitions = partition_files(read.files, config.partition_bytes)

    def work(item: int) -> Iterator[_Block]:
        prompts = (
            NamedPrompt(name, f"prompt {name}", messages)
            for name, messages in _distinct(source, partitions[item])
            if split_of(name, config.validation_fraction) == "validation"
        )
        yield from _blocks(item, prompts, config, ngram_size=0)

    sizes = [sum(file.bytes for file in files) for files in partitions]
    what = "partitions searched for validation prompts"
    return _collect(executor, executor.map_items(work, range(len(partitions)), sizes, _Block, what=what))


def _evaluation_prompts(sets: EvaluationSets, config: ExpandConfig, executor: Executor) -> _Reference:
    splits, failures = plan_splits(sets.sources, IngestConfig().split_bytes, executor)
    _raise_first(failures)
    items: list[TableFile | InputSplit] = [*sets.files, *splits]

    def work(item: int) -> Iterator[_Block]:
        chosen = items[item]
        prompts = prompts_in_file(chosen) if isinstance(chosen, TableFile) else prompts_in_source(chosen)
        yield from _blocks(item, prompts, config, ngram_size=config.ngram_size)

    sizes = [item.file.bytes if isinstance(item, TableFile) else item.end - item.start for item in items]
    return _collect(
        executor, executor.map_items(work, range(len(items)), sizes, _Block, what="parts of evaluation sets hashed")
    )


def _blocks(item: int, prompts: Iterable[NamedPrompt], config: ExpandConfig, *, ngram_size: int) -> Iterator[_Block]:
    for index, block in enumerate(_batches(prompts)):
        texts = [comparable(prompt.messages) for prompt in block]
        hashes, owners = ngram_hashes(texts, ngram_size) if ngram_size else (np.empty(0, "<u8"), np.empty(0, np.int64))
        yield _Block(
            item=item,
            index=index,
            ids=[prompt.id for prompt in block],
            names=[prompt.name for prompt in block],
            texts=texts,
            keys=band_keys(texts, config.shingle_size, config.near_duplicate_threshold).tobytes(),
            ngram_hashes=hashes.tobytes(),
            ngram_owners=owners.tobytes(),
        )


def _collect(executor: Executor, found: Iterable[_Block]) -> _Reference:
    """Return the index of the blocks, texts broadcast as they come; of equal prompts the first one counts."""
    kept, refs = [], {}
    for block in found:
        refs[block.item, block.index] = executor.broadcast(pa.table({"name": block.names, "text": block.texts}))
        kept.append(msgspec.structs.replace(block, names=[], texts=[]))
    kept.sort(key=lambda block: (block.item, block.index))
    sizes = [len(block.ids) for block in kept]
    ids = np.array([name for block in kept for name in block.ids], dtype="S32")
    _, first = np.unique(ids, return_index=True)
    number_of = np.full(len(ids), -1)
    number_of[first] = np.arange(len(first))
    starts = np.cumsum([0, *sizes])[:-1]
    ngram_owners = [np.frombuffer(b.ngram_owners, np.int64) + start for b, start in zip(kept, starts, strict=True)]
    owners = number_of[np.concatenate([np.empty(0, np.int64), *ngram_owners])]
    hashes = np.concatenate([np.empty(0, "<u8"), *(np.frombuffer(block.ngram_hashes, "<u8") for block in kept)])
    keys = np.concatenate([np.empty(0, "<u8"), *(np.frombuffer(block.keys, "<u8") for block in kept)])
    return _Reference(
        keys=index_keys(keys.reshape(len(ids), -1 if len(ids) else 1)[first]),
        ngrams=index_ngrams(hashes[owners >= 0], owners[owners >= 0]),
        blocks=[refs[block.item, block.index] for block in kept],
        block_of=np.repeat(np.arange(len(kept)), sizes)[first],
        row_of=np.concatenate([np.empty(0, np.int64), *map(np.arange, sizes)])[first],
    )


def _compare(
    source: Table, read: Manifest, config: ExpandConfig, references: dict[str, _Reference], executor: Executor
) -> dict[str, _ExcludedPrompts]:
    shared = executor.broadcast(references)
    partitions = partition_files(read.files, config.partition_bytes)

    def work(item: int) -> Iterator[_ExcludedPrompts]:
        for block in _batches(_distinct(source, partitions[item])):
            yield from _excluded_prompts(block, shared.get(), config)

    sizes = [sum(file.bytes for file in files) for files in partitions]
    found = executor.map_items(
        work, range(len(partitions)), sizes, _ExcludedPrompts, what="partitions compared with held-out prompts"
    )
    return {prompt.prompt_id: prompt for prompt in found}


def _excluded_prompts(
    prompts: list[tuple[str, list[dict[str, str]]]], references: dict[str, _Reference], config: ExpandConfig
) -> Iterator[_ExcludedPrompts]:
    """Yield the prompts to exclude: those that overlap an evaluation set, of the others train's near-duplicates."""
    similarity_config = SimilarityConfig(config.shingle_size, config.near_duplicate_threshold, config.ngram_size)
    contaminated = set()
    if (reference := references.get("contaminated")) is not None:
        for found, name, text in _matches(
            [comparable(messages) for _, messages in prompts], reference, similarity_config
        ):
            contaminated.add(found.query)
            how = f"`{found.ngram}` in a row as in" if found.ngram else f"similarity {found.similarity:.2f} to"
            reason = f"overlaps an evaluation set, got {how} {name}: `{text}`"
            yield _ExcludedPrompts(prompts[found.query][0], "contaminated", reason)
    if (reference := references.get("near_duplicate")) is not None:
        rest = [
            prompt
            for query, prompt in enumerate(prompts)
            if query not in contaminated and split_of(prompt[0], config.validation_fraction) == "train"
        ]
        for found, name, text in _matches([comparable(messages) for _, messages in rest], reference, similarity_config):
            reason = f"near-duplicate of a validation prompt, got similarity {found.similarity:.2f} to {name}: `{text}`"
            yield _ExcludedPrompts(rest[found.query][0], "near_duplicate", reason)


def _matches(
    texts: list[str], reference: _Reference, similarity_config: SimilarityConfig
) -> Iterator[tuple[SimilarText, str, str]]:
    """Yield the reference prompt that each text is similar to, its name and beginning; each text at most once."""

    @cache
    def block(number: int) -> pa.Table:
        return reference.blocks[number].get()

    def cell(owner: int, column: str) -> str:
        return block(int(reference.block_of[owner])).column(column)[int(reference.row_of[owner])].as_py()

    def text_of(owner: int) -> str:
        return cell(owner, "text")

    seen = set()
    for find, index in ((find_similar, reference.keys), (find_ngram_overlaps, reference.ngrams)):
        rest = [query for query in range(len(texts)) if query not in seen]
        if not len(index.keys_M):
            continue
        for found in find([texts[query] for query in rest], index, text_of, similarity_config):
            query = rest[found.query]
            seen.add(query)
            at = SimilarText(query, found.owner, found.similarity, found.ngram)
            yield at, cell(found.owner, "name"), text_of(found.owner)[:EXCERPT_CHARACTERS]


def _distinct(source: Table, files: Sequence[DataFile]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield the id and the turns of each prompt in some files once."""
    seen: set[str] = set()
    for file in files:
        rows = source.read_file(file, ["prompt_id", "prompt"])
        fresh = []
        for row, name in enumerate(rows["prompt_id"].to_pylist()):
            if name not in seen:
                seen.add(name)
                fresh.append(row)
        new = rows.take(pa.array(fresh, pa.int64()))
        yield from zip(new["prompt_id"].to_pylist(), new["prompt"].to_pylist(), strict=True)


def _batches(items: Iterable[ItemT]) -> Iterator[list[ItemT]]:
    rest = iter(items)
    while block := list(islice(rest, PROMPTS_PER_BLOCK)):
        yield block


def _raise_first(failures: dict[str, str]) -> None:
    for uri, reason in failures.items():
        raise SourceError(f"evaluation set {uri}: {reason.removeprefix(f'{uri}: ')}")
