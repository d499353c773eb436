"""Loads exported models from a path or URL, verifies them, and reads the rules for their input.

Evaluation and scoring take the input rules (maximum length, length policy) from the model, never from a flag: a rule
that differs between training and use changes the reward. A remote model is downloaded once for each node, and its copy
is used as long as it matches the download, by SHA-256. The directory's digest takes one read of the weights and ties
every report to exactly one model.
"""

import hashlib
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import msgspec
import obstore
from filelock import FileLock

from pairwright.config import TokensConfig
from pairwright.data.storage.cache_limit import reserve_model
from pairwright.data.storage.local_cache import download, is_intact, mark_intact
from pairwright.data.storage.model_files import check_model_files, heads_among, other_head, weight_names
from pairwright.data.storage.model_listing import RULES_FILE, ModelFile, damage
from pairwright.data.storage.object_store import local_root, open_store, store_errors
from pairwright.data.tokens.tokenizer import load_tokenizer
from pairwright.errors import ModelError
from pairwright.records import UNREADABLE_JSON
from pairwright.suggestions import did_you_mean_path

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from pairwright.model.reward_model import RewardModel

MIN_MAX_LENGTH = 8
_CHUNK_BYTES = 1 << 24
# Models in float16 compute in float32: float16 overflows in models that were not trained in it.
_DTYPES = ("float32", "bfloat16")
_REMEDY = (
    "pass the `model` directory of a training run; a reward model from elsewhere needs a file pairwright.json beside "
    'its config.json, such as {"format_version": 1, "max_length": 2048, "overlong": "drop"}'
)
StructT = TypeVar("StructT", bound=msgspec.Struct)

logger = logging.getLogger(__name__)


class Normalization(msgspec.Struct, frozen=True, kw_only=True):
    """Mean and standard deviation of a model's rewards on reference completions, by ``pairwright normalize``."""

    mean: float
    std: Annotated[float, msgspec.Meta(gt=0)]
    reference: Annotated[str, msgspec.Meta(description="URL of the table, as it was given")]
    version: Annotated[int, msgspec.Meta(description="of the table")]
    num_rewards: Annotated[int, msgspec.Meta(ge=2, description="how many completions of the table were scored")]


class InputRules(msgspec.Struct, frozen=True, kw_only=True):
    """The rules for a model's input, from ``pairwright.json`` in its directory."""

    max_length: Annotated[int, msgspec.Meta(ge=MIN_MAX_LENGTH)]
    overlong: Literal["drop", "truncate"]
    special_in_text: Literal["split", "refuse", "keep"] = "keep"
    """Models from before this setting were trained with "keep"."""
    template_end: Annotated[
        Literal["end_of_turn", "template"],
        msgspec.Meta(description="whether the tokenizer's template was made to end at the last special token"),
    ] = "template"
    """Models from before this setting were trained with the template as it was."""
    normalization: Normalization | None = None
    """Applied where asked for, never by itself."""
    format_version: Literal[1]
    files: Annotated[
        tuple[ModelFile, ...], msgspec.Meta(description="every other file of the directory, as it was exported")
    ] = ()

    def tokens_config(self) -> TokensConfig:
        """Return the configuration of this model's tokenisation, with the tokenizer's own template."""
        return TokensConfig(
            max_length=self.max_length,
            overlong_policy=self.overlong,
            special_in_text=self.special_in_text,
            template_end="template",  # the tokenizer's own is the one that the model was trained with
        )


class _HubConfig(msgspec.Struct):
    architectures: list[str] = []
    dtype: str | None = None
    torch_dtype: str | None = None


class ModelIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Which model it was, and the rules for its input."""

    path: str
    digest: Annotated[str, msgspec.Meta(description="SHA-256 over the names and contents of the directory's files")]
    dtype: Annotated[str, msgspec.Meta(description="of weights and activations; rewards are float32")]
    max_length: Annotated[int, msgspec.Meta(description="longest prompt and completion together, tokens")]
    overlong: Annotated[Literal["drop", "truncate"], msgspec.Meta(description="rule for longer ones")]
    special_in_text: Annotated[
        Literal["split", "refuse", "keep"], msgspec.Meta(description="how special tokens in texts were read")
    ] = "keep"


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """An exported model in a local directory."""

    path: str
    """As the user gave it."""
    directory: Path
    rules: InputRules
    dtype: str
    """Of its saved weights, and so of its activations; rewards are float32 in any case."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all files of the directory."""
        return sum(file.stat().st_size for file in self.directory.rglob("*") if file.is_file())

    def verify(self, *, hashes: bool) -> None:
        """Check the model's files against the list in its ``pairwright.json``.

        Raises:
            ModelError: with the first file that is missing or differs.
        """
        if (wrong := damage(self.directory, self.rules.files, hashes=hashes)) is not None:
            raise ModelError(
                f"{self.path}: damaged: {wrong}; copy the model again, or export it again from its run; if you changed "
                f"it, remove `files` from its {RULES_FILE}"
            )

    def identity(self) -> "ModelIdentity":
        """Return the model's identity for a report; reads all of its files once."""
        return ModelIdentity(
            path=self.path,
            digest=model_digest(self.directory),
            dtype=self.dtype,
            max_length=self.rules.max_length,
            overlong=self.rules.overlong,
            special_in_text=self.rules.special_in_text,
        )


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A reward model and its tokenizer, in memory."""

    model: "RewardModel"
    tokenizer: "PreTrainedTokenizerFast"
    pad_token_id: int
    device: "torch.device"


def open_exported(path: str) -> ExportedModel:
    """Return an exported model; a remote one is downloaded first.

    Raises:
        ModelError: if there is none, if it has no reward head, or if it has no rules for its input.
    """
    directory = _local_directory(path)
    if not directory.is_dir():
        raise ModelError(
            f"{path}: no such model directory; pass the `model` directory of a training run, or fetch a model first "
            f"with `hf download NAME --local-dir DIR`{did_you_mean_path(path)}"
        )
    check_model_files(directory)
    config = _decode(directory / "config.json", _HubConfig, "a Hugging Face model directory")
    if not any(name.endswith("ForSequenceClassification") for name in config.architectures):
        found = ", ".join(config.architectures) or "none"
        other = other_head(heads_among(weight_names(directory)))
        raise ModelError(
            f"{path}: the model has no reward head (architectures: {found}; expected one ending in "
            f"ForSequenceClassification); {other or 'train one from it with `pairwright train`'}"
        )
    dtype = config.dtype or config.torch_dtype
    exported = ExportedModel(
        path=path,
        directory=directory,
        rules=_decode(directory / RULES_FILE, InputRules, "how the model's input is cut"),
        dtype=dtype if dtype in _DTYPES else "float32",
    )
    exported.verify(hashes=False)
    return exported


def load_exported(exported: ExportedModel, device: "torch.device") -> LoadedModel:
    """Return the model, in evaluation mode, and its tokenizer.

    Raises:
        ModelError: if its weights or its tokenizer cannot be used.
    """
    # Here, since a wrong path should not wait the seconds that they take.
    import torch
    from transformers.utils.logging import disable_progress_bar

    from pairwright.model.load_model import load_reward_model
    from pairwright.model.model_export import choose_pad_token

    path = str(exported.directory)
    # Otherwise each actor's log would show a progress bar for its weights.
    disable_progress_bar()
    tokenizer = load_tokenizer(path)
    pad_token_id = choose_pad_token(tokenizer)
    model = load_reward_model(
        path,
        dtype=torch.bfloat16 if exported.dtype == "bfloat16" else torch.float32,
        seed=0,
        dropout=False,
        gradient_checkpointing=False,
        pad_token_id=pad_token_id,
        vocab_size=len(tokenizer),
        cpu_kernels=True,
    )
    return LoadedModel(model.eval().to(device), tokenizer, pad_token_id, device)


def model_digest(directory: Path) -> str:
    """Return the SHA-256 of a model directory's file names and contents, 64 hex digits.

    Raises:
        ModelError: if no file is there.
    """
    digest = hashlib.sha256()
    files = [file for file in sorted(directory.rglob("*")) if file.is_file()]
    if not files:
        raise ModelError(f"{directory}: holds no file, expected a model; was it removed meanwhile?")
    for file in files:
        digest.update(f"{file.relative_to(directory).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as content:
            while chunk := content.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _decode(file: Path, kind: type[StructT], what: str) -> StructT:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise ModelError(f"{file}: cannot be read ({error.strerror})") from None
        raise ModelError(f"{file}: no such file, so the directory does not say {what}; {_REMEDY}") from None
    except UNREADABLE_JSON as error:
        raise ModelError(f"{file}: does not say {what}: {error}; {_REMEDY}") from None


def _local_directory(path: str) -> Path:
    root = local_root(path)
    return _download(path) if root is None else root


class _Copied(msgspec.Struct, frozen=True):
    """One file of a remote model, as it was downloaded."""

    path: str
    bytes: int
    sha256: str


def _download(url: str) -> Path:
    """Return a local copy of a remote directory, under a name that changes with the content of any of its files.

    A list of its files, as downloaded, lies beside it: a copy that differs from the list is downloaded again.
    """
    with store_errors(url):
        files = [file for page in obstore.list(open_store(url)) for file in page]
    if not files:
        raise ModelError(f"{url}: nothing there; pass the `model` directory of a training run")
    listing = sorted(f"{file['path']}\0{file['size']}\0{file['e_tag']}" for file in files)
    key = hashlib.sha256("\n".join([url, *listing]).encode()).hexdigest()[:32]
    directory = reserve_model(key, sum(file["size"] for file in files), what=url)
    with FileLock(f"{directory}.lock"):
        if not _is_intact_copy(directory):
            if directory.exists():
                logger.warning("%s: this copy of %s is damaged; it is downloaded again", directory, url)
            _fetch(url, files, directory)
    return directory


def _is_intact_copy(directory: Path) -> bool:
    try:
        listed = msgspec.json.decode(_listing_of(directory).read_bytes(), type=list[_Copied])
        found = {file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file()}
        return found == {file.path for file in listed} and all(
            is_intact(directory / file.path, file.bytes, file.sha256) for file in listed
        )
    except (OSError, *UNREADABLE_JSON):
        return False


def _fetch(url: str, files: "list[obstore.ObjectMeta]", directory: Path) -> None:
    unfinished = Path(tempfile.mkdtemp(prefix=f"{directory.name}.", dir=directory.parent))
    copied = []
    for file in files:
        into = unfinished / file["path"]
        into.parent.mkdir(parents=True, exist_ok=True)
        try:
            with store_errors(f"{url}/{file['path']}"):
                sha256 = download(open_store(url), file["path"], into, e_tag=file["e_tag"])
        except FileNotFoundError:
            raise ModelError(f"{url}/{file['path']}: was removed while it was being downloaded") from None
        copied.append(_Copied(file["path"], into.stat().st_size, sha256))
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.rename(directory)
    for file in copied:
        mark_intact(directory / file.path, file.sha256)
    _listing_of(directory).write_bytes(msgspec.json.encode(copied))


def _listing_of(directory: Path) -> Path:
    return directory.with_suffix(".json")
