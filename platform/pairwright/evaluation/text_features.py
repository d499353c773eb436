"""What the form of a completion's text is: lists, headings, code, refusals, flattering openings.

The rules are few and plain, so that a reader can check them. Those on words know English only: in another language
no text has the feature, and the report has no row for it.
"""

import re

_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|not able)|i (?:cannot|can't|can not|won't|will not) "
    r"(?:help|assist|provide|answer|comply|do|fulfil|create|write|give)|as an ai\b|i must (?:decline|refuse)|"
    r"i apologi[sz]e, but)",
    re.IGNORECASE,
)
_FLATTERY = re.compile(
    r"\W*(?:(?:what an?|that(?:'s| is) an?|this is an?) )?(?:great|excellent|good|fantastic|wonderful|interesting|"
    r"insightful|thoughtful|brilliant|amazing|fascinating)[\w ,-]{0,30}\b(?:question|point|idea|observation|topic|"
    r"request|choice)\b|\W*you(?:'re| are) (?:absolutely |so |completely )?(?:right|correct)|\W*i(?:'d| would) be "
    r"(?:happy|glad|delighted) to|\W*(?:certainly|absolutely|of course|sure)[!,]",
    re.IGNORECASE,
)
_BEGINNING = 200

FEATURES: dict[str, re.Pattern[str]] = {
    "list": re.compile(r"^[ \t]*(?:[-*+\u2022]|\d{1,3}[.)])[ \t]+\S", re.MULTILINE),
    "heading": re.compile(r"^#{1,6}[ \t]+\S|^\*\*[^*\n]{1,80}\*\*:?[ \t]*$", re.MULTILINE),
    "code": re.compile(
        r"```|^(?: {4}|\t)(?:def |class |import |return |for |if |print\(|#include|var |let )", re.MULTILINE
    ),
    "bold": re.compile(r"\*\*[^*\n]+\*\*"),
    "refusal": _REFUSAL,
    "flattering opening": _FLATTERY,
}
"""Name -> what a text that has the feature holds; the last two within its first 200 characters."""
_AT_THE_BEGINNING = ("refusal", "flattering opening")


def features_of(text: str) -> int:
    """Return the features of a text as bits, in the order of ``FEATURES``."""
    bits = 0
    for number, (name, pattern) in enumerate(FEATURES.items()):
        if name == "flattering opening":
            found = pattern.match(text[:_BEGINNING])
        else:
            found = pattern.search(text[:_BEGINNING] if name in _AT_THE_BEGINNING else text)
        bits |= (found is not None) << number
    return bits
