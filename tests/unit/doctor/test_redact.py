"""Secrets go, whatever they are written in; what is none stays."""

from __future__ import annotations

import json

import pytest

from agent.doctor.redact import GONE, Redactor, forms

SEED = bytes(range(200, 232))


@pytest.mark.parametrize("secret", [*forms(SEED)])
def test_a_known_secret_goes_in_each_of_its_forms(secret: str) -> None:
    cleaner = Redactor(forms(SEED))
    assert cleaner.text(f"x {secret}. y") == f"x {GONE}. y"
    assert secret not in json.dumps(cleaner.value({"a": [{secret: secret}], "b": f"<{secret}>"}))


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("agent join covey1mfrggzdfmztwq2lknnwg23tpobyxe43u now", "mfrggzdf"),
        ("AGENT JOIN COVEY1MFRGGZDFMZTWQ2LKNNWG23TPOBYXE43U", "MFRGGZDF"),
        ("password = hunter22", "hunter22"),
        ("password: 'two words'", "two words"),
        ('wifi psk="long enough"', "long enough"),
        ('{"api_key": "abc123abc"}', "abc123abc"),
        ("OPENAI_API_KEY=abc123abc", "abc123abc"),
        ("PrivateKey = abc", "= abc"),
        ("Authorization: Bearer eyJhbGciOi.eyJz.x-y_z", "eyJ"),
        ("sent Bearer eyJhbGciOi.eyJz.x-y_z", "eyJ"),
        ("used ck-0123456789abcdef", "0123456789"),
        ("token=abc&x=1", "abc"),
        ("https://me:hunter22@proxy.example/x", "hunter22"),
        ("https://cdn.example/f?X-Amz-Signature=0a1b2c&y=1", "0a1b2c"),
        ("key AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8= set", "AAECAwQF"),
        ("-----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----\nx", "MC4CAQ"),
    ],
)
def test_what_is_named_or_looks_like_a_secret_goes(text: str, secret: str) -> None:
    cleaned = Redactor().text(text)
    assert secret not in cleaned
    assert GONE in cleaned


@pytest.mark.parametrize(
    "text",
    [
        "12 tokens per second, 3 keys",
        "node 12D3KooWExample at [fd00::1]:51820",
        "event kind=key.changed subject=alpha",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "https://huggingface.co/ORG/REPO",
    ],
)
def test_the_rest_stays(text: str) -> None:
    assert Redactor().text(text) == text


def test_json_stays_json_and_what_stands_under_a_secrets_name_goes() -> None:
    value = {"max_tokens": 32, "ring_key": "abc", "token": "", "monkey": "x", "keys": [1, None]}
    assert Redactor().value(value) == {**value, "ring_key": GONE}
    assert Redactor().value({"Authorization": "x"}) == {"Authorization": GONE}
