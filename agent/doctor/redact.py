"""Takes secrets out of what goes into a report. A core: text and JSON in, the same out.

Three nets behind each other: the secrets that this node is known to have, in every form in which
they are written; what is named as a secret (`password = …`); and what looks like one (tickets, keys
of 32 bytes in base64, API keys, PEM). Public keys look like private ones and go as well.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Any

GONE = "(removed)"
# A shorter secret is part of too many words.
_LEAST_CHARACTERS = 8
_NAMES = (
    r"pass(?:word|wd|phrase)|secret|tokens?|credentials?|authorization|psk|signature"
    r"|(?:api|private|public|preshared|shared|network|root|node|access)?[-_ ]?key"
)
_NAME = re.compile(rf"(?:^|[^a-z])(?:{_NAMES})$", re.I)
_NAMED = re.compile(
    rf"((?:{_NAMES})[\"']?\s*[=:]\s*)(?:(?:Bearer|Basic)\s+)?(?:\"[^\"]*\"|'[^']*'|[^\s\"',;&}}]+)",
    re.I,
)
_LOOKS = (
    re.compile(r"covey[1-9][a-z2-7]{16,}", re.I),
    re.compile(r"-----BEGIN [A-Z ]*KEY-----.*?(?:-----END [A-Z ]*KEY-----|\Z)", re.S),
    re.compile(r"\b(?:Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.I),
    re.compile(r"\b(?:sk|ck|pk|hf|ghp|gho|glpat|xox[abpr])[-_][A-Za-z0-9_-]{8,}"),
    re.compile(r"(?<=://)[^/@\s\"']+(?=@)"),
    re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{43}="),
)


def forms(secret: bytes) -> Iterable[str]:
    """Return how a secret of some bytes is written: base64 of both kinds, hexadecimal, base32."""
    for encoded in (
        base64.b64encode(secret), base64.urlsafe_b64encode(secret), base64.b32encode(secret),
    ):  # fmt: skip
        yield encoded.decode().rstrip("=")
    yield base64.b32encode(secret).decode().rstrip("=").lower()
    yield secret.hex()
    yield secret.hex().upper()


class Redactor:
    """Takes out `secrets`, as they may be written, and all that is named or looks like one."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {secret for secret in secrets if len(secret) >= _LEAST_CHARACTERS}
        # The longest first: one may begin with another.
        self._known = sorted(known, key=len, reverse=True)

    def text(self, text: str) -> str:
        """Return a text, or the lines of a log, without secrets."""
        for secret in self._known:
            text = text.replace(secret, GONE)
        for pattern in _LOOKS:
            text = pattern.sub(GONE, text)
        return _NAMED.sub(lambda found: f"{found[1]}{GONE}", text)

    def value(self, value: Any) -> Any:
        """Return what JSON says, without secrets: texts, and what stands under a secret's name."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {
                self.text(str(name)): GONE
                if isinstance(inner, str) and inner and _NAME.search(str(name))
                else self.value(inner)
                for name, inner in value.items()
            }
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(inner) for inner in value]
        return value
