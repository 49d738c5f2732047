"""Sealed backups: hosts can make them, and only the passphrase opens them. A core.

The control machine makes an X25519 key out of the passphrase and a salt (scrypt), and tells hosts
its public half. A host seals what it has to that, with a key of its own for each file, so a host
that is taken over reads no other's backup. To restore, the control machine finds the one file's key
and gives the host that alone. Needs `cryptography`, which Ansible and Covey both have.

    line 1     JSON: format, host, made_at, salt, public (the passphrase's), sender (the file's)
    the rest   chunks of 64 KiB and a 16-byte tag, ChaCha20-Poly1305; the nonce is the chunk's
               number and whether it is the last, line 1 is authenticated with each
"""

from __future__ import annotations

import base64
import json
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

FORMAT = "covey-backup-1"
SALT_BYTES = 16
# A host that is taken over can try passphrases against the public key: each try costs it this much
# (128 MiB and half a second), and short ones are refused.
_SCRYPT = {"n": 2**17, "r": 8, "p": 1}
LEAST_CHARACTERS = 12
_CHUNK_BYTES = 64 * 1024
_TAG_BYTES = 16
_MOST_HEADER_BYTES = 4096
_RAW = serialization.Encoding.Raw


class SealError(Exception):
    """What is wrong with a backup or its passphrase, as a sentence."""


def public_key(passphrase, salt):
    """Return the passphrase's public key (32 bytes); raises SealError for a short one."""
    return _public(_passphrase_key(passphrase, salt))


def seal(data, host, made_at, salt, public):
    """Return `data` sealed to a public key; `made_at` in unix seconds."""
    sender = X25519PrivateKey.generate()
    header = {
        "format": FORMAT, "host": host, "made_at": int(made_at), "salt": _text(salt),
        "public": _text(public), "sender": _text(_public(sender)),
    }  # fmt: skip
    line = json.dumps(header).encode() + b"\n"
    cipher = ChaCha20Poly1305(_file_key(sender, public, _public(sender), public))
    chunks = range(0, max(len(data), 1), _CHUNK_BYTES)
    last = len(chunks) - 1
    return line + b"".join(
        cipher.encrypt(_nonce(i, i == last), data[at : at + _CHUNK_BYTES], line)
        for i, at in enumerate(chunks)
    )


def header(sealed):
    """Return the first line of a backup as a dict; raises SealError when it is none."""
    line, newline, _ = sealed[:_MOST_HEADER_BYTES].partition(b"\n")
    try:
        found = json.loads(line)
        if newline and found["format"] == FORMAT:
            return {
                **found,
                **{name: base64.b64decode(found[name]) for name in ("salt", "public", "sender")},
            }
    except (ValueError, KeyError, TypeError):
        pass
    raise SealError("it is no backup that backup.yml made")


def file_key(sealed, passphrase):
    """Return the key (32 bytes) that opens this backup; raises SealError for a wrong passphrase."""
    found = header(sealed)
    own = _passphrase_key(passphrase, found["salt"])
    if _public(own) != found["public"]:
        raise SealError("the passphrase is not the one that it was made with")
    return _file_key(own, found["sender"], found["sender"], found["public"])


def open_sealed(sealed, key):
    """Return what was sealed; raises SealError when the file is damaged, cut or of another key."""
    header(sealed)
    end = sealed.index(b"\n") + 1
    line, rest = sealed[:end], sealed[end:]
    cipher = ChaCha20Poly1305(key)
    size = _CHUNK_BYTES + _TAG_BYTES
    starts = range(0, max(len(rest), 1), size)
    try:
        return b"".join(
            cipher.decrypt(_nonce(i, i == len(starts) - 1), rest[at : at + size], line)
            for i, at in enumerate(starts)
        )
    except InvalidTag:
        raise SealError("it is damaged, or cut short") from None


def new_salt():
    """Return a salt for one run of backup.yml."""
    return os.urandom(SALT_BYTES)


def _passphrase_key(passphrase, salt):
    if len(passphrase) < LEAST_CHARACTERS:
        raise SealError(f"the passphrase has fewer than {LEAST_CHARACTERS} characters")
    seed = Scrypt(salt=salt, length=32, **_SCRYPT).derive(passphrase.encode())
    return X25519PrivateKey.from_private_bytes(seed)


def _file_key(own, other, sender, public):
    shared = own.exchange(X25519PublicKey.from_public_bytes(other))
    kdf = HKDF(algorithm=hashes.SHA256(), length=32, salt=sender + public, info=FORMAT.encode())
    return kdf.derive(shared)


def _public(key):
    return key.public_key().public_bytes(_RAW, serialization.PublicFormat.Raw)


def _nonce(number, last):
    return number.to_bytes(11, "big") + bytes([last])


def _text(raw):
    return base64.b64encode(raw).decode()
