"""WireGuard behind two hard NATs, through a relay: by nftables, in user space, by a tunnel."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from relay_net import OVERLAY, PEER, ROOT, Echo, Net, Running, do, throughput

OPERATOR = """
table inet operator {
  chain forward { type filter hook forward priority filter; policy accept; counter; }
  chain raw { type filter hook prerouting priority raw; policy accept; counter; }
}
"""
NO_ADMIN = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    made = Net()
    yield made
    made.remove()


class Lab:
    """What runs in one test."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.running: list[Running] = []
        self.relay: Running
        self.ends: dict[str, Running] = {}
        self._echo: Echo | None = None

    def start_relay(self, *, by: list[str] | None = None, **arguments: Any) -> Running:
        self.relay = Running(self.net.relay, "relay_node.py", arguments, by or ())
        self.running.append(self.relay)
        self.relay.until("up")
        return self.relay

    def start_ends(self, **ways: str) -> None:
        for name in OVERLAY:
            self.ends[name] = Running(
                self.net.inner[name], "relay_end.py",
                {"name": name, "relay": self.net.relay.address, "way": ways.get(name, "relay")},
            )  # fmt: skip
            self.running.append(self.ends[name])
        for end in self.ends.values():
            end.until("endpoint")

    @property
    def echo(self) -> Echo:
        if self._echo is None:
            self._echo = Echo(self.net)
        return self._echo

    def both_arrive(self, within_s: float = 10) -> None:
        try:
            for name in OVERLAY:
                self.echo.wait(name, within_s)
        except AssertionError:
            print(self.ask("describe"))
            for each in self.running:
                print(f"== {each.log}\n{each.log.read_text()[-3000:]}")
            for machine in self.net.inner.values():
                print(do(*machine.command(["wg", "show"])))
            raise

    def ask(self, what: str) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as made:
            made.settimeout(10)
            made.connect(str(ROOT / "relay.sock"))
            made.sendall(json.dumps({"do": what}).encode() + b"\n")
            return json.loads(made.makefile().readline())

    def until(self, what: Callable[[dict[str, Any]], object], within_s: float = 10) -> Any:
        deadline = time.monotonic() + within_s
        while not what(found := self.ask("describe")):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found

    def seen(self, name: str) -> list[list[object]]:
        """Return every place under which the relay has seen an end."""
        return [each["seen"] for each in self.ends[name].said() if each["event"] == "ready"]

    def by(self) -> str:
        """Say how the one pair is forwarded."""
        (pair,) = self.ask("describe")["pairs"]
        return str(pair["forwarding"])

    def wait_by(self, way: str) -> None:
        self.until(lambda found: [p["forwarding"] for p in found["pairs"]] == [way])

    def stop(self) -> None:
        for each in self.running:
            each.stop()
        if self._echo is not None:
            self._echo.close()


@pytest.fixture
def lab(net: Net) -> Iterator[Lab]:
    made = Lab(net)
    yield made
    made.stop()
    left = net.tables()
    net.set_forwarding(True)
    for name in OVERLAY:
        net.set_nat(name)
    for table in left.split("\n"):
        if table:
            do(*net.relay.command(["nft", "delete", *table.split()]))
    assert "covey" not in left
    open_ports = do(*net.relay.command(["ss", "-Hlun"]))
    assert open_ports == ""


def test_by_nftables(lab: Lab, net: Net) -> None:
    do(*net.relay.command(["nft", "-f", "-"]), stdin=OPERATOR)
    listed = ["nft", "-s", "list", "table", "inet", "operator"]
    before = do(*net.relay.command(listed))
    lab.start_relay()
    lab.start_ends()
    lab.both_arrive()
    lab.wait_by("kernel")
    assert throughput(net, 1) > 0.1  # Mbit/s; how fast it is, tests/bench/relay.py measures
    lab.both_arrive()
    found = lab.until(lambda found: sum(found["pairs"][0]["sent_bytes"]) > 100_000)
    assert found["reason"] is None
    assert found["pairs"][0]["open"] == [True, True]
    assert do(*net.relay.command(listed)) == before


@pytest.mark.parametrize("kernel", [True, False])
def test_a_new_place_takes_effect_at_once(lab: Lab, net: Net, kernel: bool) -> None:
    lab.start_relay(kernel=kernel)
    lab.start_ends()
    lab.both_arrive()
    lab.wait_by("kernel" if kernel else "userspace")
    for name in OVERLAY:
        seen = {tuple(place) for place in lab.seen(name)}
        net.forget_flows(name)
        lab.ends[name].signal(signal.SIGUSR1)
        began = time.monotonic()
        lab.echo.wait(name, 2)
        lab.echo.wait(PEER[name], 2)
        assert time.monotonic() - began < 2
        deadline = time.monotonic() + 2
        while not {tuple(place) for place in lab.seen(name)} - seen:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    lab.wait_by("kernel" if kernel else "userspace")
    lab.both_arrive()


def test_a_new_place_is_found_without_being_told(lab: Lab, net: Net) -> None:
    lab.start_relay()
    lab.start_ends()
    lab.both_arrive()
    net.forget_flows("anna")
    lab.both_arrive(within_s=12)


@pytest.mark.parametrize("kernel", [True, False])
def test_what_is_not_refreshed_ends(lab: Lab, kernel: bool) -> None:
    lab.start_relay(kernel=kernel, limits={"lifetime_s": 4.0})
    lab.start_ends()
    lab.both_arrive()
    lab.wait_by("kernel" if kernel else "userspace")
    for end in lab.ends.values():
        end.signal(signal.SIGSTOP)  # WireGuard itself, another process, goes on
    lab.until(lambda found: found["pairs"] == [])
    lab.echo.wait_silent(2)


@pytest.mark.parametrize("kernel", [True, False])
def test_a_quota_ends_a_pair(lab: Lab, net: Net, kernel: bool) -> None:
    lab.start_relay(kernel=kernel, limits={"pair_bytes_day": 3_000_000})
    lab.start_ends()
    lab.both_arrive()
    lab.wait_by("kernel" if kernel else "userspace")
    filling = Running(
        net.inner["anna"], "relay_flood.py", {"to": OVERLAY["bert"], "seconds": 5}
    )  # fmt: skip
    lab.running.append(filling)
    lab.until(lambda found: found["pairs"] == [])
    lab.echo.wait_silent(3)
    assert "used up today's quota" in lab.relay.log.read_text()


@pytest.mark.parametrize("kernel", [True, False])
def test_the_rate_is_kept(lab: Lab, net: Net, kernel: bool) -> None:
    lab.start_relay(kernel=kernel, limits={"rate_bytes_s": 1_000_000})
    lab.start_ends()
    lab.both_arrive()
    lab.wait_by("kernel" if kernel else "userspace")
    filling = Running(
        net.inner["anna"], "relay_flood.py", {"to": OVERLAY["bert"], "seconds": 6}
    )  # fmt: skip
    lab.running.append(filling)
    filling.until("flooding")
    time.sleep(1)
    first, began = sum(lab.ask("describe")["pairs"][0]["sent_bytes"]), time.monotonic()
    time.sleep(4)
    more = sum(lab.ask("describe")["pairs"][0]["sent_bytes"]) - first
    # Counted once a second, so by up to a second more or less than it has been.
    assert 2_500_000 < more < 1_000_000 * (time.monotonic() - began + 1.2) * 1.1


@pytest.mark.parametrize("kernel", [True, False])
def test_a_revoked_member_is_cut_off(lab: Lab, kernel: bool) -> None:
    lab.start_relay(kernel=kernel)
    lab.start_ends()
    lab.both_arrive()
    lab.wait_by("kernel" if kernel else "userspace")
    lab.ask("revoke")
    lab.echo.wait_silent(1)
    assert lab.ask("describe")["pairs"] == []


def test_switches_of_the_operator_are_his(lab: Lab, net: Net) -> None:
    net.set_forwarding(False)
    lab.start_relay()
    lab.start_ends()
    lab.both_arrive()
    found = lab.until(lambda found: found["reason"])
    assert "forwarding is off" in found["reason"]
    assert lab.by() == "userspace"
    assert do(*net.relay.command(["sysctl", "-n", "net.ipv4.ip_forward"])) == "0\n"
    net.set_forwarding(True)
    lab.until(lambda found: found["pairs"][0]["forwarding"] == "kernel", within_s=15)
    lab.both_arrive()


def test_without_the_capability_it_goes_in_user_space(lab: Lab, net: Net) -> None:
    lab.start_relay(by=NO_ADMIN)
    lab.start_ends()
    lab.both_arrive()
    found = lab.ask("describe")
    assert "CAP_NET_ADMIN" in found["reason"]
    assert lab.by() == "userspace"
    assert throughput(net, 1) > 0.1  # Mbit/s; how fast it is, tests/bench/relay.py measures


def test_another_filter_that_drops_is_noticed(lab: Lab, net: Net) -> None:
    dropping = OPERATOR.replace("filter; policy accept", "filter; policy drop")
    do(*net.relay.command(["nft", "-f", "-"]), stdin=dropping)
    lab.start_relay()
    lab.start_ends()
    lab.until(
        lambda found: (
            lab.echo.passes("anna") and "another packet filter" in (found["reason"] or "")
        ),
        within_s=30,
    )
    lab.both_arrive()
    assert lab.by() == "userspace"


def test_a_flushed_table_stops_nothing(lab: Lab, net: Net) -> None:
    lab.start_relay()
    lab.start_ends()
    lab.both_arrive()
    lab.wait_by("kernel")
    do(*net.relay.command(["nft", "flush", "ruleset"]))
    assert lab.echo.passes("anna")
    assert lab.echo.passes("bert")


def test_what_a_killed_relay_left_goes_with_the_next_one(lab: Lab, net: Net) -> None:
    lab.start_relay()
    lab.start_ends()
    lab.both_arrive()
    lab.wait_by("kernel")
    lab.relay.stop(kill=True)
    listed = do(*net.relay.command(["nft", "list", "ruleset"]))
    assert "covey-relay-covey0" in listed
    assert listed.count("timeout 2m30s") == 4  # each way there and back ends by itself
    lab.start_relay()
    assert "timeout 2m30s" not in do(*net.relay.command(["nft", "list", "ruleset"]))
    lab.echo.wait_silent(1)


@pytest.mark.parametrize("others", ["relay", "tunnel"])
def test_with_all_udp_blocked_a_tunnel_carries_it(lab: Lab, net: Net, others: str) -> None:
    net.set_nat("anna", udp=False)
    if others == "tunnel":
        net.set_nat("bert", udp=False)
    lab.start_relay(tunnel_port=443)
    lab.start_ends(anna="tunnel", bert=others)
    lab.both_arrive()
    assert throughput(net, 1) > 0.1  # Mbit/s; how fast it is, tests/bench/relay.py measures
    lab.both_arrive()
    # The connection dies without a word, as when a NAT restarts: a new one is made.
    ups = len([each for each in lab.ends["anna"].said() if each["event"] == "tunnel"])
    do(*net.nat["anna"].command(["nft", "add", "rule", "inet", "nat", "through", "tcp", "dport",
                                 "443", "reject", "with", "tcp", "reset"]))  # fmt: skip
    do(*net.nat["anna"].command(["nft", "insert", "rule", "inet", "nat", "through", "tcp", "dport",
                                 "443", "reject", "with", "tcp", "reset"]))  # fmt: skip
    lab.ends["anna"].until("tunnel", ups + 1)
    net.set_nat("anna", udp=False)
    lab.both_arrive(within_s=20)
