"""Configuration of `expand`: how rankings become weighted pairs."""

from operator import not_
from typing import Annotated, Literal

from pydantic import Field

from pairwright.config.section import PositiveInt, Section

# Absent from what a version records where it is not used: pairs made without it have the digests that they had.
_IfUsed = Field(exclude_if=not_)
Names = Annotated[list[str], _IfUsed]


class ExpandConfig(Section):
    """How a group's rankings become weighted pairs."""

    pair_weight: Literal["comparisons", "group", "uniform"] = "comparisons"
    """comparisons: 1/C(K,2) a pair (Ouyang et al. 2022, eq. 1); group: a group's pairs sum to 1; uniform: 1 a pair."""
    ties: Literal["drop", "half"] = "drop"
    """drop: a tie gives no pair; half: both directions at half weight."""
    margin: Literal["none", "score_difference", "strength"] = "none"
    """score_difference: chosen's score less rejected's; strength: by margin_table; mean of agreeing annotations."""
    margin_table: Literal["small", "large"] = "small"
    """Margins of the four grades (Touvron et al. 2023, table 27): small: 1, 2/3, 1/3 and 0; large: 3, 2, 1 and 0."""
    margin_scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the margin."""
    validation_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the prompts, by hash, that is held out; a prompt never changes sides while this stays the same."""
    near_duplicates: Literal["keep", "drop_train"] = "keep"
    """drop_train: exclude train groups whose prompt nearly equals a validation prompt; keep: do not compare."""
    near_duplicate_threshold: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Prompts of at least this similarity are near-duplicates: Jaccard similarity of their shingles."""
    shingle_size: PositiveInt = 5
    """Characters of a shingle."""
    decontaminate: list[str] = []
    """Evaluation sets (sources with a ``prompt`` in each record, or tables); groups that overlap one are excluded."""
    ngram_size: Annotated[int, Field(ge=0)] = 13
    """Words of an n-gram that a prompt may not share with an evaluation prompt; 0: only near-duplicates overlap."""
    leave_out_models: Names = []
    """Completions of these models are excluded."""
    leave_out_annotators: Names = []
    """Annotations by these annotators are excluded."""
    leave_out_subsets: Names = []
    """Annotations of these subsets are excluded."""
    leave_out_texts: Names = []
    """Files or URLs that list completions to exclude, a text as a JSON string, or ``{"text": ...}``, in each line."""
    max_prompts_per_text: Annotated[int, Field(ge=0), _IfUsed] = 0
    """Completions whose text stands under more prompts than that are excluded; 0: none."""
    partition_bytes: PositiveInt = 16 * 1024 * 1024
    """Bytes of annotations, compressed, that one task reads; their text is about four times as much."""
