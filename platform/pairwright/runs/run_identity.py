"""The identity of a run, ``run.json``: what decides its result, by content; and how two identities differ, in words.

Where the table, the model and the folder lie is recorded and does not count: a run whose parts were moved goes on.
The digest is that of the run's first start. A later start compares content and takes the recorded digest over, since
the checkpoints carry it.
"""

from typing import Any

import msgspec

from pairwright.config import TrainConfig, digest_of

_PATH_KEYS = ("model.path", "tokens.chat_template")
"""Keys that name a place; what is there is in the digests of the model and of the tokens."""
_OF_EARLIER_RUNS = {"tokens.template_end": "template"}
"""What runs of versions without these keys did."""
MAX_DIFFERENCES = 4
_MAX_CHARACTERS = 80


class RunIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides a run's result; ``run.json``."""

    digest: str
    config: dict[str, Any]
    """The part of the configuration that changes the result."""
    pairs_url: str
    pairs_version: int
    pairs_digest: str = ""
    """Of the version's content; empty in runs of earlier versions."""
    tokens_digest: str
    model_digest: str

    @classmethod
    def of(cls, *, config: TrainConfig, **parts: Any) -> "RunIdentity":
        """Return the identity of a run that starts now."""
        kept = identity_config(config)
        content = {key: value for key, value in flat_keys(kept).items() if key not in _PATH_KEYS}
        digests = {name: parts[name] for name in ("pairs_digest", "tokens_digest", "model_digest")}
        return cls(digest=digest_of({"config": content} | digests), config=kept, **parts)


def identity_config(config: TrainConfig) -> dict[str, Any]:
    """Return the part of a configuration that changes the result of a run."""
    free_to_change = {
        "output": True,
        "tracking": True,
        "model": {"cpu_kernels"},
        "data": True,
        "lora": {"keep_adapter"},
        "tokens": {"cache"},
        "batches": {"micro_batch_tokens", "layout"},
        "training": {
            "log_every_steps",
            "evaluate_every_steps",
            "checkpoint_every_steps",
            "keep_checkpoints",
            "best_metric",
            # They decide whether a run comes to its end, never in which weights.
            "on_non_finite",
            "max_skipped_steps",
            "storage_retry_seconds",
        },
        "workers": True,
    }
    return config.model_dump(mode="json", exclude=free_to_change)


def differences(found: RunIdentity, wanted: RunIdentity) -> list[str]:
    """Return what makes two runs different, each as a key with both values; empty where their content is the same."""
    before, now = (_OF_EARLIER_RUNS | flat_keys(one.config) for one in (found, wanted))
    # Most templates end at a turn's end, whatever the rule.
    same_tokens = {*_OF_EARLIER_RUNS} if found.tokens_digest == wanted.tokens_digest else set()
    keys = sorted((before.keys() | now.keys()) - {*_PATH_KEYS} - same_tokens)
    changes = [_change(key, before, now) for key in keys if before.get(key) != now.get(key)]
    if found.model_digest != wanted.model_digest:
        is_moved = before.get("model.path") != now.get("model.path")
        same = f"model.path {_shown(now.get('model.path'))} has other files there than here"
        changes.append(_change("model.path", before, now) if is_moved else same)
    if found.tokens_digest != wanted.tokens_digest:
        changes += _data_changes(found, wanted)
        if before.get("tokens.chat_template") != now.get("tokens.chat_template"):
            changes.append(_change("tokens.chat_template", before, now))
        if not changes:
            changes.append(_change_of_template(now.get("tokens.chat_template")))
    return changes


def differences_line(changes: list[str]) -> str:
    """Return differences as one text: the first few."""
    more = f", and {len(changes) - MAX_DIFFERENCES} more" if len(changes) > MAX_DIFFERENCES else ""
    return f"{', '.join(changes[:MAX_DIFFERENCES])}{more}"


def _data_changes(found: RunIdentity, wanted: RunIdentity) -> list[str]:
    if found.pairs_digest == wanted.pairs_digest:
        return []
    if found.pairs_url != wanted.pairs_url:
        return [_change("data.pairs", {"data.pairs": found.pairs_url}, {"data.pairs": wanted.pairs_url})]
    if found.pairs_version != wanted.pairs_version:
        return [f"data.version is {found.pairs_version} there and {wanted.pairs_version} here"]
    if not found.pairs_digest:  # an earlier version did not record it
        return []
    return [f"data.pairs {wanted.pairs_url} has other rows in version {wanted.pairs_version} there than here"]


def _change_of_template(template: str | None) -> str:
    if template is not None and template.endswith(".jinja"):
        return f"the file tokens.chat_template {template} has other content there than here"
    return "the tokens of data.pairs are other ones there than here: another version of Pairwright made them"


def _change(key: str, before: dict[str, Any], now: dict[str, Any]) -> str:
    return f"{key} is {_shown(before.get(key))} there and {_shown(now.get(key))} here"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."


def flat_keys(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, by dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flat_keys(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat
