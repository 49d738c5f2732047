"""A machine behind a NAT as a program: WireGuard, and the way to its peer.

    relay_end.py '{"name": "anna", "relay": "198.18.1.2", "way": "relay" | "tunnel" | "direct", …}'

Opens leave from WireGuard's own port through a raw socket, as the agent's do. Each step is a line
of JSON on stdout.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import signal
import socket
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_interface, ip_network
from pathlib import Path
from random import SystemRandom
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "relay"))

import contextlib

from relay_ends import ANNA, BERT, KEYS, MESH, RELAY, seal_of
from relay_net import OVERLAY, PEER, WIREGUARD_PORT
from relay_node import SOCKET

from agent.overlay.device import PeerConfig
from agent.overlay.kernel import KernelDevice
from agent.overlay.userspace import UserspaceDevice
from agent.probing.port import MAGIC
from agent.relay import messages
from agent.relay.client import Ask, Lost, Ready, RelayClient, Send
from agent.relay.messages import Allocate, Allocated
from agent.relay.pairs import Place
from agent.relay.tunnelclient import TunnelClient

KEY = {"anna": ANNA, "bert": BERT}
# In a virtual machine (tests/vm) WireGuard is the kernel's.
KERNEL = os.environ.get("COVEY_TEST_DEVICES") == "kernel"
DEVICE = KernelDevice if KERNEL else UserspaceDevice


def say(event: str, **more: object) -> None:
    print(json.dumps({"event": event, "at": time.monotonic(), **more}), flush=True)


class Raw:
    """Sends from WireGuard's port and hears our own datagrams there."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
        self.socket.setblocking(False)
        # Classic BPF (linux/filter.h): x = length of the IP header; payload's first word is ours.
        magic = int.from_bytes(MAGIC, "big")
        code = [
            (0xB1, 0, 0, 0),
            (0x40, 0, 0, 8),
            (0x15, 0, 1, magic),
            (6, 0, 0, 65535),
            (6, 0, 0, 0),
        ]
        filters = ctypes.create_string_buffer(
            b"".join(struct.pack("=HBBI", *each) for each in code)
        )
        program = struct.pack("@HP", len(code), ctypes.addressof(filters))
        self.socket.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER

    def send(self, data: bytes, to: Place) -> None:
        head = b"".join(n.to_bytes(2, "big") for n in (WIREGUARD_PORT, to[1], 8 + len(data), 0))
        self.socket.sendto(head + data, (to[0], 0))

    def receive(self) -> tuple[bytes, Place] | None:
        while True:
            try:
                packet, (host, _) = self.socket.recvfrom(65536)
            except BlockingIOError:
                return None
            udp = packet[(packet[0] & 15) * 4 :]
            if int.from_bytes(udp[2:4], "big") == WIREGUARD_PORT and udp[8:12] == MAGIC:
                return udp[8:], (host, int.from_bytes(udp[:2], "big"))


class End:
    """The machine."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.name: str = arguments["name"]
        self.key, self.peer = KEY[self.name], KEY[PEER[self.name]]
        self.device = DEVICE(f"wg-{self.name}")
        self.worker = ThreadPoolExecutor(1)

    async def on_device(self, call: Any, *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.worker, call, *given)

    async def use(self, endpoint: Place | None) -> None:
        network = ip_network(f"{OVERLAY[PEER[self.name]]}/32")
        # One side begins: wireguard-go takes some 15 s to sort out two handshakes at one time.
        keepalive_s = 5 if self.name == "anna" and endpoint else 0
        peer = PeerConfig(self.peer.id.wireguard_public, endpoint, (network,), keepalive_s)
        await self.on_device(self.device.apply, [peer])
        if endpoint is not None:
            say("endpoint", endpoint=endpoint)

    async def ask(self, payload: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(SOCKET)
        request = {"do": "ask", "node": self.key.id.ed25519.hex(), "payload": payload.hex()}
        writer.write(json.dumps(request).encode() + b"\n")
        reply = json.loads(await reader.readline())
        writer.close()
        if "error" in reply:
            say("refused", why=reply["error"])
            raise SystemExit(1)
        return bytes.fromhex(reply["payload"])

    async def run(self) -> None:
        address = ip_interface(f"{OVERLAY[self.name]}/24")
        await self.on_device(
            self.device.open, self.key.wireguard_private, WIREGUARD_PORT, [address],
            self.arguments.get("mtu", 1280),
        )  # fmt: skip
        try:
            if self.name == "bert":
                # Known before Anna begins. A peer without an endpoint is asked again after 5 s only
                # once a packet for it was there: so the side that begins knows its peer later.
                await self.use(None)
            say("up")
            match self.arguments["way"]:
                case "relay":
                    await self.by_relay()
                case "tunnel":
                    await self.by_tunnel()
                case "direct":
                    await self.use(tuple(self.arguments["endpoint"]))
                    await asyncio.Event().wait()
        finally:
            await self.on_device(self.device.close)

    async def by_relay(self) -> None:
        raw, now = Raw(), time.time()
        core = RelayClient(
            self.peer.id, self.arguments["relay"], seal_of(self.key, RELAY), SystemRandom(), now
        )
        loop, heard = asyncio.get_running_loop(), asyncio.Event()
        again = loop.add_signal_handler  # the path went silent, says the path engine
        again(signal.SIGUSR1, lambda: (core.reopen(time.time()), heard.set()))
        loop.add_reader(raw.socket.fileno(), heard.set)
        while True:
            for output in core.take():
                match output:
                    case Ask():
                        say("asking")
                        core.answered(await self.ask(output.request), time.time())
                        say("allocated")
                    case Send():
                        raw.send(output.datagram, output.to)
                    case Ready():
                        say("ready", seen=output.seen)
                        if output.peer_open:
                            await self.use(output.endpoint)
                    case Lost():
                        say("lost", why=output.reason)
            wait_s = 0.0 if core._out else (core.wakes_at or time.time() + 60) - time.time()
            try:
                async with asyncio.timeout(max(0.0, wait_s)):
                    await heard.wait()
            except TimeoutError:
                pass
            heard.clear()
            while found := raw.receive():
                core.received(*found, time.time())
            core.tick(time.time())

    async def by_tunnel(self) -> None:
        say("asking")
        raw = await self.ask(messages.encode(Allocate(self.peer.id.ed25519)))
        given = messages.decode_answer(raw, Allocated)
        assert given.tunnel_port is not None
        say("allocated")

        def changed(why: str | None) -> None:
            say("tunnel", why=why)

        tunnel = TunnelClient(
            self.key, MESH, KEYS, RELAY.id, (self.arguments["relay"], given.tunnel_port), given.id,
            WIREGUARD_PORT, changed,
        )  # fmt: skip
        await self.use(tunnel.endpoint)
        await tunnel.run()


async def main(arguments: dict[str, Any]) -> None:
    task = asyncio.ensure_future(End(arguments).run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await asyncio.gather(task, return_exceptions=False)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(main(json.loads(sys.argv[1])))
