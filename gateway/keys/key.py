"""What an API key is: a random secret, shown once, and what its holder may do.

A core; randomness and time are arguments. A secret is `ck-` and 256 random bits. Only its plain
SHA-256 is kept: nobody can try 2^256 secrets, so a slow password hash would protect nothing and
would cost each request milliseconds; and without a pepper a store can be moved to another machine.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Literal

import msgspec

from gateway.errors import UsageFault

PREFIX = "ck-"
SECRET_BYTES = 32
# Enough of the hash to tell keys apart, far too little to be of use to anybody.
_ID_DIGITS = 12
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
_SPAN = re.compile(r"(\d{1,6})([mhdwy])")
_SPAN_S = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}

State = Literal["active", "expired", "revoked"]


class Key(msgspec.Struct, frozen=True):
    """A key without its secret. Limits that are None do not apply; times are unix seconds.

    `models` are globs. `admin`: its holder may act on the mesh by the dashboard. `weight` is its
    share where requests wait for each other (1: ordinary).
    """

    id: str
    name: str
    models: tuple[str, ...] = ("*",)
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    weight: float = 1.0
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None
    admin: bool = False

    def state(self, now: float) -> State:
        """Return whether it can be used."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "active"

    def allows(self, model: str) -> bool:
        """Return whether its holder may use `model`."""
        return any(fnmatchcase(model, glob) for glob in self.models)


def secret_of(random: bytes) -> str:
    """Return the secret made of SECRET_BYTES of randomness."""
    if len(random) != SECRET_BYTES:
        raise ValueError(f"a secret is made of {SECRET_BYTES} bytes, not {len(random)}")
    return PREFIX + base64.urlsafe_b64encode(random).rstrip(b"=").decode()


def digest(secret: str) -> str:
    """Return what is kept of a secret: 64 hexadecimal digits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def id_of(hashed: str) -> str:
    """Return the id of the key with this digest."""
    return hashed[:_ID_DIGITS]


def check_name(name: str) -> str:
    """Return the name; raises UsageFault when it cannot be a word in logs and tables."""
    if not _NAME.fullmatch(name):
        raise UsageFault(
            f"the key name {name!r} cannot be used",
            hint="Use up to 63 letters, digits, dots, dashes, @ and underscores.",
        )
    return name


def check_models(globs: Iterable[str]) -> tuple[str, ...]:
    """Return the globs, `*` for none; raises UsageFault for an empty one."""
    given = tuple(dict.fromkeys(globs)) or ("*",)
    if not all(given):
        raise UsageFault("a model's glob is empty", hint="For example --model 'qwen*'.")
    return given


def expiry(text: str, now: float) -> float:
    """Return the unix seconds of `30d` from now (m, h, d, w, y), or of a date or time in UTC.

    Raises UsageFault, also for a time that has passed.
    """
    match = _SPAN.fullmatch(text)
    seconds = now + int(match[1]) * _SPAN_S[match[2]] if match else instant(text, "--expires")
    if seconds <= now:
        raise UsageFault(f"--expires {text} has passed already")
    return seconds


def instant(text: str, flag: str) -> float:
    """Return the unix seconds of a date or time; UTC unless it says otherwise. UsageFault."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise UsageFault(
            f"{flag} {text!r} is no time",
            hint="Write 30d, 12h, a date such as 2030-01-31, or 2030-01-31T12:00 (UTC).",
        ) from None


def day_of(unix: float) -> str:
    """Return the day (UTC) that quotas and usage are counted by, such as 2030-01-31."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d")


def day_left_s(unix: float) -> float:
    """Return the seconds until the next day begins."""
    return 86_400 - unix % 86_400
