"""Content hashes that identify a prompt and a group."""

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import Any

from pairwright.records import Message


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
