"""A mesh's root for measurements: small certificates, real signatures.

`remembered_arithmetic` lets a process that holds thousands of nodes do each signature check once
for all of them: every distinct signature is verified with Ed25519, but what one node has verified
another finds verified. The shared X25519 secret of a pair, which would be computed twice for each
of a million pairs, is a hash of both names. All checks run; only an attacker who computes these
hashes could profit, and the hostile nodes here do not.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Iterator
from functools import lru_cache

from agent.discovery.record import MemberRecord
from agent.discovery.seal import Seal
from agent.errors import MembershipError
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys

# A real certificate has some 300 to 430 bytes.
CERTIFICATE_BYTES = 380
_SIGNED_BYTES = 40
# Unix time, far ahead.
NEVER = 4e9


def key_of(name: str) -> NodeKey:
    """Return the same key for the same name, in every run."""
    return NodeKey(hashlib.sha256(name.encode()).digest())


class Root:
    """Signs `node 32 | not after 8 | signature 64`, padded to a real certificate's size."""

    def __init__(self, name: str = "bench") -> None:
        self._key = key_of(f"root of {name}")
        self._verified: set[bytes] = set()
        self.mesh_id = hashlib.sha256(self._key.id.ed25519).digest()
        self.keys = NetworkKeys.single(hashlib.sha256(b"network " + name.encode()).digest())
        self.revoked: set[NodeId] = set()

    def certify(self, node: NodeId, not_after: float = NEVER) -> bytes:
        """Return a node's certificate, valid until then (unix s)."""
        body = node.ed25519 + struct.pack(">Q", int(not_after))
        signed = body + self._key.sign(body)
        return signed + bytes(CERTIFICATE_BYTES - len(signed))

    def verify(self, certificate: bytes, now: float) -> NodeId:
        """Return whose certificate it is; MembershipError unless it makes a member now."""
        body, signature = certificate[:_SIGNED_BYTES], certificate[_SIGNED_BYTES:104]
        if certificate not in self._verified:
            # Padding that anyone may change would make any number of certificates of one.
            padded = (body + signature).ljust(CERTIFICATE_BYTES, b"\0")
            if certificate != padded or not self._key.id.verify(signature, body):
                raise MembershipError("bad certificate")
            self._verified.add(certificate)
        node = NodeId(body[:32])
        if struct.unpack(">Q", body[32:])[0] < now or node in self.revoked:
            raise MembershipError("expired or revoked")
        return node

    def record(self, key: NodeKey, port: int) -> MemberRecord:
        """Return a member record with as many addresses as a real one."""
        return MemberRecord(
            node=key.id.ed25519,
            certificate=self.certify(key.id),
            wireguard_endpoints=(f"192.0.2.1:{port}", f"[2001:db8::1]:{port}"),
            control_addresses=("192.0.2.1:4001", "[2001:db8::1]:4001"),
            discovery_endpoints=("192.0.2.1:4001", "[2001:db8::1]:4001"),
        )


@contextlib.contextmanager
def remembered_arithmetic() -> Iterator[None]:
    """Do each signature check once in this process, and stand in for X25519; see above."""
    verify, agree = NodeId.verify, Seal._agree
    remembered = lru_cache(200_000)(verify)

    def stand_in(seal: Seal, peer: NodeId) -> bytes:
        ends = b"".join(sorted((seal._key.id.ed25519, peer.ed25519)))
        return hashlib.sha256(b"stand-in" + ends).digest() + ends

    def verify_once(node: NodeId, signature: bytes, message: bytes) -> bool:
        return remembered(node, signature, message)

    NodeId.verify = verify_once  # type: ignore[method-assign]  # for this process
    Seal._agree = stand_in  # type: ignore[method-assign]  # likewise
    try:
        yield
    finally:
        NodeId.verify, Seal._agree = verify, agree  # type: ignore[method-assign]  # likewise
