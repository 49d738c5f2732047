"""Secrets, names, globs and times."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest

from gateway.errors import UsageFault
from gateway.keys.key import (
    Key,
    check_models,
    check_name,
    day_left_s,
    day_of,
    digest,
    expiry,
    id_of,
    secret_of,
)

NOON = datetime(2030, 1, 31, 12, tzinfo=UTC).timestamp()


def test_a_secret_is_all_of_its_randomness_and_its_hash_is_plain_sha256() -> None:
    secret = secret_of(bytes(range(32)))
    assert secret.startswith("ck-") and len(secret) == 3 + 43
    assert digest(secret) == hashlib.sha256(secret.encode()).hexdigest()
    assert id_of(digest(secret)) == digest(secret)[:12]
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        secret_of(bytes(31))


def test_a_secret_that_is_no_text_has_a_hash() -> None:
    assert len(digest("ck-\udcff")) == 64  # what aiohttp makes of a header with the byte 0xff


def test_states() -> None:
    assert Key("i", "n").state(NOON) == "active"
    assert Key("i", "n", expires=NOON).state(NOON - 1) == "active"
    assert Key("i", "n", expires=NOON).state(NOON) == "expired"
    assert Key("i", "n", expires=NOON, revoked=1.0).state(NOON) == "revoked"


@pytest.mark.parametrize(
    ("globs", "model", "allowed"),
    [
        (("*",), "anything/at:all", True),
        (("qwen*", "phi"), "qwen3-8b", True),
        (("qwen*", "phi"), "phi", True),
        (("qwen*", "phi"), "phi-3", False),
        (("qwen*",), "Qwen3", False),
        (("qwen*",), "", False),
    ],
)
def test_models(globs: tuple[str, ...], model: str, allowed: bool) -> None:
    assert Key("i", "n", globs).allows(model) is allowed


def test_globs_are_kept_once_and_none_is_all() -> None:
    assert check_models(["a", "b*", "a"]) == ("a", "b*")
    assert check_models([]) == ("*",)
    with pytest.raises(UsageFault, match="glob is empty"):
        check_models(["a", ""])


@pytest.mark.parametrize("name", ["", "a b", "-a", "a\n", "=cmd", "x" * 64, "é"])
def test_names_that_do_not_do(name: str) -> None:
    with pytest.raises(UsageFault, match="cannot be used"):
        check_name(name)


def test_names_that_do() -> None:
    assert check_name("ci.build-7_x@team") == "ci.build-7_x@team"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30d", 30 * 86_400),
        ("12h", 12 * 3600),
        ("5m", 300),
        ("1w", 7 * 86_400),
        ("1y", 365 * 86_400),
        ("2030-02-01", 12 * 3600),
        ("2030-01-31T13:00", 3600),
        ("2030-01-31T13:00+01:00", None),
    ],
)
def test_expiry(text: str, seconds: float | None) -> None:
    if seconds is None:  # that is now, by another zone
        with pytest.raises(UsageFault, match="passed already"):
            expiry(text, NOON)
    else:
        assert expiry(text, NOON) == NOON + seconds


@pytest.mark.parametrize("text", ["", "soon", "30", "d30", "1e3d", "2030-13-01", "-1d"])
def test_expiry_that_is_no_time(text: str) -> None:
    with pytest.raises(UsageFault, match="is no time"):
        expiry(text, NOON)


def test_days_are_utc() -> None:
    assert day_of(NOON) == "2030-01-31"
    assert day_of(NOON + 12 * 3600 - 1) == "2030-01-31"
    assert day_of(NOON + 12 * 3600) == "2030-02-01"
    assert day_left_s(NOON) == 12 * 3600
