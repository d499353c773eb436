"""Hashes that identify a prompt, a group of completions, and the content of an annotation.

Two annotations are the same one if all that their records say is equal: `ingest` refuses the second as a duplicate,
and `expand` and `report` drop it where two ingestions at once brought it into a table.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pairwright.records import ANNOTATIONS_SCHEMA, Message

CONTENT = tuple(name for name in ANNOTATIONS_SCHEMA.names if name not in ("source", "line", "group_id", "prompt_id"))
"""Columns that hold what a record says; the others say where it stood, or follow from these."""


def prompt_id(messages: Sequence[Message], context: str | None = None) -> str:
    """Return the hash of a prompt, 32 hex digits: the same for spellings that differ in white space or in NFC.

    What a template is given beside the texts counts to the letter.
    """
    digest = hashlib.blake2b(digest_size=16)
    for message in messages:
        _add(digest, message.role)
        _add(digest, normalised(message.content))
        if message.extra:
            _add_extra(digest, message.extra)
    if context:
        _add_extra(digest, context)
    return digest.hexdigest()


def group_id(prompt_hash: str, texts: Sequence[str], extras: Sequence[str | None] = ()) -> str:
    """Return the hash of a prompt and its completions in any order (exact, duplicates counted), 32 hex digits.

    Args:
        prompt_hash: the prompt's.
        texts: of the completions.
        extras: what each has beside its text; empty where none has anything.
    """
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, prompt_hash)
    if not any(extras):
        for text in sorted(texts):
            _add(digest, text)
        return digest.hexdigest()
    for text, extra in sorted(zip(texts, [extra or "" for extra in extras], strict=True)):
        _add(digest, text)
        _add_extra(digest, extra)
    return digest.hexdigest()


def content_hashes(annotations: pa.Table) -> NDArray[np.uint64]:
    """Return a 128-bit hash of each annotation's CONTENT, shape (rows, 2): equal content, equal hash."""
    contents = zip(*(_values(annotations, name) for name in CONTENT), strict=True)
    digests = b"".join(hashlib.blake2b(msgspec.json.encode(said), digest_size=16).digest() for said in contents)
    return np.frombuffer(digests, dtype="<u8").reshape(-1, 2)


def drop_duplicates(annotations: pa.Table) -> tuple[pa.Table, int]:
    """Return annotations without duplicates, in their order, and how many were dropped.

    Of equal annotations the first by source and line stays. Content is hashed only where ids are equal.

    Args:
        annotations: CONTENT, ``source`` and ``line``, and any other columns.
    """
    id_A = annotations["id"].combine_chunks().dictionary_encode().indices.to_numpy()
    same_id = np.flatnonzero(np.bincount(id_A)[id_A] > 1)
    if not len(same_id):
        return annotations, 0
    order = annotations.select(["source", "line"]).take(pa.array(same_id))
    order = order.append_column("row", pa.array(same_id)).sort_by([("source", "ascending"), ("line", "ascending")])
    hashes = content_hashes(annotations.take(order["row"]))
    is_kept = np.ones(annotations.num_rows, dtype=bool)
    is_kept[same_id] = False
    is_kept[order["row"].to_numpy()[np.unique(hashes, axis=0, return_index=True)[1]]] = True
    return annotations.filter(pa.array(is_kept)), int((~is_kept).sum())


def _values(annotations: pa.Table, name: str) -> list[Any]:
    """Return one JSON-able value for each annotation; lists of structs as flat columns, which cost a fifth."""
    column = annotations[name].combine_chunks()
    if name == "metadata":
        return [value and sorted(value) for value in column.to_pylist()]
    if name not in ("prompt", "completions"):
        return column.to_pylist()
    ends = np.cumsum(column.value_lengths().to_numpy()).tolist()
    bounds = list(zip([0, *ends], ends, strict=False))
    fields = [field.to_pylist() for field in column.flatten().flatten()]
    return [[values[start:end] for values in fields] for start, end in bounds]


def normalised(text: str) -> str:
    """Return a text as `prompt_id` sees it: spellings that differ in white space or in NFC are the same."""
    return " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())


def _add_extra(digest: Any, extra: str) -> None:
    """Hash the extra of a text, behind bytes that are no text's length; nothing where it is empty."""
    if extra:
        digest.update(b"\xff" * 8)
        _add(digest, extra)


def _add(digest: Any, text: str) -> None:
    """Hash a string after its length, so that no two lists of strings run into the same bytes."""
    data = text.encode()
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)


def hash_ids(ids: Iterable[str]) -> NDArray[np.uint64]:
    """Return the 64-bit hash of each id; equal hashes only hint at equal ids."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(digests, dtype="<u8")


def are_among(hashes: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return whether each of some hashes is among ``wanted``, which is sorted."""
    if not len(wanted):
        return np.zeros(len(hashes), dtype=bool)
    index = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
    return wanted[index] == hashes
