"""The rules' text, what is run and what forgotten, in which order; the lab has the kernel do it."""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence

import pytest

from agent.acl.firewall import Finished
from agent.errors import EnvironmentFault
from agent.probing import conntrack, mss, snat
from agent.probing.mss import MssClamp
from agent.probing.port import Place
from agent.probing.snat import BirthdayPath, BirthdayRules

PEER, OTHER = ("198.51.100.10", 51820), ("198.51.100.30", 4000)
PATH = BirthdayPath(PEER, "192.168.20.2", 40001)
LISTED = """table ip covey-paths-wg0 {
\tchain out {
\t\tip saddr 192.168.20.2 udp sport 51820 counter snat to :40001 comment "path 51820 192.168.20.2 40001 198.51.100.10 51820"
\t\tip saddr 192.168.20.2 comment "path 51820 nonsense 40001 198.51.100.10 51820"
\t}
}
"""  # noqa: E501 as nft prints it


class System:
    """nft and the kernel's table of flows, as they were asked."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.forgotten: list[tuple[Place, Place]] = []
        self.listing = ""
        self.answer = Finished(0, b"", b"")

    async def run(self, arguments: Sequence[str], stdin: bytes) -> Finished:
        if arguments == ["list", "tables", "ip"]:
            names = ["table ip covey-paths-wg"] + ["table ip covey-paths-wg0"] * bool(self.listing)
            return Finished(0, "\n".join(names).encode(), b"")
        if arguments == ["list", "table", "ip", "covey-paths-wg0"]:
            assert self.listing, "it is not there"
            return Finished(0, self.listing.encode(), b"")
        self.done.append(stdin.decode())
        return self.answer

    def forget(self, flows: list[tuple[Place, Place]]) -> int:
        self.done.append("forget")
        self.forgotten += flows
        return len(flows)


@pytest.fixture
def system() -> System:
    return System()


@pytest.fixture
def rules(system: System) -> BirthdayRules:
    return BirthdayRules("wg0", 51820, run=system.run, forget=system.forget)


async def test_a_path_is_a_rule_each_way_and_then_old_flows_are_forgotten(
    system: System, rules: BirthdayRules
) -> None:
    await rules.add(PATH)
    text, after = system.done
    assert text.startswith("table ip covey-paths-wg0\ndelete table ip covey-paths-wg0\n")
    assert (
        "ip saddr 192.168.20.2 udp sport 51820 ip daddr 198.51.100.10 udp dport 51820"
        " counter snat to :40001"
    ) in text
    assert (
        "ip saddr 198.51.100.10 udp sport 51820 ip daddr 192.168.20.2 udp dport 40001"
        " counter dnat to :51820"
    ) in text
    assert after == "forget"
    ours = [("192.168.20.2", 51820), ("192.168.20.2", 40001)]
    assert set(system.forgotten) == {
        pair for place in ours for pair in ((place, PEER), (PEER, place))
    }
    assert rules.paths() == [PATH]


async def test_paths_come_and_go_whole(system: System, rules: BirthdayRules) -> None:
    other = BirthdayPath(OTHER, "192.168.20.2", 40002)
    await rules.add(PATH)
    await rules.add(other)
    assert system.done[-2].count("snat to") == 2
    again = BirthdayPath(PEER, "192.168.20.2", 40003)
    system.forgotten.clear()
    await rules.add(again)
    assert "40001" not in system.done[-3]
    # The old one's flow and the new one's, but not those with the other peer.
    assert {place[1] for flow in system.forgotten for place in flow} == {51820, 40001, 40003}
    assert OTHER not in {place for flow in system.forgotten for place in flow}
    assert rules.paths() == [again, other]
    await rules.remove(OTHER)
    assert system.done[-2].count("snat to") == 1
    count = len(system.done)
    await rules.remove(OTHER)
    assert len(system.done) == count
    await rules.stop()
    assert system.done[-2] == "table ip covey-paths-wg0\ndelete table ip covey-paths-wg0\n"
    assert rules.paths() == []
    count = len(system.done)
    await rules.stop()
    assert len(system.done) == count


async def test_left_overs_are_removed_and_their_flows_forgotten(
    system: System, rules: BirthdayRules
) -> None:
    system.listing = LISTED
    await rules.start()
    assert system.done[0] == "table ip covey-paths-wg0\ndelete table ip covey-paths-wg0\n"
    assert (("192.168.20.2", 51820), PEER) in system.forgotten
    assert (PEER, ("192.168.20.2", 40001)) in system.forgotten
    assert len(system.forgotten) == 4  # of what is not as we write it, nothing


async def test_where_nothing_is_left_nothing_is_forgotten(
    system: System, rules: BirthdayRules
) -> None:
    await rules.start()
    assert "forget" not in system.done


async def test_faults_say_what_is_missing(system: System, rules: BirthdayRules) -> None:
    system.answer = Finished(1, b"", b"netlink: Error: Operation not permitted\n")
    with pytest.raises(EnvironmentFault, match="needs CAP_NET_ADMIN"):
        await rules.add(PATH)
    assert rules.paths() == []
    system.answer = Finished(1, b"", b"Error: No such file\nmore")
    with pytest.raises(EnvironmentFault, match="nft failed for paths: Error: No such file"):
        await rules.add(PATH)

    def refuses(flows: list[tuple[Place, Place]]) -> int:
        raise OSError(errno.EPERM, "no")

    system.answer = Finished(0, b"", b"")
    with pytest.raises(EnvironmentFault, match="cannot make the kernel forget"):
        await BirthdayRules("wg0", 51820, run=system.run, forget=refuses).add(PATH)


def test_what_makes_no_rule_is_refused() -> None:
    for peer, local, port in (
        (("2001:db8::1", 5), "192.168.20.2", 5),
        (("198.51.100.1", 0), "192.168.20.2", 5),
        (PEER, "192.168.20.2", 65536),
        (PEER, "0.0.0.0; drop", 5),
        (("198.51.100.1 x", 5), "192.168.20.2", 5),
    ):
        with pytest.raises(ValueError):
            BirthdayPath(peer, local, port)
    for name, port in (("wg 0", 5), ("wg0", 0)):
        with pytest.raises(ValueError):
            BirthdayRules(name, port)


async def test_wireguards_own_port_and_too_many_are_refused(
    rules: BirthdayRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="by itself"):
        await rules.add(BirthdayPath(PEER, "192.168.20.2", 51820))
    monkeypatch.setattr(snat, "PATHS_MAX", 1)
    await rules.add(PATH)
    await rules.add(BirthdayPath(PEER, "192.168.20.2", 40009))  # in place of it
    with pytest.raises(ValueError, match="1 birthday paths already"):
        await rules.add(BirthdayPath(OTHER, "192.168.20.2", 40002))


def test_names_that_nft_lacks_are_written_another_way() -> None:
    assert BirthdayRules("a=b+c", 1).table == "ip covey-paths-a/eb/pc"
    assert MssClamp("a=b+c").table == "inet covey-mss-a/eb/pc"


def test_the_clamp_looks_at_both_ways() -> None:
    text = mss.rules("wg0")
    assert text.count("tcp flags & (syn | rst) == syn") == 2
    assert 'hook postrouting priority mangle; policy accept;\n    oifname "wg0"' in text
    assert 'hook forward priority mangle; policy accept;\n    iifname "wg0"' in text


def test_a_flow_is_named_as_ctnetlink_reads_it() -> None:
    said = conntrack.request(("192.0.2.1", 0x0102), ("192.0.2.2", 0x0304), 9)
    length, kind, flags, number, _ = struct.unpack_from("=IHHII", said)
    assert (length, kind, flags, number) == (len(said), 0x102, 5, 9)
    assert said[16] == 2  # AF_INET
    assert struct.unpack_from("=HH", said, 20) == (len(said) - 20, 0x8001)
    for value in (bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2]), b"\1\2", b"\3\4"):
        assert value in said[20:]
