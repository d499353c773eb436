"""Model directories and runs' folders with one file spoilt, and all that the verbs do with what lies there.

JSON is spoilt by what stands in it (places dropped, doubled, retyped, numbers out of any range, deep nesting), every
file byte by byte too. What a verb does is called in this process, so that any exception but ours is seen as it is.
"""

import json
import random
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from mutations import places
from pairwright.config import TrainConfig
from pairwright.data.extras import reply_of
from pairwright.data.tokens.template_sandbox import Refusal
from pairwright.data.tokens.tokenize_groups import TokenSpec, tokenize_completions
from pairwright.data.tokens.tokenizer import load_tokenizer
from pairwright.errors import PairwrightError
from pairwright.evaluation.load_exported import load_exported, model_digest, open_exported
from pairwright.evaluation.requests import parse_requests
from pairwright.evaluation.score import score_requests
from pairwright.model.load_model import starting_model
from pairwright.model.lora import target_layers
from pairwright.model.model_config import meta_model, read_config
from pairwright.model.model_export import choose_pad_token
from pairwright.runs.checkpoints import format_checkpoints, kept_checkpoints
from pairwright.runs.export_run import export_checkpoint
from pairwright.runs.repair import repair_snapshot
from pairwright.runs.run_dir import RunFolder
from pairwright.runs.run_identity import RunIdentity, identity_config
from pairwright.training.checkpoint import TAG, CheckpointManifest, read_manifest, verify_all, write_manifests
from pairwright.training.checkpoint_shards import check_shards
from run_folders import commit, name

SECONDS = 30.0
"""Most time of a CPU for one spoilt file; what takes longer hangs, however busy the machine is."""
NUMBERS: list[Any] = [0, -1, 1, 2, 7, 1 << 16, 10**9, 1 << 31, 1 << 63, 10**30, 1e308, -1e-308, 0.5, True, float("inf")]
VALUES: list[Any] = [
    None, "", "x", "../x", "/", "\x00", "a\nb\x1b[31m", "é" * 50, [], {}, [None], [1, 2], {"a": {"b": 1}}, [[[[]]]],
    "float8", "auto", "evil/kernel", "sdpa", ["LlamaForSequenceClassification"], {"AutoConfig": "evil.C"},
]  # fmt: skip
REQUEST = b'{"id": "1", "prompt": "Why is the sky blue?", "completions": [{"text": "So."}, {"text": "No; not so."}]}'


class HangError(BaseException):
    """A case took too long."""


# ------------------------------------------------------------------------------------------------- spoiling


def spoilt(content: bytes, rng: random.Random) -> bytes:
    """Return the content of a file, spoilt once or a few times; never what it was."""
    while True:
        changed = content
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            changed = rng.choice(_ways(changed))(changed, rng)
        if changed != content:
            return changed


def _ways(content: bytes) -> list[Callable[[bytes, random.Random], bytes]]:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return [_flipped, _flipped, _cut, _header]
    return [*[_restructured] * 8, _flipped, _cut, _nested, _emptied]


def _flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 20])):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    end = rng.choice([len(content), min(len(content), start + rng.randrange(1, 20))])
    return content[:start] + rng.choice([b"", rng.randbytes(5)]) + content[end:]


def _header(content: bytes, rng: random.Random) -> bytes:
    """Spoil what stands at the beginning of a safetensors file: the length of its JSON, or that."""
    if len(content) < 8:
        return content
    if rng.random() < 0.2:
        return struct.pack("<Q", rng.choice([0, 1, 7, 1 << 20, 1 << 40, (1 << 64) - 1])) + content[8:]
    (length,) = struct.unpack("<Q", content[:8])
    try:
        header = _restructured(content[8 : 8 + length], rng)
    except (ValueError, RecursionError):
        return _flipped(content, rng)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _restructured(content: bytes, rng: random.Random) -> bytes:
    value = json.loads(content)
    every = places(value) if isinstance(value, dict | list) else []
    if not every:
        return json.dumps(rng.choice(VALUES)).encode()
    shallow = every[:40]
    container, key = rng.choice(shallow if rng.random() < 0.7 else every)
    kind = rng.random()
    if kind < 0.15:
        del container[key]
    elif kind < 0.45:
        container[key] = rng.choice(NUMBERS)
    elif kind < 0.75:
        container[key] = rng.choice(VALUES)
    elif kind < 0.85:
        container[key] = [container[key]] * rng.choice([1, 2, 1000])
    elif isinstance(container, dict):
        container[rng.choice(VALUES[1:8])] = container.pop(key)
    else:
        container.append(container[key])
    return json.dumps(value).encode()


def _nested(content: bytes, rng: random.Random) -> bytes:
    depth = rng.choice([50, 600, 995, 3000, 100_000])
    inner = rng.choice([b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"[" * depth])
    if rng.random() < 0.3 or not content.lstrip().startswith(b"{"):
        return inner
    return content.lstrip()[:1] + b'"model_type_x":' + inner + b"," + content.lstrip()[1:]


def _emptied(content: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        [b"", b" ", b"null", b"[]", b"{}", b"\xef\xbb\xbf" + content, content.decode(errors="replace").encode("utf-16")]
    )


# ------------------------------------------------------------------------------------------------- using


def outcome_of(use: Callable[[], None]) -> str:
    """Return "used", "refused", or what should never happen and where.

    Refused is an error of ours whose message is one line.
    """
    try:
        with _time_limit():
            use()
    except PairwrightError as error:
        message = str(error)
        return "refused" if "\n" not in message.strip() else f"more than one line: {message!r}"
    except HangError:
        return f"took more than {SECONDS:g} s"
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        return f"{type(error).__name__}: {str(error)[:200]!r} at {where}"
    return "used"


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise HangError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def evaluate_and_score(model: Path) -> None:
    """Do what evaluate and score do with an exported model."""
    exported = open_exported(str(model))
    exported.identity()
    loaded = load_exported(exported, torch.device("cpu"))
    spec = TokenSpec.of(loaded.tokenizer, exported.rules.tokens_config())
    requests, refused = parse_requests(REQUEST, 1, "a")
    score_requests(loaded, spec, requests, refused, micro_batch_tokens=100_000)


def train_from(model: Path) -> None:
    """Do what expand's tokens and train do with a starting model, short of a step."""
    config = config_of(model, model.parent / "out")
    read_config(str(model))
    target_layers(meta_model(str(model)), "all-linear")
    tokenizer = load_tokenizer(str(model))
    spec = TokenSpec.of(tokenizer, config.tokens)
    (rows,) = tokenize_completions(
        [[{"role": "user", "content": "Why?"}]], [[reply_of("So."), reply_of("No.")]], tokenizer, spec
    )
    assert isinstance(rows, Refusal) or rows.longest > 0
    starting_model(config, tokenizer, pad_token_id=choose_pad_token(tokenizer))
    model_digest(model)


def look_at_run(run: Path) -> None:
    """Do what checkpoints, export and the start of train do with a run's folder."""
    format_checkpoints(kept_checkpoints(str(run), verify=True))
    folder = RunFolder(str(run))
    folder.summary()
    for directory in sorted((run / "checkpoints").glob("step-*")):
        manifest = read_manifest(directory)
        verify_all(directory, manifest)
        check_shards(directory)
    into = run.parent / "exported"
    shutil.rmtree(into, ignore_errors=True)
    export_checkpoint(str(run), checkpoint=None, into=str(into), model=None)


def repair_run(run: Path) -> None:
    """Do what the start of train does to a run's folder, in a copy of it."""
    copy = run.parent / "repaired"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    repair_snapshot(RunFolder(str(copy)))


# ------------------------------------------------------------------------------------------------- what is whole


def config_of(model: Path, output: Path) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "output": str(output),
            "model": {"path": str(model)},
            "data": {"pairs": "unused"},
            "tokens": {"max_length": 64},
            "deepspeed": {"zero_stage": 0, "precision": "fp32"},
        }
    )


def make_run(folder: Path, base: Path) -> Path:
    """Return the folder of a finished run with one committed checkpoint of one rank without ZeRO."""
    set_verbosity_error()
    disable_progress_bar()
    config = config_of(base, folder / "run")
    tokenizer = load_tokenizer(str(base))
    model = starting_model(config, tokenizer, pad_token_id=choose_pad_token(tokenizer))
    RunFolder(config.output).claim(
        RunIdentity(
            digest="d",
            config=identity_config(config),
            pairs_url="unused",
            pairs_version=1,
            tokens_digest="t",
            model_digest=model_digest(base),
        )
    )
    directory = folder / "run" / "checkpoints" / name(1)
    (directory / TAG).mkdir(parents=True)
    torch.save({"module": model.state_dict()}, directory / TAG / "mp_rank_00_model_states.pt")
    manifest = CheckpointManifest(
        format_version=1,
        step=1,
        num_steps=2,
        world_size=1,
        zero_stage=0,
        precision="fp32",
        run_digest="d",
        code_version="0",
        validation={"accuracy": 0.5},
    )
    write_manifests(directory, manifest, rank=0)
    commit(folder / "run", 1)
    return folder / "run"


def shard_model(directory: Path) -> Path:
    """Turn a model's one file of weights into one that an index names."""
    from safetensors import safe_open

    file = directory / "model.safetensors"
    with safe_open(file, "pt") as weights:
        names = list(weights.keys())
    file.rename(directory / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(names, "model-00001-of-00001.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return directory
