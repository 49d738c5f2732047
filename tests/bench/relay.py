"""Relays measured: WireGuard between two NATs, directly and by each way through a relay.

    python tests/bench/relay.py [--quick] [--json FILE]

One machine: namespaces for the two ends, their NATs and the relay, on one switch. Every round goes
each way once, so that what else the machine does falls on all of them alike; a share is of the same
round's direct throughput. TCP over WireGuard (wireguard-go), MTU 1280, one stream. All interfaces
join what comes in (GRO), as network cards do by default, and veth does not.

| way | is |
|---|---|
| direct | both NATs forward WireGuard's port |
| nftables | our relay, forwarding in the kernel |
| user space | our relay without nftables; beside it a relay written with asyncio alone |
| WebSocket | one end's UDP is blocked, so it comes by the tunnel on TCP 443 |
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from report import conditions, finish, parser, percentiles, row

from agent.demo import sandbox

sys.path.insert(0, str(Path(__file__).parents[1] / "lab" / "relay"))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "relay"))

from relay_net import HERE, OVERLAY, PEER, WIREGUARD_PORT, Echo, Net, Running, throughput

# Ways with a relay of ours, by what it is started with; and what its ends do.
RELAYS: dict[str, dict[str, Any]] = {
    "nftables": {"kernel": True},
    "user space": {"kernel": False},
    "WebSocket": {"kernel": True, "tunnel_port": 443},
}
ASYNCIO_PORTS = {"anna": 7001, "bert": 7002}
WAYS = ("direct", "nftables", "user space", "asyncio", "WebSocket")
GOAL_SHARE = 0.8
FIRST_PACKET_GOAL_S = 2.0
LIMIT = "all on the same cores: what the relay takes, the ends lack"

_LIKE_CARDS = """
import socket
from pyroute2.ethtool import Ethtool
with Ethtool() as device:
    for _, name in socket.if_nameindex():
        if name != "lo":
            features = device.get_features(name)
            features.features["rx-gro"].enable = True
            device.set_features(name, features)
"""


def main() -> int:
    """Measure, print a table, write JSON. Runs itself in a sandbox."""
    arguments = parser(__doc__).parse_args()
    if not sandbox.inside():
        command = [sys.executable, __file__, *(["--quick"] if arguments.quick else [])]
        command += ["--json", str(arguments.json.absolute())] if arguments.json else []
        return sandbox.run(command)
    rounds, seconds, starts = (3, 2.0, 5) if arguments.quick else (7, 3.0, 12)
    net = Net()
    for machine in (net.relay, *net.nat.values(), *net.inner.values()):
        done = machine.run([sys.executable, "-c", _LIKE_CARDS])
        assert done.returncode == 0, done.stderr
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS:
            found[way].append(measure(net, way, seconds))
            print(f"round {number + 1} {way}: {found[way][-1]:.0f} Mbit/s", file=sys.stderr)
    first = {way: [first_packet(net, way) for _ in range(starts)] for way in RELAYS}
    middle = {way: statistics.median(values) for way, values in found.items()}
    share = {
        way: statistics.median(a / b for a, b in zip(found[way], found["direct"], strict=True))
        for way in WAYS
    }
    rows = [row("throughput, direct", middle["direct"], "Mbit/s")]
    for way in RELAYS:
        rows.append(
            row(f"throughput, {way}", middle[way], "Mbit/s", limit=LIMIT,
                peer=middle["asyncio"] if way == "user space" else middle["direct"])
        )  # fmt: skip
    for way in RELAYS:
        goal = GOAL_SHARE if way == "nftables" else None
        peer = share["asyncio"] if way == "user space" else None
        rows.append(
            row(f"share of direct, {way}", share[way], "", goal=goal, higher=True, peer=peer)
        )
    for way, values in first.items():
        p50, p95 = percentiles(values)
        rows.append(row(f"Allocate to first packet, {way}, p50", p50, "s"))
        rows.append(
            row(f"Allocate to first packet, {way}, p95", p95, "s", goal=FIRST_PACKET_GOAL_S)
        )
    more = {"rounds": rounds, "seconds_each": seconds, "starts": starts, "mtu": 1280}
    finish("relay", conditions(quick=arguments.quick, **more), rows, arguments.json)
    return 0


def measure(net: Net, way: str, seconds: float) -> float:
    """Return Mbit/s of one way."""
    with ExitStack() as stack:
        start(net, way, stack)
        echo = Echo(net)
        stack.callback(echo.close)
        if way == "asyncio":
            # It learns from what comes: so Bert begins, once Anna's first message has got lost.
            time.sleep(1)
            echo.passes("bert")
        for name in OVERLAY:
            echo.wait(name, 20)
        return throughput(net, seconds)


def first_packet(net: Net, way: str) -> float:
    """Return the seconds from the first Allocate until a packet of each end is at the other."""
    with ExitStack() as stack:
        echo = Echo(net)
        stack.callback(echo.close)
        ends = start(net, way, stack, wait=False)
        for name in OVERLAY:
            echo.wait(name, 20)
        arrived = time.monotonic()
        return arrived - min(float(end.until("asking")["at"]) for end in ends)


def start(net: Net, way: str, stack: ExitStack, *, wait: bool = True) -> list[Running]:
    """Start what a way needs; the stack ends it."""
    for name in OVERLAY:
        blocked = way == "WebSocket" and name == "anna"
        net.set_nat(name, udp=not blocked, forward_port=way == "direct")
    if way == "asyncio":
        command = [sys.executable, str(Path(__file__).parent / "relay_asyncio.py")]
        command += [net.relay.address, *map(str, ASYNCIO_PORTS.values())]
        process = net.relay.spawn(command, output=subprocess.PIPE)
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout is not None and process.stdout.readline()
        stack.callback(process.stdout.close)
    elif way != "direct":
        relay = Running(net.relay, "relay_node.py", RELAYS[way])
        stack.callback(relay.stop)
        relay.until("up")
    ends = []
    for name in OVERLAY:
        given: dict[str, Any] = {"name": name, "relay": net.relay.address, "way": "relay"}
        if way == "WebSocket" and name == "anna":
            given["way"] = "tunnel"
        elif way == "direct":
            given |= {"way": "direct", "endpoint": [net.nat[PEER[name]].address, WIREGUARD_PORT]}
        elif way == "asyncio":
            given |= {"way": "direct", "endpoint": [net.relay.address, ASYNCIO_PORTS[name]]}
        ends.append(Running(net.inner[name], str(HERE / "relay_end.py"), given))
        stack.callback(ends[-1].stop)
    if wait:
        for end in ends:
            end.until("endpoint")
    return ends


if __name__ == "__main__":
    sys.exit(main())
