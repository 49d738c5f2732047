"""The whole mapper on loopback, with a pretended router at an address of 127/8."""

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from agent.portmap import contest, service
from agent.portmap.routes import Gateway, default_gateways
from agent.portmap.service import PortMapper
from agent.portmap.words import NATPMP, PCP, Mapping

pytestmark = pytest.mark.slow

PORT = 51820
GATEWAY, OTHER = "127.83.1.1", "127.83.1.9"
HOME = "127.83.1.2"
WAN = bytes([9, 9, 9, 9])


class Router(asyncio.DatagramProtocol):
    """NAT-PMP on UDP 5351; `before` sees each request and may send what it likes."""

    def __init__(self) -> None:
        self.mapped: dict[int, int] = {}
        self.requests = 0
        self.silent = False
        self.short_s = 0
        self.before: Callable[[asyncio.DatagramTransport, object], None] = lambda out, to: None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.out = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.requests += 1
        self.before(self.out, addr)
        if self.silent or data[0]:
            return
        if data[1] == 0:
            self.out.sendto(struct.pack("!BBHI4s", 0, 128, 0, 1000, WAN), addr)
            return
        _, _, _, internal, external, life = struct.unpack("!BBHHHI", data)
        life = max(0, life - self.short_s)
        self.mapped[internal] = life
        self.out.sendto(
            struct.pack("!BBHIHHI", 0, 129, 0, 1000, internal, external or internal, life), addr
        )


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """This router answers at once or never; how long is waited for a slow one has its own tests."""
    monkeypatch.setattr(contest, "PATIENCE_S", 0.1)
    monkeypatch.setattr(service, "_SETTLE_S", 0.05)


@pytest.fixture
async def router() -> Iterator[Router]:
    transport, made = await asyncio.get_running_loop().create_datagram_endpoint(
        Router, local_addr=(GATEWAY, 5351)
    )
    yield made
    transport.close()


class Told:
    """A mapper with what it told."""

    def __init__(self, gateways: list[Gateway], **options: object) -> None:
        self.told: list[Mapping | None] = []
        self.gateways = gateways
        self.changed = asyncio.Event()
        self.mapper = PortMapper(
            PORT, b"s" * 32, self._hear, list_gateways=self._list,
            **{"protocols": (PCP, NATPMP), **options},
        )  # fmt: skip

    async def next(self) -> Mapping | None:
        async with asyncio.timeout(5):
            await self.changed.wait()
        self.changed.clear()
        return self.told[-1]

    def _hear(self, mapping: Mapping | None) -> None:
        self.told.append(mapping)
        self.changed.set()

    async def _list(self, excluded: str) -> list[Gateway]:
        return self.gateways


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


HERE = [Gateway(GATEWAY, HOME)]


async def test_it_maps_tells_and_releases(router: Router) -> None:
    told = Told(HERE)
    await told.mapper.start()
    mapping = await told.next()
    assert mapping == Mapping(NATPMP, GATEWAY, ("9.9.9.9", PORT), 7200, public=True)
    assert told.mapper.mapping == mapping
    report = told.mapper.describe()
    assert report.summary == f"mapped to 9.9.9.9:{PORT} by NAT-PMP from {GATEWAY}"
    assert [attempt.protocol for attempt in report.attempts] == [PCP, NATPMP]
    assert report.attempts[0].text() == f"PCP at {GATEWAY}: asked, no answer yet"
    await told.mapper.stop()
    assert router.mapped == {PORT: 0}
    assert told.told == [mapping, None]
    await told.mapper.stop()


async def test_a_renewal_for_a_second_less_is_no_news(router: Router) -> None:
    passed_s = 0.0
    told = Told(HERE, protocols=(NATPMP,), clock=lambda: time.monotonic() + passed_s)
    await told.mapper.start()
    mapping = await told.next()
    router.short_s, passed_s = 1, mapping.lifetime_s / 2 + 1
    told.mapper.network_changed()  # it looks at its clock
    await until(lambda: told.mapper.mapping.lifetime_s == mapping.lifetime_s - 1)
    assert told.told == [mapping]
    await told.mapper.stop()
    assert told.told == [mapping, None]


async def test_switched_off_it_asks_nobody(router: Router) -> None:
    told = Told(HERE, enabled=False)
    await told.mapper.start()
    told.mapper.network_changed()
    await asyncio.sleep(0.3)
    await told.mapper.stop()
    assert router.requests == 0
    assert told.mapper.describe().summary == "port mapping is switched off (network.port_mapping)"


async def test_another_gateway_after_a_network_change(router: Router) -> None:
    told = Told([])
    await told.mapper.start()
    await asyncio.sleep(0.05)
    assert told.mapper.describe().summary == "no IPv4 default gateway is known to ask"
    told.gateways = HERE
    told.mapper.network_changed()
    assert await told.next() is not None
    told.gateways = []
    told.mapper.network_changed()
    assert await told.next() is None
    await until(lambda: router.mapped == {PORT: 0})  # the gateway that we left takes it back
    await told.mapper.stop()


async def test_answers_of_others_are_not_heard(router: Router) -> None:
    """Another machine that answers sooner, from the right port, is not the gateway."""
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    other.bind((OTHER, 5351))

    def meddle(out: asyncio.DatagramTransport, to: object) -> None:
        other.sendto(struct.pack("!BBHI4s", 0, 128, 0, 1000, bytes([6, 6, 6, 6])), to)
        other.sendto(struct.pack("!BBHIHHI", 0, 129, 0, 1000, PORT, 666, 7200), to)

    router.before = meddle
    told = Told(HERE)
    await told.mapper.start()
    mapping = await told.next()
    await told.mapper.stop()
    other.close()
    assert mapping is not None
    assert mapping.external == ("9.9.9.9", PORT)


async def test_a_flood_of_nonsense_does_not_keep_it_from_mapping_later(router: Router) -> None:
    def flood(out: asyncio.DatagramTransport, to: object) -> None:
        if router.requests <= 2:
            for number in range(200):
                out.sendto(bytes([number % 256]) * number, to)

    router.before = flood
    told = Told(HERE, protocols=(NATPMP,))
    await told.mapper.start()
    mapping = await told.next()
    assert mapping is not None
    assert router.requests > 2  # the first answers drowned, and it asked again at its own pace
    assert router.requests < 8
    await told.mapper.stop()
    assert router.mapped == {PORT: 0}


async def test_a_stop_ends_soon_though_nobody_answers(router: Router) -> None:
    told = Told(HERE)
    await told.mapper.start()
    await told.next()
    router.silent = True
    loop = asyncio.get_running_loop()
    before = loop.time()
    await told.mapper.stop()
    assert loop.time() - before < 3
    assert told.told[-1] is None


async def test_nothing_listens_at_the_gateway() -> None:
    told = Told([Gateway("127.83.1.50", HOME)])
    await told.mapper.start()
    await until(lambda: told.mapper.describe().summary == "no gateway maps ports for us")
    assert {attempt.why for attempt in told.mapper.describe().attempts} == {"nothing there listens"}
    await told.mapper.stop()


async def test_a_list_of_gateways_that_fails_is_tried_again(router: Router) -> None:
    told = Told(HERE)
    fails = [True]

    async def listing(excluded: str) -> list[Gateway]:
        if fails.pop() if fails else False:
            raise OSError(1, "no netlink here")
        return HERE

    told.mapper._list_gateways = listing
    await told.mapper.start()
    await asyncio.sleep(0.05)
    assert told.told == []
    told.mapper.network_changed()
    assert await told.next() is not None
    await told.mapper.stop()


async def test_the_machines_own_gateways_can_be_read() -> None:
    """Whatever this machine has: each is an address, and ours on the way to it is one of ours."""
    for gateway in await default_gateways("no-such-interface"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.bind((gateway.local, 0))
        assert socket.inet_aton(gateway.address)
