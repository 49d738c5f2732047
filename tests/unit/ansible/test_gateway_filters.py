"""What is told of a certificate before hosts get it, and which key a comparison asks with."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.unit.ansible.load import load

filters = load("filter_plugins/covey_gateway.py")
fault = filters.covey_pair_fault

PEM = serialization.Encoding.PEM
NOW = datetime.datetime.now(datetime.UTC)
KEY, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))


def certificate(key: ec.EllipticCurvePrivateKey, name: str, days: int = 1) -> str:
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder().subject_name(who).issuer_name(who).public_key(key.public_key())
        .serial_number(1).not_valid_before(NOW - datetime.timedelta(days=9))
        .not_valid_after(NOW + datetime.timedelta(days=days)).sign(OTHER, hashes.SHA256())
    )  # fmt: skip
    return made.public_bytes(PEM).decode()


def private(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> str:
    how: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        how = serialization.BestAvailableEncryption(password)
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, how).decode()


GATE, AUTHORITY = certificate(KEY, "gate"), certificate(OTHER, "authority")


def test_a_pair_that_belongs_together_has_no_fault() -> None:
    assert fault(GATE, private(KEY)) == ""
    assert fault(GATE + AUTHORITY, private(KEY)) == ""


@pytest.mark.parametrize(
    "cert, key, said",
    [
        (GATE, private(OTHER), "the key is not that of the certificate of CN=gate"),
        (AUTHORITY + GATE, private(KEY), "the chain begins with CN=authority; CN=gate is first"),
        (certificate(KEY, "gate", -2), private(KEY), "the certificate of CN=gate ended on "),
        (GATE, private(KEY, b"x"), "covey_gateway_tls_key has a password"),
        (GATE, GATE, "covey_gateway_tls_key is no private key in PEM"),
        (private(KEY), private(KEY), "covey_gateway_tls_cert is no certificate in PEM"),
        (None, private(KEY), "covey_gateway_tls_cert is no certificate in PEM"),
        (GATE, None, "covey_gateway_tls_key is no private key in PEM"),
    ],
)
def test_what_is_wrong_is_told_and_the_key_is_not(cert: str, key: str, said: str) -> None:
    found = fault(cert, key)
    assert found.startswith(said)
    assert "PRIVATE" not in found


KEYS = [
    {"name": "old", "state": "absent"},
    {"name": "trial", "models": ["llama*"]},
    {"name": "team", "models": []},
    {"name": "last"},
]


@pytest.mark.parametrize(
    "model, name", [("llama-3b", "trial"), ("qwen", "team"), ("", "team"), ("Llama", "team")]
)
def test_the_first_key_that_may_use_the_model_is_taken(model: str, name: str) -> None:
    assert filters.covey_key_for(KEYS, model) == name


def test_there_may_be_no_such_key() -> None:
    assert filters.covey_key_for(KEYS[:2], "qwen") == ""
    assert filters.covey_key_for(KEYS[:2], "") == ""
    assert filters.covey_key_for([], "qwen") == ""
