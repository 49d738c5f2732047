"""The engine's surface: who costs what, hostile peers, floods, and what a person is told."""

import random
from ipaddress import ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.identity.keys import NodeId
from agent.paths import outputs as out
from agent.paths.book import PATIENCE_S
from agent.paths.candidates import PathClass, Surroundings
from agent.paths.credit import PROBES_BURST, PROBES_PER_S
from agent.paths.engine import GUEST_S, GUESTS_MAX, NEED_S, PathEngine
from agent.paths.messages import (
    Candidate,
    Kind,
    MtuAnswer,
    MtuProbe,
    NatKind,
    Observe,
    Observed,
    Ping,
    Place,
    Pong,
    Probe,
    RelayOffer,
    Signal,
    pack,
)
from agent.paths.own import ALARMS_BURST, RelayNode, Rendezvous

ME, PEER, HELPER, RELAY = (NodeId(bytes([n]) * 32) for n in (5, 6, 7, 8))
AROUND = Surroundings(
    interfaces=(ip_interface("192.168.1.10/24"),), overlay=(ip_network("10.77.0.0/16"),)
)
THERE = ("203.0.113.9", 4000)
RENDEZVOUS = Rendezvous(HELPER, ("198.51.100.1", 51820), ("198.51.100.1", 51821))
RELAYS = [RelayNode(RELAY, frozenset({"198.51.100.11"}))]


def engine(*, relays: bool = False) -> PathEngine:
    made = PathEngine(ME, random.Random(1), epoch=1)
    made.set_local(AROUND, [RENDEZVOUS], RELAYS if relays else [], 0.0)
    made.tick(0.0)
    for output in made.take():
        assert isinstance(output, out.SendProbe)
        seen = Observed(output.probe.token, pack(("198.51.100.77", 4000)))
        made.probe_received(HELPER, output.place, seen, 0.05)
    run(made, 0.05, 0.9)
    assert made.nat is NatKind.EASY
    return made


def signal(*places: Place, sequence: int = 1, kind: Kind = Kind.OBSERVED, **more: object) -> Signal:
    candidates = tuple(Candidate.of(kind, place) for place in places)
    return Signal(
        epoch=1,
        sequence=sequence,
        candidates=candidates,
        call_me=True,
        **more,  # type: ignore[arg-type]
    )


def run(made: PathEngine, start: float, end: float) -> list[tuple[float, out.Output]]:
    """Let time pass; return what was wanted, with its time."""
    done = [(start, output) for output in made.take()]
    now = start
    for _ in range(100_000):
        now = max(now, made.wake_at())
        if now > end:
            return done
        made.tick(now)
        done += [(now, output) for output in made.take()]
    raise AssertionError("a busy loop")


def probes(done: list[tuple[float, out.Output]], kind: type = Ping) -> list[out.SendProbe]:
    found = [output for _, output in done if isinstance(output, out.SendProbe)]
    return [output for output in found if isinstance(output.probe, kind)]


def prove(made: PathEngine, place: Place, now: float, peer: NodeId = PEER) -> None:
    """Answer the pings that go to a place."""
    for output in probes(run(made, now, now + 1.0)):
        if output.place == place:
            made.probe_received(
                peer, place, Pong(output.probe.token, pack(THERE), session=1), now + 1.0
            )
            return
    raise AssertionError("it was not pinged")


def test_an_engine_without_wishes_only_asks_its_rendezvous() -> None:
    made = PathEngine(ME, random.Random(1), epoch=1)
    made.set_local(AROUND, [RENDEZVOUS], RELAYS, 0.0)
    done = run(made, 0.0, 100.0)
    assert {type(output) for _, output in done} == {out.SendProbe}
    assert len(probes(done, Observe)) == len(done) <= 60


def test_a_ping_of_a_member_that_nobody_wants_is_answered_and_costs_no_more() -> None:
    made = engine()
    made.probe_received(PEER, THERE, Ping(7), 1.0)
    assert made.take() == [out.SendProbe(PEER, THERE, Pong(7, pack(THERE)))]
    made.probe_received(PEER, THERE, Ping(8, answer=False), 1.0)
    assert made.take() == []
    assert made.peers() == []


def test_a_rendezvous_answers_from_the_port_that_heard_the_question() -> None:
    made = engine()
    made.probe_received(PEER, THERE, Observe(7), 1.0, local_port=51821)
    assert made.take() == [out.SendProbe(PEER, THERE, Observed(7, pack(THERE)), 51821)]


def test_an_mtu_probe_is_answered_with_its_size() -> None:
    made = engine()
    made.probe_received(PEER, THERE, MtuProbe(7, 1400), 1.0)
    assert made.take() == [out.SendProbe(PEER, THERE, MtuAnswer(7, 1400))]


@pytest.mark.parametrize("probe", [Ping(1), Observe(1), MtuProbe(1, 1400)])
def test_a_flood_of_questions_gets_a_bounded_number_of_answers(probe: Probe) -> None:
    made = engine()
    for n in range(10_000):
        made.probe_received(PEER, THERE, probe, 1.0 + n / 10_000)
    assert len(made.take()) <= 261
    other = NodeId(bytes([99]) * 32)
    made.probe_received(other, THERE, probe, 2.0)
    assert len(made.take()) == 1


def test_a_flood_of_signals_is_bounded_work() -> None:
    made = engine()
    for n in range(5_000):
        place = (f"203.0.{n % 200}.{n % 250 + 1}", 1 + n % 60000)
        made.signal_received(PEER, signal(place, sequence=n + 1), 1.0 + n / 1000)
    done = run(made, 6.0, 60.0)
    places = {p.place for p in probes(done)}
    assert len(places) <= 64
    assert len(probes(done)) <= 54 * 40 + 80
    assert sum(isinstance(output, out.SendSignal) for _, output in done) <= 40


def test_strangers_that_call_are_bounded_in_number() -> None:
    made = engine()
    for n in range(1, 2 * GUESTS_MAX):
        made.signal_received(NodeId(n.to_bytes(32, "big")), signal(THERE), 1.0)
    assert len(made.peers()) == GUESTS_MAX
    run(made, 1.0, 2.0 + GUEST_S)
    assert made.peers() == []


def test_hostile_candidates_are_not_probed() -> None:
    made = engine()
    hostile = [
        ("127.0.0.1", 22),
        ("10.0.0.1", 53),
        ("10.77.1.1", 51820),
        ("224.0.0.1", 5353),
        ("192.168.1.255", 9),
        ("192.168.1.10", 51820),
        ("203.0.113.7", 0),
        ("169.254.169.254", 80),
        ("fe80::1", 1),
    ]
    made.signal_received(PEER, signal(*hostile, THERE), 1.0)
    assert {p.place for p in probes(run(made, 1.0, 60.0))} == {THERE}


def test_a_third_party_that_a_peer_names_is_sent_little_however_it_signals() -> None:
    made, sent = engine(), 0
    for n in range(600):  # ten minutes, a new place each time, and let go by us in between
        now = float(n)
        made.signal_received(PEER, signal(("203.0.114.9", 1000 + n), sequence=n + 1), now)
        sent += len(probes(run(made, now, now + 0.99)))
        if n % 60 == 59:
            made.forget(PEER, now + 0.99)
    assert 100 < sent <= PROBES_BURST + 600 * PROBES_PER_S


def test_an_offer_can_send_us_to_a_relay_only_after_an_answer() -> None:
    """The peer names a relay and a place that is not that relay's."""
    made = engine(relays=True)
    victim = ("203.0.113.66", 53)
    made.want(PEER, 1.0)
    offer = RelayOffer(RELAY.ed25519, pack(victim))
    made.signal_received(PEER, signal(THERE, offers=(offer,)), 1.0)
    done = run(made, 1.0, 30.0)
    assert not any(isinstance(o, out.SetEndpoint) and o.place == victim for _, o in done)
    inside = RelayOffer(RELAY.ed25519, pack(("10.1.1.1", 53)))
    made.signal_received(PEER, signal(THERE, sequence=2, offers=(inside,)), 30.0)
    assert ("10.1.1.1", 53) not in {p.place for p in probes(run(made, 30.0, 60.0))}


def test_a_pong_from_another_place_or_with_another_token_proves_nothing() -> None:
    made = engine()
    made.want(PEER, 1.0)
    made.signal_received(PEER, signal(THERE), 1.0)
    asked = [p for p in probes(run(made, 1.0, 2.0)) if p.place == THERE]
    elsewhere = ("203.0.113.10", 4000)
    made.probe_received(PEER, elsewhere, Pong(asked[0].probe.token, pack(THERE), session=1), 2.0)
    made.probe_received(PEER, THERE, Pong(asked[0].probe.token ^ 1, pack(THERE), session=1), 2.0)
    other = NodeId(bytes([99]) * 32)
    made.probe_received(other, THERE, Pong(asked[0].probe.token, pack(THERE), session=1), 2.0)
    assert not any(isinstance(output, out.SetEndpoint) for output in made.take())
    made.probe_received(PEER, THERE, Pong(asked[0].probe.token, pack(THERE), session=1), 2.0)
    assert any(isinstance(output, out.SetEndpoint) for output in made.take())


def test_a_ping_that_came_over_an_unknown_relay_makes_no_direct_path() -> None:
    made = engine()
    made.want(PEER, 1.0)
    made.probe_received(PEER, THERE, Ping(1, relayed=True), 1.0)
    done = run(made, 1.0, 10.0)
    assert probes(done) == []
    assert len(probes(done, Pong)) == 1
    made.probe_received(PEER, THERE, Ping(2), 10.0)
    assert {p.place for p in probes(run(made, 10.0, 11.0))} == {THERE}


def test_old_and_doubled_signals_change_nothing() -> None:
    made = engine()
    made.want(PEER, 1.0)
    newer = ("203.0.113.20", 4000)
    made.signal_received(PEER, signal(newer, sequence=5), 1.0)
    made.signal_received(PEER, signal(THERE, sequence=4), 1.1)
    made.signal_received(PEER, signal(THERE, sequence=5), 1.2)
    assert {p.place for p in probes(run(made, 1.2, 20.0))} == {newer}


def test_a_relay_that_is_proved_is_used_and_left_for_a_direct_path() -> None:
    made = engine(relays=True)
    made.want(PEER, 1.0)
    assert out.OpenRelay(PEER, RELAY) in made.take()
    leg = ("198.51.100.11", 7000)
    offer = RelayOffer(RELAY.ed25519, pack(("198.51.100.11", 7001)), b"t")
    made.relay_opened(PEER, RELAY, leg, offer, 1.1)
    prove(made, leg, 1.1)
    done = made.take()
    assert out.SetEndpoint(PEER, leg, RELAY) in done
    made.signal_received(PEER, signal(THERE), 2.2)
    prove(made, THERE, 2.2)
    done = made.take()
    assert out.SetEndpoint(PEER, THERE, None) in done
    assert out.HoldEndpoint(PEER, leg, THERE) in done
    view = made.describe(PEER, 3.3)
    assert view is not None
    assert (view.path_class, view.place, view.why) == (PathClass.PUNCHED, THERE, "")
    assert view.rtt_s is not None
    made.forget(PEER, 3.4)
    done = made.take()
    assert out.ReleaseEndpoint(PEER, leg) in done
    assert out.CloseRelay(PEER, RELAY) in done
    assert made.describe(PEER, 3.4) is None


def test_a_relay_is_used_unproved_when_nothing_answers() -> None:
    made = engine(relays=True)
    made.want(PEER, 1.0)
    leg = ("198.51.100.11", 7000)
    made.relay_opened(PEER, RELAY, leg, None, 1.1)
    done = run(made, 1.1, 6.0)
    at = min(t for t, o in done if o == out.SetEndpoint(PEER, leg, RELAY))
    assert at == pytest.approx(1.1 + PATIENCE_S, abs=0.5)


def test_a_relay_over_which_wireguard_hears_the_peer_is_what_is_told() -> None:
    """The peer took the relay first: packets cross before any ping of ours was answered."""
    made = engine(relays=True)
    made.want(PEER, 1.0)
    leg, other = ("198.51.100.11", 7000), ("198.51.100.99", 7000)
    made.relay_opened(PEER, RELAY, leg, None, 1.1)
    made.take()
    made.wireguard_seen(PEER, other, 100, 100, 1.15)
    assert made.describe(PEER, 1.15).path_class is None  # type: ignore[union-attr]
    made.wireguard_seen(PEER, leg, 200, 200, 1.2)
    view = made.describe(PEER, 1.2)
    assert view is not None
    assert (view.path_class, view.place) == (PathClass.RELAYED, leg)


@pytest.mark.parametrize(
    ("own", "theirs", "words"),
    [
        (NatKind.HARD, NatKind.HARD, "Both sides"),
        (NatKind.HARD, NatKind.EASY, "This node is behind a NAT"),
        (NatKind.EASY, NatKind.HARD, "The peer is behind a NAT"),
        (NatKind.EASY, NatKind.BLOCKED, "The peer's network lets no UDP through"),
        (NatKind.EASY, NatKind.EASY, "None of the peer's addresses answers"),
    ],
)
def test_why_a_peer_is_relayed(own: NatKind, theirs: NatKind, words: str) -> None:
    made = engine()
    for n, output in enumerate(probes([(0, o) for o in observe(made)], Observe)):
        seen = ("198.51.100.77", 4000 + (n if own is NatKind.HARD else 0))
        made.probe_received(HELPER, output.place, Observed(output.probe.token, pack(seen)), 21.0)
    made.want(PEER, 22.0)
    made.signal_received(PEER, signal(THERE, nat=theirs), 22.0)
    run(made, 22.0, 60.0)
    view = made.describe(PEER, 60.0)
    assert view is not None
    assert words in view.why


def observe(made: PathEngine) -> list[out.Output]:
    """Return the questions of the round at 20 s."""
    made.network_changed(20.0)
    made.tick(20.0)
    return made.take()


def test_why_before_the_peer_has_said_anything() -> None:
    made = engine()
    made.want(PEER, 1.0)
    view = made.describe(PEER, 2.0)
    assert view is not None
    assert view.path_class is None
    assert view.why == "The peer has not answered our signals yet."


def test_an_attempt_of_an_agent_that_started_again_is_a_new_one() -> None:
    made = engine()
    made.want(PEER, 1.0)
    shots = []
    for epoch, now in ((1, 1.0), (1, 15.0), (2, 30.0)):
        call = Signal(epoch=epoch, sequence=int(now), birthday=1,
                      candidates=(Candidate.of(Kind.OBSERVED, THERE),), call_me=True)  # fmt: skip
        made.signal_received(PEER, call, now)
        sent = probes(run(made, now, now + 10.0))
        shots.append(len({probe.place for probe in sent if probe.place[0] == THERE[0]}))
    first, repeated, after_its_restart = shots
    assert first > 1500
    assert repeated < 10, "the same attempt is not answered twice"
    assert after_its_restart > 1500


def test_a_call_of_a_peer_that_is_reached_has_its_path_asked_at_once() -> None:
    made = engine()
    made.want(PEER, 1.0)
    made.signal_received(PEER, signal(THERE), 1.0)
    prove(made, THERE, 1.0)
    for output in probes(run(made, 2.0, 2.01)):  # the one that nominates
        made.probe_received(PEER, THERE, Pong(output.probe.token, pack(THERE), session=1), 2.02)
    assert not probes(run(made, 2.02, 5.0))
    made.signal_received(PEER, signal(THERE, sequence=2), 5.0)
    assert [probe.place for probe in probes(run(made, 5.0, 5.01))] == [THERE]


def test_signals_about_a_path_that_just_died_say_that_the_link_may_be_dead_too() -> None:
    made = engine()
    made.want(PEER, 1.0)
    made.signal_received(PEER, signal(THERE), 1.0)
    first = [o for _, o in run(made, 1.0, 1.5) if isinstance(o, out.SendSignal)]
    assert first
    assert not any(output.doubtful for output in first)
    made.signal_received(PEER, signal(THERE, sequence=2), 1.5)
    prove(made, THERE, 1.5)
    for at in (2.6, 3.1):  # packets flow
        made.wireguard_seen(PEER, THERE, int(at * 1e6), int(at * 1e6), at)
    said = [o.doubtful for _, o in run(made, 3.1, 6.0) if isinstance(o, out.SendSignal)]
    assert said[-1]
    assert said == sorted(said), "none is said without doubt once there is one"


def test_a_peer_is_unheard_until_it_says_something_and_again_when_it_left() -> None:
    made = engine()
    made.want(PEER, 1.0)

    def said(start: float, end: float) -> set[bool]:
        done = run(made, start, end)
        return {o.unheard for _, o in done if isinstance(o, out.SendSignal) and o.peer == PEER}

    assert said(1.0, 3.0) == {True}
    made.came_up(PEER, 3.0)
    assert said(3.0, 5.0) == {False}
    made.left(PEER, 5.0)
    made.left(PEER, 5.1)
    made.signal_received(PEER, signal(THERE), 9.0)
    assert said(9.0, 12.0) == {False}


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            "want forget call go quiet ping pong stale_pong nominate wg roam open fail net local "
            "birthday socket tick".split()
        ),
        st.integers(0, 3),
        st.floats(0.0, 5.0),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(EVENTS)
def test_any_order_of_events(events: list[tuple[str, int, float]]) -> None:
    """Endpoints only where it answered or to a relay; what was opened is closed in the end."""
    made = engine(relays=True)
    places = [THERE, ("203.0.113.10", 5), ("192.168.1.20", 51820), ("198.51.100.11", 7002)]
    peers = [PEER, NodeId(bytes([3]) * 32)]
    sent: list[out.SendProbe] = []
    answered: set[tuple[NodeId, Place]] = set()
    legs: set[Place] = {("198.51.100.11", 7000 + n) for n in range(4)}
    standing: set[object] = set()
    now = 1.0

    def absorb() -> None:
        for output in made.take():
            match output:
                case out.SendProbe(probe=Ping()):
                    sent.append(output)
                case out.SetEndpoint(peer=peer, place=place, relay=relay):
                    assert (peer, place) in answered or (relay == RELAY and place in legs)
                case out.HoldEndpoint(peer=peer, old=old):
                    assert ("hold", peer, old) not in standing
                    standing.add(("hold", peer, old))
                case out.ReleaseEndpoint(peer=peer, old=old):
                    standing.remove(("hold", peer, old))
                case out.AddSnat(peer=peer, place=place):
                    assert ("snat", peer, place) not in standing
                    standing.add(("snat", peer, place))
                case out.RemoveSnat(peer=peer, place=place):
                    standing.remove(("snat", peer, place))
                case out.StartBirthday(peer=peer):
                    assert ("sockets", peer) not in standing
                    standing.add(("sockets", peer))
                case out.StopBirthday(peer=peer):
                    standing.remove(("sockets", peer))

    for sequence, (name, n, wait) in enumerate(events, start=1):
        peer, place = peers[n % 2], places[n]
        match name:
            case "want":
                made.want(peer, now)
            case "forget":
                made.forget(peer, now)
            case "call":
                offer = RelayOffer(RELAY.ed25519, pack(("198.51.100.11", 7003)), bytes([n]))
                made.signal_received(
                    peer,
                    signal(*places[: n + 1], sequence=sequence, offers=(offer,), nat=NatKind(n)),
                    now,
                )
            case "go":
                going = Signal(epoch=1, sequence=sequence, heard_epoch=1, heard=n, go=True)
                made.signal_received(peer, going, now)
            case "quiet":
                made.signal_received(peer, Signal(epoch=n, sequence=n), now)
            case "birthday":
                made.signal_received(peer, signal(THERE, sequence=sequence, birthday=n), now)
            case "ping" | "nominate":
                made.probe_received(peer, place, Ping(n, nominates=name == "nominate"), now)
            case "socket":
                made.probe_received(peer, place, Ping(n), now, local_port=30000 + n)
            case "pong" if sent:
                last = sent[-1 - n % len(sent)]
                answered.add((last.peer, last.place))
                pong = Pong(last.probe.token, pack(THERE), session=1)
                made.probe_received(last.peer, last.place, pong, now)
            case "stale_pong":
                made.probe_received(peer, place, Pong(n, pack(THERE), session=1), now)
            case "wg" | "roam":
                endpoint = place if name == "roam" else None
                session = sequence % 3 > 0
                made.wireguard_seen(peer, endpoint, sequence * n, sequence, now, session=session)
            case "open":
                leg = ("198.51.100.11", 7000 + n)
                made.relay_opened(peer, RELAY, leg, RelayOffer(RELAY.ed25519, pack(leg)), now)
            case "fail":
                made.relay_failed(peer, RELAY, now)
            case "net":
                made.network_changed(now)
            case "local":
                made.set_local(AROUND, [RENDEZVOUS], RELAYS if n % 2 else [], now)
        absorb()
        end = now + wait
        for _ in range(3000):
            now = max(now, made.wake_at())
            if now > end:
                break
            made.tick(now)
            absorb()
        else:
            raise AssertionError("a busy loop")
        now = end
    for peer in peers:
        made.forget(peer, now)
    absorb()
    assert standing == set()


def test_a_rendezvous_that_becomes_known_late_is_asked_in_full_at_once() -> None:
    """Else a network that blocks UDP would be found out a whole pause later."""
    made = engine()
    made.set_local(Surroundings(), (), (), 0.0)
    made.tick(0.0)
    made.set_local(Surroundings(), (Rendezvous(PEER, THERE),), (), 0.3)
    asked = 0
    now = 0.3
    while now < 3.0:
        made.tick(now)
        asked += sum(
            isinstance(o, out.SendProbe) and isinstance(o.probe, Observe) for o in made.take()
        )
        now += 0.05
    assert asked >= 3
    assert made.nat is NatKind.BLOCKED


def test_a_path_counts_once_the_peers_wireguard_takes_handshakes() -> None:
    """Else the first handshake is lost, and WireGuard begins the next 5 s later."""
    made = engine()
    made.want(PEER, 1.0)
    made.signal_received(PEER, signal(THERE), 1.0)
    asked = [p for p in probes(run(made, 1.0, 2.0)) if p.place == THERE]
    made.probe_received(PEER, THERE, Pong(asked[0].probe.token, pack(THERE)), 2.0)
    assert not any(isinstance(output, out.SetEndpoint) for output in made.take())
    made.probe_received(PEER, THERE, Pong(asked[1].probe.token, pack(THERE), session=7), 2.0)
    assert any(isinstance(output, out.SetEndpoint) for output in made.take())


def test_who_does_not_begin_handshakes_says_when_it_takes_them() -> None:
    higher = PathEngine(NodeId(bytes([255]) * 32), random.Random(1), 1)
    higher.need(PEER, 1.0)
    higher.probe_received(PEER, THERE, Ping(1, wants=True), 1.0)
    (early,) = [p.probe for p in probes([(1.0, o) for o in higher.take()], Pong)]
    assert early.session == 0
    higher.ready([PEER], 1.1)
    assert probes([(1.1, o) for o in higher.take()]), "and tells so by a ping"
    higher.probe_received(PEER, THERE, Ping(2, wants=True), 1.2)
    (later,) = [p.probe for p in probes([(1.2, o) for o in higher.take()], Pong)]
    assert later.session > 0


def test_a_peer_whose_wireguard_was_made_anew_gets_another_handshake() -> None:
    made = engine()
    made.want(PEER, 1.0)
    for session, renewed in ((5, False), (5, False), (6, True), (6, False)):
        now = 10.0 * session
        made.probe_received(PEER, THERE, Ping(1, session=session), now)
        assert any(isinstance(o, out.RenewSession) for o in made.take()) is renewed


def test_who_is_needed_is_kept_while_packets_flow_and_then_let_go() -> None:
    made = engine()
    made.need(PEER, 1.0)
    made.wireguard_seen(PEER, None, 0, 0, 1.0)
    for now in range(10, 400, 10):
        made.wireguard_seen(PEER, None, 1000 * now, 0, float(now))
        made.tick(float(now))
    assert made.peers() == [PEER]
    made.tick(399.0 + NEED_S)
    assert made.peers() == []


def test_keepalives_and_questions_are_no_use() -> None:
    made = engine()
    made.need(PEER, 1.0)
    for now in range(10, 200, 10):
        made.wireguard_seen(PEER, None, 40 * now, 40 * now, float(now))
        made.tick(float(now))
    assert made.peers() == []


def test_who_is_wanted_there_is_kept_here_and_who_is_let_go_is_not() -> None:
    made = engine()
    made.probe_received(PEER, THERE, Ping(1), 1.0)
    assert made.peers() == [], "it only asks"
    made.probe_received(PEER, THERE, Ping(2, wants=True), 2.0)
    assert made.peers() == [PEER]
    made.tick(2.0 + GUEST_S + 1)
    assert made.peers() == []
    made.want(PEER, 100.0)
    made.tick(1000.0)
    assert made.peers() == [PEER]
    made.let_go(PEER, 1000.0)
    made.tick(1001.0 + NEED_S)
    assert made.peers() == []


def test_when_everybody_is_slow_few_are_called_in_haste() -> None:
    """A machine that is too busy to hear its peers in time must not get more to do."""
    made = engine()
    peers = [NodeId(bytes([n]) * 32) for n in range(20, 20 + 3 * int(ALARMS_BURST))]
    for n, peer in enumerate(peers):
        made.introduce(peer, [("203.0.113.9", 5000 + n)], 1.0)
        made.want(peer, 1.0)
    places = {("203.0.113.9", 5000 + n): peer for n, peer in enumerate(peers)}
    now, carried = 1.0, 0
    called: list[float] = []
    while now < 12.0:
        silent = now >= 6.0
        if int(now * 2) > carried:
            carried = int(now * 2)
            for place, peer in places.items():
                came = 50_000 * min(carried, 12)  # nothing from 6.0 on
                made.wireguard_seen(peer, place, came, 50_000 * carried, now)
        for output in made.take():
            if isinstance(output, out.SendSignal) and silent and output.signal.call_me:
                called.append(now)
            asked = isinstance(output, out.SendProbe) and isinstance(output.probe, Ping)
            if asked and not silent and output.place in places:
                answer = Pong(output.probe.token, pack(THERE), session=1)
                made.probe_received(places[output.place], output.place, answer, now + 0.001)
        now += 0.01
        made.tick(now)
    first = [at for at in called if at < 6.0 + 1.0]
    assert 0 < len(first) <= ALARMS_BURST
    assert len(called) > len(first), "the others in their rounds"


def flowing(made: PathEngine, start: float, end: float, *, answers: bool, receives: bool) -> int:
    """Let packets flow on THERE; return how many endpoints were set."""
    count, at = 0, start
    while at < end:
        carried = int(at * 40_000)
        came = carried if receives else int(start * 40_000)
        made.wireguard_seen(PEER, THERE, came, carried, at)
        for _ in range(50):
            at += 0.01
            made.tick(at)
            for output in made.take():
                count += isinstance(output, out.SetEndpoint)
                asked = isinstance(output, out.SendProbe) and isinstance(output.probe, Ping)
                if answers and asked and output.place == THERE:
                    pong = Pong(output.probe.token, pack(THERE), session=1)
                    made.probe_received(PEER, THERE, pong, at + 0.005)
    return count


def test_a_peer_whose_agent_alone_is_dead_keeps_its_path_and_its_return_disturbs_nothing() -> None:
    made = engine(relays=True)
    made.want(PEER, 1.0)
    made.signal_received(PEER, signal(THERE), 1.0)
    prove(made, THERE, 1.0)
    flowing(made, 2.0, 8.0, answers=True, receives=True)
    assert flowing(made, 8.0, 70.0, answers=False, receives=True) == 0
    view = made.describe(PEER, 70.0)
    assert view is not None
    assert view.place == THERE
    assert flowing(made, 70.0, 76.0, answers=True, receives=True) == 0
    view = made.describe(PEER, 76.0)
    assert view is not None
    assert view.place == THERE
    assert view.path_class is PathClass.PUNCHED


def test_a_peer_whose_machine_is_dead_loses_its_path_as_soon_as_before() -> None:
    made = engine()
    made.want(PEER, 1.0)
    made.signal_received(PEER, signal(THERE), 1.0)
    prove(made, THERE, 1.0)
    flowing(made, 2.0, 8.0, answers=True, receives=True)
    flowing(made, 8.0, 11.0, answers=False, receives=False)
    view = made.describe(PEER, 11.0)
    assert view is not None
    assert view.path_class is None


def test_a_path_that_was_given_up_is_used_again_if_only_the_agent_is_silent() -> None:
    """While nothing flows nobody knows, until the next keepalive."""
    made = engine()
    made.want(PEER, 1.0)
    made.signal_received(PEER, signal(THERE), 1.0)
    prove(made, THERE, 1.0)
    run(made, 2.0, 40.0)
    view = made.describe(PEER, 40.0)
    assert view is not None
    assert view.path_class is None
    for at, rx in ((40.0, 0), (41.0, 0), (42.0, 32)):
        made.wireguard_seen(PEER, THERE, rx, 1000, at)
    view = made.describe(PEER, 42.0)
    assert view is not None
    assert view.place == THERE


def test_who_goes_on_with_the_same_interface_says_the_same_session() -> None:
    def said(birth: int, *, forgotten: bool = False) -> int:
        made = PathEngine(ME, random.Random(), epoch=1)
        made.resume(birth)
        made.need(PEER, 1.0)
        if forgotten:
            made.forget(PEER, 1.0)
            made.need(PEER, 1.0)
        made.ready([PEER], 1.0)
        made.probe_received(PEER, THERE, Ping(1, wants=True), 1.0)
        (pong,) = probes([(1.0, o) for o in made.take()], Pong)
        assert isinstance(pong.probe, Pong)
        return pong.probe.session

    assert said(7) == said(7) > 0
    assert said(7) != said(8)
    assert said(7) != said(7, forgotten=True), "WireGuard forgot its session with the peer"
    assert said(0) != said(0), "nobody said which interface it is"
