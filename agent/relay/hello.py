"""How the two ends of a tunnel prove themselves inside TLS, each in one HTTP header. A core.

The relay's TLS certificate is made at each start and names nobody: whoever connects learns nothing
from it. The first request carries a Hello, signed by the caller's node key over the certificate
that it sees, so that it is good for this very server alone. The answer carries a Welcome, signed by
the relay's node key over the same certificate and the Hello: a certificate that somebody else has
put in between fails both ways. Both are sealed under the network key.

    hello    sealed( node 32 | allocation 8 | sent 8 | nonce 16 | signature 64 )
    welcome  sealed( signature 64 )
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys
from agent.relay.door import CLOCK_SKEW_S
from agent.relay.messages import ID_BYTES
from agent.sealing import OVERHEAD_BYTES, NetworkSeal

NONCE_BYTES = 16
FINGERPRINT_BYTES = 32
SEAL_NONCE_BYTES = 24
_SIGNATURE_BYTES = 64
_HELLO_BYTES = 32 + ID_BYTES + 8 + NONCE_BYTES
_PURPOSE = b"covey-relay-tunnel-v1"
_HELLO, _WELCOME = b"covey-relay-hello-v1\0", b"covey-relay-welcome-v1\0"
_SCHEME = "Bearer "


@dataclass(frozen=True)
class Hello:
    """Who calls, for which allocation, when (unix microseconds), and 16 random bytes."""

    node: NodeId
    allocation: bytes
    sent_us: int
    nonce: bytes

    def encode(self) -> bytes:
        """Return the bytes that are signed and sent."""
        return self.node.ed25519 + self.allocation + self.sent_us.to_bytes(8, "big") + self.nonce


class HelloSeal:
    """Makes and checks Hellos and Welcomes of one mesh. `fingerprint`: the certificate's hash."""

    def __init__(self, mesh_id: bytes, keys: NetworkKeys) -> None:
        self._seal = NetworkSeal(mesh_id, keys, _PURPOSE)

    def hello(
        self, hello: Hello, key: NodeKey, relay: NodeId, fingerprint: bytes, seal_nonce: bytes
    ) -> str:
        """Return the header's value. `seal_nonce`: 24 random bytes."""
        signature = key.sign(_HELLO + relay.ed25519 + fingerprint + hello.encode())
        return _SCHEME + _text(self._seal.seal(hello.encode() + signature, seal_nonce))

    def read_hello(self, header: str, own: NodeId, fingerprint: bytes, now: float) -> Hello | None:
        """Return a Hello that its node signed for us, here and lately; None for anything else."""
        plain = self._open(header, _HELLO_BYTES + _SIGNATURE_BYTES)
        if plain is None:
            return None
        at = 32 + ID_BYTES
        hello = Hello(
            NodeId(plain[:32]), plain[32:at], int.from_bytes(plain[at : at + 8], "big"),
            plain[at + 8 : _HELLO_BYTES],
        )  # fmt: skip
        if abs(hello.sent_us / 1e6 - now) > CLOCK_SKEW_S:
            return None
        said = _HELLO + own.ed25519 + fingerprint + plain[:_HELLO_BYTES]
        return hello if hello.node.verify(plain[_HELLO_BYTES:], said) else None

    def welcome(self, hello: Hello, key: NodeKey, fingerprint: bytes, seal_nonce: bytes) -> str:
        """Return the answer's header value."""
        signature = key.sign(_WELCOME + fingerprint + hello.encode())
        return _SCHEME + _text(self._seal.seal(signature, seal_nonce))

    def is_welcome(self, header: str, hello: Hello, relay: NodeId, fingerprint: bytes) -> bool:
        """Say whether the relay answered this Hello over this certificate."""
        signature = self._open(header, _SIGNATURE_BYTES)
        return signature is not None and relay.verify(
            signature, _WELCOME + fingerprint + hello.encode()
        )

    def _open(self, header: str, length: int) -> bytes | None:
        try:
            sealed = base64.b64decode(header.removeprefix(_SCHEME), b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        if len(sealed) != length + OVERHEAD_BYTES:
            return None
        return self._seal.open(sealed)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw, b"-_").decode()
