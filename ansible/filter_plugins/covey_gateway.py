"""Filters about a gateway's certificate and keys: on the control machine, in memory alone."""

from __future__ import annotations

import datetime
from fnmatch import fnmatchcase

from cryptography import x509
from cryptography.hazmat.primitives import serialization

_DER = serialization.Encoding.DER
_PUBLIC = serialization.PublicFormat.SubjectPublicKeyInfo


def covey_pair_fault(cert, key):
    """Return in words why a gateway cannot serve with a certificate and its key; "" if it can.

    Both are PEM text, the certificate with its chain. The key is in no answer.
    """
    try:
        chain = x509.load_pem_x509_certificates(str(cert or "").encode())
    except ValueError:
        return "covey_gateway_tls_cert is no certificate in PEM"
    try:
        own = serialization.load_pem_private_key(str(key or "").encode(), None)
    except TypeError:
        return "covey_gateway_tls_key has a password, which nobody could give when a gateway starts"
    except ValueError:
        return "covey_gateway_tls_key is no private key in PEM"
    public = own.public_key().public_bytes(_DER, _PUBLIC)
    fits = [one.public_key().public_bytes(_DER, _PUBLIC) == public for one in chain]
    if not any(fits):
        return f"the key is not that of the certificate of {_name(chain[0])}"
    if not fits[0]:
        return f"the chain begins with {_name(chain[0])}; {_name(chain[fits.index(True)])} is first"
    ends = chain[0].not_valid_after_utc
    if ends < datetime.datetime.now(datetime.UTC):
        return f"the certificate of {_name(chain[0])} ended on {ends:%Y-%m-%d}"
    return ""


def covey_key_for(keys, model):
    """Return the name of the first of covey_gateway_keys that may use a model; "" if none may.

    Without a model it has to be a key that may use all.
    """
    for key in keys:
        models = key.get("models") or ["*"]
        may = any(fnmatchcase(model, glob) for glob in models) if model else "*" in models
        if may and key.get("state", "present") == "present":
            return key["name"]
    return ""


def _name(certificate):
    return certificate.subject.rfc4514_string() or "no name"


class FilterModule:
    """What Ansible looks for."""

    def filters(self):
        """Return the filters by name."""
        return {"covey_pair_fault": covey_pair_fault, "covey_key_for": covey_key_for}
