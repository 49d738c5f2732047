"""A mirror of Alpine, as a URL or a folder, and what came from it. A shell.

A mirror is the folder of a release, like https://HOST/alpine/v3.22: in it are the repositories,
with a folder for each architecture. What it sends counts only once it is verified (sealed.py).
"""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from agent.errors import EnvironmentFault, UsageError
from image.make.alpine import contents, index, sealed
from image.make.alpine.index import Entry

PINNED = Path(__file__).parents[1] / "keys"
# The second one may be missing: all that the image takes of it may also be in the first.
REPOSITORIES = ("main", "community")
_TIMEOUT_S = 20.0
_CHUNK_BYTES = 1 << 20
# Alpine's largest package has 200 MB, and its index 1 MB.
_MOST_BYTES = 1 << 30
_HINT = "Check the address and the network; it has to have main/ARCH/APKINDEX.tar.gz in it."


def keys(folder: Path) -> dict[str, RSAPublicKey]:
    """Return the public keys of a folder, by their files' names, as signatures name them.

    Raises UsageError for a folder without one, and for a file that is none.
    """
    found = {}
    for file in sorted(folder.glob("*.pub")):
        try:
            key = load_pem_public_key(file.read_bytes())
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, RSAPublicKey):
            raise UsageError(f"{file} is no RSA public key in PEM")
        found[file.name] = key
    if not found:
        raise UsageError(
            f"no public key is in {folder}",
            hint="Files named KEY.rsa.pub are, as in /etc/apk/keys on Alpine.",
        )
    return found


class Mirror:
    """A mirror's packages for one architecture; `cache` keeps what was fetched."""

    def __init__(self, mirror: str, arch: str, cache: Path, trusted: sealed.Keys) -> None:
        """Keep what it is; nothing is asked yet."""
        self._arch = arch
        self._mirror = mirror.rstrip("/")
        self._cache = cache
        self._keys = trusted
        cache.mkdir(parents=True, exist_ok=True)

    def entries(self) -> list[Entry]:
        """Return what all repositories have. Raises EnvironmentFault."""
        found: list[Entry] = []
        for name in REPOSITORIES:
            place = f"{self._mirror}/{name}/{self._arch}"
            try:
                raw = _read(f"{place}/APKINDEX.tar.gz")
            except FileNotFoundError:
                if name == REPOSITORIES[0]:
                    raise EnvironmentFault(
                        f"the mirror {self._mirror} has no {name} for {self._arch}", hint=_HINT
                    ) from None
                continue
            text = sealed.index(raw, self._keys, f"{place}/APKINDEX.tar.gz")
            found += index.parse(text, place)
        return found

    def fetch(self, entries: Sequence[Entry]) -> list[Path]:
        """Return the verified packages' files, in order; those not in the cache are fetched."""
        return [self._fetched(entry) for entry in entries]

    def unpack(self, entries: Sequence[Entry], root: Path) -> None:
        """Unpack packages that were fetched; each is verified once more as it is read."""
        for entry in entries:
            found = sealed.package(self._path(entry).read_bytes(), entry, self._keys)
            contents.unpack(found.data, root, entry.file)

    def _path(self, entry: Entry) -> Path:
        return self._cache / f"{entry.checksum.hex()[:16]}-{entry.file}"

    def _fetched(self, entry: Entry) -> Path:
        path = self._path(entry)
        if path.exists() and path.stat().st_size == entry.size:
            return path
        try:
            raw = _read(f"{entry.place}/{entry.file}")
        except FileNotFoundError:
            raise EnvironmentFault(
                f"the mirror has {entry.file} in its index, and no such file",
                hint="It may be under way to newer packages: try again later.",
            ) from None
        sealed.package(raw, entry, self._keys)
        descriptor, name = tempfile.mkstemp(".tmp", dir=self._cache)
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
        return Path(name).rename(path)


def digest(entries: Sequence[Entry]) -> str:
    """Return a short name for just these packages."""
    words = "".join(f"{entry.file} {entry.checksum.hex()}\n" for entry in entries)
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def _read(place: str) -> bytes:
    """Return a file of a mirror. Raises FileNotFoundError, or EnvironmentFault if none answers."""
    try:
        if not place.startswith(("http://", "https://")):
            return Path(place).read_bytes()
        with urllib.request.urlopen(place, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - see above
            raw = bytearray()
            while chunk := answer.read(_CHUNK_BYTES):
                raw += chunk
                if len(raw) > _MOST_BYTES:
                    raise EnvironmentFault(f"{place} does not end", hint=_HINT)
            expected = answer.headers.get("Content-Length")
            if expected is not None and len(raw) != int(expected):
                raise EnvironmentFault(
                    f"{place} broke off after {len(raw)} of {expected} bytes", hint="Try again."
                )
            return bytes(raw)
    except urllib.error.HTTPError as error:
        if error.code == http.client.NOT_FOUND:
            raise FileNotFoundError(place) from None
        raise EnvironmentFault(f"{place} answers {error.code} {error.reason}", hint=_HINT) from None
    except FileNotFoundError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise EnvironmentFault(f"{place} cannot be read: {reason}", hint=_HINT) from None
