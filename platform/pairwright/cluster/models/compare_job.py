"""The comparison job: evaluates several models on the same split, one after the other, and compares them in pairs."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import msgspec

from pairwright.cluster.models.evaluate_job import Compute, MeasuredSplit, check_split, default_cache, measure
from pairwright.cluster.session import ray_session
from pairwright.data.table.table import Table
from pairwright.errors import ConfigError, DataError
from pairwright.evaluation.evaluation_report import report_json
from pairwright.evaluation.group_rows import texts_of_groups
from pairwright.evaluation.load_exported import ModelIdentity, open_exported
from pairwright.evaluation.page.comparison_page import comparison_content, render_comparison
from pairwright.evaluation.reports.comparison import COMPARISON, Candidate, Comparison, compare_models
from pairwright.evaluation.reports.report_file import report_in


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
    """Return the comparison of models on a split, and write it with its page if there is an output.

    Args:
        models: directories or URLs of exported models; several runs of one model, such as seeds, with commas between.
        pairs: URL of a pairs table.
        version: of it; the newest if None.
        split: train or validation.
        output: URL of the report (.json), or of a folder for ``report.json``, if any; its page lies beside it.
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
    check_split(split)
    if output is not None:
        COMPARISON.check(report_in(output), overwrite=overwrite)
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
    identities = {path: model.identity() for path, model in exported.items()}
    named = {name: [(identities[path], found[path]) for path in paths] for name, paths in runs.items()}
    return compare_measured(named, pairs, output=output, overwrite=overwrite, show=show)


def compare_measured(
    models: Mapping[str, Sequence[tuple[ModelIdentity, MeasuredSplit]]],
    pairs: str,
    *,
    output: str | None,
    overwrite: bool,
    show: Callable[[Comparison], None] | None = None,
) -> Comparison:
    """Return the comparison of models whose rewards are known: name -> its runs; arguments as of ``compare``."""
    candidates = [
        Candidate(name, [(identity, found.measured.arrays) for identity, found in runs])
        for name, runs in models.items()
    ]
    first = next(found for runs in models.values() for _, found in runs)
    read_texts = partial(texts_of_groups, Table.open(pairs, "pairs"), first.manifest)
    try:
        comparison = compare_models(candidates, pairs=first.data, read_texts=read_texts)
    except ValueError as error:
        raise DataError(f"{pairs}: {error}; compare models with similar length limits") from None
    if show is not None:
        show(comparison)
    if output is not None:

        def page() -> str:
            return render_comparison(comparison, comparison_content(comparison, first.manifest, read_texts))

        content = report_json(msgspec.to_builtins(comparison))
        COMPARISON.put(report_in(output), content, page, overwrite=overwrite)
    return comparison
