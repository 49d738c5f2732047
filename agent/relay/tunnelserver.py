"""The relay's end of tunnels for nodes whose UDP is blocked: a WebSocket over TLS. A shell.

To whoever is no member this is a web server that has no page: 404 for everything, a certificate
that names nobody, and no other answer. A member's first request proves it (`hello.py`) and names
one of its allocations; its datagrams then go to that side's port over loopback, and the tunnel's
socket is that side's seat. Used by `service.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import errno
import hashlib
import logging
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.errors import EnvironmentFault
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys
from agent.relay import tunnel
from agent.relay.hello import SEAL_NONCE_BYTES, HelloSeal

_log = logging.getLogger(__name__)

DEFAULT_PORT = 443
# How long a connection may take to prove itself: TLS and one request on a slow line.
PROOF_S = 10.0
# Connections that have not proved anything, some 50 MB; one more, and the oldest is closed. Who has
# a Hello is through within a second, so a flood has to be faster than this in a second.
UNPROVED_MAX = 1024
HEADER = "Authorization"
_STOP_S = 2.0
_PAGE = (
    "<html>\r\n<head><title>404 Not Found</title></head>\r\n<body>\r\n"
    "<center><h1>404 Not Found</h1></center>\r\n</body>\r\n</html>\r\n"
)
_CERTIFICATE_DAYS = 398

Port = Callable[[NodeId, bytes], int | None]
"""The port of a node's side of an allocation; None: it has no such allocation."""
Seated = Callable[[NodeId, bytes, int], Awaitable[None]]
"""A node's side of an allocation is at this loopback port from now on."""


class TunnelServer:
    """Listens for tunnels. `port_of` and `seated` are the service's."""

    def __init__(
        self,
        key: NodeKey,
        mesh_id: bytes,
        keys: NetworkKeys,
        port_of: Port,
        seated: Seated,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._mesh_id = mesh_id
        self._port_of = port_of
        self._seated = seated
        self._clock = clock
        self._seal = HelloSeal(mesh_id, keys)
        self._open: dict[tuple[bytes, NodeId], asyncio.Task[None]] = {}
        self._unproved: dict[Any, None] = {}
        self._runner: web.ServerRunner | None = None
        self._server: asyncio.Server | None = None
        self._fingerprint = b""
        self.port: int | None = None

    async def start(self, host: str | None, port: int) -> None:
        """Listen on a TCP port; raises EnvironmentFault that says what is in the way."""
        context, self._fingerprint = await asyncio.to_thread(_tls)
        runner = web.ServerRunner(
            web.Server(self._answer, access_log=None, keepalive_timeout=PROOF_S),
            handle_signals=False, shutdown_timeout=_STOP_S,
        )  # fmt: skip
        await runner.setup()
        self._runner = runner
        loop = asyncio.get_running_loop()

        def connection() -> asyncio.Protocol:
            made = runner.server() if runner.server is not None else None
            if made is None:
                raise RuntimeError("a connection before the server was set up")
            self._unproved[made] = None
            loop.call_later(PROOF_S, self._judge, made)
            if len(self._unproved) > UNPROVED_MAX:
                self._judge(next(iter(self._unproved)))
            return made

        try:
            self._server = await loop.create_server(
                connection, host, port, ssl=context, ssl_handshake_timeout=PROOF_S,
                reuse_address=True,
            )  # fmt: skip
        except OSError as error:
            await self.stop()
            raise _fault(error, port) from None
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close all tunnels and the port."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._open.values()):
            task.cancel()
        await asyncio.gather(*self._open.values(), return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self.port = None

    def set_network_keys(self, keys: NetworkKeys) -> None:
        """Take Hellos under these keys from now on; tunnels that are open stay."""
        self._seal = HelloSeal(self._mesh_id, keys)

    def close(self, allocation: bytes) -> None:
        """Close the tunnels of an allocation that is no more."""
        for (identity, _), task in list(self._open.items()):
            if identity == allocation:
                task.cancel()

    def __len__(self) -> int:
        return len(self._open)

    def _judge(self, made: Any) -> None:
        """Close a connection that has proved nothing by now; one in TLS has a limit of its own."""
        if made in self._unproved:
            del self._unproved[made]
            if made.transport is not None:
                made.transport.abort()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        hello = self._seal.read_hello(
            request.headers.get(HEADER, ""), self._key.id, self._fingerprint, self._clock()
        )
        socket = web.WebSocketResponse(
            heartbeat=tunnel.HEARTBEAT_S, compress=False, max_msg_size=tunnel.MAX_MESSAGE_BYTES
        )
        port = None if hello is None else self._port_of(hello.node, hello.allocation)
        if hello is None or port is None or not socket.can_prepare(request):
            page = web.Response(status=404, text=_PAGE, content_type="text/html")
            page.headers["Server"] = "web"
            return page
        self._unproved.pop(request.protocol, None)
        socket.headers["Server"] = "web"
        socket.headers[HEADER] = self._seal.welcome(
            hello, self._key, self._fingerprint, os.urandom(SEAL_NONCE_BYTES)
        )
        await socket.prepare(request)
        key = (hello.allocation, hello.node)
        if key in self._open:
            self._open[key].cancel()  # the node has connected anew: the old one is dead
        task = asyncio.create_task(self._serve(request, socket, hello.node, key[0], port))
        self._open[key] = task
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            if self._open.get(key) is task:
                del self._open[key]
        with contextlib.suppress(Exception):
            await socket.close()
        return socket

    async def _serve(
        self,
        request: web.BaseRequest,
        socket: web.WebSocketResponse,
        node: NodeId,
        allocation: bytes,
        port: int,
    ) -> None:
        with contextlib.closing(tunnel.loopback(port)) as udp:
            await self._seated(node, allocation, udp.getsockname()[1])
            _log.info("relay tunnel up node=%s from=%s", node, request.remote)
            try:
                await tunnel.carry(udp, socket, request.transport)
            finally:
                _log.info("relay tunnel down node=%s", node)


def _tls() -> tuple[ssl.SSLContext, bytes]:
    """Return a server's context with a new certificate that names nobody, and its SHA-256."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=_CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The ssl module takes files only; this one is memory and never on a disk.
    file = os.memfd_create("relay")
    try:
        os.write(file, pem)
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
    der = certificate.public_bytes(serialization.Encoding.DER)
    return context, hashlib.sha256(der).digest()


def _fault(error: OSError, port: int) -> EnvironmentFault:
    if error.errno == errno.EADDRINUSE:
        return EnvironmentFault(
            f"TCP port {port} (relay's tunnel) is in use",
            hint=f"Set network.tunnel_port, or end what `ss -ltnp sport = :{port}` shows.",
        )
    if error.errno == errno.EACCES:
        return EnvironmentFault(
            f"TCP port {port} (relay's tunnel) may be used by root only",
            hint="Set network.tunnel_port to 1024 or more, or give the agent CAP_NET_BIND_SERVICE.",
        )
    return EnvironmentFault(f"cannot listen on TCP port {port} (relay's tunnel): {error.strerror}")
