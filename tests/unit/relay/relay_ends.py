"""Keys, and a side of a pair on loopback: a UDP socket in WireGuard's place."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from collections.abc import Callable
from random import Random
from typing import ClassVar

from agent.identity.keys import NodeKey
from agent.membership.networkkeys import NetworkKeys
from agent.relay.client import Ask, Lost, Output, Ready, RelayClient, Send, State
from agent.relay.service import Relay
from agent.relay.wire import PairSeal

MESH = hashlib.sha256(b"a mesh").digest()
KEYS = NetworkKeys.single(hashlib.sha256(b"its network key").digest())
OTHER_KEYS = NetworkKeys.single(hashlib.sha256(b"another network key").digest())
# Begins as WireGuard's data does.
DATA = b"\x04\0\0\0"


def key_of(name: str) -> NodeKey:
    return NodeKey(hashlib.sha256(name.encode()).digest())


ANNA, BERT, CARL, RELAY = (key_of(name) for name in ("anna", "bert", "carl", "relay"))


def seal_of(own: NodeKey, other: NodeKey, keys: NetworkKeys = KEYS) -> PairSeal:
    return PairSeal(own, other.id, MESH, keys)


async def until(what: Callable[[], object], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, "it did not come to be"
        await asyncio.sleep(0.01)


class End:
    """One side: its client core, run against a relay over real sockets."""

    made: ClassVar[list[End]] = []

    def __init__(self, key: NodeKey, peer: NodeKey, relay: Relay, host: str = "127.0.0.1") -> None:
        self.key, self.relay, self.host = key, relay, host
        self.peer = peer
        self.socket = self._bound()
        self.made.append(self)
        self.got: list[bytes] = []
        self.events: list[Output] = []
        self.core = RelayClient(peer.id, host, seal_of(key, RELAY), Random(1), time.time())

    def _bound(self) -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET,
                             socket.SOCK_DGRAM)  # fmt: skip
        made.setblocking(False)
        made.bind((self.host, 0))
        return made

    @property
    def place(self) -> tuple[str, int]:
        return self.socket.getsockname()[:2]

    def move(self) -> None:
        """Go on from another port, as behind a NAT that has forgotten."""
        self.socket.close()
        self.socket = self._bound()

    async def step(self) -> None:
        for output in self.core.take():
            match output:
                case Ask():
                    raw = await self.relay.answer(self.key.id, output.request)
                    if self.core.state is not State.CLOSED:
                        self.core.answered(raw, time.time())
                case Send():
                    self.socket.sendto(output.datagram, output.to)
                case Ready() | Lost():
                    self.events.append(output)
        while True:
            try:
                data, source = self.socket.recvfrom(65536)
            except BlockingIOError:
                break
            if not self.core.received(data, source[:2], time.time()):
                self.got.append(data)
        self.core.tick(time.time())

    async def open(self) -> None:
        for _ in range(500):
            await self.step()
            if self.core.state is State.OPEN:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(self.core.state)

    def send(self, data: bytes) -> None:
        assert self.core.allocated is not None
        self.socket.sendto(data, (self.host, self.core.allocated.port))

    async def receive(self, count: int = 1, within_s: float = 2.0) -> list[bytes]:
        """Return what came, `count` of it or what there is in time."""
        deadline = time.monotonic() + within_s
        while len(self.got) < count and time.monotonic() < deadline:
            await self.step()
            await asyncio.sleep(0.005)
        got, self.got = self.got, []
        return got

    def close(self) -> None:
        self.socket.close()
