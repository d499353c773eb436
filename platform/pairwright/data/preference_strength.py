"""Named preference strengths ("significantly better") and the margins that the loss uses for them.

A strength belongs to a pair: an annotation of two completions, one of which is better. Llama 2's annotators gave one
of four with every choice, and its reward models were trained with one of two tables of margins. Records call it
``grade``.

Source: Touvron et al. 2023, arXiv:2307.09288, section 3.2.2 and table 27 ("Margin Small", "Margin Large").
"""

from collections.abc import Mapping
from typing import get_args

from pairwright.records import PreferenceStrength

STRENGTHS: tuple[PreferenceStrength, ...] = get_args(PreferenceStrength)
"""From the clearest preference to the faintest."""
MARGINS: Mapping[str, Mapping[str, float]] = {
    "small": dict(zip(STRENGTHS, (1.0, 2 / 3, 1 / 3, 0.0), strict=True)),
    "large": dict(zip(STRENGTHS, (3.0, 2.0, 1.0, 0.0), strict=True)),
}
"""Table -> grade -> wanted reward difference."""

EXPECTED = f"expected one of {', '.join(STRENGTHS)}"
"""For the message where a record names another."""

_BY_SPELLING: dict[str, PreferenceStrength] = {**{str(grade): grade for grade in STRENGTHS}, "unsure": STRENGTHS[-1]}


def strength_named(text: str) -> PreferenceStrength | None:
    """Return the grade that a foreign record names, None if it is none.

    Case does not matter, nor whether words are joined by spaces, hyphens or underscores; "unsure" is the last one.
    """
    return _BY_SPELLING.get(" ".join(text.lower().replace("_", " ").replace("-", " ").split()))
