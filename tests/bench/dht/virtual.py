"""A network on virtual time: an event loop whose clock jumps, and datagrams that travel in it.

For simulations and tests of discovery: the real `Discovery` runs here unchanged. A loop never
waits; when nothing is ready, the clock jumps to the next timer. A datagram takes a delay that
follows from where its two ends lie on a map, some jitter, and may be lost. A NAT maps and filters
by address and port, as most home routers do (RFC 4787: endpoint-independent mapping, address and
port-dependent filtering), or also maps by destination (`symmetric`).
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, TypeVar

# What a NAT forgets after; RFC 4787 recommends more, many keep less.
NAT_OPEN_S = 120.0
# One way across the map, and what every datagram takes.
FAR_S, NEAR_S = 0.060, 0.001
# Fresh ports, as systems give them out.
_FIRST_FREE_PORT = 32768

Address = tuple[str, int]
_T = TypeVar("_T")


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop on virtual time, `now` in seconds. It has no sockets and no threads.

    It turns for each datagram of thousands of nodes, so it is plain: what is ready runs, then the
    clock jumps to the next timer. Timers of one moment run in the order in which they were set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle | _Once]] = []
        self._set = 0

    def time(self) -> float:
        return self.now

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._set += 1
        heapq.heappush(self._timers, (when, self._set, timer))
        return timer

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def once(self, delay: float, callback: Callable[..., object], *args: Any) -> None:
        """Call this later, come what may; what it raises ends the loop."""
        self._set += 1
        heapq.heappush(self._timers, (self.now + delay, self._set, _Once(callback, args)))

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers
        if not ready and not self._stopping:
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if not timers:
                raise RuntimeError("every task waits and no timer runs: this would hang for ever")
            self.now = max(self.now, timers[0][0])
        while timers and timers[0][0] <= self.now:
            ready.append(heapq.heappop(timers)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


class _Once:
    """What the loop runs like a handle, for a part of its price."""

    __slots__ = ("_args", "_callback")
    _cancelled = False

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._callback = callback
        self._args = args

    def cancelled(self) -> bool:
        return False

    def _run(self) -> None:
        self._callback(*self._args)


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine on virtual time, and end what it left running."""
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        asyncio.set_event_loop(None)
        loop.close()


class Transport(asyncio.DatagramTransport):
    """One open port."""

    def __init__(self, host: Host, port: int, protocol: asyncio.DatagramProtocol) -> None:
        super().__init__()
        self.host = host
        self.port = port
        self.protocol = protocol
        self._open = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self.host.address, self.port) if name == "sockname" else default

    def sendto(self, data: bytes, addr: Address | None = None) -> None:
        assert addr is not None
        if self._open:
            self.host.network.send(self.host, self.port, data, addr)

    def is_closing(self) -> bool:
        return not self._open

    def close(self) -> None:
        if self._open:
            self._open = False
            del self.host.ports[self.port]
            self.host.network.loop.call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()


class Host:
    """A machine with one address; what a node takes as its `ports`."""

    def __init__(self, network: Network, address: str, nat: Nat | None = None) -> None:
        self.network = network
        self.address = address
        self.nat = nat
        self.ports: dict[int, Transport] = {}
        self.place = (network.rng.random(), network.rng.random())
        self._next_port = _FIRST_FREE_PORT

    async def open(
        self, factory: Callable[[], asyncio.DatagramProtocol], host: str, port: int
    ) -> Transport:
        """Open a port; `host` does not matter, a machine has one address."""
        protocol = factory()
        opened = Transport(self, port or self._free_port(), protocol)
        self.ports[opened.port] = opened
        protocol.connection_made(opened)
        return opened

    def send_once(self, datagram: bytes, address: Address) -> None:
        """Send from a port that nobody has sent to."""
        self.network.send(self, self._free_port(), datagram, address)

    def _free_port(self) -> int:
        self._next_port += 1
        return self._next_port


@dataclass
class Nat:
    """A router that hides the hosts behind it under its own address."""

    address: str
    symmetric: bool = False
    inside: dict[str, Host] = field(default_factory=dict)
    forwarded: dict[int, Host] = field(default_factory=dict)
    _out: dict[tuple[str, int, Address | None], int] = field(default_factory=dict)
    _in: dict[int, tuple[Host, int]] = field(default_factory=dict)
    _until: dict[tuple[int, Address], float] = field(default_factory=dict)
    _next_port: int = 20000

    def outward(self, host: Host, port: int, to: Address, now: float) -> Address:
        """Return where a datagram to `to` seems to come from, and let its answers in."""
        key = (host.address, port, to if self.symmetric else None)
        outer = self._out.get(key)
        if outer is None:
            outer = self._out[key] = self._next_port
            self._next_port += 1
            self._in[outer] = (host, port)
        self._until[outer, to] = now + NAT_OPEN_S
        return self.address, outer

    def inward(self, port: int, source: Address, now: float) -> tuple[Host, int] | None:
        """Return to whom a datagram goes, or None when it is no answer."""
        if port in self.forwarded:
            return self.forwarded[port], port
        if self._until.get((port, source), 0.0) < now:
            return None
        return self._in[port]


class Network:
    """Hosts and NATs, and the way between them. Needs a running VirtualLoop."""

    def __init__(self, rng: random.Random, *, loss: float = 0.0) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.rng = rng
        self.loss = loss
        self.hosts: dict[str, Host] = {}
        self.nats: dict[str, Nat] = {}
        self.sent = 0
        self.sent_bytes = 0

    def host(self, address: str, nat: Nat | None = None) -> Host:
        """Add a machine; behind a NAT its address means something only there."""
        made = Host(self, address, nat)
        (self.hosts if nat is None else nat.inside)[address] = made
        return made

    def nat(self, address: str, *, symmetric: bool = False) -> Nat:
        """Add a router."""
        made = self.nats[address] = Nat(address, symmetric)
        return made

    def send(self, host: Host, port: int, data: bytes, to: Address) -> None:
        """Put a datagram on its way; it is lost, or comes later, or finds nobody."""
        self.sent += 1
        self.sent_bytes += len(data)
        if self.loss and self.rng.random() < self.loss:
            return
        source = (host.address, port)
        neighbours = None
        if host.nat is not None:
            # In one LAN they meet directly: whoever has this address behind the same router.
            neighbours = host.nat.inside.get(to[0])
            if neighbours is None:
                source = host.nat.outward(host, port, to, self.loop.now)
        target = neighbours or self.hosts.get(to[0])
        delay = NEAR_S
        if target is not None and neighbours is None:
            (x, y), (u, v) = host.place, target.place
            delay += FAR_S * ((x - u) ** 2 + (y - v) ** 2) ** 0.5
        delay += self.rng.random() * 0.1 * delay
        self.loop.once(delay, self._deliver, target, data, source, to)

    def _deliver(self, target: Host | None, data: bytes, source: Address, to: Address) -> None:
        port = to[1]
        if target is None and to[0] in self.nats:
            inside = self.nats[to[0]].inward(port, source, self.loop.now)
            if inside is None:
                return
            target, port = inside
        transport = target.ports.get(port) if target is not None else None
        if transport is not None:
            transport.protocol.datagram_received(data, source)
