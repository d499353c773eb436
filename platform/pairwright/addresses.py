"""Masks secrets in addresses of storage and servers, and finds parts that no address may hold. Pure.

Whoever writes a password into an address seldom escapes it, so nothing here trusts the address to be a correct URL:
everything up to the last ``@`` may be secret.
"""

import re
from collections.abc import Iterable
from urllib.parse import quote, unquote

MASK = "***"
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:/{0,2})(.*)", re.DOTALL)
_AUTHORITY_END = re.compile(r"[/?#]")
_SETTING = re.compile(r"[?&][A-Za-z_][\w.-]*=")
_WORD = re.compile(r"\S+")
_QUERY = re.compile(r"\?[^\s\"'()]+")
_HOST = r"(?:\[[0-9A-Fa-f:.]*\]|[^:,\[\]])*(?::\d+)?"
_HOSTS = re.compile(f"{_HOST}(?:,{_HOST})*")
_CONTAINER = re.compile(r"[a-z0-9$-]+@[A-Za-z0-9.-]+")
_CONTAINER_SCHEMES = ("abfs", "abfss")
STORAGE_SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "azure")
_PIECE = 4
"""A text that quotes so many characters of a secret in a row is not shown."""


def shown_address(address: str) -> str:
    """Return an address without user, password and settings; a local path as it is."""
    match = _ADDRESS.fullmatch(address)
    if match is None or ("://" not in address and "@" not in address):
        return address
    scheme, rest = match.groups()
    before, at, after = rest.rpartition("@")
    if scheme.partition(":")[0] in _CONTAINER_SCHEMES and _CONTAINER.fullmatch(authority(address)):
        before, at, after = "", "", rest
    if at and re.search(r"[?#]", before):  # a secret that holds one of them, or settings that hold an @
        return f"{scheme}{MASK}"
    rest_of_address = re.split(r"[?#]", after, maxsplit=1)[0]
    if not at and not _HOSTS.fullmatch(authority(f"{scheme}{rest_of_address}")):  # user:password, and the @ forgotten
        return f"{scheme}{MASK}"
    return f"{scheme}{MASK + '@' if at else ''}{rest_of_address}{'' if rest_of_address == after else '?' + MASK}"


def authority(address: str) -> str:
    """Return what stands between ``://`` and the next ``/``, ``?`` or ``#``."""
    return _AUTHORITY_END.split(address.partition("://")[2], maxsplit=1)[0]


def names_user(address: str) -> bool:
    """Return whether the host or bucket of an address holds a user name or a password, escaped or not."""
    scheme, _, rest = address.partition("://")
    scheme = scheme.rpartition("+")[2]
    held = authority(address)
    if scheme in _CONTAINER_SCHEMES and _CONTAINER.fullmatch(held):
        return False
    if "@" in held or scheme not in STORAGE_SCHEMES:
        return "@" in held
    return ":" in held or ("@" in rest and not rest[len(held) :].startswith("/"))


def secret_in(address: str) -> str | None:
    """Return what an address of a file, a folder or an object must not hold, in words; None where it holds none.

    Local paths and ``file://`` may have any name; that of a bucket holds neither ``@`` nor ``:``.
    """
    scheme, separator, rest = address.partition("://")
    if not separator or not scheme.isalnum():
        return None
    if names_user(address):
        return "a user name or a password"
    if scheme != "file" and _SETTING.search(rest):
        return "settings behind `?`, such as a signature"
    return None


def credentials_advice(address: str, found: str) -> str:
    """Return the message that an address holds something that it must not hold."""
    return (
        f"{shown_address(address)}: the address holds {found}; addresses are stored and shown, so give credentials in "
        "environment variables (AWS_*, GOOGLE_*, AZURE_*)"
    )


def without_credentials(text: str) -> str:
    """Return somebody else's message without the users, passwords and queries of the URLs that it quotes."""
    return _WORD.sub(lambda word: _masked(word[0]), text)


def _masked(word: str) -> str:
    scheme, separator, rest = word.partition("://")
    if not separator:
        return word
    _, at, rest_of_address = rest.rpartition("@")
    return f"{scheme}://{MASK + at if at else ''}{_QUERY.sub(f'?{MASK}', rest_of_address)}"


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """Return a text without any secret, percent-encoded or not, nor a piece of one of four characters and more."""
    plain = {form for secret in secrets if secret for form in (secret, unquote(secret))}
    forms = plain | {quote(form, safe=safe) for form in plain for safe in ("", "/")}
    hidden = [False] * len(text)
    for form in forms:
        width = min(_PIECE, len(form))
        pieces = {form[start : start + width] for start in range(len(form) - width + 1)}
        for start in range(len(text) - width + 1):
            if text[start : start + width] in pieces:
                hidden[start : start + width] = [True] * width
    shown = "".join("\0" if is_hidden else character for character, is_hidden in zip(text, hidden, strict=True))
    return re.sub("\0+", MASK, shown)
