"""The gossip router in a simulated network: complete delivery, and bounds against hostile links."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest

from agent.control import authors, envelope, gossip, outbox, rpc, wanted
from agent.control.gossip import Gossip
from agent.control.rpc import Rpc, RpcError
from agent.identity.keys import NodeKey

pytestmark = pytest.mark.slow

WALL = 1_700_000_000.0
TOPIC = "health"


def key(number: int) -> NodeKey:
    return NodeKey(number.to_bytes(32, "big"))


class Net:
    """Nodes and links with virtual time; `lose` decides which RPCs vanish."""

    def __init__(self, count: int, edges: Iterable[tuple[int, int]]) -> None:
        self.keys = [key(n + 1) for n in range(count)]
        self.ids = [each.id.ed25519 for each in self.keys]
        self.now = 1000.0
        self.nodes = [Gossip(each) for each in self.ids]
        self.got: list[list[bytes]] = [[] for _ in range(count)]
        self.sequence = 0
        self.rpcs = 0
        self.lose: Callable[[int, int], bool] = lambda source, target: False
        self.links: set[tuple[int, int]] = set()
        for node in self.nodes:
            node.set_members(set(self.ids), self.now, WALL)
            node.subscribe(TOPIC)
        for one, two in edges:
            self.link(one, two)
        self.run()

    def link(self, one: int, two: int) -> None:
        self.links |= {(one, two), (two, one)}
        self.nodes[one].add_peer(self.ids[two], self.now)
        self.nodes[two].add_peer(self.ids[one], self.now)

    def cut(self, one: int, two: int) -> None:
        self.links -= {(one, two), (two, one)}
        self.nodes[one].remove_peer(self.ids[two])
        self.nodes[two].remove_peer(self.ids[one])

    def seal(self, author: int, payload: bytes, topic: str = TOPIC, age_s: float = 0.0) -> bytes:
        self.sequence += 1
        sent_ms = int((self.wall - age_s) * 1000)
        return envelope.seal(self.keys[author], topic, payload, sent_ms, self.sequence)

    @property
    def wall(self) -> float:
        return WALL + self.now

    def publish(self, author: int, payload: bytes) -> None:
        self.nodes[author].publish(TOPIC, self.seal(author, payload), self.now)
        self.got[author].append(payload)

    def flush(self) -> None:
        """Move RPCs until all queues are empty."""
        moving = True
        while moving:
            moving = False
            for source, node in enumerate(self.nodes):
                for peer in node.pending():
                    raw = node.take(peer, self.now)
                    target = self.ids.index(peer)
                    moving = True
                    self.rpcs += 1
                    if raw is None or (source, target) not in self.links:
                        continue
                    if not self.lose(source, target):
                        self.deliver(source, target, raw)

    def deliver(self, source: int, target: int, raw: bytes) -> None:
        node = self.nodes[target]
        for arrival in node.receive(self.ids[source], raw, self.now, self.wall):
            self.got[target].append(arrival.payload)
            node.settle(arrival.id, arrival.payload != b"nonsense", self.now)

    def run(self, seconds: float = 0.0) -> None:
        end = self.now + seconds
        self.flush()
        while True:
            times = [t for t in (node.wake_at() for node in self.nodes) if t is not None]
            if not times or min(times) > end:
                break
            self.now = max(self.now, min(times))
            for node in self.nodes:
                node.tick(self.now)
            self.flush()
        self.now = end


def star(count: int) -> list[tuple[int, int]]:
    return [(0, n) for n in range(1, count)]


def graph(count: int, links: int, seed: int = 1) -> list[tuple[int, int]]:
    chance = random.Random(seed)
    edges = {(n, n + 1) for n in range(count - 1)}
    edges |= {
        (min(a, b), max(a, b))
        for a in range(count)
        for b in chance.sample([n for n in range(count) if n != a], links)
    }
    return sorted(edges)


@pytest.mark.parametrize("edges", [star(30), graph(30, 2)], ids=["star", "graph"])
def test_everybody_gets_every_message_once_and_at_once(edges: list[tuple[int, int]]) -> None:
    net = Net(30, edges)
    sent = [b"%d" % n for n in range(60)]
    for n, payload in enumerate(sent):
        net.publish(n % 30, payload)
    net.run()
    for got in net.got:
        assert sorted(got) == sorted(sent)


@pytest.mark.parametrize("edges", [star(12), graph(12, 2)], ids=["star", "graph"])
def test_what_is_lost_without_a_trace_is_repaired_by_and_by(edges: list[tuple[int, int]]) -> None:
    net = Net(12, edges)
    chance = random.Random(5)
    net.lose = lambda source, target: chance.random() < 0.6
    sent = [b"%d" % n for n in range(24)]
    for n, payload in enumerate(sent):
        net.publish(n % 12, payload)
        net.run()
    net.run(0.2)
    assert any(len(got) < 24 for got in net.got)
    net.lose = lambda source, target: False
    net.run(gossip.REPAIR_S + 2 * gossip.REPAIR_GRID_S)
    for got in net.got:
        assert sorted(got) == sorted(sent)


def test_what_was_lost_with_a_stream_comes_at_once_by_the_next() -> None:
    net = Net(2, [(0, 1)])
    net.lose = lambda source, target: True
    net.publish(0, b"lost")
    net.run(0.1)
    net.lose = lambda source, target: False
    net.run(0.1)
    assert net.got[1] == []
    net.link(0, 1)
    net.run(0.1)
    assert net.got[1] == [b"lost"]


def test_a_new_link_hears_what_was_published_before() -> None:
    net = Net(3, [(0, 1)])
    net.publish(0, b"early")
    net.run(60.0)
    net.link(1, 2)
    net.run()
    assert net.got[2] == [b"early"]
    net.cut(1, 2)
    net.run(gossip.KEPT_S)
    net.link(0, 2)
    net.run()
    assert net.got[2] == [b"early"]


def test_nothing_is_sent_and_nobody_wakes_while_nobody_publishes() -> None:
    net = Net(4, graph(4, 2))
    net.publish(0, b"x")
    net.run(gossip.KEPT_S + 1)
    assert [node.wake_at() for node in net.nodes] == [None] * 4
    before = net.rpcs
    net.run(3600.0)
    assert net.rpcs == before


def test_a_message_costs_few_rpcs() -> None:
    """A link carries the message one or two times and a few repairs, whatever happens later."""
    net = Net(30, graph(30, 2))
    before = net.rpcs
    net.publish(0, b"x")
    net.run(gossip.KEPT_S + 1)
    assert net.rpcs - before <= len(net.links) * 2


def test_what_a_subscriber_refuses_is_not_passed_on() -> None:
    net = Net(3, [(0, 1), (1, 2)])
    net.publish(0, b"nonsense")
    net.publish(0, b"sense")
    net.run(gossip.KEPT_S)
    assert net.got[1] == [b"nonsense", b"sense"]
    assert net.got[2] == [b"sense"]
    assert net.nodes[1].counts["refused"] == 1


def test_strangers_messages_are_neither_kept_nor_passed_on_until_they_are_members() -> None:
    net = Net(4, [(0, 1), (1, 2), (2, 3)])
    members = set(net.ids) - {net.ids[0]}
    for node in net.nodes[1:]:
        node.set_members(members, net.now, net.wall)
    net.publish(0, b"unknown")
    net.run(1.0)
    assert net.got[1] == []
    assert net.nodes[1].counts["stranger"] >= 1
    # The forwarder is not punished, and once the author is known its message still comes through.
    assert net.nodes[1].debt_s(net.ids[0], net.now) == 0
    for node in net.nodes[1:]:
        node.set_members(set(net.ids), net.now, net.wall)
    net.run(0.1)
    assert net.got[1] == net.got[2] == net.got[3] == [b"unknown"]


def test_a_revoked_author_is_no_longer_heard() -> None:
    net = Net(3, [(0, 1), (1, 2)])
    for node in net.nodes:
        node.set_members(set(net.ids) - {net.ids[0]}, net.now, net.wall)
    net.publish(0, b"too late")
    net.run(60.0)
    assert net.got[1] == net.got[2] == []


def give(net: Net, target: int, source: int, *data: bytes, topic: str = TOPIC) -> None:
    net.deliver(source, target, rpc.encode(Rpc(published=[(topic, each) for each in data])))


def test_what_is_addressed_to_another_is_passed_on_and_delivered_to_that_one_alone() -> None:
    net = Net(5, [(0, 1), (1, 2), (2, 3), (3, 4)])
    topic = f"{gossip.ADDRESSED}signals"
    for node in net.nodes:
        node.subscribe(topic)
    net.run()
    payload = net.ids[3] + b"for you"
    net.nodes[0].publish(topic, net.seal(0, payload, topic=topic), net.now)
    net.run()
    assert net.got == [[], [], [], [payload], []]
    net.link(0, 4)
    net.run()
    assert net.got == [[], [], [], [payload], []]


def test_a_new_link_hears_of_no_old_message_for_one_member() -> None:
    net = Net(2, [])
    topic = f"{gossip.ADDRESSED}signals"
    for node in net.nodes:
        node.subscribe(topic)
    old, new = net.ids[1] + b"I was there", net.ids[1] + b"I am here"
    net.nodes[0].publish(topic, net.seal(0, old, topic=topic), net.now)
    net.publish(0, b"for all")
    net.run(gossip.ADDRESSED_S)
    net.nodes[0].publish(topic, net.seal(0, new, topic=topic), net.now)
    net.link(0, 1)
    net.run()
    assert sorted(net.got[1]) == sorted([new, b"for all"])


def test_what_is_addressed_and_too_long_goes_no_further() -> None:
    net = Net(3, [(0, 1), (1, 2)])
    topic = f"{gossip.ADDRESSED}signals"
    for node in net.nodes:
        node.subscribe(topic)
    net.run()
    payload = net.ids[2] + bytes(gossip.MAX_ADDRESSED_BYTES)
    net.nodes[0].publish(topic, net.seal(0, payload, topic=topic), net.now)
    net.run(30.0)
    assert net.got == [[], [], []]
    assert net.nodes[1].counts["refused"] == 1


def test_what_is_addressed_takes_few_ways_and_yet_arrives() -> None:
    count, sent = 60, 150
    net = Net(count, graph(count, 4))
    topic = f"{gossip.ADDRESSED}signals"
    for node in net.nodes:
        node.subscribe(topic)
    net.run()
    chance, costs = random.Random(3), []
    for n in range(sent):
        author, addressee = chance.sample(range(count), 2)
        payload = net.ids[addressee] + b"%d" % n
        before = net.rpcs
        net.nodes[author].publish(topic, net.seal(author, payload, topic=topic), net.now)
        net.flush()
        costs.append(net.rpcs - before)
    at_once = sum(len(got) for got in net.got)
    assert at_once >= 0.99 * sent
    assert max(costs) <= count * (gossip.FANOUT + 1) < len(net.links)
    net.run(2 * gossip.REPAIR_GRID_S)
    assert sum(len(got) for got in net.got) == sent


def test_old_future_forged_and_misplaced_messages_are_dropped() -> None:
    net = Net(3, [(0, 1), (1, 2)])
    good = net.seal(2, b"good")
    forged = bytearray(good)
    forged[-1] ^= 1
    give(net, 1, 0, net.seal(2, b"old", age_s=authors.MAX_AGE_S + 1))
    give(net, 1, 0, net.seal(2, b"future", age_s=-authors.MAX_AGE_S - 1))
    give(net, 1, 0, bytes(forged))
    give(net, 1, 0, b"no envelope")
    give(net, 1, 0, net.seal(2, b"elsewhere", topic="load"))
    give(net, 1, 0, net.seal(1, b"our own"))
    give(net, 1, 0, net.seal(2, b"load", topic="load"), topic="load")
    assert net.got[1] == []
    give(net, 1, 0, good)
    assert net.got[1] == [b"good"]
    counts = net.nodes[1].counts
    assert (counts["clock"], counts["forged"], counts["seen"]) == (2, 3, 1)


def test_a_message_is_taken_once_however_often_and_however_late_it_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gossip, "MAX_SEEN", 4)
    monkeypatch.setattr(gossip, "MAX_KEPT_MESSAGES", 4)
    net = Net(3, [(0, 1), (1, 2)])
    old = [net.seal(2, b"%d" % n) for n in range(30)]
    for data in old:
        give(net, 1, 0, data)
        net.now += 0.1
    assert len(net.got[1]) == 30
    for data in old:
        give(net, 1, 0, data)
    assert len(net.got[1]) == 30


def test_an_author_has_a_rate_and_what_is_over_it_comes_later() -> None:
    net = Net(2, [(0, 1)])
    for n in range(int(authors.BURST) + 50):
        net.publish(0, b"%d" % n)
    net.run()
    assert len(net.got[1]) == authors.BURST
    assert net.nodes[1].counts["rate"] == 50
    net.run(15.0)
    assert len(net.got[1]) > authors.BURST + 40


def test_a_link_that_forges_or_floods_is_read_more_slowly() -> None:
    net = Net(3, [(0, 1), (1, 2)])
    node, link = net.nodes[1], net.ids[0]
    assert node.debt_s(link, net.now) == 0
    for n in range(100):
        give(net, 1, 0, b"forged %d" % n)
    assert node.debt_s(link, net.now) > 10
    assert node.debt_s(net.ids[2], net.now) == 0
    net.now += 60
    assert node.debt_s(link, net.now) == 0
    for _ in range(40):
        with pytest.raises(RpcError):
            node.receive(link, b"\xff", net.now, net.wall)
    assert node.debt_s(link, net.now) > 0


def test_hostile_control_messages_leave_the_memory_bounded() -> None:
    net = Net(3, [(0, 1), (1, 2)])
    node, link = net.nodes[1], net.ids[0]
    chance = random.Random(1)
    for n in range(60):
        flood = Rpc(
            subscriptions=[(f"topic {n} {m}", True) for m in range(100)],
            ihave=[(TOPIC, [chance.randbytes(20) for _ in range(500)])],
            iwant=[chance.randbytes(20) for _ in range(500)],
            graft=[f"topic {m}" for m in range(100)],
            prune=[f"topic {m}" for m in range(100)],
        )
        node.receive(link, rpc.encode(flood), net.now, net.wall)
    peer = node._peers[link]
    assert len(peer.topics) == gossip.MAX_TOPICS_PER_PEER
    assert not peer.told_only
    assert len(node._wanted) == wanted.MAX_WANTED
    assert len(peer.outbox._iwant) <= outbox.MAX_IDS
    net.publish(2, b"still works")
    net.run()
    assert b"still works" in net.got[1]


def test_asking_again_and_again_is_answered_a_few_times() -> None:
    net = Net(2, [(0, 1)])
    net.publish(0, b"x" * 1000)
    net.run()
    name = next(iter(net.nodes[0]._kept))
    served = 0
    for _ in range(50):
        ask = rpc.encode(Rpc(iwant=[name] * 20))
        net.nodes[0].receive(net.ids[1], ask, net.now, net.wall)
        while (raw := net.nodes[0].take(net.ids[1], net.now)) is not None:
            served += len(rpc.decode(raw).published)
    assert 0 < served <= gossip.MAX_SERVED


def test_a_link_that_takes_nothing_is_told_later_what_it_missed() -> None:
    net = Net(2, [(0, 1)])
    sent = [bytes([n]) * 60_000 for n in range(40)]
    for payload in sent:
        net.publish(0, payload)
    waiting = net.nodes[0]._peers[net.ids[1]].outbox
    assert waiting._bytes <= outbox.MAX_BYTES
    net.run()
    net.run(20.0)
    assert sorted(net.got[1]) == sent


def test_a_pruned_topic_is_told_and_a_graft_brings_it_back() -> None:
    net = Net(2, [(0, 1)])
    node, link = net.nodes[0], net.ids[1]
    node.receive(link, rpc.encode(Rpc(prune=[TOPIC])), net.now, net.wall)
    node.publish(TOPIC, net.seal(0, b"1"), net.now)
    told = rpc.decode(node.take(link, net.now) or b"")
    assert told.published == []
    assert len(told.ihave[0][1]) == 1
    node.receive(link, rpc.encode(Rpc(graft=[TOPIC])), net.now, net.wall)
    node.publish(TOPIC, net.seal(0, b"2"), net.now)
    assert len(rpc.decode(node.take(link, net.now) or b"").published) == 1


def test_who_does_not_subscribe_gets_nothing() -> None:
    net = Net(2, [(0, 1)])
    unsubscribe = Rpc(subscriptions=[(TOPIC, False)])
    net.nodes[0].receive(net.ids[1], rpc.encode(unsubscribe), net.now, net.wall)
    net.publish(0, b"x")
    net.run(60.0)
    assert net.got[1] == []


def test_members_who_left_are_forgotten_in_the_end() -> None:
    net = Net(2, [(0, 1)])
    net.publish(0, b"x")
    net.run()
    known = net.nodes[1]._authors
    known.set_members({net.ids[1]}, net.wall)
    assert net.ids[0] in known._authors
    known.set_members({net.ids[1]}, net.wall + 2 * authors.MAX_AGE_S)
    assert known._authors == {}
