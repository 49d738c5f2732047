"""Word of a changed underlay, from a real kernel: what counts, what does not, and once a change."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from probing_lab import Host, do

from agent.probing.changes import UnderlayChanges

SETTLE_S = 0.1
OWN = "covey0"


class Machine(Host):
    """A machine with an underlay link u0, a link of the overlay's name, and a listener."""

    def __init__(self) -> None:
        super().__init__("m")
        self.told = 0
        self.far = Host("far")
        for link in ("u0", OWN):
            self.plug(link)
        self.ip("address", "add", "198.18.203.2/24", "dev", "u0")
        time.sleep(2.0)  # link-local addresses are no longer tentative
        self.changes = UnderlayChanges(OWN, self._changed, settle_s=SETTLE_S, settle_max_s=0.5)
        self.call(self.changes.start)

    def plug(self, link: str) -> None:
        do("ip", "link", "add", link, "netns", "m", "type", "veth",
           "peer", "name", link, "netns", "far")  # fmt: skip
        self.far.ip("link", "set", link, "up")
        self.ip("link", "set", link, "up")

    async def _changed(self) -> None:
        self.told += 1
        if self.told == 2:
            raise RuntimeError("the next change is told all the same")

    def news(self) -> int:
        """Return how often it was told since the last call."""
        time.sleep(4 * SETTLE_S)
        told, self.told = self.told, 0
        return told


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.wait(made.changes.stop())
    made.wait(made.changes.stop())
    made.close()
    made.far.close()


def test_addresses_and_routes_of_the_underlay_are_news_once(machine: Machine) -> None:
    assert machine.news() == 0
    machine.ip("address", "add", "198.18.203.3/24", "dev", "u0")
    machine.ip("route", "add", "default", "via", "198.18.203.1")
    machine.ip("address", "add", "2001:db8::3/64", "dev", "u0", "nodad")
    assert machine.news() == 1
    machine.ip("address", "del", "198.18.203.3/24", "dev", "u0")
    assert machine.news() == 1
    machine.ip("route", "replace", "default", "dev", "u0")
    assert machine.news() == 1
    machine.ip("link", "del", "u0")
    assert machine.news() == 1


def test_a_renewed_lease_is_no_news(machine: Machine) -> None:
    lease = ["address", "replace", "198.18.203.9/24", "dev", "u0", "valid_lft", "600"]
    machine.ip(*lease, "preferred_lft", "600")
    assert machine.news() == 1
    machine.ip(*lease, "preferred_lft", "500")
    assert machine.news() == 0


def test_our_own_interface_is_no_news(machine: Machine) -> None:
    machine.ip("address", "add", "10.77.0.1/16", "dev", OWN)
    machine.ip("address", "add", "fd12::1/48", "dev", OWN, "nodad")
    machine.ip("route", "add", "10.78.0.0/16", "dev", OWN)
    assert machine.news() == 0
    machine.ip("link", "del", OWN)
    assert machine.news() == 0
    # One of that name that comes later is ours as well.
    machine.plug(OWN)
    machine.ip("address", "add", "10.77.0.1/16", "dev", OWN)
    assert machine.news() == 0


def test_a_callback_that_fails_does_not_end_it(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        machine.ip("address", "add", f"198.18.204.{number + 1}/24", "dev", "u0")
        time.sleep(4 * SETTLE_S)
    assert machine.news() == 3
    assert "following a changed underlay failed" in caplog.text


def test_changes_without_end_are_told_in_between(machine: Machine) -> None:
    began = time.monotonic()
    number = 0
    while time.monotonic() - began < 1.5:
        number += 1
        machine.ip("address", "add", f"198.18.{204 + number // 250}.{number % 250 + 1}/32",
                   "dev", "u0")  # fmt: skip
        time.sleep(SETTLE_S / 4)
    assert 2 <= machine.told <= 4


def test_more_than_the_kernel_keeps_is_one_change(machine: Machine) -> None:
    lines = [
        f"address {action} 198.18.{205 + n // 250}.{n % 250 + 1}/32 dev u0"
        for action in ("add", "del")
        for n in range(900)
    ]

    async def stalled() -> None:
        time.sleep(0.5)  # noqa: ASYNC251 the loop is kept while they come

    stall = machine.begin(stalled())
    do("ip", "-n", "m", "-batch", "-", stdin="\n".join(lines))
    stall.result(10)
    assert 1 <= machine.news() <= 2
    machine.ip("address", "add", "198.18.209.1/24", "dev", "u0")
    assert machine.news() == 1


def test_started_twice_is_a_mistake(machine: Machine) -> None:
    with pytest.raises(ValueError, match="already"):
        machine.call(machine.changes.start)
