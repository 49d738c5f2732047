"""The real kernel with our tables: it does what `explain` says, and nothing to anyone else."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from random import Random

import acl_worlds as worlds
import pytest
from acl_probes import Probe, reached
from acl_wire import LAN, LAN_PEER, MEMBERS, NAMESPACE, OVERLAY, OVERLAY_PEER, Services, Wire, do
from acl_worlds import COVEY

from agent.acl.firewall import Finished, Firewall, run_nft
from agent.acl.policy import Policy, parse
from agent.acl.ruleset import ruleset
from agent.acl.service import Acl
from agent.acl.verdict import explain
from agent.errors import EnvironmentFault
from agent.health import Health

WORLDS = 20
OWN = worlds.subject(0)
PEERS = [worlds.subject(number) for number in range(MEMBERS)]
RULE = '[[rule]]\nfrom = ["name:node-1"]\nto = "*"\nports = ["tcp:22"]\naction = "{}"\n'
ALLOW, DENY = (parse(RULE.format(action).encode(), "acl.toml") for action in ("allow", "deny"))
OPERATOR = """
table inet operator {
  chain input {
    type filter hook input priority filter; policy accept;
    tcp dport 23 drop
    tcp dport 8005 accept
  }
}
"""


@pytest.fixture
async def wall() -> AsyncIterator[Firewall]:
    made = Firewall(OVERLAY)
    yield made
    await made.remove()
    assert "covey-" not in do("nft", "list", "tables")


def table(policy: Policy, members: Sequence[worlds.Subject] = PEERS) -> str:
    return ruleset(OVERLAY, policy, COVEY, OWN, members)


async def test_the_kernel_agrees_with_explain(
    wire: Wire, services: Services, wall: Firewall
) -> None:
    told = set()
    for seed in range(WORLDS):
        random = Random(seed)
        members = worlds.members(random, MEMBERS)
        policy = worlds.policy(random, MEMBERS, 6)
        own = members[0]
        await wall.apply(ruleset(OVERLAY, policy, COVEY, own, members))
        verdicts = {
            Probe(source, to, protocol, port): explain(policy, COVEY, member, own, protocol, port)
            for member in members[1:]
            for source, to in ((member.ipv6, own.ipv6), (member.ipv4, own.ipv4))
            for protocol, port in worlds.all_ports()
        }
        found = await asyncio.to_thread(reached, wire, services, verdicts)
        wrong = {p: v for p, v in verdicts.items() if found[p] != v.allowed}
        assert wrong == {}, seed
        told |= {(v.rule, v.allowed) for v in verdicts.values()}
        counted = await wall.counters()
        assert {r for r, _ in told if isinstance(r, str)} <= counted.keys()
        for verdict in verdicts.values():
            name = verdict.rule if isinstance(verdict.rule, str) else f"rule{verdict.rule}"
            assert counted[name][0] > 0, verdict
    assert {("covey", True), ("default", False), (1, True), (1, False)} <= told


async def test_a_stranger_gets_no_answer(wire: Wire, services: Services, wall: Firewall) -> None:
    stranger = worlds.subject(MEMBERS)
    everything = '[[rule]]\nfrom = "*"\nto = "*"\nports = "*"\naction = "allow"\n'
    policy = parse(everything.encode(), "acl.toml")
    probes = [Probe(stranger.ipv6, OWN.ipv6, "udp", 53), Probe(stranger.ipv4, OWN.ipv4, "icmp", 0)]
    await wall.apply(table(policy, [*PEERS, stranger]))
    assert set(reached(wire, services, probes).values()) == {True}
    await wall.apply(table(policy))
    assert set(reached(wire, services, probes).values()) == {False}
    assert (await wall.counters())["strangers"][0] == 2
    # Nor do its replies come in, so that a member who was revoked is cut off here as well.
    with wire.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind((str(stranger.ipv4), 0))
        gone.settimeout(5)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.sendto(b"?", gone.getsockname())
            _, address = gone.recvfrom(1)
            gone.sendto(b"!", address)
    assert (await wall.counters())["strangers"][0] == 3


async def test_a_segment_in_no_window_does_not_end_a_connection(wire: Wire, wall: Firewall) -> None:
    """As after a path has changed: tracking calls it invalid, and so it is a reply to nothing."""
    await wall.apply(table(DENY))
    peer = (str(PEERS[1].ipv4), 0)
    with (
        wire.socket(socket.AF_INET, socket.SOCK_STREAM) as listening,
        wire.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as asking,
    ):
        listening.bind(peer)
        listening.listen(1)
        raw.bind(peer)
        for each in (listening, raw, asking):
            each.settimeout(5)
        asking.connect(listening.getsockname())
        serving, _ = listening.accept()
        with serving:
            asking.sendall(b"?")
            said = b""
            while said != b"?":
                packet = raw.recv(4096)
                header = packet[4 * (packet[0] & 15) :]
                port, to, sequence, acknowledged = struct.unpack_from("!HHII", header)
                said = header[4 * (header[12] >> 4) :]
            far = (acknowledged + 2**30) % 2**32
            raw.sendto(segment(peer[0], to, port, far, sequence + 1), (str(OWN.ipv4), 0))
            await asyncio.sleep(0.2)
            serving.sendall(b"!")
            assert asking.recv(1) == b"!"
            asking.sendall(b"?")
            assert serving.recv(2) == b"??"


def segment(source: str, source_port: int, port: int, sequence: int, acknowledged: int) -> bytes:
    """Return a TCP segment to this node without data."""
    fields = [source_port, port, sequence, acknowledged, 5 << 12 | 0x10, 65535, 0, 0]
    kind = struct.Struct("!HHIIHHHH")
    addresses = socket.inet_aton(source) + OWN.ipv4.packed
    words = struct.unpack("!16H", addresses + struct.pack("!HH", 6, kind.size) + kind.pack(*fields))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    fields[6] = ~total & 0xFFFF
    return kind.pack(*fields)


async def test_the_operators_table_is_as_it_was_and_its_drop_wins(
    wire: Wire, services: Services, wall: Firewall
) -> None:
    with operators_table() as listed:
        policy = parse(RULE.replace("tcp:22", "tcp:22-23").format("allow").encode(), "acl.toml")
        await wall.apply(table(policy))
        source = PEERS[1].ipv6
        ports = {22: True, 8005: False}  # what the operator accepts, our default still refuses
        probes = {Probe(source, OWN.ipv6, "tcp", port): ok for port, ok in ports.items()}
        assert reached(wire, services, probes) == probes
        with wire.socket(socket.AF_INET6, socket.SOCK_STREAM) as dropped:
            dropped.bind((str(source), 0))
            dropped.settimeout(0.2)
            with pytest.raises(TimeoutError):
                dropped.connect((str(OWN.ipv6), 23))
        assert listed() == listed.before
        await wall.remove()
        assert listed() == listed.before
        assert do("nft", "list", "ruleset") == listed.before


class Listed:
    def __init__(self) -> None:
        self.before = self()

    def __call__(self) -> str:
        return do("nft", "list", "table", "inet", "operator")


@contextmanager
def operators_table() -> Iterator[Listed]:
    do("nft", "-f", "-", stdin=OPERATOR)
    try:
        yield Listed()
    finally:
        do("nft", "delete", "table", "inet", "operator")


async def test_overlay_addresses_answer_on_the_overlay_alone(
    wire: Wire, services: Services, wall: Firewall
) -> None:
    """A machine on the LAN may route overlay addresses here; Linux would let it in."""
    probe = Probe(IPv4Address("198.18.250.2"), OWN.ipv4, "tcp", 7070)
    do(
        "ip",
        "-n",
        NAMESPACE,
        "route",
        "add",
        f"{OWN.ipv4}/32",
        "via",
        "198.18.250.1",
        "dev",
        LAN_PEER,
    )
    try:
        assert reached(wire, services, [probe]) == {probe: True}
        await wall.apply(table(Policy()))
        with wire.socket(socket.AF_INET, socket.SOCK_DGRAM) as outsider:
            outsider.bind((str(probe.source), 0))
            outsider.sendto(b"x", (str(OWN.ipv4), 7071))
        assert (await wall.counters())["around"][0] == 1
        # The node's other addresses on the LAN are none of ours.
        other = replace(probe, destination=IPv4Address("198.18.250.1"), port=22)
        assert reached(wire, services, [other]) == {other: True}
    finally:
        do("ip", "-n", NAMESPACE, "route", "del", f"{OWN.ipv4}/32")


async def test_nothing_is_forwarded(wire: Wire, wall: Firewall) -> None:
    far = IPv4Address("203.0.113.9")
    do(
        "ip",
        "-n",
        NAMESPACE,
        "route",
        "add",
        f"{far}/32",
        "via",
        str(OWN.ipv4),
        "dev",
        OVERLAY_PEER,
    )
    do("ip", "route", "add", f"{far}/32", "via", "198.18.250.2", "dev", LAN)
    do("sysctl", "-qw", "net.ipv4.ip_forward=1")
    try:
        await wall.apply(table(Policy()))
        with wire.socket(socket.AF_INET, socket.SOCK_DGRAM) as member:
            member.bind((str(PEERS[1].ipv4), 0))
            member.sendto(b"x", (str(far), 53))
        assert (await wall.counters())["forwarded"][0] == 1
    finally:
        do("sysctl", "-qw", "net.ipv4.ip_forward=0")
        do("ip", "route", "del", f"{far}/32")
        do("ip", "-n", NAMESPACE, "route", "del", f"{far}/32")


async def test_replies_to_our_own_connections_pass(wire: Wire, wall: Firewall) -> None:
    await wall.apply(table(Policy()))
    for own, member in ((OWN.ipv6, PEERS[1].ipv6), (OWN.ipv4, PEERS[1].ipv4)):
        family = socket.AF_INET6 if own.version == 6 else socket.AF_INET
        with wire.socket(family, socket.SOCK_STREAM) as server:
            server.bind((str(member), 0))
            server.listen()
            with socket.create_connection((str(member), server.getsockname()[1]), 5) as ours:
                theirs, address = server.accept()
                with theirs:
                    assert address[0] == str(own)
                    theirs.sendall(b"hello")
                    assert ours.recv(5) == b"hello"
        with wire.socket(family, socket.SOCK_DGRAM) as closed:
            closed.bind((str(member), 0))
            port = closed.getsockname()[1]
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.settimeout(5)
            asking.connect((str(member), port))
            asking.send(b"x")
            with pytest.raises(ConnectionRefusedError):  # ICMP's error about it comes back
                asking.recv(1)


async def test_errors_about_what_we_answer_pass(wire: Wire, wall: Firewall) -> None:
    """Also "packet too big", without which a path with a smaller MTU would swallow answers."""
    rule = RULE.replace("tcp:22", "udp:9").format("allow")
    await wall.apply(table(parse(rule.encode(), "acl.toml")))
    for own, member in ((OWN.ipv6, PEERS[1].ipv6), (OWN.ipv4, PEERS[1].ipv4)):
        family = socket.AF_INET6 if own.version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as serving:
            serving.settimeout(5)
            serving.bind((str(own), 9))
            with wire.socket(family, socket.SOCK_DGRAM) as asking:
                asking.bind((str(member), 0))
                asking.sendto(b"?", (str(own), 9))
                _, address = serving.recvfrom(1)
            serving.connect(address)
            serving.send(b"!")  # to a socket that has gone
            with pytest.raises(ConnectionRefusedError):
                serving.recv(1)


async def test_new_rules_hold_for_running_connections(
    wire: Wire, services: Services, wall: Firewall
) -> None:
    """What is denied now is reset on both sides; what is allowed still goes on."""
    await wall.apply(table(ALLOW))
    cut, cut_here = connected(wire, services, PEERS[1].ipv6, 22)
    kept, kept_here = connected(wire, services, PEERS[2].ipv6, 7070)
    with cut, cut_here, kept, kept_here:
        await wall.apply(table(DENY))
        kept.sendall(b"on")
        assert kept_here.recv(2) == b"on"
        cut.sendall(b"off")
        with pytest.raises(ConnectionResetError):
            cut.recv(1)
        cut_here.sendall(b"?")
        with pytest.raises(ConnectionResetError):
            cut_here.recv(1)


async def test_a_table_that_is_replaced_breaks_no_connection(
    wire: Wire, services: Services, wall: Firewall
) -> None:
    """As it is with each member that joins or leaves, while packets come in at any moment."""
    ports = RULE.replace('"name:node-1"', '"*"').replace('"tcp:22"', '"tcp:22", "tcp:8000-8005"')
    policy = parse(ports.format("allow").encode(), "acl.toml")
    await wall.apply(table(policy))
    pairs = [
        connected(wire, services, PEERS[number].ipv6, port)
        for number, port in enumerate((4001, 7100, 8005), start=1)
    ]
    ends = threading.Event()

    def talk(member: socket.socket, here: socket.socket) -> int:
        said = 0
        with member, here:
            while not ends.is_set():
                member.sendall(b"ping")
                here.sendall(here.recv(4))
                assert member.recv(4) == b"ping"
                said += 1
        return said

    talks = [asyncio.create_task(asyncio.to_thread(talk, *pair)) for pair in pairs]
    for turn in range(200):
        await wall.apply(table(policy, PEERS[: MEMBERS - turn % 2]))
    ends.set()
    assert min(await asyncio.gather(*talks)) > 100


def connected(
    wire: Wire, services: Services, source: IPv6Address, port: int
) -> tuple[socket.socket, socket.socket]:
    member = wire.socket(socket.AF_INET6, socket.SOCK_STREAM)
    member.settimeout(5)
    member.bind((str(source), 0))
    member.connect((str(OWN.ipv6), port))
    services.tcp[port].settimeout(5)
    here, _ = services.tcp[port].accept()
    services.tcp[port].setblocking(False)
    here.settimeout(5)
    member.sendall(b"first")
    assert here.recv(5) == b"first"
    return member, here


async def test_what_a_killed_agent_left_is_replaced(wall: Firewall) -> None:
    await wall.apply(table(ALLOW))
    anew = Firewall(OVERLAY)
    await anew.apply(table(Policy()))
    assert "rule1" not in await anew.counters()
    await anew.remove()
    await anew.remove()  # where there is none, it is no fault


async def test_a_table_of_a_thousand_members(wall: Firewall) -> None:
    members = [worlds.subject(n, tags=("gpu",) if n % 3 else ()) for n in range(1000)]
    text = table(
        parse(RULE.replace("name:node-1", "tag:gpu").format("allow").encode(), "f"), members
    )
    began = time.monotonic()
    await wall.apply(text)
    print(f"1000 members: {len(text)} bytes, applied in {time.monotonic() - began:.3f} s")
    listed = do("nft", "list", "table", *wall.table.split())
    assert (
        sum(f"{member.ipv4}," in listed or f"{member.ipv4} " in listed for member in members) > 990
    )


@pytest.mark.parametrize("interface", ["a=b+c", "x" * 15, "wg_0.1-z"])
async def test_the_kernel_takes_every_interface_name(interface: str) -> None:
    named = Firewall(interface)
    await named.apply(ruleset(interface, ALLOW, COVEY, OWN, PEERS))
    await named.remove()
    assert "covey-" not in do("nft", "list", "tables")


async def test_without_the_capability_it_is_said() -> None:
    async def without(arguments: Sequence[str], stdin: bytes) -> Finished:
        process = await asyncio.create_subprocess_exec(
            "setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin", "nft", *arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        stdout, stderr = await process.communicate(stdin)
        return Finished(process.returncode or 0, stdout, stderr)

    with pytest.raises(EnvironmentFault, match="needs CAP_NET_ADMIN"):
        await Firewall(OVERLAY, without).apply(table(Policy()))


async def test_the_service_reloads_and_puts_back(
    wire: Wire, services: Services, tmp_path: Path
) -> None:
    """Members here have the addresses of the wire, whatever their keys say."""
    file, health, calls = tmp_path / "acl.toml", Health(), 0
    own, member = worlds.member(0), worlds.member(1, tags=("ops",))
    places = {
        str(own.certificate.ipv6): str(OWN.ipv6),
        str(member.certificate.ipv6): str(PEERS[1].ipv6),
    }

    async def run(arguments: Sequence[str], stdin: bytes) -> Finished:
        nonlocal calls
        calls += 1
        text = stdin.decode()
        for computed, address in places.items():
            text = text.replace(computed, address)
        return await run_nft(arguments, text.encode())

    acl = Acl(
        file, OVERLAY, own.certificate.node_id, IPv4Network("10.77.0.0/16"), COVEY, health,
        firewall=Firewall(OVERLAY, run),
    )  # fmt: skip
    probe = Probe(PEERS[1].ipv6, OWN.ipv6, "tcp", 22)

    async def passes(now: float) -> bool:
        for second in range(3):
            await acl.tick(now + second)
        return reached(wire, services, [probe])[probe]

    await acl.start([own, member])
    try:
        assert not await passes(0.0)
        assert calls == 1  # what we do ourselves is not taken for someone else's doing
        file.write_text(RULE.replace("name:node-1", "tag:ops").format("allow"))
        assert await passes(10.0)
        assert (await acl.describe())["rules"][0]["packets"] > 0
        file.write_text("[[")
        assert await passes(20.0)
        assert [item.code for item in health.items()] == ["acl-file"]
        file.write_text(RULE.replace("name:node-1", "tag:ops").format("deny"))
        assert not await passes(30.0)
        assert health.items() == []
        do("nft", "delete", "table", "inet", f"covey-{OVERLAY}")
        assert reached(wire, services, [probe])[probe]
        assert not await passes(40.0)
    finally:
        await acl.stop()
    assert "covey-" not in do("nft", "list", "tables")
