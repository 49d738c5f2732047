"""A node's end of a tunnel, for where UDP is blocked: WireGuard sends to a port of ours. A shell.

`endpoint` is a loopback address that stays the same as long as the tunnel is kept, over any number
of connections: WireGuard has it as its peer's endpoint. Only WireGuard's own port is heard there.
Used by the path engine, one for each pair and relay.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import ssl
import time
from collections.abc import Callable
from random import Random, SystemRandom
from typing import Any

import aiohttp

from agent import endpoint as endpoints
from agent.errors import PeerError
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys
from agent.relay import tunnel
from agent.relay.hello import NONCE_BYTES, SEAL_NONCE_BYTES, Hello, HelloSeal
from agent.relay.pairs import Place

_log = logging.getLogger(__name__)

CONNECT_S = 10.0
RETRY_S = 0.5
RETRY_MOST_S = 30.0
_HEADER = "Authorization"


class TunnelClient:
    """One tunnel. `run` keeps it up until it is cancelled.

    `changed` hears each time that it came up (None) or why it went, as one line.
    """

    def __init__(
        self,
        key: NodeKey,
        mesh_id: bytes,
        keys: NetworkKeys,
        relay: NodeId,
        place: Place,
        allocation: bytes,
        wireguard_port: int,
        changed: Callable[[str | None], None],
        *,
        clock: Callable[[], float] = time.time,
        random: Random | None = None,
    ) -> None:
        """`place`: address and TCP port of the relay. Raises OSError when loopback is not there."""
        self._key = key
        self._seal = HelloSeal(mesh_id, keys)
        self._relay = relay
        self._url = f"https://{endpoints.join(*place)}/"
        self._allocation = allocation
        self._changed = changed
        self._clock = clock
        self._random = random or SystemRandom()
        self._udp = tunnel.loopback(wireguard_port)
        self.endpoint: Place = ("127.0.0.1", self._udp.getsockname()[1])

    async def run(self) -> None:
        """Connect, and again when it ends, until cancelled; then the endpoint is gone too."""
        wait_s = RETRY_S
        with contextlib.closing(self._udp):
            while True:
                began = time.monotonic()
                try:
                    reason = await self._connect()
                except (aiohttp.ClientError, TimeoutError, OSError, PeerError) as error:
                    reason = str(error) or type(error).__name__
                self._changed(reason)
                _log.info("relay tunnel down relay=%s: %s", self._relay, reason)
                if time.monotonic() - began > RETRY_MOST_S:
                    wait_s = RETRY_S
                await asyncio.sleep(wait_s * self._random.uniform(0.5, 1.0))
                wait_s = min(RETRY_MOST_S, 2 * wait_s)

    async def _connect(self) -> str:
        """Connect and carry until the connection ends; return why it did."""
        now_us = int(self._clock() * 1e6)
        hello = Hello(self._key.id, self._allocation, now_us, os.urandom(NONCE_BYTES))
        connector = _Proving(lambda seen: self._seal.hello(
            hello, self._key, self._relay, seen, os.urandom(SEAL_NONCE_BYTES)
        ))  # fmt: skip
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            try:
                async with asyncio.timeout(CONNECT_S):
                    web = await session.ws_connect(
                        self._url, heartbeat=tunnel.HEARTBEAT_S, compress=0, autoclose=True,
                        max_msg_size=tunnel.MAX_MESSAGE_BYTES,
                    )  # fmt: skip
            except aiohttp.WSServerHandshakeError as error:
                raise PeerError(
                    f"the relay took no tunnel (HTTP {error.status})",
                    hint="It may not know the allocation any more: allocate again.",
                ) from None
            async with web:
                welcome = web._response.headers.get(_HEADER, "")
                if not self._seal.is_welcome(welcome, hello, self._relay, connector.fingerprint):
                    raise PeerError("what answered is not the relay", hint="Try another relay.")
                self._changed(None)
                _log.info("relay tunnel up relay=%s endpoint=%s", self._relay, self.endpoint)
                await tunnel.carry(self._udp, web, connector.transport)
        return "the connection ended"


class _Proving(aiohttp.TCPConnector):
    """Puts the Hello into the request once TLS has shown the certificate that it is about."""

    def __init__(self, hello: Callable[[bytes], str]) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # The certificate names nobody; Hello and Welcome are signed over it instead.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        super().__init__(ssl=context, force_close=True)
        self._hello = hello
        self.fingerprint = b""
        self.transport: asyncio.Transport | None = None

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        """Connect, look at the certificate, and say who we are in the request."""
        connection = await super().connect(req, traces, timeout)
        self.transport = connection.transport
        tls = None if self.transport is None else self.transport.get_extra_info("ssl_object")
        certificate = None if tls is None else tls.getpeercert(binary_form=True)
        if not certificate:
            raise PeerError("the relay showed no certificate")
        self.fingerprint = hashlib.sha256(certificate).digest()
        req.headers[_HEADER] = self._hello(self.fingerprint)
        return connection
