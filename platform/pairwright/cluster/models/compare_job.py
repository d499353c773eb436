"""The comparison job: evaluates several models on the same split, one after the other, and compares them in pairs."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import msgspec

from pairwright.cluster.models.evaluate_job import Compute, MeasuredSplit, check_split, default_cache, measure
from pairwright.cluster.session import ray_session
from pairwright.data.storage.outputs import check_output, put_output
from pairwright.data.table.table import Table
from pairwright.errors import ConfigError, DataError
from pairwright.evaluation.evaluation_report import report_json
from pairwright.evaluation.group_rows import texts_of_groups
from pairwright.evaluation.load_exported import ExportedModel, open_exported
from pairwright.evaluation.reports.comparison import Candidate, Comparison, compare_models, is_comparison

WHAT = "a comparison of `pairwright compare`"


def compare(
    models: Sequence[str],
    pairs: str,
    *,
    version: int | None,
    split: str,
    output: str | None,
    compute: Compute,
    overwrite: bool = False,
    cache: str | None = None,
    show: Callable[[Comparison], None] | None = None,
) -> Comparison:
    """Return the comparison of models on a split, and write it if there is an output.

    Args:
        models: directories or URLs of exported models; several runs of one model, such as seeds, with commas between.
        pairs: URL of a pairs table.
        version: of it; the newest if None.
        split: train or validation.
        output: URL of a JSON file, if any.
        compute: what rewards are computed with.
        overwrite: replace an older comparison in the output.
        cache: URL of the token cache; beside each model's run if None.
        show: called with the comparison before it is written, because writing may fail.

    Raises:
        ModelError: if a model cannot be used.
        StoreError: if there is no such table or version, or the comparison could not go there.
        DataError: if the models have no pair in common.
        ConfigError: if there are fewer than two models, or too few CPUs or tokens.
    """
    runs = {name: [path for path in name.split(",") if path] for name in models}
    if len(runs) < 2:
        raise ConfigError("expected two different models or more; runs of one model go with commas: RUN1,RUN2")
    if output is not None:
        check_output(output, is_comparison, what=WHAT, overwrite=overwrite)
    check_split(split)
    exported = {path: open_exported(path) for paths in runs.values() for path in paths}
    version = Table.open(pairs, "pairs").manifest(version).version  # the same for every model
    # One session for all models, where they need Ray at all.
    with ray_session() if compute.num_workers > 1 or compute.use_gpu else nullcontext():
        found = {
            path: measure(
                model, pairs, version=version, split=split, compute=compute, cache=cache or default_cache(path, None)
            )
            for path, model in exported.items()
        }
    comparison = _compared(runs, exported, found, pairs)
    if show is not None:
        show(comparison)
    if output is not None:
        put_output(output, report_json(msgspec.to_builtins(comparison)), is_comparison, what=WHAT, overwrite=overwrite)
    return comparison


def _compared(
    runs: Mapping[str, Sequence[str]],
    exported: Mapping[str, ExportedModel],
    found: Mapping[str, MeasuredSplit],
    pairs: str,
) -> Comparison:
    candidates = [
        Candidate(name, [(exported[path].identity(), found[path].measured.arrays) for path in paths])
        for name, paths in runs.items()
    ]
    first = next(iter(found.values()))
    read_texts = partial(texts_of_groups, Table.open(pairs, "pairs"), first.manifest)
    try:
        return compare_models(candidates, pairs=first.data, read_texts=read_texts)
    except ValueError as error:
        raise DataError(f"{pairs}: {error}; compare models with similar length limits") from None
