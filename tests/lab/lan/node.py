"""One machine's LAN beacon, or a newcomer that looks for one; says what it finds as JSON lines.

node.py beacon|find SEED NETWORK_KEY_BYTE SECONDS [CPU]. Times are of the clock that all processes
of a machine share. At its end a beacon writes its use of CPU and memory.
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
import time
from typing import Any

from agent.errors import EnvironmentFault
from agent.identity.keys import NodeKey
from agent.lan.beacon import LanBeacon
from agent.lan.newcomer import find
from agent.lan.peers import LanPeer
from agent.membership.networkkeys import NetworkKeys

MESH = b"m" * 32


def say(what: str, **facts: Any) -> None:
    print(json.dumps({"what": what, "at": time.monotonic(), **facts}), flush=True)


def found(peer: LanPeer) -> None:
    say("found", node=peer.node.short, addresses=peer.addresses, control=peer.control_port)


def fault(error: EnvironmentFault | None) -> None:
    say("fault", message=None if error is None else error.message)


async def beacon(seed: int, network_key: bytes, seconds: float) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    key = NodeKey(bytes([seed]) * 32)
    node = LanBeacon(
        key, MESH, NetworkKeys.single(network_key), control_port=4000 + seed,
        discovery_port=4001, wireguard_port=51820, found=found, on_fault=fault,
    )  # fmt: skip
    say("start", node=key.id.short)
    await node.start()
    say("started")
    before = resource.getrusage(resource.RUSAGE_SELF)
    try:
        async with asyncio.timeout(seconds):
            await ended.wait()
    except TimeoutError:
        pass
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    say("end", peers=[peer.node.short for peer in node.peers()], cpu_s=cpu_s,
        refusals={refusal.name: count for refusal, count in node.refusals.items()})  # fmt: skip
    await node.stop()
    say("stopped")


async def search(network_key: bytes, seconds: float) -> None:
    say("start")
    try:
        async for peer in find(MESH, network_key, timeout_s=seconds):
            found(peer)
    except EnvironmentFault as error:
        fault(error)
    say("stopped")


def main() -> None:
    kind, seed, network_key, seconds = sys.argv[1:5]
    network = bytes([int(network_key)]) * 32
    if kind == "beacon":
        asyncio.run(beacon(int(seed), network, float(seconds)))
    else:
        asyncio.run(search(network, float(seconds)))


if __name__ == "__main__":
    main()
