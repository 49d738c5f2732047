"""The same job done by py-libp2p's own GossipSub: what of it arrives, and when.

The same nodes, links and messages, over the same connections; only the router is the library's,
with its usual degree (6, low 4, high 12), a heartbeat each second, and without its peer scores and
rate limits, with which it delivers less. Everything runs in one trio loop.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import trio

from agent.control import lean
from agent.identity.keys import NodeKey
from agent.membership.networkkeys import NetworkKeys

TOPIC = "bench"
WAIT_S = 10.0


@dataclass
class _Node:
    links: Any
    addresses: list[str]
    pubsub: Any
    at: dict[bytes, float]


def told(
    keys: list[NodeKey], edges: Iterable[tuple[int, int]], count: int, per_s: float
) -> tuple[float, list[float]]:
    """Return the share of deliveries in per cent, and how long each took that reached everybody."""
    lean.prepare()
    return trio.run(_told, keys, list(edges), count, per_s)


async def _told(
    keys: list[NodeKey], edges: list[tuple[int, int]], count: int, per_s: float
) -> tuple[float, list[float]]:
    chance = random.Random(2)
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        # Called last, when the services have ended.
        stack.callback(nursery.cancel_scope.cancel)
        nodes = [await _start(key, keys, stack, nursery) for key in keys]
        for one, two in edges:
            await nodes[one].links.connect(keys[two].id, nodes[two].addresses, {})
        await trio.sleep(5.0)
        sent = {}
        for number in range(count):
            payload = number.to_bytes(4, "big") + chance.randbytes(196)
            author = chance.randrange(len(nodes))
            sent[payload] = (author, trio.current_time())
            await nodes[author].pubsub.publish(TOPIC, payload)
            await trio.sleep(1 / per_s)
        others = {p: [each for n, each in enumerate(nodes) if n != author]
                  for p, (author, _) in sent.items()}  # fmt: skip
        with trio.move_on_after(WAIT_S):
            while any(p not in each.at for p in sent for each in others[p]):  # noqa: ASYNC110 - seen from outside
                await trio.sleep(0.1)
    arrived = sum(p in each.at for p in sent for each in others[p])
    whole = [p for p in sent if all(p in each.at for each in others[p])]
    took = [max(each.at[p] for each in others[p]) - sent[p][1] for p in whole]
    return 100 * arrived / (count * (len(nodes) - 1)), took


async def _start(
    key: NodeKey, members: list[NodeKey], stack: AsyncExitStack, nursery: trio.Nursery
) -> _Node:
    from libp2p.host.basic_host import BasicHost
    from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
    from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
    from libp2p.pubsub.pubsub import Pubsub
    from libp2p.tools.anyio_service import background_trio_service

    from agent.control.gate import Gate
    from agent.control.links import Links
    from agent.control.swarm import Host

    ours = Host(key.seed)
    host = BasicHost(ours.swarm, disable_identify_address_discovery=True)
    router = GossipSub(
        [PROTOCOL_ID_V11], 6, 4, 12, heartbeat_interval=1, spam_protection_enabled=False,
        adaptive_gossip_enabled=False, eclipse_protection_enabled=False,
    )  # fmt: skip
    router.scorer = None
    pubsub = Pubsub(host, router, cache_size=10_000, strict_signing=False)
    gate = Gate()
    gate.set_members([each.id.ed25519 for each in members])
    links = Links(ours, key.id, gate, NetworkKeys.single(bytes(32)))

    async def take(stream: Any) -> None:
        talk = MultiselectCommunicator(stream)
        try:
            protocol, handler = await host.get_mux().negotiate(talk, 10)
            stream.set_protocol(protocol)
            await handler(stream)
        except Exception as error:
            # A stream that ends must not end the swarm; what it lost is what is measured.
            del error

    for service in (ours.swarm, pubsub, router):
        await stack.enter_async_context(background_trio_service(service))
    ours.swarm.set_stream_handler(take)
    await pubsub.wait_until_ready()
    node = _Node(links, await links.listen(["127.0.0.1:0"], nursery), pubsub, {})
    subscription = await pubsub.subscribe(TOPIC)

    async def read() -> None:
        while True:
            message = await subscription.get()
            node.at.setdefault(message.data, trio.current_time())

    nursery.start_soon(read)
    return node
