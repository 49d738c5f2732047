"""The gateway's certificate: loaded, and loaded again when its files change.

A shell, used by `serve.py`. Connections that are open keep what they began with; each new one gets
the newest pair that was whole. A pair that is broken, or half written, leaves the old one in use.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from gateway.errors import EnvironmentFault

_log = logging.getLogger(__name__)

LOOK_S = 2.0

_Stamp = tuple[tuple[int, int, int] | None, ...]


class Certificate:
    """The pair in two PEM files; raises EnvironmentFault when it cannot be used at the start."""

    def __init__(self, cert: str, key: str) -> None:
        self._files = (Path(cert), Path(key))
        self._seen = _stamp(self._files)
        self._newest = _load(*self._files)
        # Handshakes begin with this one, and are given the newest before it is used.
        self.context = self._newest
        self.context.sni_callback = self._give_newest

    def use(self, cert: str, key: str) -> None:
        """Take the pair from other files from now on, if it can be used."""
        self._files = (Path(cert), Path(key))
        self.look()

    def look(self) -> None:
        """Load the pair again if its files are others than at the last look."""
        stamp = _stamp(self._files)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._newest = _load(*self._files)
        except EnvironmentFault as error:
            _log.error("the old certificate stays in use: %s", error.line())
        else:
            _log.info("the certificate in %s is in use", self._files[0])

    async def watch(self) -> None:
        """Look at the files every few seconds until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def _give_newest(
        self, connection: ssl.SSLSocket | ssl.SSLObject, _: str | None, __: ssl.SSLContext
    ) -> None:
        connection.context = self._newest


def _load(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password of its own OpenSSL would ask for one on the terminal.
        context.load_cert_chain(cert, key, password=lambda: b"")
    except (OSError, ValueError) as error:  # also ssl.SSLError
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise EnvironmentFault(
            f"the certificate {cert} with the key {key} cannot be used: {reason}",
            hint="Both must be PEM files that this user may read and belong to each other; the "
            "key must not be encrypted.",
        ) from error
    return context


def _stamp(files: tuple[Path, ...]) -> _Stamp:
    """Return what changes whenever one of the files is written, replaced or removed."""
    return tuple(_file_stamp(file) for file in files)


def _file_stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
