"""Loads a fast tokenizer from a path or hub name, and computes a digest of all that it does to a text.

The digest is over the loaded pipeline rather than over files: it changes with whatever changes the tokens (another
vocabulary, a library that reads the same files otherwise) and with nothing else in the model's directory.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pairwright.data.storage.model_files import check_model_files, check_model_path, reason_of
from pairwright.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_TOKEN_IDS = 10_000_000
"""Above every id that a tokenizer may give: a tokenizer counts up to the largest each time that it is written out."""
_REMEDY = "write one there with `tokenizer.save_pretrained(directory)`, or give the path of a model that has one"


def load_tokenizer(path: str) -> "PreTrainedTokenizerFast":
    """Return the fast tokenizer of a model directory or hub name; remote code is never run.

    Raises:
        ModelError: if there is no such directory or hub name, if it has no tokenizer, or only a slow one.
    """
    check_model_path(path)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    directory = Path(path)
    if directory.is_dir():
        check_model_files(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        tokenizer(["Is it of use?"])
    except Exception as error:  # transformers and tokenizers raise a dozen kinds here, some of them bare Exception
        raise ModelError(_why_not_loaded(path, error)) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"{path}: its tokenizer ({type(tokenizer).__name__}) is a slow one, written in Python; expected a fast one "
            f"(a tokenizer.json); convert it, or use a model that has one"
        )
    ids = tokenizer.get_vocab()
    if (largest := max(ids.values(), default=0)) >= MAX_TOKEN_IDS:
        raise ModelError(
            f"{path}: its tokenizer gives a token the id {largest:,}, expected ids below {MAX_TOKEN_IDS:,}; "
            f"tokenizer.json is damaged: {_REMEDY}"
        )
    # transformers 5 makes an empty tokenizer, without a word, for a model directory that has no tokenizer files.
    if not set(ids) - set(tokenizer.all_special_tokens):
        raise ModelError(f"{path}: {_listing(directory)} but no tokenizer; {_REMEDY}")
    return tokenizer


def tokenizer_digest(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Return the SHA-256 of all that decides a text's tokens, 64 hex digits; padding and truncation do not."""
    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    pipeline["padding"] = pipeline["truncation"] = None
    content = [pipeline, tokenizer.special_tokens_map, tokenizer.split_special_tokens]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _why_not_loaded(path: str, error: Exception) -> str:
    reason = reason_of(error)
    directory = Path(path)
    if not directory.is_dir():
        return f"{path}: neither a directory here nor a model that could be fetched from the hub: {reason}"
    if any(directory.glob("tokenizer*")):
        return f"{path}: its tokenizer cannot be loaded: {reason}; {_REMEDY}"
    return f"{path}: {_listing(directory)} but no tokenizer; {_REMEDY}"


def _listing(directory: Path) -> str:
    names = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
    return f"holds {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}" if names else "holds nothing,"
