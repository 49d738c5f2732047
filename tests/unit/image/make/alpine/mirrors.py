"""A small repository as abuild and apk make one, signed with a key of the test's."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

KEY_NAME = "test@example.org-1.rsa.pub"
# Generating one takes a while, and any will do.
KEYS = [rsa.generate_private_key(65537, 2048) for _ in range(2)]


def tar(files: dict[str, object], *, whole: bool) -> bytes:
    """Return a tar of contents (bytes), links (str), folders (None) or members as they are."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, tarfile.TarInfo):
                member, content = content, b""
            elif content is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            elif isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
            if isinstance(content, bytes) and content:
                member.size, member.mode = len(content), 0o4755
            archive.addfile(member, io.BytesIO(content if isinstance(content, bytes) else b""))
        end = archive.offset
    return out.getvalue() if whole else out.getvalue()[:end]


def signature(signed: bytes, key: rsa.RSAPrivateKey, name: str) -> bytes:
    made = key.sign(signed, padding.PKCS1v15(), hashes.SHA1())
    return gzip.compress(tar({f".SIGN.RSA.{name}": made}, whole=False), mtime=0)


@dataclass
class Repository:
    """A mirror's folder; its packages are made by `add`, its index by `write`."""

    folder: Path
    arch: str = "x86_64"
    blocks: list[str] = field(default_factory=list)

    @property
    def place(self) -> Path:
        return self.folder / "main" / self.arch

    def add(
        self, name: str, version: str = "1.0-r0", files: dict[str, object] | None = None, *,
        arch: str = "", key: rsa.RSAPrivateKey = KEYS[0], says: str = "", **fields: str,
    ) -> Path:  # fmt: skip
        """Add a package; `fields` are lines of its entry, `says` its own name."""
        data = gzip.compress(tar(files or {}, whole=True), mtime=0)
        facts = (
            f"# made by a test\npkgname = {says or name}\npkgver = {version}\n"
            f"arch = {arch or self.arch}\ndatahash = {hashlib.sha256(data).hexdigest()}\n"
        )
        control = {".PKGINFO": facts.encode(), ".post-install": b"#!/bin/sh\nexit 1\n"}
        packed = gzip.compress(tar(control, whole=False), mtime=0)
        raw = signature(packed, key, KEY_NAME) + packed + data
        self.place.mkdir(parents=True, exist_ok=True)
        path = self.place / f"{name}-{version}.apk"
        path.write_bytes(raw)
        checksum = base64.b64encode(hashlib.sha1(packed).digest()).decode()
        lines = {
            "C": f"Q1{checksum}", "P": name, "V": version, "A": arch or self.arch,
            "S": str(len(raw)), **fields,
        }  # fmt: skip
        self.blocks.append("".join(f"{letter}:{value}\n" for letter, value in lines.items()))
        return path

    def write(self, key: rsa.RSAPrivateKey = KEYS[0], name: str = KEY_NAME) -> str:
        """Write the index and return the mirror's address."""
        files = {"DESCRIPTION": b"v1", "APKINDEX": "\n".join(self.blocks).encode()}
        packed = gzip.compress(tar(files, whole=True), mtime=0)
        (self.place / "APKINDEX.tar.gz").write_bytes(signature(packed, key, name) + packed)
        return str(self.folder)
