"""Renders what verbs did as text for a person."""

from collections.abc import Iterator

from pairwright.data.table.erase import ErasurePreview, ErasureSummary, counted_names
from pairwright.terminal import counted, one_per_line


def render_erasure(summary: ErasureSummary) -> str:
    """Return what was erased, what verifies it, and what still holds it."""
    return one_per_line(
        [
            *_in_the_table(summary),
            *_caches(summary),
            "what was made from it before holds them still; to be removed in this order:",
            *(f"- {line}" for line in _elsewhere(summary)),
        ]
    )


def render_erasure_preview(preview: ErasurePreview) -> str:
    """Return what an erasure would remove, and what would stay."""
    lines = [
        f"dry run: {preview.what}: {preview.num_annotations:,} annotations would leave version {preview.version} of "
        f"{preview.url}, {counted(preview.num_refused_without_text, 'refused record')} would lose their text; "
        "nothing was written",
    ]
    if not preview.num_annotations:
        lines.append(f"no annotation matches: look at the spelling{_meant(preview.close_names)}")
    if preview.similar_names:
        lines.append(f"other annotators with such a name would stay: {counted_names(preview.similar_names)}")
    if preview.num_naming:
        lines.append(f"{preview.num_naming:,} annotations have the name in their id, subset or metadata")
    return one_per_line(lines)


def _in_the_table(summary: ErasureSummary) -> Iterator[str]:
    verification = summary.verification
    yield (
        f"version {summary.version} of {summary.url} is without {summary.what}: "
        f"{counted(summary.num_annotations, 'annotation')} of {counted(len(summary.sources), 'source')} left it, "
        f"{counted(summary.num_refused_without_text, 'refused record')} their text"
    )
    if summary.spellings:
        yield f"  annotators, as spelled there: {counted_names(summary.spellings)}"
    if not summary.num_annotations:
        yield f"  no annotation matched: if that is a surprise, look at the spelling{_meant(summary.close_names)}"
    yield (
        f"verified: version {summary.version} was read again: of {counted(verification.num_rows, 'row')} in "
        f"{counted(verification.num_files, 'file')} none has this annotator or prompt, of "
        f"{counted(verification.num_refused, 'refused record')} in "
        f"{counted(verification.num_refused_files, 'file')} none has a text; the texts of other prompts and "
        "completions were not searched"
    )
    if summary.similar_names:
        others = counted_names(summary.similar_names)
        yield f"other annotators with such a name stay; forget them too if they are the same: {others}"
    if summary.num_naming:
        stay = counted(summary.num_naming, "annotation")
        yield f"with the name in id, subset or metadata, but by others: {stay}, which stay"
    for uri in summary.named_in_sources:
        yield f"the name of source {uri} holds the annotator's, and stays"


def _meant(names: list[str]) -> str:
    return f"; did you mean {' and '.join(map(repr, names))}?" if names else ""


def _caches(summary: ErasureSummary) -> Iterator[str]:
    num_files, num_bytes = (sum(getattr(each, name) for each in summary.caches) for name in ("num_files", "bytes"))
    yield (
        f"caches of tokens and models emptied on {counted(len(summary.caches), 'machine')}: "
        f"{counted(num_files, 'file')}, {num_bytes / 1e6:,.1f} MB"
    )
    for each in summary.caches:
        if each.num_in_use:
            yield f"  {each.host}: kept {counted(each.num_in_use, 'model')} in use; `rm -r {each.folder}/models` later"
    for reason in summary.caches_not_cleared:
        yield f"  not emptied: {reason}; `rm -r ~/.cache/pairwright` there"


def _elsewhere(summary: ErasureSummary) -> Iterator[str]:
    yield (
        f"{counted(len(summary.older_versions), 'older version')}, while nothing else uses the table: "
        f"`pairwright vacuum {summary.url} --keep-versions 1 --retention 0`"
    )
    yield (
        f"pairs tables: `pairwright expand {summary.url} --output PAIRS` again, then "
        "`pairwright vacuum PAIRS --keep-versions 1 --retention 0`"
    )
    yield "tokens of those pairs: `rm -r tokens` beside each run and evaluation; caches that a run filled again"
    yield "runs and models trained on them: train again, remove the old ones"
    yield "pages and JSON of `report` and `evaluate`, outputs of `score` and `export-pairs`: make again"
    if summary.sources:
        sources = counted_names(summary.sources)
        yield f"the sources, which bring it in again with --replace or under another name: {sources}"
