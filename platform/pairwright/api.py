"""The Python API: the functions that the command line calls, with typed configurations and results.

``import pairwright`` offers all of it, and imports a heavy library only where a function is first used::

    import pairwright

    pairwright.ingest(["rankings.jsonl"], "tables/annotations")
    pairwright.expand("tables/annotations", "tables/pairs")
    model = pairwright.RewardModel.load("runs/first/model")
    rewards = model.rewards("What is the capital of France?", ["Paris.", "I do not know."])

Errors that a user can fix are ``pairwright.PairwrightError`` and its subclasses. Their text says where something is
wrong, what was found, what was expected, and what to do.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pairwright.config import ExpandConfig, IngestConfig, TrainConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pairwright.cluster.models.score_job import ScoreSummary
    from pairwright.cluster.train.driver import TrainSummary
    from pairwright.data.ingest.ingest import IngestSummary
    from pairwright.data.profile.profile_schema import TableMetrics
    from pairwright.data.table.manifest import Manifest
    from pairwright.data.tokens.conversation_tokens import TokenSpec
    from pairwright.evaluation.load_exported import LoadedModel, ModelIdentity

Prompt = str | Sequence[Mapping[str, Any]]
"""A text, or chat messages ``[{"role", "content"}, ...]``."""
Completion = str | Mapping[str, Any]
"""A text, or a mapping with ``text`` and what the chat template takes beside it, such as ``tool_calls``."""


def ingest(
    sources: str | Sequence[str], output: str, *, config: IngestConfig | None = None, replace: bool = False
) -> "IngestSummary":
    """Read annotations and append them to a table, as ``pairwright ingest`` does.

    Invalid records stop nothing: they are refused, counted in the summary, and kept with the reason.

    Args:
        sources: files, folders, globs or URLs.
        output: URL of the annotations table; created if it does not exist.
        config: layout, field paths and limits; the defaults if None.
        replace: replace the records of a source whose content has changed.

    Raises:
        SourceError: if no source could be read.
        StoreError: if the output holds something else.
    """
    from pairwright.cluster.sized_executor import EXECUTOR
    from pairwright.data.ingest.ingest import ingest as run

    named = [sources] if isinstance(sources, str) else list(sources)
    return run(named, output, config or IngestConfig(), replace=replace, executor=EXECUTOR)


def expand(
    annotations: str, output: str, *, config: ExpandConfig | None = None, version: int | None = None
) -> "Manifest":
    """Make weighted pairs from rankings, split by prompt, as ``pairwright expand`` does.

    Args:
        annotations: URL of an annotations table.
        output: URL of the pairs table; created if it does not exist.
        config: weights, ties, margins, validation split, exclusions; the defaults if None.
        version: of the annotations; the newest if None.

    Returns:
        The manifest of the version that holds these pairs: ``version``, ``totals``, ``files``. An expansion that was
        done before adds no version.

    Raises:
        StoreError: if there is no such table or version, or the output holds something else.
    """
    from pairwright.cluster.sized_executor import EXECUTOR
    from pairwright.data.pairs.expand import expand as run

    return run(annotations, output, config or ExpandConfig(), version=version, executor=EXECUTOR)


def report(
    table: str, output: str | None = None, *, version: int | None = None, overwrite: bool = False
) -> "TableMetrics":
    """Measure a table of annotations, as ``pairwright report`` does: ties, lengths, agreement, models, highlights.

    Args:
        table: URL of an annotations table, or of one made from it.
        output: file for the page, HTML; none is written if None.
        version: of the table; the newest if None.
        overwrite: replace an older page at the output.

    Raises:
        StoreError: if there is no such table or version, or the page could not go there.
    """
    from pairwright.cluster.sized_executor import EXECUTOR
    from pairwright.data.profile.table_report import report as run

    return run(table, version=version, output=output, overwrite=overwrite, executor=EXECUTOR)


def train(config: TrainConfig) -> "TrainSummary":
    """Train a reward model, or resume the run in ``config.output``, as ``pairwright train`` does.

    A finished run is left as it is. ``TrainConfig.model_validate({...})`` makes a configuration from a dictionary, and
    ``load_config(TrainConfig, "my.toml")`` reads a file.

    Raises:
        ConfigError: if keys contradict each other or the output holds another run.
        StoreError: if the pairs table cannot be read.
        ModelError: if the model cannot be used.
        StoppedError: if SIGTERM or SIGINT stopped the run; the same call resumes it.
    """
    from pairwright.cluster.train.driver import train as run

    return run(config)


def evaluate(
    model: str,
    pairs: str,
    *,
    output: str | None = None,
    split: Literal["train", "validation"] = "validation",
    version: int | None = None,
    num_workers: int = 1,
    use_gpu: bool = False,
    micro_batch_tokens: int = 16384,
    overwrite: bool = False,
    findings: str | None = None,
    track: bool = False,
) -> dict[str, Any]:
    """Measure a reward model on held-out pairs, as ``pairwright evaluate`` does.

    Args:
        model: directory or URL of an exported model.
        pairs: URL of a pairs table.
        output: URL of the report, JSON; ``report.json`` beside the model if None; ``report.html`` goes beside it.
        split: train or validation.
        version: of the pairs table; the newest if None.
        num_workers: number of models in parallel; does not change the report.
        use_gpu: give each a GPU.
        micro_batch_tokens: token budget of one forward pass, padding included.
        overwrite: replace an older report at the output.
        findings: folder for annotations that deserve a second look, JSON Lines; none if None.
        track: keep the page, which holds texts of the table, with the model's run in the trackers of that run.

    Returns:
        The report, in the shape of ``schemas/report.v1.json``.

    Raises:
        ModelError: if the model cannot be used.
        DataError: if no pair of the split is left.
        ConfigError: if ``track`` is asked for, and the model lies in no folder of a finished run with trackers.
    """
    from pairwright.cluster.models.evaluate_job import evaluate as run

    return run(
        model,
        pairs,
        version=version,
        split=split,
        output=output,
        num_workers=num_workers,
        use_gpu=use_gpu,
        micro_batch_tokens=micro_batch_tokens,
        overwrite=overwrite,
        findings=findings,
        track=track,
    )


def score(
    model: str,
    input: str,  # noqa: A002 - its name on the command line
    output: str,
    *,
    version: int | None = None,
    max_length: int | None = None,
    overwrite: bool = False,
    num_workers: int = 1,
    use_gpu: bool = False,
    micro_batch_tokens: int = 16384,
) -> "ScoreSummary":
    """Write the reward of every completion of an input, as ``pairwright score`` does.

    Args:
        model: directory or URL of an exported model.
        input: file, folder, pattern or URL of JSON Lines, or URL of a table.
        output: folder or URL for the rewards, Parquet.
        version: of the table; the newest if None.
        max_length: longest prompt and completion, tokens; the model's own if None.
        overwrite: replace the scores that the output holds.
        num_workers: number of models in parallel; does not change the rewards.
        use_gpu: give each a GPU.
        micro_batch_tokens: token budget of one forward pass, padding included.

    Raises:
        ModelError: if the model cannot be used, or gives a reward that is not finite.
        SourceError: if no source could be read to its end.
        StoreError: if the output holds scores already, or something else.
    """
    from pairwright.cluster.models.score_job import score as run

    return run(
        model,
        input,
        output,
        num_workers=num_workers,
        use_gpu=use_gpu,
        micro_batch_tokens=micro_batch_tokens,
        max_length=max_length,
        version=version,
        overwrite=overwrite,
    )


class RewardModel:
    """An exported reward model in this process: rewards of completions, as ``pairwright score`` computes them."""

    def __init__(self, loaded: "LoadedModel", spec: "TokenSpec", identity: "ModelIdentity") -> None:
        self._loaded = loaded
        self._spec = spec
        self.identity = identity
        """Path, digest, precision, and the rules for its input."""

    @classmethod
    def load(cls, path: str, *, device: str | None = None) -> Self:
        """Load a model: the ``model`` folder of a run, or what ``pairwright export`` wrote; a local path or a URL.

        Args:
            path: directory or URL.
            device: such as ``cuda:0``; a GPU if there is one, else the CPU, if None.

        Raises:
            ModelError: if there is no model, it has no reward head, or its files are damaged.
        """
        import torch

        from pairwright.data.tokens.conversation_tokens import TokenSpec
        from pairwright.evaluation.load_exported import load_exported, open_exported

        exported = open_exported(path)
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        loaded = load_exported(exported, torch.device(chosen))
        return cls(loaded, TokenSpec.of(loaded.tokenizer, exported.rules.tokens_config()), exported.identity())

    def rewards(
        self, prompt: Prompt, completions: Sequence[Completion], *, micro_batch_tokens: int = 16384
    ) -> "NDArray[np.float32]":
        """Return the reward of each completion of a prompt, float32, shape (K,); higher is better.

        Only differences between completions of one prompt mean something: Bradley-Terry does not fix a zero.

        Args:
            prompt: a text, or chat messages; rendered with the model's own template.
            completions: texts, K of them; none gives an array of shape (0,).
            micro_batch_tokens: token budget of one forward pass, padding included.

        Raises:
            DataError: if a text cannot be scored: it is empty, or longer than the model's limit where the model's
                rule is to drop such. The message names the completion.
        """
        return self.rewards_of_many([(prompt, completions)], micro_batch_tokens=micro_batch_tokens)[0]

    def rewards_of_many(
        self, groups: Sequence[tuple[Prompt, Sequence[Completion]]], *, micro_batch_tokens: int = 16384
    ) -> "list[NDArray[np.float32]]":
        """Return the rewards of each group's completions, as ``rewards`` does; texts of similar length share a pass.

        Raises:
            DataError: as ``rewards``; the message names the group by its position, from 1.
        """
        import numpy as np

        from pairwright.errors import DataError
        from pairwright.evaluation.requests import parse_requests
        from pairwright.evaluation.score import score_requests

        filled = [(prompt, completions) for prompt, completions in groups if len(completions)]
        requests, refused = parse_requests(_lines(filled), 1, "group")
        scored = score_requests(self._loaded, self._spec, requests, refused, micro_batch_tokens=micro_batch_tokens)
        if scored.rejections:
            first = scored.rejections[0]
            raise DataError(f"group {first.line}: {first.path}: {first.reason}")
        reward_N = scored.scores.column("reward").to_numpy()
        rewards = iter(np.split(reward_N, np.cumsum([len(completions) for _, completions in filled])[:-1]))
        return [next(rewards) if len(completions) else np.empty(0, np.float32) for _, completions in groups]


def _lines(groups: Sequence[tuple[Prompt, Sequence[Completion]]]) -> bytes:
    import msgspec

    return b"\n".join(
        msgspec.json.encode(
            {
                "prompt": prompt if isinstance(prompt, str) else [dict(turn) for turn in prompt],
                "completions": [one if isinstance(one, str) else dict(one) for one in completions],
            }
        )
        for prompt, completions in groups
    )
