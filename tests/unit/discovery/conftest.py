"""A root that signs small certificates, and meshes of real nodes on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import random
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.discovery.node import Discovery
from agent.discovery.record import MemberRecord, ServiceRecord, Verifier
from agent.errors import MembershipError
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys

# The simulated network of the benches, and the fuzz.
sys.path += [str(Path(__file__).parents[2] / folder) for folder in ("bench", "fuzz")]

NOW = 1_800_000_000.0


class Root:
    """A mesh's root: signs `node 32 | not after 8 | signature 64`, padded to a real one's size."""

    def __init__(self, name: str = "mesh") -> None:
        self.key = key_of(f"root of {name}")
        self.mesh_id = hashlib.sha256(self.key.id.ed25519).digest()
        self.network_key = hashlib.sha256(b"network " + name.encode()).digest()
        self.keys = NetworkKeys.single(self.network_key)
        self.revoked: set[NodeId] = set()
        self.verified = 0

    def certify(self, node: NodeId, not_after: float = NOW * 2) -> bytes:
        body = node.ed25519 + struct.pack(">Q", int(not_after))
        return body + self.key.sign(body) + bytes(330 - 104)

    def verify(self, certificate: bytes, now: float) -> NodeId:
        self.verified += 1
        body, signature = certificate[:40], certificate[40:104]
        if len(certificate) != 330 or not self.key.id.verify(signature, body):
            raise MembershipError("bad certificate")
        node = NodeId(body[:32])
        if struct.unpack(">Q", body[32:])[0] < now or node in self.revoked:
            raise MembershipError("expired or revoked")
        return node

    def verifier(self) -> Verifier:
        return Verifier(self.mesh_id, self.verify)

    def member(self, key: NodeKey, seq: int, expiry: float, port: int = 1) -> MemberRecord:
        return MemberRecord(
            node=key.id.ed25519,
            certificate=self.certify(key.id),
            wireguard_endpoints=(f"192.0.2.1:{port}",),
            seq=seq,
            expiry=int(expiry),
        )

    def service(
        self, key: NodeKey, name: str, seq: int, expiry: float, payload: bytes = b""
    ) -> ServiceRecord:
        return ServiceRecord(
            node=key.id.ed25519,
            certificate=self.certify(key.id),
            service=name,
            payload=payload,
            seq=seq,
            expiry=int(expiry),
        )


class Mesh:
    """Real nodes on loopback; everything started here is stopped by the fixture."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.nodes: list[Discovery] = []
        self.keys: list[NodeKey] = []
        self.ahead_s = 0.0

    def clock(self) -> float:
        """The time of all nodes here; tests move it by `ahead_s`."""
        return time.time() + self.ahead_s

    async def add(self, *, join: bool = True, key: NodeKey | None = None, **options) -> Discovery:
        key = key or key_of(f"node {len(self.nodes)}")
        root = options.pop("root", self.root)
        node = Discovery(
            key,
            root.mesh_id,
            options.pop("network_keys", root.keys),
            root.verify,
            options.pop("listen", ("127.0.0.1", 0)),
            options.pop("certificate", root.certify(key.id)),
            clock=options.pop("clock", self.clock),
            rng=random.Random(len(self.nodes)),
            **options,
        )
        await node.start()
        self.nodes.append(node)
        self.keys.append(key)
        if join and len(self.nodes) > 1:
            assert await node.bootstrap([self.endpoint(0)]) == 1
        return node

    def endpoint(self, number: int) -> str:
        return f"127.0.0.1:{self.nodes[number].port}"

    def record(self, number: int, port: int = 1) -> MemberRecord:
        return self.root.member(self.keys[number], 0, 0, port)

    async def close(self) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes))


def key_of(name: str) -> NodeKey:
    """The same key for the same name, in every run."""
    return NodeKey(hashlib.sha256(name.encode()).digest())


@pytest.fixture
def root() -> Iterator[Root]:
    yield Root()


@pytest.fixture
async def mesh(root: Root) -> AsyncIterator[Mesh]:
    made = Mesh(root)
    yield made
    await made.close()


@pytest.fixture(scope="session")
def make_root() -> type[Root]:
    return Root
