"""Writes findings as JSON Lines that an annotation tool, or `pairwright ingest`, can load: native annotations.

- ``likely_wrong.jsonl``: pairs, of which the model is sure that they are the wrong way round
- ``annotate_next.jsonl``: groups whose ranking the model is least sure of, ranked as they are now
- ``unexplained_judgements.jsonl``: annotations of annotators whom the model does not explain
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from pairwright.data.extras import read_extra
from pairwright.data.storage.object_store import absolute_url
from pairwright.data.storage.outputs import check_output, put_output
from pairwright.evaluation.evaluation_report import Findings, Measured, ReadTexts
from pairwright.evaluation.statistics.ceiling import Judgements
from pairwright.evaluation.statistics.suspects import MAX_ROWS
from pairwright.records import UNREADABLE_JSON
from pairwright.terminal import safe_json

NAMES = ("likely_wrong", "annotate_next", "unexplained_judgements")
WHAT = "a file of findings of `pairwright evaluate`"


def check_findings(folder: str | None, *, overwrite: bool) -> None:
    """Refuse a folder whose files of these names may not be replaced; there is none if None.

    Raises:
        StoreError: naming the first of them.
    """
    if folder is not None:
        for name in NAMES:
            check_output(_url(folder, name), _is_findings, what=WHAT, overwrite=overwrite)


def write_findings(
    folder: str | None, measured: Measured, findings: Findings, read_texts: ReadTexts, *, overwrite: bool
) -> None:
    """Write the three files; nothing if there is no folder.

    Raises:
        StoreError: if something else is there, or they cannot be written.
    """
    if folder is None:
        return
    records = {
        "likely_wrong": _likely_wrong(findings, read_texts),
        "annotate_next": _annotate_next(measured, findings, read_texts),
        "unexplained_judgements": _unexplained(measured, findings, read_texts),
    }
    for name in NAMES:
        content = b"".join(safe_json(msgspec.json.encode(record).decode()).encode() + b"\n" for record in records[name])
        put_output(_url(folder, name), content, _is_findings, what=WHAT, overwrite=overwrite)


def _likely_wrong(findings: Findings, read_texts: ReadTexts) -> list[dict[str, Any]]:
    rows = read_texts([found.group_id for found in findings.likely_wrong])
    return [
        _record(
            rows[found.group_id],
            f"likely-wrong-{found.group_id}-{found.chosen}-{found.rejected}",
            [found.chosen, found.rejected],
            [1, 2],
            finding="likely_wrong",
            confidence=f"{found.confidence:.4f}",
        )
        for found in findings.likely_wrong
    ]


def _annotate_next(measured: Measured, findings: Findings, read_texts: ReadTexts) -> list[dict[str, Any]]:
    arrays = measured.arrays
    position = {name: index for index, name in enumerate(arrays.group_ids)}
    rows = read_texts([found.group_id for found in findings.least_sure])
    records = []
    for found in findings.least_sure:
        group = position[found.group_id]
        kept = slice(arrays.starts_G[group], arrays.starts_G[group + 1])
        records.append(
            _record(
                rows[found.group_id],
                f"annotate-next-{found.group_id}",
                arrays.index_N[kept].tolist(),
                arrays.rank_N[kept].tolist(),
                finding="annotate_next",
                confidence=f"{found.confidence:.4f}",
            )
        )
    return records


def _unexplained(measured: Measured, findings: Findings, read_texts: ReadTexts) -> list[dict[str, Any]]:
    judgements, arrays = measured.judgements, measured.arrays
    if not isinstance(judgements, Judgements) or not findings.unexplained:
        return []
    names = set(findings.unexplained)
    of_them = [
        index
        for index, annotator in enumerate(judgements.annotator_A.tolist())
        if annotator >= 0 and judgements.annotators[annotator] in names
    ][:MAX_ROWS]
    rows = read_texts([arrays.group_ids[int(judgements.group_A[index])] for index in of_them])
    records = []
    for index in of_them:
        group = int(judgements.group_A[index])
        kept = slice(arrays.starts_G[group], arrays.starts_G[group + 1])
        record = _record(
            rows[arrays.group_ids[group]],
            f"unexplained-{judgements.ids_A[index]}",
            arrays.index_N[kept].tolist(),
            judgements.ranks_A[index].tolist(),
            finding="unexplained_judgements",
        )
        records.append(record | {"annotator": judgements.annotators[int(judgements.annotator_A[index])]})
    return records


def _record(
    row: Mapping[str, Any], name: str, completions: Sequence[int], ranks: Sequence[int], **metadata: str
) -> dict[str, Any]:
    """Return a native annotation of some completions of a group."""
    kept = [row["completions"][index] for index in completions]
    return {
        "id": name,
        "prompt": [
            {"role": turn["role"], "content": turn["content"], **read_extra(turn["extra"])} for turn in row["prompt"]
        ],
        "completions": [
            {key: one[key] for key in ("text", "id", "model") if one[key] is not None} | read_extra(one["extra"])
            for one in kept
        ],
        "ranks": list(ranks),
        "metadata": metadata | {"group_id": row["group_id"]},
        **({} if row["subset"] is None else {"subset": row["subset"]}),
        **read_extra(row["context"]),
    }


class _Metadata(msgspec.Struct):
    finding: str


class _Finding(msgspec.Struct):
    metadata: _Metadata


def _is_findings(content: bytes) -> bool:
    lines: Iterator[bytes] = (line for line in content.split(b"\n", 1)[:1] if line)
    try:
        return all(msgspec.json.decode(line, type=_Finding).metadata.finding in NAMES for line in lines)
    except UNREADABLE_JSON:
        return False


def _url(folder: str, name: str) -> str:
    return f"{absolute_url(folder)}/{name}.jsonl"
