"""Signatures and hashes of Alpine's files: what holds before anything of them is used. A core.

A package is three gzip streams: signatures, control, data (apk-v2(5)). A key signs the control
stream, which has the data stream's SHA-256. An index is two: signatures, and what they are for.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from agent.errors import EnvironmentFault
from image.make.alpine.index import Entry

_GZIP = 31
# Far above what the largest index takes; a data stream is read by its user.
_MOST_BYTES = 256 << 20
_SIGNATURE = re.compile(r"\.SIGN\.(RSA|RSA256|RSA512)\.(.+)")
# abuild signs with the first of them, so that is what Alpine's packages have.
_ALGORITHMS = {"RSA": hashes.SHA1(), "RSA256": hashes.SHA256(), "RSA512": hashes.SHA512()}  # noqa: S303
_LOST_HINT = "Remove what is in the cache of it and build again, or name another mirror."

Keys = Mapping[str, RSAPublicKey]


@dataclass(frozen=True)
class Package:
    """A verified package: what it says of itself, and its data stream."""

    facts: Mapping[str, str]
    data: bytes


def index(raw: bytes, keys: Keys, what: str) -> str:
    """Return the text of a signed APKINDEX.tar.gz; `what` names it. Raises EnvironmentFault."""
    signatures, signed = _first(raw, what)
    _verify(signatures, signed, keys, what)
    files = _files(_plain(signed, what), what)
    if "APKINDEX" not in files:
        raise EnvironmentFault(f"{what} has no APKINDEX in it", hint=_LOST_HINT)
    return files["APKINDEX"].decode(errors="replace")


def package(raw: bytes, entry: Entry, keys: Keys) -> Package:
    """Return a package that is what the index says, and signed. Raises EnvironmentFault if not."""
    what = entry.file
    if len(raw) != entry.size:
        raise EnvironmentFault(
            f"{what} has {len(raw)} bytes, and the index says {entry.size}", hint=_LOST_HINT
        )
    signatures, rest = _first(raw, what)
    control, data = _split(rest, what)
    if hashlib.new(entry.algorithm, control).digest() != entry.checksum:
        raise EnvironmentFault(f"{what} is not the package that the index has", hint=_LOST_HINT)
    _verify(signatures, control, keys, what)
    text = _files(_plain(control, what), what).get(".PKGINFO", b"").decode(errors="replace")
    facts = {
        key.strip(): value.strip()
        for key, sign, value in (line.partition("=") for line in text.splitlines())
        if sign and not key.startswith("#")
    }
    mine = (facts.get("pkgname"), facts.get("pkgver"), facts.get("arch"))
    if mine != (entry.name, entry.version, entry.arch):
        raise EnvironmentFault(
            f"{what} says that it is {' '.join(str(word) for word in mine)}, and the index "
            f"{entry.name} {entry.version} {entry.arch}",
            hint=_LOST_HINT,
        )
    if hashlib.sha256(data).hexdigest() != facts.get("datahash"):
        raise EnvironmentFault(f"the files in {what} are not those that were signed",
                               hint=_LOST_HINT)  # fmt: skip
    return Package(facts, data)


def _verify(signatures: bytes, signed: bytes, keys: Keys, what: str) -> None:
    """Raise EnvironmentFault unless one of the signatures is a known key's."""
    named = []
    for name, signature in _files(signatures, what).items():
        match = _SIGNATURE.fullmatch(name)
        if match is None:
            continue
        named.append(match[2])
        key = keys.get(match[2])
        if key is None:
            continue
        try:
            key.verify(signature, signed, padding.PKCS1v15(), _ALGORITHMS[match[1]])
        except InvalidSignature:
            raise EnvironmentFault(
                f"the signature of {what} by {match[2]} is wrong", hint=_LOST_HINT
            ) from None
        return
    if not named:
        raise EnvironmentFault(f"{what} is not signed", hint=_LOST_HINT)
    raise EnvironmentFault(
        f"{what} is signed by {', '.join(named)}, and that key is not known",
        hint="If it is yours, name the folder that has it with --keys.",
    )


def _first(raw: bytes, what: str) -> tuple[bytes, bytes]:
    """Return the first stream, unpacked, and all that follows it."""
    plain, rest = _stream(raw, what)
    return plain, rest


def _split(raw: bytes, what: str) -> tuple[bytes, bytes]:
    """Return the first stream as it is, and all that follows it."""
    _, rest = _stream(raw, what)
    return raw[: len(raw) - len(rest)], rest


def _plain(raw: bytes, what: str) -> bytes:
    return _stream(raw, what)[0]


def _stream(raw: bytes, what: str) -> tuple[bytes, bytes]:
    unpacker = zlib.decompressobj(_GZIP)
    try:
        plain = unpacker.decompress(raw, _MOST_BYTES)
    except zlib.error:
        raise EnvironmentFault(f"{what} is no file of Alpine's packages", hint=_LOST_HINT) from None
    if not unpacker.eof:
        raise EnvironmentFault(f"{what} ends too early, or is too large", hint=_LOST_HINT)
    return plain, unpacker.unused_data


def _files(plain: bytes, what: str) -> dict[str, bytes]:
    """Return the files of a tar without its end, as the first two streams are."""
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None:
                    found[member.name] = content.read()
    except tarfile.TarError:
        raise EnvironmentFault(f"{what} has a part that is no tar", hint=_LOST_HINT) from None
    return found
