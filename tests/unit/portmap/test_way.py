"""One way and the contest of all, against a simulated router under virtual time.

Requests and answers go through the real codecs, so this also proves that those understand a router
written from the RFCs.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.portmap import natpmp, pcp
from agent.portmap.contest import PROBE_INTERVAL_S, Contest
from agent.portmap.way import CHECK_S, LIFETIME_S, Pace, State, Way
from agent.portmap.words import (
    NATPMP,
    PCP,
    UPNP,
    Alive,
    Dialect,
    Gone,
    Granted,
    Mapping,
    Refused,
    Released,
)

PORT = 51820
HOME, ROUTER, WAN, NEW_WAN = "192.168.1.7", "192.168.1.1", "9.9.9.9", "9.9.9.10"
PACES = {
    PCP: Pace(pcp.waits, pcp.lost_state),
    NATPMP: Pace(natpmp.waits, natpmp.lost_state),
}
BOTH = pytest.mark.parametrize("protocol", [PCP, NATPMP])


@dataclass
class Router:
    """Speaks NAT-PMP and PCP: what it has mapped, until when, and what it heard."""

    address: str = WAN
    result: int = 0
    grants: Callable[[int], int] = lambda asked: asked
    started_at: float = -1000.0
    up: bool = True
    speaks: frozenset[str] = frozenset({PCP, NATPMP})
    until: dict[int, float] = field(default_factory=dict)
    heard: list[tuple[float, bytes]] = field(default_factory=list)
    nonce: bytes | None = None  # of the mapping, which PCP gives to nobody else (section 11.3)

    def restart(self, now: float) -> None:
        self.started_at = now
        self.until.clear()

    def mapped(self, now: float) -> bool:
        return self.until.get(PORT, -math.inf) > now

    def answer(self, data: bytes, now: float) -> bytes | None:
        self.heard.append((now, data))
        if not self.up or (PCP if data[0] == 2 else NATPMP) not in self.speaks:
            return None
        epoch = int(now - self.started_at)
        packed = ip_address(self.address).packed
        if data[0] == 2:
            return self._pcp(data, epoch, now, packed)
        if data[1] == 0:
            return struct.pack("!BBHI4s", 0, 128, self.result, epoch, packed)
        _, _, _, internal, external, asked = struct.unpack("!BBHHHI", data)
        life = self._map(internal, asked, now)
        return struct.pack("!BBHIHHI", 0, 129, self.result, epoch, internal, external, life)

    def _pcp(self, data: bytes, epoch: int, now: float, packed: bytes) -> bytes:
        (asked,) = struct.unpack_from("!I", data, 4)
        if data[1] and self.nonce not in {None, data[24:36]} and self.mapped(now):
            return struct.pack("!BBBBII12x", 2, 129, 0, 2, 60, epoch) + data[24:]
        self.nonce = data[24:36] if data[1] else self.nonce
        head = struct.pack("!BBBB", 2, 128 + data[1], 0, self.result if data[1] else 0)
        if data[1] == 0:
            return head + struct.pack("!II12x", 0, epoch)
        nonce, protocol, internal, external = struct.unpack_from("!12sB3xHH", data, 24)
        life = self._map(internal, asked, now)
        return (
            head
            + struct.pack("!II12x", life, epoch)
            + struct.pack("!12sB3xHH", nonce, protocol, internal, external)
            + (bytes(10) + b"\xff\xff" + packed)
        )

    def _map(self, internal: int, asked: int, now: float) -> int:
        life = self.grants(asked) if asked else 0
        if self.result == 0:
            self.until[internal] = now + life
        return life


class World:
    """Ways and their contest, joined to a router by a lossy link."""

    def __init__(
        self,
        *protocols: str,
        seed: int = 1,
        loss: float = 0.0,
        router: Router | None = None,
        nonce: bytes = b"twelve bytes",
    ) -> None:
        rng = Random(seed)
        self.now, self.loss, self.chance = 0.0, loss, Random(seed + 1)
        self.router = router or Router()
        self.dialects: dict[str, Dialect] = {
            PCP: pcp.Pcp(HOME, PORT, nonce),
            NATPMP: natpmp.NatPmp(PORT),
        }
        self.ways = [Way(name, ROUTER, PORT, PACES[name], rng) for name in protocols]
        self.contest = Contest(self.ways, rng)
        self.told: list[tuple[float, Mapping | None]] = []
        self.contest.replace(self.ways, self.now)
        self._carry()

    @property
    def way(self) -> Way:
        return self.ways[0]

    @property
    def mapping(self) -> Mapping | None:
        return self.contest.held.mapping if self.contest.held else None

    def run(self, seconds: float) -> None:
        """Let time pass; each wake must move the clock, or do something."""
        end, wakes = self.now + seconds, 0
        while (wake := min(self.contest.timer(), *(way.timer() for way in self.ways))) <= end:
            wakes = wakes + 1 if wake <= self.now else 0
            assert wakes < 20, "it wakes without end"
            self.now = max(self.now, wake)
            self.step()
        self.now = end

    def step(self) -> None:
        self.contest.step(self.now)
        for way in self.ways:
            if way not in self.contest.ways:
                way.tick(self.now)
        self._carry()

    def release(self) -> None:
        for way in self.ways:
            way.release(self.now)
        self.contest.replace((), self.now)
        self._carry()
        self.run(5)

    def _carry(self) -> None:
        for _ in range(10):
            sent = [(way, request) for way in self.ways for request in way.take_requests()]
            for way, request in sent:
                dialect = self.dialects[way.protocol]
                if self.chance.random() < self.loss:
                    continue
                data = self.router.answer(dialect.encode(request), self.now)
                if data is None or self.chance.random() < self.loss:
                    continue
                answer = dialect.read(data)
                assert answer is not None
                way.received(answer, self.now)
            self.contest.step(self.now)
            if (self.told[-1][1] if self.told else None) != self.mapping:
                self.told.append((self.now, self.mapping))
            if not sent:
                return
        raise AssertionError("it asks without end")


@BOTH
def test_it_maps_at_once_and_releases(protocol: str) -> None:
    world = World(protocol)
    assert world.mapping == Mapping(protocol, ROUTER, (WAN, PORT), LIFETIME_S, public=True)
    world.release()
    assert not world.router.mapped(world.now)
    assert world.way.state is State.RESTING
    assert world.mapping is None


@BOTH
def test_it_is_renewed_for_days_and_told_once(protocol: str) -> None:
    world = World(protocol)
    for _ in range(100):
        world.run(1800)
        assert world.router.mapped(world.now)
    assert [mapping is not None for _, mapping in world.told] == [True]
    # A check each 300 s and a renewal each 3600 s, and no more.
    assert len(world.router.heard) <= world.now / CHECK_S + world.now / (LIFETIME_S / 2) + 3


@BOTH
def test_it_is_renewed_at_half_the_lifetime_that_was_granted(protocol: str) -> None:
    world = World(protocol, router=Router(grants=lambda asked: min(asked, 100)))
    assert world.mapping is not None
    assert world.mapping.lifetime_s == 100
    world.run(60)
    asked = [at for at, data in world.router.heard if data[1] == 1]
    assert asked == [0, 50]


@BOTH
def test_the_gateway_restarts_and_a_check_notices(protocol: str) -> None:
    world = World(protocol)
    world.run(100)
    world.router.restart(world.now)
    world.run(CHECK_S + 1)
    assert world.router.mapped(world.now)
    assert [mapping is not None for _, mapping in world.told] == [True]


@BOTH
def test_an_announcement_makes_it_notice_at_once(protocol: str) -> None:
    world = World(protocol)
    world.run(100)
    world.router.restart(world.now)
    world.way.announced(world.now)
    world.run(16)
    assert world.router.mapped(world.now)


@BOTH
def test_a_flood_of_announcements_costs_a_check_each_ten_seconds(protocol: str) -> None:
    world = World(protocol)
    before = len(world.router.heard)
    for _ in range(1000):
        world.way.announced(world.now)
        world.run(0.1)
    assert len(world.router.heard) - before <= 11


@BOTH
def test_another_external_address_is_told(protocol: str) -> None:
    """A router resets its clock then (RFC 6887, 8.5); NAT-PMP's check tells the address itself."""
    world = World(protocol)
    world.run(100)
    world.router.restart(world.now)
    world.router.address = NEW_WAN
    world.run(CHECK_S + 20)
    assert world.mapping is not None
    assert world.mapping.external == (NEW_WAN, PORT)


@BOTH
@pytest.mark.parametrize(("address", "public"), [("10.1.2.3", False), ("100.64.9.9", False),
                                                 ("192.168.0.5", False), (WAN, True)])  # fmt: skip
def test_a_double_nat_is_told(protocol: str, address: str, public: bool) -> None:
    world = World(protocol, router=Router(address=address))
    assert world.mapping is not None
    assert world.mapping.public is public
    assert ("another NAT" in world.mapping.text()) is not public


@BOTH
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), loss=st.floats(0, 0.3))
def test_it_maps_and_stays_over_a_lossy_link(protocol: str, seed: int, loss: float) -> None:
    world = World(protocol, seed=seed, loss=loss)
    world.run(4 * PROBE_INTERVAL_S)
    assert world.router.mapped(world.now)
    world.run(4 * 3600)
    assert world.router.mapped(world.now)


@BOTH
def test_a_silent_gateway_costs_one_series_each_five_minutes(protocol: str) -> None:
    world = World(protocol, router=Router(up=False))
    world.run(24 * 3600)
    tries = 9 if protocol == NATPMP else 4
    series = 24 * 3600 / (PROBE_INTERVAL_S * 0.9) + 1
    assert tries < len(world.router.heard) <= tries * series
    while world.way.state is State.PROBING:
        world.run(1)
    assert world.way.why == "it did not answer"


@BOTH
def test_a_gateway_that_falls_silent_is_given_up_and_found_again(protocol: str) -> None:
    world = World(protocol)
    world.run(50)
    world.router.up = False
    world.run(CHECK_S + 300)
    assert world.mapping is None
    world.router.up = True
    world.run(2 * PROBE_INTERVAL_S)
    assert world.mapping is not None


@BOTH
def test_a_refusal_is_told_and_not_pressed(protocol: str) -> None:
    world = World(protocol, router=Router(result=2))
    world.run(3600)
    assert "does not allow" in world.way.why
    assert len(world.router.heard) <= 2 * (3600 / (PROBE_INTERVAL_S * 0.9) + 1)
    world.router.result = 0
    world.run(2 * PROBE_INTERVAL_S + 7200)
    assert world.mapping is not None


@pytest.mark.parametrize("lifetime", [1, 29, 2**32 - 1])
@BOTH
def test_absurd_lifetimes_do_no_harm(protocol: str, lifetime: int) -> None:
    world = World(protocol, router=Router(grants=lambda asked: lifetime))
    world.run(24 * 3600)
    assert len(world.router.heard) < 24 * 60
    if lifetime < 30:
        assert world.way.why == f"it grants mappings for {lifetime} s only"
    else:
        assert world.mapping is not None
        assert world.mapping.lifetime_s == 24 * 3600


@BOTH
def test_a_gateway_that_restarts_all_the_time_has_us_ask_each_ten_seconds_at_most(
    protocol: str,
) -> None:
    world = World(protocol)
    world.router.heard.clear()
    for _ in range(600):
        world.router.restart(world.now)
        world.contest.look_again(world.now)
        world.run(1)
    assert len(world.router.heard) <= 2 * 600 / 10 + 4


@BOTH
@given(answers=st.lists(st.sampled_from(
    [Alive(5, WAN), Alive(), Granted(4000, 600, 5, NEW_WAN), Granted(0, 600, 5, NEW_WAN),
     Released(5), Gone(), Refused("no")]), max_size=50))  # fmt: skip
def test_what_nobody_asked_for_changes_nothing(protocol: str, answers: list) -> None:
    world = World(protocol)
    before, sent = world.mapping, len(world.router.heard)
    for answer in answers:
        world.way.received(answer, world.now)
    world.step()
    assert world.mapping == before
    assert len(world.router.heard) == sent


@BOTH
def test_a_mapping_whose_grant_was_lost_is_released_too(protocol: str) -> None:
    """The gateway may have mapped what we never heard of."""
    world = World(protocol, router=Router(up=False))
    world.way.received(Alive(5, WAN), world.now)
    world.way.hold(world.now)
    (asked,) = world.way.take_requests()
    world.router.up = True
    world.router.answer(world.dialects[protocol].encode(asked), world.now)
    assert world.router.mapped(world.now)
    assert world.mapping is None
    world.release()
    assert not world.router.mapped(world.now)


def test_after_a_crash_the_same_nonce_takes_the_mapping_over() -> None:
    """With another it would be refused until the old mapping ends."""
    router = Router()
    World(PCP, router=router)
    assert World(PCP, router=router).mapping is not None
    stranger = World(PCP, router=router, nonce=b"other twelve")
    assert stranger.mapping is None
    assert "does not allow" in stranger.way.why


def test_nothing_is_sent_at_the_end_where_nothing_was_asked() -> None:
    world = World(PCP, NATPMP)
    held, other = world.ways
    assert held.state is State.MAPPED
    assert other.state is State.READY
    world.router.heard.clear()
    world.release()
    assert [data[0] for _, data in world.router.heard] == [2]


def test_a_release_that_nobody_answers_ends() -> None:
    world = World(NATPMP)
    world.router.up = False
    before = world.now
    world.way.release(before)
    while world.way.state is State.RELEASING:
        world.now = world.way.timer()
        world.way.tick(world.now)
    assert world.now - before <= 2


@pytest.mark.parametrize(
    ("speaks", "used"),
    [({PCP, NATPMP}, PCP), ({NATPMP}, NATPMP), ({PCP}, PCP), (set(), None)],
)  # fmt: skip
def test_the_best_that_works_is_held(speaks: set[str], used: str | None) -> None:
    world = World(PCP, NATPMP, router=Router(speaks=frozenset(speaks)))
    world.run(3)
    assert (world.mapping.protocol if world.mapping else None) == used
    if used:
        assert world.told[-1][0] <= 1


def test_only_one_way_asks_for_a_mapping_at_a_time() -> None:
    world = World(PCP, NATPMP)
    world.run(24 * 3600)
    asked = {data[0] for _, data in world.router.heard if data[1] == 1}
    assert asked == {2}


def test_the_next_best_takes_over_when_the_best_fails() -> None:
    world = World(PCP, NATPMP)
    world.run(50)
    world.router.speaks = frozenset({NATPMP})
    world.run(CHECK_S + 200)
    assert world.mapping is not None
    assert world.mapping.protocol == NATPMP


def test_network_changes_without_end_cost_ever_fewer_probes() -> None:
    world = World(NATPMP, router=Router(up=False))
    for _ in range(3600):
        world.contest.look_again(world.now)
        world.run(1)
    assert len(world.router.heard) <= 9 * (3600 / PROBE_INTERVAL_S + 6)


def test_nothing_listening_ends_a_probe_but_no_mapping() -> None:
    world = World(NATPMP, PCP)
    held = world.way
    held.unreachable(world.now)
    assert held.state is State.MAPPED
    world.release()
    held.probe(world.now)
    held.unreachable(world.now)
    assert held.state is State.RESTING
    assert held.why == "nothing there listens"


def test_a_mapping_without_an_end_is_kept_until_released() -> None:
    """Some UPnP gateways give no other."""
    way = Way(UPNP, ROUTER, PORT, Pace(lambda _: iter((10.0,)), natpmp.lost_state), Random(1))
    way.probe(0)
    way.received(Alive(None, WAN), 0)
    way.hold(0)
    way.received(Granted(PORT, None, None, WAN), 0)
    assert way.mapping == Mapping(UPNP, ROUTER, (WAN, PORT), None, public=True)
    way.tick(CHECK_S)
    way.received(Gone(), CHECK_S)
    way.tick(CHECK_S)
    assert way.state is State.MAPPED
    assert [request.kind.value for request in way.take_requests()][-2:] == ["check", "ask"]
